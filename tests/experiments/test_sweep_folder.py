"""The folder of a sweep: another sweep's, edited code, its result file and its plots."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from sweeps import FIGURES, STEPS, Formula, folder_here, known_runs, swept, trials, written  # noqa: F401 - fixtures

from atent.experiments import migrate
from atent.experiments.results import SweepFile
from atent.methods import METHODS


def test_the_folder_of_another_sweep_is_left_alone(here, known):
    path, _ = swept(written("trials = 2"))
    before = (path / "journal.log").read_bytes()
    with pytest.raises(ValueError, match="is another sweep \\(space differs\\)"):
        swept(written("trials = 2", STEPS))
    (here / "runs" / "taken").mkdir()
    (here / "runs" / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a sweep"):
        swept(written("trials = 2"), name="taken")
    assert (path / "journal.log").read_bytes() == before


OWN = """
from dataclasses import dataclass

from atent.attacks import FGSM
from atent.methods import PGDAT, method


@method
@dataclass(frozen=True)
class Mine(PGDAT):
    change = {change}


@dataclass(frozen=True)
class Signs(FGSM):
    pass


def net(classes, shape):
    pass
"""


@pytest.mark.parametrize("place", ["method", "plug-in", "space", "attack", "network", "nothing"])
def test_an_edit_of_the_users_code_is_noticed(here, known, place, monkeypatch):
    """Before: the finished trials remained, beside those of the new code."""
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(METHODS, "_built_in", dict(METHODS._built_in))
    space, fixed = {
        "method": (STEPS, '"method.name" = "swept_by_user:Mine"'),
        "plug-in": (STEPS, '"method.name" = "Mine"'),
        "space": ('"method.name" = ["PGDAT", "swept_by_user:Mine"]', ""),
        "attack": (STEPS, '"train.validate_attack" = "EoT(attack=\'swept_by_user:Signs\', samples=2)"'),
        "network": (STEPS, '"model.name" = "swept_by_user:net"'),
        "nothing": (STEPS, '"evaluate.attacks" = ["swept_by_user:Signs"]'),
    }[place]

    def after(change):
        (here / "swept_by_user.py").write_text(OWN.format(change=change))
        METHODS._built_in.pop("Mine", None)
        sys.modules.pop("swept_by_user", None)
        importlib.invalidate_caches()
        if place == "plug-in":
            importlib.import_module("swept_by_user")
        return swept(written("trials = 2", space, fixed))

    path, found = after(1)
    assert trials(after(1)[1]) == trials(found)
    if place == "nothing":  # a sweep does not use the test set
        assert trials(after(2)[1]) == trials(found)
        return
    before = (path / "journal.log").read_bytes()
    with pytest.raises(ValueError, match=r"trials of other code \(swept_by_user has changed\): restore") as error:
        after(2)
    assert "\n" not in str(error.value)
    assert (path / "journal.log").read_bytes() == before
    # A plan of an earlier version records no code.
    plan = json.loads((path / "sweep-plan.json").read_text())
    assert plan.pop("code")
    (path / "sweep-plan.json").write_text(json.dumps(plan))
    assert trials(after(2)[1]) == trials(found)


def test_the_journal_of_another_sweep_is_refused(here, known):
    path, _ = swept(written("trials = 2"), name="one")
    swept(written("trials = 2", STEPS), name="two")
    shutil.copy(path / "journal.log", here / "runs" / "two" / "journal.log")
    with pytest.raises(ValueError, match="journal of another sweep"):
        swept(written("trials = 2", STEPS), name="two")


def test_the_result_file_comes_back_as_its_type(here, known):
    path, found = swept(written("trials = 3\nseeds = 2"), Formula(fails=["trial-001-seed0"]))
    assert migrate.read(path / "sweep.json", SweepFile) == found


def test_a_result_of_a_later_version_and_an_unknown_key_are_refused(here, known):
    path, _ = swept(written("trials = 1"))
    content = json.loads((path / "sweep.json").read_text())
    for changed_to, part in (({"schema_version": 99}, "version 99"), ({"unheard_of": 1}, "unheard_of")):
        (path / "sweep.json").write_text(json.dumps({**content, **changed_to}))
        with pytest.raises(ValueError, match=part):
            migrate.read(path / "sweep.json", SweepFile)


def test_the_schema_file_is_up_to_date():
    path = Path(__file__).parents[2] / "docs" / "schemas" / "sweep.json"
    assert json.loads(path.read_text()) == SweepFile.schema()


def test_the_plots_are_of_what_there_is(here, known, monkeypatch):
    made = []
    for count, objective in ((3, ""), (4, 'objective = ["validation_robust", "validation_clean"]\n')):
        _, found = swept(written(f"{objective}trials = {count}"), name=f"of-{count}")
        made += FIGURES(found)
    robust, clean = "parallel-validation_robust", "parallel-validation_clean"
    # Three trials are too few for importances.
    assert made == [robust, robust, clean, "importance", "pareto"]
