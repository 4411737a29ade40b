"""Sweeps of tests: a recipe, sweep files, and a backend that trains nothing."""

import json
import tomllib
from pathlib import Path

import pytest
from tiny_recipes import TINY

from atent.experiments.sweep import collect, loop
from atent.experiments.sweep.spec import read_sweep
from atent.train.interrupt import Interrupted

RECIPE = TINY.format(method='name = "PGDAT"\nsteps = 1\nthreat = { norm = "linf", eps = 0.1 }', epochs=4, eps=0.1)
SWEEP = """
recipe = "tiny.toml"
[sweep]
{sweep}
[space]
{space}
[set]
{fixed}
"""
FIGURES = collect.figures
LR = '"optimizer.lr" = { low = 1e-3, high = 0.5, log = true }'
STEPS = '"method.steps" = [1, 2]'


# Modules that import these fixtures have them as `here` and `known`.
@pytest.fixture(name="here")
def folder_here(tmp_path, monkeypatch):
    """A folder with a recipe, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    return tmp_path


def written(sweep="trials = 3", space=f"{LR}\n{STEPS}", fixed="", name="s"):
    Path(f"{name}.toml").write_text(SWEEP.format(sweep=sweep, space=space, fixed=fixed))
    return f"{name}.toml"


# ---- a backend that trains nothing


class Done:
    """A training that ended as it was started."""

    def __init__(self, status):
        self.status = status

    def poll(self):
        return self.status

    def stop(self):
        self.status = self.status if self.status is not None else 143

    def wait(self):
        pass

    def kill(self):
        pass


class Formula:
    """Writes the rows that a formula gives for the settings of a trial; ``dies``: the starts that are interrupted."""

    pause = 0.0

    def __init__(self, at_once=1, dies=(), fails=(), hangs=()):
        self.at_once, self.dies, self.fails, self.hangs = at_once, dies, fails, hangs
        self.started, self.settled = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def threads(self):
        return None

    def settle(self, tasks):
        self.settled += [task.run.name for task in tasks]

    def start(self, task):
        self.started.append(task)
        if len(self.started) in self.dies:
            raise Interrupted("as by a signal")
        tables = read(task)
        lr, steps, seed = tables.get("optimizer", {}).get("lr", 0.1), tables["method"]["steps"], int(task.run.name[-1])
        if task.run.name in self.fails:
            task.log.write_text("atent: the loss is not finite\n")
            return Done(1)
        task.run.mkdir(exist_ok=True)
        rows = []
        for epoch in range(1, tables["train"]["epochs"] + 1):
            robust = 0.9 - abs(lr - 0.1) + 0.01 * steps + 0.01 * epoch + 0.001 * seed
            row = {"validation_robust": robust, "validation_clean": 1 - robust / 2, "best": True}
            rows.append({"epoch": epoch, **row, "validation_robust_low": 0.5, "validation_robust_high": 1.0})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (task.run / "validation.jsonl").write_text(text)
        (task.run / "config.json").write_text(json.dumps({"provenance": {"device": "cpu"}}))
        return Done(None if task.run.name in self.hangs else 0)


def read(task):
    """The settings of the recipe that belongs to a training."""
    return tomllib.loads(task.run.with_name(task.run.name.rpartition("-")[0] + ".toml").read_text())


@pytest.fixture(name="known")
def known_runs(monkeypatch):
    """Every run folder of the formula may be resumed."""
    pytest.importorskip("optuna", reason="needs the extra sweep")
    monkeypatch.setattr(loop, "state", lambda run, build: "started" if run.path.exists() else "new")
    monkeypatch.setattr(collect, "figures", lambda found: {})


def swept(file, backend=None, **how):
    return loop.run_sweep(read_sweep(file), backend=backend or Formula(), progress=False, **how)


def trials(found):
    """What must be equal whatever a sweep went through."""
    return [(t.number, t.state, t.settings, t.values, t.seeds, t.reached, t.figure) for t in found.trials]
