"""`atent evaluate --bands --corruptions --flips --fourier` and `atent transfer`: what is printed, written and shown."""

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import given
from kit import own

from atent import plots
from atent.cli import main, studies
from atent.data.corruptions import DEFINITIONS
from atent.experiments import migrate
from atent.experiments.results import (
    BandReport,
    CorruptionReport,
    EvaluationFile,
    FlipReport,
    FourierReport,
    Mean,
    Share,
    TransferFile,
)
from atent.experiments.results.studies import CorruptionRow
from atent.experiments.studies import Studies
from atent.report import report
from atent.report.collect import read
from atent.stats import unseen

ROOT = Path(__file__).parents[2]
ROOTED = ["--root", str(ROOT / "tests/files/before_subsets/sorted.npz")]
STUDIES = {"bands": BandReport, "corruptions": CorruptionReport, "flips": FlipReport, "fourier": FourierReport}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, one of which has every study and a transfer matrix; and what the commands printed."""
    place = tmp_path_factory.mktemp("studies")
    for name in ("one", "two"):
        own(shutil.copytree(ROOT / "tests/files/before_subsets/finished", place / name))
    return place


@pytest.fixture(scope="module")
def made(runs, capfd_module):
    words = [str(runs / "one"), "--limit", "12", "--device", "cpu", "--json", *ROOTED]
    studies = ["--bands", "--band-cut", "2", "--corruptions", "--flips", "--fourier", "--reference", str(runs / "two")]
    assert main(["evaluate", *words, "--attacks", "FGSM", *studies]) == 0
    evaluation = json.loads(capfd_module())
    assert main(["transfer", str(runs / "one"), str(runs / "two"), *words[1:], "--attack", "FGSM"]) == 0
    return evaluation, json.loads(capfd_module())


@pytest.fixture(scope="module")
def capfd_module():
    """What was printed to standard output since the last call."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):

        def taken():
            text = out.getvalue()
            out.seek(0)
            out.truncate()
            return text

        yield taken


def test_what_is_printed_is_what_is_written(runs, made):
    evaluation, transfer = made
    assert evaluation == json.loads((runs / "one/evaluation-2.json").read_text())
    assert transfer == json.loads((runs / "one/transfer.json").read_text())
    for name in ("bands", "corruptions", "fourier", "transfer"):
        assert (runs / f"one/{name}.png").stat().st_size > 5000
    assert not list(runs.glob("**/*.partial*"))


def test_the_files_are_read_as_their_types(runs, made):
    evaluation, transfer = made
    found = migrate.read(runs / "one/evaluation-2.json", EvaluationFile)
    for name, kind in STUDIES.items():
        part = getattr(found, name)
        version = {"corruptions": 3, "fourier": 2}.get(name, 1)
        assert (part.schema_version, part.n, part.seed) == (version, 12, 0)
        assert kind.from_json(evaluation[name]) == part
        assert kind.from_json(part.to_json()) == part
    assert found.bands.cut == 2
    # The reference is a copy of the run.
    assert all(row.rate == row.reference for row in found.flips.rows)
    assert all(row.error == row.reference for row in found.corruptions.rows)
    assert {1, None} >= set(found.corruptions.ratios.values())
    assert found.corruptions.definitions == DEFINITIONS
    matrix = migrate.read(runs / "one/transfer.json", TransferFile)
    assert matrix.to_json() == transfer
    one, two = matrix.networks
    assert one.robust == two.robust
    assert [share.k for share in one.robust] == [text.count("1") for text in one.stood]
    with pytest.raises(ValueError, match="version 99"):
        migrate.transfer({**transfer, "schema_version": 99})


def test_pictures_are_the_same_bytes_and_refuse_what_is_no_share(made):
    evaluation, transfer = made
    for name, content, emptied in (
        ("bands", evaluation["bands"], "bands"),
        ("corruptions", evaluation["corruptions"], "rows"),
        ("fourier", evaluation["fourier"], "errors"),
        ("transfer", transfer, "networks"),
    ):
        draw = getattr(plots, name)
        assert plots.svg(draw(content)) == plots.svg(draw(content))
        with pytest.raises(ValueError, match=r"draw|counts"):
            draw({**content, emptied: []})
    worse = {**evaluation["bands"], "full": {**evaluation["bands"]["full"], "value": 1.5}}
    with pytest.raises(ValueError, match="whole"):
        plots.bands(worse)


@pytest.mark.parametrize(("name", "kind"), [*STUDIES.items(), ("transfer", TransferFile)])
def test_schema_file_is_up_to_date(name, kind):
    assert json.loads((ROOT / f"docs/schemas/{name}.json").read_text()) == kind.schema()


