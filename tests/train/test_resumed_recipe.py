"""A training that is resumed or repeated: what the commands report about the recipe file and the run folders."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from command_line import replaced
from kit import unsealed
from tiny_recipes import Here

from atent import Threat
from atent.attacks import EoT
from atent.cli import main
from atent.evaluate.ledger import code_of_attack
from atent.experiments import pipeline
from atent.experiments.backends import local
from atent.experiments.finished import compare_runs
from atent.experiments.recipe_changes import file_of, in_run
from atent.messages import once
from atent.train.trainer import Trainer

QUICK = [
    "--train.epochs", "1", "--data.limit", "64", "--data.test_limit", "40", "--train.validate_limit", "20",
    "--train.device", "cpu", "--evaluate.attacks", "FGSM",
]  # fmt: skip
RECIPE = 'extends = "digits-linf-standard"\n[optimizer]\nlr = {lr}\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    return tmp_path


def said(capsys, *args):
    """Standard output and standard error of a command that succeeds."""
    status = main(list(args))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def test_a_resumed_run_reports_an_edited_recipe(here, capsys):
    recipe = Path("my.toml")
    recipe.write_text(RECIPE.format(lr=0.01))
    said(capsys, "train", "my.toml", *QUICK, "--quiet")
    resume = ["train", "--resume", "runs/my", "--quiet"]

    assert "has changed" not in said(capsys, *resume)[1]

    recipe.write_text("# a comment\n" + RECIPE.format(lr=0.01))
    assert "has changed" not in said(capsys, *resume)[1]

    recipe.write_text(RECIPE.format(lr=0.003))
    err = said(capsys, *resume)[1]
    (line,) = [line for line in err.splitlines() if "has changed" in line]
    for part in ("my.toml", "runs/my/config.json", "optimizer.lr 0.01", "0.003"):
        assert part in line
    assert "train.epochs" not in line, "the command line set it, the file did not change it"

    recipe.write_text("method = 3\n")
    assert "my.toml has changed" in said(capsys, *resume)[1]

    recipe.unlink()
    assert "has changed" not in said(capsys, *resume)[1]


def test_a_recipe_edited_to_the_settings_of_the_run_is_no_change(here, capsys):
    Path("my.toml").write_text(RECIPE.format(lr=0.01))
    said(capsys, "train", "my.toml", *QUICK, "--optimizer.lr", "0.003", "--quiet")
    Path("my.toml").write_text(RECIPE.format(lr=0.003))
    assert "has changed" not in said(capsys, "train", "--resume", "runs/my", "--quiet")[1]


def test_a_recipe_is_found_from_another_working_folder(here, capsys, monkeypatch):
    Path("project").mkdir()
    Path("elsewhere").mkdir()
    recipe = Path("project/my.toml")
    recipe.write_text(RECIPE.format(lr=0.01))
    monkeypatch.chdir("project")
    said(capsys, "train", "my.toml", *QUICK, "--quiet")
    monkeypatch.chdir(here / "elsewhere")
    resume = ["train", "--resume", "../project/runs/my", "--quiet"]

    Path("my.toml").write_text(RECIPE.format(lr=0.1))
    assert "has changed" not in said(capsys, *resume)[1], "another file of that name"

    (here / recipe).write_text(RECIPE.format(lr=0.003))
    assert "optimizer.lr 0.01, the file now has 0.003" in said(capsys, *resume)[1]

    # A project is moved with its runs.
    (here / "project").rename(here / "moved")
    monkeypatch.chdir(here / "moved" / "runs")
    assert "my.toml has changed" in said(capsys, "train", "--resume", "my", "--quiet")[1]

    # Configurations of earlier versions have the path from the working folder.
    file = Path("my/config.json")
    config = json.loads(file.read_text())
    config["about"]["recipe_file"]["path"] = "../my.toml"
    del config["about"]["recipe_file"]["from_run"]
    file.write_text(json.dumps(config))
    said(capsys, "show", "my", "--accept", "config.json")
    assert "my.toml has changed" in said(capsys, "train", "--resume", "my", "--quiet")[1]


def test_the_record_of_a_recipe_is_json(here):
    tables = {"about": "x", "evaluate": {"eps": float("inf"), "attacks": ["FGSM"]}}
    found = file_of("my.toml", tables)
    assert found == {"path": f"{here}/my.toml", "settings": {"evaluate": {"eps": "inf", "attacks": ["FGSM"]}}}
    assert in_run(found, Path("runs/my")) == {"from_run": "../../my.toml", "settings": found["settings"]}
    assert found["settings"]["evaluate"] is not tables["evaluate"]
    assert file_of("digits-linf-standard", tables) is None


def test_a_recipe_of_the_package_is_not_compared(here, capsys):
    said(capsys, "train", "digits-linf-standard", *QUICK, "--quiet")
    assert "has changed" not in said(capsys, "train", "--resume", "runs/digits-linf-standard", "--quiet")[1]


def test_a_finished_run_is_not_evaluated_again(here, capsys, monkeypatch):
    said(capsys, "train", "digits-linf-standard", "--name", "one", *QUICK, "--quiet")
    file, resume = Path("runs/one/evaluation.json"), ["train", "--resume", "runs/one", "--quiet"]
    written = file.read_bytes()

    def never(*args, **how):
        raise AssertionError("evaluated again")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_model", never)
        out, _ = said(capsys, *resume)
    assert out.splitlines()[0].startswith("runs/one is finished")
    assert "FGSM" in out, "the accuracies are shown"
    assert file.read_bytes() == written

    content = json.loads(written)
    for broken in (None, "not JSON", json.dumps({**content, "attacks": {}}), json.dumps({**content, "epoch": 7})):
        file.unlink()
        if broken is not None:
            file.write_text(broken)
        assert "is finished" not in said(capsys, *resume)[0]
        assert json.loads(file.read_text())["outcomes"] == content["outcomes"]


def test_an_evaluation_under_other_settings_is_made_again(here, capsys):
    """The settings of the evaluation are in config.json, and may be edited there after the training."""
    words = replaced(QUICK, "--train.epochs", "2", "--train.select", "clean", "--optimizer.lr", "1e-9")
    said(capsys, "train", "digits-linf-standard", "--name", "one", *words, "--quiet")
    run, resume = Path("runs/one"), ["train", "--resume", "runs/one", "--quiet"]
    made = json.loads((run / "evaluation.json").read_text())
    assert (made["epoch"], made["last"]["epoch"]) == (1, 2)
    assert "is finished" in said(capsys, *resume)[0]

    # As a training that was longer or shorter then.
    (run / "evaluation.json").write_text(json.dumps(made | {"last": made["last"] | {"epoch": 3}}))
    said(capsys, "show", "runs/one", "--accept", "evaluation.json")
    assert "is finished" not in said(capsys, *resume)[0]
    assert json.loads((run / "evaluation.json").read_text())["last"]["epoch"] == 2

    config = json.loads((run / "config.json").read_text())
    for name, value in (("eps", 0.01), ("limit", 20), ("seed", 5), ("attacks", ["PGD(steps=2)"])):
        config["evaluate"][name] = value
        (run / "config.json").write_text(json.dumps(config))
        said(capsys, "show", "runs/one", "--accept", "config.json")
        assert "is finished" not in said(capsys, *resume)[0], name
        assert "is finished" in said(capsys, *resume)[0], name
    found = json.loads((run / "evaluation.json").read_text())
    assert [attack["threat"]["eps"] for attack in found["attacks"].values()] == [0.01]


def test_a_new_training_reports_the_interrupted_one_beside_it(here, capsys, monkeypatch):
    words = ["train", "digits-linf-standard", *replaced(QUICK, "--train.epochs", "2"), "--quiet"]
    train_epoch, epochs = Trainer._train_epoch, iter((1, 2))

    def interrupted(self, *args, **how):
        if next(epochs) == 2:
            raise KeyboardInterrupt
        return train_epoch(self, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        assert main(words) != 0
    capsys.readouterr()

    err = said(capsys, *words)[1]
    (line,) = [line for line in err.splitlines() if "unfinished" in line]
    run = "runs/digits-linf-standard"
    for part in (f"{run} is unfinished", f"`atent train --resume {run}`", f"{run}-2"):
        assert part in line

    # An evaluation of the weights so far does not finish it.
    finished = said(capsys, "train", "digits-linf-pgdat", *QUICK, "--quiet")
    assert "unfinished" not in "".join(finished)
    err = said(capsys, "compare", run, "runs/digits-linf-pgdat", "--quiet")[1]
    (line,) = [line for line in err.splitlines() if "unfinished" in line]
    assert line.startswith(f"atent: {run} is unfinished")
    assert Path(f"{run}/evaluation.json").is_file()
    for others in (["evaluate", run, "--attacks", "FGSM", "--limit", "5"], ["report", run, "--images", "0"]):
        once.cache_clear()
        assert f"atent: {run} is unfinished: `atent train --resume {run}` continues it" in said(capsys, *others)[1]
    shown = f"{run} is unfinished: <code>atent train --resume {run}</code> continues it"
    assert shown in Path(f"{run}/report.html").read_text()
    assert f"{run} is unfinished: `atent train --resume {run}`" in Path("runs/compare/comparison.md").read_text()
    assert f"{run} is unfinished" in said(capsys, *words)[1]
    said(capsys, "export", run, "--format", "hub", "--out", "card")
    assert "training of these weights was interrupted" in Path("card/README.md").read_text()

    said(capsys, "train", "--resume", run, "--quiet")
    assert "unfinished" not in said(capsys, *words)[1], "all are finished"
    said(capsys, "report", run, "--images", "0", "--out", "finished.html")
    assert "is unfinished" not in Path("finished.html").read_text()


def test_a_training_without_the_test_set_is_finished(here, capsys):
    words = ["train", "digits-linf-standard", *QUICK, "--validation-only", "--quiet"]
    said(capsys, *words)
    assert "unfinished" not in said(capsys, *words)[1]


OWN = """
from dataclasses import dataclass

