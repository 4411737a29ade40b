"""`atent certify`: smoothing, bounds, shards and refusals."""

import importlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line import gaussian_run, replaced

from atent import Threat
from atent import runs as folder
from atent.certify.rows import read_rows
from atent.cli import main
from atent.experiments.certificate import certify_folder
from atent.experiments.certificate_lines import at_most, layout, linf_ball
from atent.experiments.certificate_table import markdown
from atent.experiments.results import CertifiedEntry, CertifiedRow, Samples, Share
from atent.messages import once
from atent.runs.manifest import states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gaussian_run(tmp_path_factory.mktemp("runs"))


def uncertified(run, place):
    """A copy of the run without the certificates of other tests."""
    return shutil.copytree(run, place / "run", ignore=shutil.ignore_patterns("certificate*", "manifest.json"))


def test_the_command_certifies_resumes_shards_and_merges(run, capsys, tmp_path):
    run = uncertified(run, tmp_path)

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


def earlier(file):
    """A certificate as an earlier version wrote it: without hashes of the images and of the network's settings."""
    sidecar = file.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    del content["made"].get("about", content["made"])["model"]
    sidecar.write_text(json.dumps(content))
    if file.exists():
        file.write_text("".join(line.rpartition("\t")[0] + "\n" for line in file.read_text().splitlines()))


def test_the_certificate_names_the_batch_norms_that_are_folded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nfrom atent.models import build\ndef net():\n    torch.manual_seed(0)\n    return build"
    Path("norms_in_it.py").write_text(text + "('resnet8', shape=(1, 8, 8))\n")
    made = {"data": "digits", "sigma": 0.2, "n0": 20, "n": 100, "alpha": 0.01, "limit": 4, "device": "cpu"}
    _, found, _ = certify_folder("norms_in_it:net", progress=False, trust_code=True, **made)
    assert found.made["network"]["batch_norms_folded"] == 9
    assert any("9 batch norms folded" in line for line in layout(found)[2])


def test_a_certificate_of_an_earlier_version_is_named_and_left(run, tmp_path, capsys):
    run = uncertified(run, tmp_path)
    words = ["certify", str(run), "--n", "100", "--n0", "10", "--limit", "4", "--quiet", "--device", "cpu"]
    assert main(words) == 0
    file = run / "certificate.csv"
    (run / "manifest.json").unlink(missing_ok=True)
    earlier(file)
    before = file.read_bytes()
    capsys.readouterr()
    once.cache_clear()
    assert main(replaced(words, "--limit", "6")) == 0
    err = capsys.readouterr().err.splitlines()
    assert sum("certificate.csv was made by an earlier version" in line for line in err) == 1, err
    assert file.read_bytes() == before
    assert len(read_rows(file)) == 4
    assert [len(row.image) for row in read_rows(run / "certificate-2.csv")] == [16] * 6
    for i in (1, 2):
        assert main([*words, "--seed", "1", "--shard", f"{i}/2"]) == 0
        (run / "manifest.json").unlink(missing_ok=True)
        earlier(run / f"certificate.shard-{i}-of-2.csv")
    capsys.readouterr()
    assert main([*words, "--seed", "1", "--merge"]) == 2
    assert "by an earlier version" in capsys.readouterr().err


