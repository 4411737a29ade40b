"""`atent compare` after an edit of the user's code: runs of two versions are never one comparison without a word."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from commands import compare_jobs
from tiny_recipes import TINY, Here, recipe, refused

from atent.cli import main
from atent.experiments.backends import local
from atent.experiments.collect import code_of_run
from atent.experiments.finished import compare_runs
from atent.experiments.plan import Plan, place
from atent.experiments.recipes import job

OWN = """
from dataclasses import dataclass

from atent.methods import Standard


@dataclass(frozen=True)
class Mine(Standard):
    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        value, metrics = super().loss(model, x, y, aux, progress=progress, state=state)
        return {factor} * value, metrics
"""
WORDS = ["mine.toml", "plain.toml", "--seeds", "1", "--quiet"]


@pytest.fixture
def edit(here, monkeypatch):
    """edit(factor): write the module of the method of mine.toml."""
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(local, "Process", Here)
    recipe("plain")
    Path("mine.toml").write_text(TINY.format(method='name = "compared_by_user:Mine"', epochs=1, eps=0.1))

    def write(factor):
        Path("compared_by_user.py").write_text(OWN.format(factor=factor))
        sys.modules.pop("compared_by_user", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("compared_by_user", None)


def place_of(name=None):
    return place("runs", name, Plan(compare_jobs(*WORDS[:2]), (0,)), job)


def test_runs_of_code_before_an_edit_are_another_comparison(edit, here, capsys):
    """Before: the finished runs were kept, so that the table was of the former code, and of both with another seed."""
    edit(1)
    assert main(["compare", *WORDS]) == 0, capsys.readouterr().err
    own = Path("runs/compare")
    assert place_of() == place_of("compare") == own
    code = json.loads((own / "plan.json").read_text())["code"]
    assert code == code_of_run(json.loads((own / "mine-seed0/config.json").read_text()))
    assert list(code) == ["compared_by_user"]
    assert code_of_run(json.loads((own / "plain-seed0/config.json").read_text())) == {}

    edit(2)
    capsys.readouterr()
    assert place_of() == Path("runs/compare-2")
    for more in ([], ["--seeds", "2"]):
        err = refused(capsys, *WORDS[:2], *(more or WORDS[2:4]), "--quiet", "--name", "compare")
        assert "has runs of other code (compared_by_user has changed): restore it, or choose another --name" in err

    # A row of runs of both versions says so.
    assert main(["train", "mine.toml", "--name", "later", "--quiet"]) == 0, capsys.readouterr().err
    runs = {"one": own / "mine-seed0", "other": "runs/later"}
    assert "the code of compared_by_user" in compare_runs(runs).differs
    assert compare_runs({**runs, "other": own / "plain-seed0"}).differs == []

    # A plan of an earlier version records no code.
    plan = json.loads((own / "plan.json").read_text())
    del plan["code"]
    (own / "plan.json").write_text(json.dumps(plan))
    assert place_of() == own