from atent.attacks import Attack


@dataclass(frozen=True)
class Shift(Attack):
    passes = 1
    needs_gradient = False

    def search(self, oracle, x, y, streams):
        return self.threat.project(x {sign} 1.0, x)
"""


def test_an_evaluation_by_an_edited_attack_is_made_again(here, capsys, monkeypatch, request):
    request.addfinalizer(lambda: sys.modules.pop("own_of_resume", None))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(sign):
        Path("own_of_resume.py").write_text(OWN.replace("{sign}", sign))
        sys.modules.pop("own_of_resume", None)
        importlib.invalidate_caches()

    words = [*QUICK[:-1], "own_of_resume:Shift", "--quiet"]
    write("+")
    for name, lr in (("one", "0.01"), ("two", "0.02")):
        said(capsys, "train", "digits-linf-standard", "--name", name, *words, "--optimizer.lr", lr)
    runs = {"one": "runs/one", "two": "runs/two"}
    assert "code" not in "".join(compare_runs(runs).differs)
    resume = ["train", "--resume", "runs/one", "--quiet"]
    assert "is finished" in said(capsys, *resume)[0]
    write("-")
    assert "is finished" not in said(capsys, *resume)[0]
    assert "is finished" in said(capsys, *resume)[0]
    assert "the code of the attack Shift" in compare_runs(runs).differs

    # Evaluations of earlier versions record no code: they are neither another version nor repeated.
    file = Path("runs/one/evaluation.json")
    earlier = json.loads(file.read_text())
    del earlier["attacks"]["Shift"]["code"]
    file.write_text(json.dumps(earlier))
    unsealed(Path("runs/one"))
    assert "the code of the attack Shift" not in compare_runs(runs).differs
    assert "is finished" in said(capsys, *resume)[0]

    # A comparison that is repeated evaluates the finished runs again.
    # The first run is a process of its own, which finds the module of the user; the others begin in no time.
    kinds = iter((local.Process, Here, Here, Here))
    monkeypatch.setattr(local, "Process", lambda *task: next(kinds)(*task))
    words = ["compare", "digits-linf-standard", "digits-linf-pgdat", "--seeds", "1", *words]
    files = [Path(f"runs/compare/digits-linf-{name}-seed0/evaluation.json") for name in ("standard", "pgdat")]
    found = []
    for sign in ("+", "-"):
        write(sign)
        said(capsys, *words)
        found.append([json.loads(file.read_text())["attacks"]["Shift"] for file in files])
    first, last = found
    assert first[0]["code"] == first[1]["code"] != last[0]["code"] == last[1]["code"]


def test_the_code_of_an_attack_inside_another_counts(here, monkeypatch, request):
    request.addfinalizer(lambda: sys.modules.pop("own_of_resume", None))
    monkeypatch.syspath_prepend(str(here))
    Path("own_of_resume.py").write_text(OWN.replace("{sign}", "+").replace("needs_gradient = False", "pass"))
    importlib.invalidate_caches()
    threat = Threat("linf", 0.1)
    own = importlib.import_module("own_of_resume").Shift(threat)
    assert code_of_attack(own) == code_of_attack(EoT(threat, attack="own_of_resume:Shift()", samples=2)) != []
    assert code_of_attack(EoT(threat, attack="PGD(steps=2)", samples=2)) == []