def test_the_report_shows_them_and_names_what_was_not_measured(runs, made, monkeypatch):
    page = report([runs / "one"], images=0, progress=False)
    found = read(runs / "one").evaluations["evaluation-2.json"]
    for text in (
        found.bands.full.text, found.bands.bands[0].energy.percent, found.corruptions.mean.percent,
        found.flips.rows[0].rate.percent, "Transfer between networks", "Common corruptions", "Frequencies",
    ):  # fmt: skip
        assert text in page
    # As wide as a kind of perturbation that the images may lack makes it.
    for band in found.bands.bands:
        share, rare = band.energy, unseen(found.bands.perturbed)
        assert share.low <= share.value * (1 - rare) + 1e-12
        assert share.high >= share.value + rare * (1 - share.value) - 1e-12
    assert "not comparable with today's version" not in page
    monkeypatch.setattr("atent.report.studied.DEFINITIONS", DEFINITIONS + 1)
    assert "not comparable with today's version" in report([runs / "one"], images=0, progress=False)
    other = report([runs / "two"], images=0, progress=False)
    assert "--bands --fourier" in other
    assert "--corruptions --flips" in other
    assert "Transfer between networks" not in other


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["evaluate", "RUN", "--band-cut", "3"], "--band-cut 3 has no effect without --bands"),
        (["evaluate", "RUN", "--reference", "RUN"], "has no effect without --corruptions or --flips"),
        (["evaluate", "RUN", "--fourier-eps", "1"], "--fourier-eps 1.0 has no effect without --fourier"),
        (["evaluate", "RUN", "--bands", "--band-cut", "8"], "1 to 3"),
        (["evaluate", "RUN", "--bands", "--band-attack", "PDG"], "PDG"),
        (["evaluate", "RUN", "--corruptions", "--reference", "nowhere"], "--reference: source 'nowhere' is"),
        (["evaluate", "RUN", "--flips", "--reference", "torch.nn:Identity"], "--reference torch.nn:Identity: "),
        (["transfer", "RUN"], "two or more networks"),
        (["transfer", "RUN", "RUN"], "given twice"),
        (["transfer", "RUN", "other", "--out", "here.txt"], ".json"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(runs, words, what, capsys):
    words = [str(runs / "one") if word == "RUN" else word for word in words]
    assert main([*words, *ROOTED]) == 2
    *notices, line = capsys.readouterr().err.strip().splitlines()
    # Of a run that is read for the first time in a process the command also says what state it is in.
    assert all(each.startswith(f"atent: {runs / 'one'} ") for each in notices)
    assert what in line


def test_the_names_of_corruptions_fit_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names, all_wrong, mean = ("elastic_transform", "jpeg_compression"), Share.of(10, 10), Mean(1.0, 1.0, 1.0)
    rows = [CorruptionRow(name, "blur", s, all_wrong, 1.0, all_wrong) for name in names for s in range(1, 6)]
    found = CorruptionReport(
        schema_version=3, definitions=DEFINITIONS, n=10, seed=0, clean_error=all_wrong, rows=rows, mean=mean,
        reference="other", ratios=dict.fromkeys(names), mce=None,
    )  # fmt: skip
    studies._corruptions(found)
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert out.count("100.0") >= 12
    assert "\N{HORIZONTAL ELLIPSIS}" not in out


def test_a_transfer_takes_the_data_of_its_run(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_flat.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["transfer", str(runs / "one"), "mine_flat:net", "--limit", "4", "--json", "--quiet", *ROOTED]
    assert main([*words, "--attack", "FGSM", "--norm", "linf", "--eps", "0.1", "--out", "found.json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4


def test_a_transfer_may_be_of_few_pixels_or_patches(runs, tmp_path, capsys):
    words = ["transfer", str(runs / "one"), str(runs / "two"), "--limit", "4", "--json", "--quiet", *ROOTED]
    for name, threat in {
        "l0": ["--norm", "l0", "--eps", "3", "--group", "element", "--attack", "SparseRS(queries=2)"],
        "patch": ["--norm", "patch", "--eps", "1", "--side", "2", "--inner", "linf", "--inner-eps", "0.1", "--attack",
                  "TokenAttack(steps=1)"],
    }.items():  # fmt: skip
        assert main([*words, *threat, "--out", str(tmp_path / f"{name}.json")]) == 0
        assert json.loads(capsys.readouterr().out)["threat"]["norm"] == name


def test_an_interrupted_evaluation_with_other_definitions_of_the_corruptions_is_another_one():
    both = Studies(corruptions=True), Studies(flips=True)
    assert [study.about.get("definitions") for study in both] == [DEFINITIONS, None]


def test_vectors_have_neither_frequencies_nor_corruptions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    words = ["evaluate", "mine:net", "--data", "moons", "--norm", "linf", "--eps", "0.1", "--attacks", "FGSM"]
    for study in STUDIES:
        assert main([*words, f"--{study}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "images (c, h, w)" in line


# ---- docs/corruptions.md ------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/corruptions.md").read_text()


def test_the_pages_python_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "docs/corruptions.md", "exec"), names)
    assert names["found"].robust.shape == (2, 2, 50)


def test_the_pages_figures_are_those_of_the_results():
    found = migrate.read(ROOT / "results/studies-digits/evaluation.json", EvaluationFile)
    matrix = migrate.read(ROOT / "results/studies-digits/transfer.json", TransferFile)
    figures = [found.bands.full, *(row.robust for row in found.bands.bands)]
    figures += [share for net in matrix.networks for share in (net.clean, *net.robust)]
    assert all(f"{100 * f.value:.1f} [{100 * f.low:.1f}, {100 * f.high:.1f}]" in PAGE for f in figures)
    for name in {row.corruption for row in found.corruptions.rows}:
        errors = [100 * row.error.value for row in found.corruptions.rows if row.corruption == name]
        assert f"| `{name}` | {' | '.join(f'{e:.1f}' for e in errors)} | {found.corruptions.ratios[name]:.2f} |" in PAGE
    for mean in (found.corruptions.mce, found.flips.mfr):
        assert f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]" in PAGE


def test_the_pages_transfers_parse():
    lines = [line for line in PAGE.splitlines() if line.startswith("atent transfer ")]
    assert lines
    for line in lines:
        assert len(given("transfer", *line.split()[2:])["targets"]) == 3