def test_other_images_of_the_same_numbers_are_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = """
import torch
from atent.data import from_tensors

def data():
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(SEED))
    y = (torch.arange(40) + FIRST) % 10
    return from_tensors(x, y, x, y, validation=10)
"""
    net = "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Flatten(),"
    Path("images_remain.py").write_text(net + " torch.nn.Linear(64, 10))\n")
    words = ["certify", "images_remain:net", "--data", "images_that_change:data", "--sigma", "0.25", "--n", "100",
             "--n0", "10", "--limit", "6", "--quiet", "--device", "cpu"]  # fmt: skip

    def certified(seed, *more, first="0"):
        (tmp_path / "images_that_change.py").write_text(text.replace("SEED", seed).replace("FIRST", first))
        sys.modules.pop("images_that_change", None)
        importlib.invalidate_caches()
        status = main([*words, *more])
        return status, capsys.readouterr().err

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert certified("0") == (0, "")
    status, err = certified("1")
    assert (status, err.count("\n")) == (2, 1)
    assert "certificate of another image as number" in err
    assert certified("0")[0] == 0
    for seed, part in (("0", "1/2"), ("1", "2/2")):
        assert certified(seed, "--seed", "5", "--shard", part)[0] == 0
    status, err = certified("1", "--seed", "5", "--merge")
    assert (status, "certificate of another image as number" in err) == (2, True)
    for part in ("1/2", "2/2"):
        assert certified("0", "--seed", "6", "--subset", "first", "--shard", part)[0] == 0
    status, err = certified("0", "--seed", "6", "--subset", "first", "--merge", first="3")
    assert (status, err.count("\n")) == (2, 1)
    assert "label 0 for sample 0, the data have 3: run the shards again" in err


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


@pytest.mark.parametrize(
    "how",
    [
        ["--method", "ibp", "--norm", "linf", "--radius", "0.01"],
        ["--n", "100", "--n0", "20"],
        ["--n", "100", "--n0", "20", "--radius", "0.1"],
        ["--n", "100", "--n0", "20", "--shard", "1/2"],
    ],
    ids=["bounds", "smoothing", "sequential", "shard"],
)
def test_a_certificate_that_was_removed_is_made_again(run, how, tmp_path):
    """Before: the sum of the removed file was still in the manifest, and the new one was called damaged."""
    own = shutil.copytree(run, tmp_path / "run")
    for old in own.glob("certificate*"):
        old.unlink()
    before = {*own.iterdir()}
    words = ["certify", str(own), *how, "--limit", "4", "--quiet", "--device", "cpu"]
    assert main(words) == 0
    made = {*own.iterdir()} - before
    assert made
    for file in made:
        file.unlink()
    assert main(words) == 0
    assert {*own.iterdir()} - before == made
    assert {states(own)[file.name] for file in made} <= {"whole", "not covered"}


def test_runs_of_one_name_have_a_row_each(run, tmp_path):
    places = [str(shutil.copytree(run, tmp_path / part / "same")) for part in ("a", "b")]
    how = ["--method", "ibp", "--norm", "linf", "--radius", "0.01", "--limit", "8", "--quiet"]
    for _ in range(2):
        assert main(["certify", *places, *how, "--table", str(tmp_path / "t.md")]) == 0
        rows = json.loads((tmp_path / "t.json").read_text())["rows"]
        assert [row["run"] for row in rows] == places


def test_runs_of_one_name_have_a_row_each_over_several_commands(run, tmp_path, monkeypatch):
    """Before: the second command replaced the row of the first."""
    monkeypatch.chdir(tmp_path)
    for part in ("a", "b"):
        shutil.copytree(run, Path(part, "same"))
    how = ["--method", "ibp", "--norm", "linf", "--radius", "0.01", "--limit", "8", "--quiet", "--table"]

    def named(*words):
        assert main(["certify", *words]) == 0
        return [row["run"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]]

    assert named("a/same", *how, "t.md") == ["same"]
    assert named("b/same", *how, "t.md") == ["same", "b/same"]
    # From another folder and by another path these are the same.
    monkeypatch.chdir("a")
    assert named("same", *how, "../t.md") == ["same", "b/same"]
    assert named(str(tmp_path / "b" / "same"), *how, "../t.md") == ["same", str(tmp_path / "b" / "same")]
    # A row of an earlier version is known by the name of its run.
    content = json.loads((tmp_path / "t.json").read_text())
    for row in content["rows"]:
        del row["folder"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert named("same", *how, "../t.md") == ["same", str(tmp_path / "b" / "same")]


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
        "l2 0.05 = linf 1.593/255 (%)", "l2 0.125 = linf 3.984/255 (%)",
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
    assert main(replaced(common, "--limit", "13", "--method", "ibp", "--norm", "linf", "--radius", "1/64")) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), "same --limit" in err) == (1, True)
    assert table.read_text() == before
    assert main(["certify", str(run), "--table", "t.csv", "--limit", "2", "--quiet"]) == 2
    assert "ends in .md" in capsys.readouterr().err


