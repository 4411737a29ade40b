"""`atent certify`: smoothing, bounds, shards and refusals."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import gaussian_run

from atent import Threat
from atent.certify.rows import read_rows
from atent.cli import main
from atent.experiments import certificate
from atent.experiments.certificate import certify_folder
from atent.experiments.certificate_lines import layout
from atent.folded import Folded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gaussian_run(tmp_path_factory.mktemp("runs"))


def test_the_command_certifies_resumes_shards_and_merges(run, capsys, tmp_path):
    def said(*args):
        status = main(["certify", str(run), *args, "--quiet", "--device", "cpu"])
        out, err = capsys.readouterr()
        return status, out, err

    common = ["--n", "300", "--n0", "20"]
    figure = tmp_path / "c.png"
    status, out, err = said(*common, "--limit", "6", "--radius", "0.1", "1/8", "--plot", str(figure))
    assert status == 0, err
    assert figure.stat().st_size > 10_000
    assert "clean, base network" in out
    assert "clean, smoothed network" in out
    assert "certified at l2 0.125" in out
    found = json.loads((run / "certificate.json").read_text())
    # the noise that the network was trained with
    assert found["sampling"]["sigma"] == json.loads((run / "config.json").read_text())["method"]["sigma"]
    assert (found["n"], found["complete"], found["provenance"]["seed"]) == (6, True, 0)
    before = read_rows(run / "certificate.csv")

    # More images continue the same file.
    assert said(*common, "--limit", "9")[0] == 0
    rows = read_rows(run / "certificate.csv")
    assert rows[:6] == before
    assert len(rows) == 9

    # Other settings get a file of their own; its shards merge into the same rows.
    other = [*common, "--limit", "9", "--seed", "1"]
    status, _, err = said(*other, "--merge")
    assert (status, err.count("\n")) == (2, 1)
    assert "shard" in err
    for i in (1, 2):
        assert said(*other, "--shard", f"{i}/2")[0] == 0
    assert said(*other, "--merge")[0] == 0
    merged = read_rows(run / "certificate-2.csv")
    assert [r.idx for r in merged] == [r.idx for r in rows]
    assert said(*other)[0] == 0
    assert read_rows(run / "certificate-2.csv") == merged
    assert json.loads((run / "certificate-2.json").read_text())["n"] == 9


def test_shards_that_an_earlier_version_began_end_without_folding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nfrom atent.models import build\ndef net():\n    torch.manual_seed(0)\n    return build"
    Path("norms_in_it.py").write_text(text + "('resnet8', shape=(1, 8, 8))\n")
    made = {"data": "digits", "sigma": 0.2, "n0": 20, "n": 100, "alpha": 0.01, "limit": 4, "device": "cpu"}
    call = partial(certify_folder, "norms_in_it:net", progress=False, trust_code=True, **made)
    with monkeypatch.context() as before:
        before.setattr(certificate, "certified_network", lambda model, *rest: Folded(model, 0, None))
        _, begun, _ = call(shard="1/2")
    _, ended, _ = call(shard="2/2")
    _, full, found = call(merged=True)
    assert begun.made == ended.made == full.made
    assert "network" not in full.made
    assert len(found.rows) == 4
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    _, new, _ = call()
    assert new.made["network"]["batch_norms_folded"] == 9
    assert any("9 batch norms folded" in line for line in layout(new)[2])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_network_certifies_the_same(run):
    args = ["certify", str(run), "--n", "300", "--n0", "20", "--limit", "5", "--quiet", "--device", "cpu"]
    tables = []
    for more in ([], ["--compile"]):
        for old in run.glob("certificate*"):
            old.unlink()
        assert main([*args, *more]) == 0
        tables.append([row._replace(time=0.0) for row in read_rows(run / "certificate.csv")])
    assert tables[0] == tables[1]


def test_the_command_verifies_by_bounds(run, capsys):
    from atent import load
    from atent.certify import verified
    from atent.data import DataSettings
    from atent.data import load as load_data

    args = ["certify", str(run), "--method", "crown", "--norm", "linf", "--radius", "0.01", "--limit", "40", "--quiet"]
    assert main(args) == 0
    out, _ = capsys.readouterr()
    found = json.loads(Path(re.search(r"written: (.*\.json)", out)[1]).read_text())
    part = load_data(DataSettings("digits")).sample("test", 40)
    x, y = part.batch(range(40))
    with torch.no_grad():
        certain = verified(load(run), x, y, Threat("linf", 0.01), "crown")
    assert 0 < int(certain.sum()) < 40
    assert found["certified"][0]["share"]["k"] == int(certain.sum())
    assert found["certified"][0]["verified"] == part.ids[certain].tolist()
    assert found["certified"][0]["seconds_per_image"] > 0


def test_runs_of_one_name_have_a_row_each(run, tmp_path):
    places = [str(shutil.copytree(run, tmp_path / part / "same")) for part in ("a", "b")]
    how = ["--method", "ibp", "--norm", "linf", "--radius", "0.01", "--limit", "8", "--quiet"]
    for _ in range(2):
        assert main(["certify", *places, *how, "--table", str(tmp_path / "t.md")]) == 0
        rows = json.loads((tmp_path / "t.json").read_text())["rows"]
        assert [row["run"] for row in rows] == places


def test_smoothing_and_bounds_meet_in_one_table(run, capsys, tmp_path):
    table = tmp_path / "t.md"
    common = ["certify", str(run), "--limit", "12", "--table", str(table), "--quiet", "--device", "cpu"]
    assert main([*common, "--n", "300", "--n0", "20", "--radius", "0.05", "0.125"]) == 0
    alone = json.loads(table.with_suffix(".json").read_text())["rows"]
    # On 64 pixels the l2 ball of 1/8 contains the linf ball of 1/64: one column for both.
    assert main([*common, "--method", "crown", "--norm", "linf", "--radius", "1/64"]) == 0
    rows = json.loads(table.with_suffix(".json").read_text())["rows"]
    assert rows[0] == alone[0]
    assert [r["how"].split(",")[0] for r in rows] == ["smoothing", "crown"]
    assert (rows[1]["smoothed"], rows[1]["trained"]) == (None, "Gaussian")
    lines = table.read_text().splitlines()
    assert [h.strip() for h in lines[0].split("|")[5:-2]] == [
        "l2 0.05 = linf 1.59/255 (%)", "l2 0.125 = linf 3.98/255 (%)",
    ]  # fmt: skip
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[2:4]]
    certain = [r["certified"][-1]["share"] for r in rows]
    assert cells[0][5].startswith(f"{100 * certain[0]['value']:.1f} [")
    assert cells[1][4] == "-"
    assert cells[1][5] == f"{100 * certain[1]['value']:.1f} [{100 * certain[1]['low']:.1f}, " + (
        f"{100 * certain[1]['high']:.1f}] linf only"
    )
    # The same command again replaces its row; another number of images does not mix.
    assert main([*common, "--method", "crown", "--norm", "linf", "--radius", "1/64"]) == 0
    assert len(json.loads(table.with_suffix(".json").read_text())["rows"]) == 2
    before = table.read_text()
    assert main([*common, "--limit", "13", "--method", "ibp", "--norm", "linf", "--radius", "1/64"]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), "same --limit" in err) == (1, True)
    assert table.read_text() == before
    assert main(["certify", str(run), "--table", "t.csv", "--limit", "2", "--quiet"]) == 2
    assert "ends in .md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--radius", "0.435"], "n >= "),
        (["--sigma", "-1"], "sigma must be above 0"),
        (["--norm", "linf"], "certifies in l2, not in linf"),
        (["--shard", "0/2"], "shard must be i/k.*1/2 to 2/2"),
        (["--shard", "two"], "shard must be i/k, such as 1/4"),
        (["--method", "crown", "--sigma", "0.1"], "uses no noise samples"),
        (["--method", "crown", "--radius", "0.1", "--norm", "l2", "--plot", "x.png"], "omit --plot"),
        (["--method", "crown", "--compile"], "and --compile"),
        (["--method", "crown"], r"method crown uses no noise samples: omit --n$"),
        (["--method", "ibp", "--alpha", "0.05", "--batch-size", "8"], "omit --n, --alpha and --batch-size"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--alpha", "1.5"], r"alpha must lie in \(0, 1\)"),
        (["--metod", "crown"], "did you mean '--method'"),
    ],
)
def test_the_command_refuses_in_one_line(run, capsys, args, says):
    assert main(["certify", str(run), "--n", "300", *args, "--quiet"]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(says, err)


def test_a_run_without_noise_needs_a_sigma(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["method"] = {"name": "Standard"}
    for name in ("best.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = ["certify", str(tmp_path), "--n", "100", "--n0", "10", "--limit", "2", "--quiet"]
    assert main(args) == 2
    assert "give --sigma" in capsys.readouterr().err
    assert main([*args, "--sigma", "0.2"]) == 0
