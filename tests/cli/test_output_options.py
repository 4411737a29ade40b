"""Every option that names a result: missing folders are made, what cannot be written is refused before the
computation, and a file that exists is not overwritten."""

import re
import types
from pathlib import Path

import pytest
from tiny_recipes import Here

from atent import zoo
from atent.cli import COMMANDS, main
from atent.experiments import migrate
from atent.experiments.backends import local
from atent.experiments.results import TheoryFile
from atent.paper.theory import command as theory

NETWORK = "zoo:digits-linf-crown-ibp"
FOLDER = str(Path(zoo.__file__).parent / "digits-linf-crown-ibp")
RESULTS = Path(__file__).parents[2] / "results"

FEW = ["--limit", "4", "--quiet", "--device", "cpu"]
FGSM = ["--attacks", "FGSM", *FEW]
EPOCH = [
    "--train.epochs", "1", "--data.limit", "48", "--data.test_limit", "12", "--train.validate_limit", "12",
    "--train.device", "cpu", "--quiet",
]  # fmt: skip
ROBUST = [*EPOCH, "--method.steps", "1", "--evaluate.attacks", "FGSM"]
SMOOTHING = ["--sigma", "0.1", "--n", "100", "--radius", "0.05", "0.1", *FEW]

OPTIONS = {
    ("train", "--runs"): ("", ["digits-linf-pgdat", "--no-baseline", *ROBUST]),
    ("pretrain", "--runs"): ("", ["digits-acl", *EPOCH, "--evaluate.attacks", "FGSM"]),
    ("evaluate", "--out"): ("e.json", [NETWORK, *FGSM]),
    ("evaluate", "--junit"): ("e.xml", [NETWORK, *FGSM, "--min-clean", "0"]),
    ("attack", "--out"): ("a.npz", [NETWORK, "--attack", "FGSM", *FEW]),
    ("attack", "--png"): ("a.png", [NETWORK, "--attack", "FGSM", *FEW]),
    ("transfer", "--out"): ("t.json", [NETWORK, FOLDER, "--attack", "FGSM", *FEW]),
    ("transfer", "--png"): ("t.png", [NETWORK, FOLDER, "--attack", "FGSM", *FEW]),
    ("certify", "--plot"): ("c.svg", [NETWORK, *SMOOTHING]),
    ("certify", "--table"): ("c.md", [NETWORK, "--method", "ibp", *FEW]),
    ("export", "--out"): ("hub", [NETWORK, "--format", "hub", *FEW]),
    ("gate", "--junit"): ("g.xml", [NETWORK, "--min-clean", "0"]),
    ("compare", "--runs"): ("", ["digits-linf-pgdat", "digits-linf-atent", "--seeds", "1", *ROBUST]),
    ("sweep", "--runs"): ("", ["s.toml", "--quiet"]),
    ("reproduce", "--out"): ("", ["claims", "--quiet"]),
    ("reproduce", "--runs"): ("", ["table-s1", "--time-limit", "1s", "--quiet"]),
    ("report", "--out"): ("r.html", [NETWORK, "--images", "0", "--quiet"]),
    ("bench", "--out"): ("b", ["roofline", "--quick", "--budget", "0.01", "--network", "digits_cnn", "--quiet"]),
    ("theory", "--out"): ("t.json", [NETWORK, "--quiet"]),
}  # fmt: skip
"""Each option, the name that it gets inside the folder, and the other words of a short command."""

READ = {"--root", "--weights", "--beside"}
"""Options that name what is read."""

SWEEP = """
recipe = "digits-linf-pgdat"
[sweep]
sampler = "grid"
[space]
"method.steps" = [1]
[set]
"train.epochs" = 1
"train.device" = "cpu"
"data.limit" = 48
"train.validate_limit" = 12
"""


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(SWEEP)
    monkeypatch.setattr(local, "Process", Here)
    # The chains of `atent theory` take half a minute.
    found = migrate.read(RESULTS / "theory" / "digits-l2-atent-softplus.json", TheoryFile).to_json()
    subject = types.SimpleNamespace(place=Path(), stem="")
    monkeypatch.setattr(theory, "of_run", lambda *args, **how: (subject, found))


def said(capsys, key, place):
    command, option = key
    name, words = OPTIONS[key]
    if command == "sweep":
        pytest.importorskip("optuna")
    status = main([command, *words, option, str(place / name)])
    return status, capsys.readouterr().err


def test_the_table_has_every_option_that_names_a_result(capsys):
    found = set()
    for command in COMMANDS:
        main([command, "--help"])
        found |= {(command, option) for option in re.findall(r"(--[a-z-]+) PATH\b", capsys.readouterr().out)}
    assert {key for key in found if key[1] not in READ} == OPTIONS.keys()


@pytest.mark.parametrize("key", OPTIONS, ids=" ".join)
def test_missing_folders_are_made(key, capsys):
    place = Path("missing") / "deeper"
    status, err = said(capsys, key, place)
    # A second is not enough for a table, which resumes.
    assert status == (key == ("reproduce", "--runs")), err
    name = OPTIONS[key][0]
    assert (place / name).exists() if name else any(place.iterdir())


@pytest.mark.parametrize("key", OPTIONS, ids=" ".join)
def test_a_file_in_the_path_is_reported_in_one_line_and_nothing_is_made(key, capsys):
    Path("taken").write_text("a file")
    status, err = said(capsys, key, Path("taken") / "deeper")
    assert status == 1
    assert re.fullmatch(r"atent: [^\n]*taken/deeper[^\n]*give another place\n", err), err
    made = {each.name for each in Path().iterdir()} - {"taken", "s.toml"}
    # Its tables have a place, their networks have none.
    assert made <= ({"results"} if key == ("reproduce", "--runs") else set())


ADDS = {("certify", "--table"), ("reproduce", "--out")}
"""Options whose files several commands fill."""


@pytest.mark.parametrize("key", [k for k, (name, _) in OPTIONS.items() if name and k not in ADDS], ids=" ".join)
def test_a_result_that_exists_is_not_overwritten(key, capsys):
    path = Path(OPTIONS[key][0])
    path.write_text("an earlier result")
    status, err = said(capsys, key, Path())
    assert status == 2
    assert re.fullmatch(r"atent: [^\n]*exists[^\n]*choose another[^\n]*\n", err), err
    assert path.read_text() == "an earlier result"


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["attack", NETWORK, "--out", "a.json"], ".npz"),
        (["attack", NETWORK, "--png", "a.svg"], ".png"),
        (["transfer", NETWORK, NETWORK, "--out", "t.txt"], ".json"),
        (["transfer", NETWORK, NETWORK, "--png", "t.pdf"], ".png"),
        (["certify", NETWORK, "--sigma", "0.1", "--radius", "0.05", "0.1", "--plot", "c.pdf"], ".png or .svg"),
    ],
)
def test_a_wrong_ending_is_refused_before_the_computation(words, ending, capsys, monkeypatch):
    monkeypatch.setattr("atent.experiments.certificate.certify_folder", lambda *args, **how: pytest.fail("computed"))
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(f"the name must end in {ending}\n")
    assert not [each for each in Path().iterdir() if each.name != "s.toml"]


def test_the_current_folder_takes_a_benchmark(capsys, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    words = OPTIONS["bench", "--out"][1]
    assert main(["bench", *words, "--out", "."]) == 0, capsys.readouterr().err
    assert Path("bench.json").is_file()