def test_no_column_of_a_table_claims_more_than_its_certificates():
    def line(*radii, hint=None):
        share = Share.of(1, 2)
        entries = [CertifiedEntry("l2", r, r, share, 0.1) for r in radii]
        images = Samples("digits", "test", 2, 2, "stratified", shape=(1, 4, 4))
        about = {"device_name": "cpu", "threads": 1, "commit": None}
        return CertifiedRow("run", "Standard", "crown, l2", images, share, None, entries, about, hint=hint)

    # Regression: 0.5009 was shown at 0.50111 too, and a radius just within the width of a column in none.
    radii = (0.5009, 0.50111, 1.002, 1.0020035)
    lines = markdown([line(0.5, 1.0), *(line(r) for r in radii)]).splitlines()
    head, *rows = ([c.strip() for c in row.split("|")[5:-2]] for row in (lines[0], *lines[2:7]))
    assert [h.split()[1] for h in head] == ["0.5", "0.5011", "1", "1.002"]
    # Of 16 pixels a radius of 1 is linf 63.75/255, and one of 0.50111 is 31.9457.../255.
    assert [h.split()[4] for h in head] == ["31.87/255", "31.94/255", "63.75/255", "63.87/255"]
    filled = [[place for place, cell in enumerate(row) if cell != "-"] for row in rows]
    assert filled == [[0, 2], [0], [1], [2], [3]]
    assert "Warning" not in lines[-1]
    assert markdown([line(0.5, hint="no certificate is valid")]).splitlines()[-1] == (
        "Warning: run, crown, l2: no certificate is valid."
    )


@pytest.mark.parametrize(
    ("shape", "ball"),
    [((3, 2, 2), "linf 31.87/255"), (None, "linf 31.87/255"), ((4,), "linf 0.125"), ((1, 4), "linf 0.125")],
)
def test_grey_levels_are_a_unit_of_images_alone(shape, ball):
    assert linf_ball(0.125, shape) == ball


@pytest.mark.parametrize("radius", [8 / 255, 255 * (8 / 255), 255 * (math.sqrt(3072) * 2 / 255) / math.sqrt(3072)])
def test_a_radius_of_few_digits_is_shown_as_it_is(radius):
    assert at_most(radius) == f"{radius:.4g}"


@pytest.mark.parametrize(
    ("radius", "shown"), [(0, "0"), (2.27678, "2.276"), (0.99996, "0.9999"), (99.999, "99.99"), (0.0499999, "0.04999")]
)
def test_a_radius_is_rounded_down(radius, shown):
    assert at_most(radius) == shown


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


def test_a_certificate_that_is_read_keeps_its_provenance(tmp_path, monkeypatch):
    """Commit and hardware are those of the command that computed the rows."""
    monkeypatch.chdir(tmp_path)
    made, whole = iter(range(9)), folder.provenance
    monkeypatch.setattr(folder, "provenance", lambda **given: {**whole(**given), "commit": f"commit {next(made)}"})

    def commit(**given):
        path, content, _ = certify_folder("zoo:digits-linf-crown-ibp", sigma=0.1, n=1000, progress=False, **given)
        assert folder.read_json(path)["provenance"] == content.provenance
        return path.name, content.provenance["commit"]

    for given in ({"radii": [0.05]}, {"radii": [0.05, 0.1]}):
        name, first = commit(limit=3, **given)
        assert commit(limit=3, **given) == (name, first)
        assert commit(limit=2, **given) == (name, first)
        assert commit(limit=4, **given) != (name, first)
