"""`atent sweep`: what may be swept, which trials are made, and what a sweep that was stopped makes of its journal."""

import dataclasses
import importlib
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from commands import given
from processes import SOURCE, started, until

from atent import extras
from atent.cli import main
from atent.cli.words import split_sections
from atent.experiments import migrate, pipeline
from atent.experiments import sweep as package
from atent.experiments.backends import make
from atent.experiments.comparison import measure
from atent.experiments.recipe_files import UsageError
from atent.experiments.results import SweepFile, TrialSeed
from atent.experiments.sweep import collect, loop
from atent.experiments.sweep.space import Range, parameter
from atent.experiments.sweep.spec import Sweep, changed, read_sweep
from atent.experiments.sweep.study import keeps
from atent.methods import METHODS
from atent.runs import read_jsonl
from atent.train.interrupt import Interrupted

RECIPE = """
[data]
name = "digits"
limit = 64
test_limit = 40
[model]
name = "digits_cnn"
[method]
name = "PGDAT"
steps = 1
threat = { norm = "linf", eps = 0.1 }
[train]
epochs = 4
batch_size = 64
validate_limit = 20
validate_attack = "PGD(steps=1)"
device = "cpu"
threads = 1
[evaluate]
attacks = ["PGD(steps=1)"]
"""
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


@pytest.fixture
def here(tmp_path, monkeypatch):
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


@pytest.fixture
def known(monkeypatch):
    """Every run folder of the formula may be resumed."""
    pytest.importorskip("optuna", reason="needs the extra sweep")
    monkeypatch.setattr(loop, "state", lambda run, build: "started" if run.path.exists() else "new")
    monkeypatch.setattr(collect, "figures", lambda found: {})


def swept(file, backend=None, **how):
    return loop.run_sweep(read_sweep(file), backend=backend or Formula(), progress=False, **how)


def trials(found):
    """What must be equal whatever a sweep went through."""
    return [(t.number, t.state, t.settings, t.values, t.seeds, t.reached, t.figure) for t in found.trials]


# ---- the file


@pytest.mark.parametrize(
    ("sweep", "space", "fixed", "parts"),
    [
        ("trails = 3", STEPS, "", ["unknown setting 'trails'", "'trials'"]),
        ("trials = 0", STEPS, "", ["trials must be at least 1, got 0"]),
        ("trials = true", STEPS, "", ["trials must be an integer, got True"]),
        ('sampler = "gird"', STEPS, "", ["unknown sampler 'gird'", "'grid'"]),
        ('pruner = "median"', STEPS, "", ["unknown pruner", "none, asha"]),
        ('objective = "test_robust"', STEPS, "", ["unknown objective 'test_robust'"]),
        ('objective = ["loss", "loss"]', STEPS, "", ["loss twice"]),
        ('direction = ["maximize", "minimize"]', STEPS, "", ["1 objectives and 2 directions"]),
        ('direction = "up"', STEPS, "", ["unknown direction 'up'"]),
        ('objective = "validation_certified"', STEPS, "", ['certifier = "crown-ibp"']),
        ('certifier = "ibp"', STEPS, "", ["needs objective validation_certified"]),
        ('objective = "validation_certified"\ncertifier = "smoothing"', STEPS, "", ["does not verify by bounds"]),
        ('objective = "validation_certified"\ncertifier = "ibpp"', STEPS, "", ["did you mean 'ibp'"]),
        ("epochs = 2\nminutes = 1.0", STEPS, "", ["epochs and minutes exclude each other"]),
        ("epochs = 2", STEPS, '"train.epochs" = 3', ["set the same field: use one"]),
        ('pruner = "asha"\nminutes = 1.0', STEPS, "", ["asha counts epochs"]),
        ('pruner = "asha"\nrung = 4', STEPS, "", ["after 4 epochs, and a training has 4"]),
        (
            'pruner = "asha"\nobjective = ["validation_robust", "validation_clean"]',
            STEPS,
            "",
            ["single objective"],
        ),
        ('sampler = "grid"', LR, "", ["optimizer.lr: a grid needs listed values"]),
        ('sampler = "grid"\ntrials = 3', STEPS, "", ["the grid has 2 trials, not 3"]),
        ("", "", "", ["[space] is empty"]),
        ("", '"method.steps" = []', "", ["method.steps has no values"]),
        ("", '"method.steps" = 5', "", ["method.steps has a single value, 5"]),
        ("", '"method.steps" = [5, 5]', "", ["lists 5 twice"]),
        ("", '"method.steps" = [[5]]', "", ["takes numbers, strings, true and false"]),
        ("", '"method.stpes" = [5, 6]', "", ["method.stpes", "'steps'"]),
        ("", '"method.steps" = ["many"]', "", ["method.steps", "many"]),
        ("", '"steps" = [5]', "", ["steps is not a field of a recipe"]),
        ("", '"method.steps" = { low = 5, high = 2 }', "", ["low must be at most high, got 5 and 2"]),
        ("", '"method.steps" = { low = 5, high = 5 }', "", ["low and high are both 5"]),
        ("", '"method.steps" = { low = 1, high = 10, step = 2 }', "", ["steps of 2 from 1 do not meet high 10"]),
        ("", '"method.steps" = { low = 1, high = 3, step = 0.5 }', "", ["step must be above 0 and whole"]),
        ("", '"method.steps" = { low = 1.0, high = 10.0 }', "", ["method.steps"]),
        ("", '"optimizer.lr" = { low = 0.0, high = 1.0, log = true }', "", ["must begin above 0"]),
        ("", '"optimizer.lr" = { low = 0.1, high = 1.0, log = true, step = 0.1 }', "", ["exclude each other"]),
        ("", '"optimizer.lr" = { low = 0.1 }', "", ["optimizer.lr has no high"]),
        ("", '"optimizer.lr" = { low = 0.1, high = inf }', "", ["high must be a finite number"]),
        ("", '"optimizer.lr" = { low = 0.1, hihg = 1.0 }', "", ["unknown key 'hihg'"]),
        ("", STEPS, '"method.steps" = 3', ["in [space] and also fixed"]),
        ("", '"train.seed" = [0, 1]', "", ["give [sweep] seeds"]),
        ("", STEPS, '"train.seed" = 1', ["give [sweep] seeds"]),
        ("", '"evaluate.limit" = [10, 20]', "", ["changes the validation data or metric"]),
        ("", '"data.limit" = [10, 20]', "", ["changes the validation data or metric"]),
        ("", '"train.validate_attack" = ["FGSM", "PGD"]', "", ["changes the validation data or metric"]),
        ("", '"method.threat.eps" = [0.1, 0.2]', "", ["linf 0.1 and linf 0.2", "one sweep per threat"]),
        ("", STEPS, '"train.validate_attack" = "none"', ["not measured without"]),
        ("", '"method.name" = ["PGDAT", "PGDATT"]', "", ["PGDATT"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(here, sweep, space, fixed, parts, capsys):
    file = written(sweep, space, fixed)
    assert main(["sweep", file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"atent: sweep {file}: ")
    for part in parts:
        assert part in line
    assert not Path("runs").exists()


def test_a_file_that_is_none_is_one_line(here):
    Path("broken.toml").write_text("recipe = ")
    Path("other.toml").write_text('recipe = "tiny.toml"\nspace = 3')
    Path("without.toml").write_text("[space]\n")
    for file, part in {
        "absent.toml": "no sweep file", "broken.toml": "not valid TOML", "other.toml": "write [space]",
        "without.toml": "recipe is missing",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=part.replace("[", r"\[")) as error:
            read_sweep(file)
        assert file in str(error.value)
        assert "\n" not in str(error.value)


def test_settings_may_be_spelled_as_on_the_command_line(here):
    file = written(
        "epochs = 2",
        '"--train.batch-size" = [32, 64]\n"method" = ["PGDAT", "Standard"]',
        '"evaluate.eps" = 0.1\n"evaluate.norm" = "linf"',
    )
    found = read_sweep(file)
    assert [each.name for each in found.space] == ["train.batch_size", "method.name"]
    made = found.job({"train.batch_size": 32, "method.name": "Standard"}, "x")
    assert (made.train.batch_size, type(made.method).__name__, made.train.epochs) == (32, "Standard", 2)


def test_a_nested_setting_changes_no_other_trial(here):
    tables = {"method": {"name": "PGDAT", "threat": {"norm": "linf", "eps": 0.1}}}
    assert changed(tables, {"method.threat.eps": 0.2})["method"]["threat"] == {"norm": "linf", "eps": 0.2}
    assert tables["method"]["threat"]["eps"] == 0.1


def test_a_range_with_a_step_is_a_grid_of_its_values():
    found = parameter("optimizer.lr", {"low": 0.1, "high": 0.4, "step": 0.1})
    assert isinstance(found, Range)
    assert found.listed() == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_a_missing_extra_is_one_line(here, monkeypatch, capsys):
    def absent(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    assert main(["sweep", written()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'atent[sweep]'" in line


# ---- trials


def test_a_grid_is_every_combination_once(here, known):
    backend = Formula()
    _, found = swept(written('sampler = "grid"\nseeds = 2', f'"optimizer.lr" = [0.01, 0.1]\n{STEPS}'), backend)
    assert [t.settings for t in found.trials] == [
        {"optimizer.lr": lr, "method.steps": steps} for lr in (0.01, 0.1) for steps in (1, 2)
    ]
    assert [task.run.name for task in backend.started[:3]] == ["trial-000-seed0", "trial-000-seed1", "trial-001-seed0"]
    assert found.best == [3]
    # |lr - 0.1| = 0, 2 steps, 4 epochs, the mean of seeds 0 and 1.
    assert found.trials[3].values[0].mean == pytest.approx(0.9 + 0.02 + 0.04 + 0.0005)
    # The seeds differ by 0.001, the exact interval on the validation images reaches from 0.5 to 1.
    assert (found.trials[3].values[0].low, found.trials[3].values[0].high) == (0.5, 1.0)
    assert found.importance["validation_robust"].keys() == {"optimizer.lr", "method.steps"}
    assert found.importance["validation_robust"]["optimizer.lr"] > 0.8


def test_seeds_that_agree_know_no_more_of_other_images_than_one():
    """Objectives: a share of the validation images, and a loss, which has no interval of its own."""
    seeds = [TrialSeed(i, f"seed{i}", [0.5, 1.0 + i], 1, 1, [0.4, None], [0.6, None]) for i in range(3)]
    found, loss = (collect._spread(seeds, i) for i in range(2))
    assert (found.mean, found.sd) == (0.5, 0)
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))
    assert loss == measure([1.0, 2.0, 3.0])
    # Seeds that differ by more have the t-interval; those of earlier versions have no limits.
    apart = [dataclasses.replace(seed, values=[v, 0.0]) for seed, v in zip(seeds, (0.2, 0.5, 0.8))]
    assert collect._spread(apart, 0) == measure([0.2, 0.5, 0.8])
    old = [dataclasses.replace(seed, low=[], high=[]) for seed in seeds]
    assert collect._spread(old, 0) == measure([0.5, 0.5, 0.5])


def test_every_training_leaves_the_test_set_alone(here, known):
    backend = Formula()
    swept(written("trials = 2"), backend)
    for task in backend.started:
        assert task.words[0] == "train"
        assert {"--validation-only", "--no_baseline"} <= set(task.words)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_a_sweep_that_was_stopped_makes_the_same_trials(here, known, sampler, pruner):
    space = f'"optimizer.lr" = [0.1, 0.05, 0.3]\n{STEPS}' if sampler == "grid" else f"{LR}\n{STEPS}"
    trial_count = "" if sampler == "grid" else "trials = 7\n"
    file = written(f'sampler = "{sampler}"\npruner = "{pruner}"\nseeds = 2\nstartup = 3\n{trial_count}', space)
    _, whole = swept(file, name="whole")
    backends = [Formula(dies=[n]) for n in (1, 2, 5)]
    for backend in backends:
        with pytest.raises(Interrupted):
            swept(file, backend, name="broken")
    last = Formula()
    _, found = swept(file, last, name="broken")
    assert trials(found) == trials(whole)
    assert found.best == whole.best
    # What was finished is not made again, and what was at work is waited for and resumes.
    finished = {task.run.name for task in backends[2].started[:-1]}
    assert not finished & {task.run.name for task in last.started}
    assert backends[2].started[-1].run.name in last.settled
    if pruner == "asha":
        assert {t.state for t in whole.trials} == {"complete", "pruned"}


def test_a_journal_that_was_cut_anywhere_is_resumed(here, known):
    """A kill may come between any two writes, and in the middle of one: the journal's beginnings give the same end."""
    file = written('pruner = "asha"\ntrials = 5\nseeds = 2\nstartup = 2')
    path, whole = swept(file)
    journal = (path / "journal.log").read_bytes()
    lines = journal.splitlines(keepends=True)
    for count in range(1, len(lines), 12):
        (path / "journal.log").write_bytes(b"".join(lines[:count]) + lines[count][: len(lines[count]) // 2])
        assert trials(swept(file)[1]) == trials(whole), count


def test_another_seed_of_the_sampler_tries_other_settings(here, known):
    _, one = swept(written('sampler = "random"\ntrials = 3', f"{LR}\n{STEPS}"), name="one")
    _, other = swept(written('sampler = "random"\ntrials = 3\nseed = 1', f"{LR}\n{STEPS}"), name="other")
    values = [t.settings["optimizer.lr"] for found in (one, other) for t in found.trials]
    assert len(set(values)) == 6
    assert all(1e-3 <= value <= 0.5 for value in values)


def test_tpe_looks_where_it_was_good(here, known):
    """The formula is best at lr 0.1: after the trials at random those of the model lie closer to it."""
    _, found = swept(written("trials = 40\nstartup = 10", '"optimizer.lr" = { low = 0.001, high = 1.0 }'))
    distances = [abs(t.settings["optimizer.lr"] - 0.1) for t in found.trials]
    assert sorted(distances[10:])[15] < sorted(distances[:10])[5]


def test_more_trials_may_follow(here, known):
    swept(written("trials = 2"))
    backend = Formula()
    _, found = swept(written("trials = 4"), backend)
    assert [task.run.name for task in backend.started] == ["trial-002-seed0", "trial-003-seed0"]
    assert len(found.trials) == 4


def test_asha_is_told_by_the_first_seed_and_saves_the_others(here, known):
    backend = Formula()
    file = written(
        'sampler = "grid"\npruner = "asha"\nseeds = 2\nfactor = 2',
        '"optimizer.lr" = [0.1, 0.4, 0.3, 0.2]\n"method.steps" = [1]',
    )
    _, found = swept(file, backend)
    assert [t.state for t in found.trials] == ["complete", "pruned", "pruned", "pruned"]
    # Of four trials two pass the first comparison, and of the two that came to the second one does.
    assert [(t.reached, t.seeds) for t in found.trials[1:]] == [(1, []), (1, []), (2, [])]
    assert found.trials[1].figure == pytest.approx(0.9 - 0.3 + 0.01 + 0.01)
    assert [task.run.name for task in backend.started] == [
        "trial-000-seed0", "trial-000-seed1", "trial-001-seed0", "trial-002-seed0", "trial-003-seed0",
    ]  # fmt: skip


def test_a_failed_trial_is_kept_with_its_reason(here, known):
    path, found = swept(written("trials = 3\nseeds = 2"), Formula(fails=["trial-001-seed1"]))
    assert [t.state for t in found.trials] == ["complete", "failed", "complete"]
    assert "trial-001-seed1 failed: the loss is not finite (see " in found.trials[1].reason
    assert "trial 1 failed: " in (path / "sweep.md").read_text()
    backend = Formula()
    _, again = swept(written("trials = 3\nseeds = 2"), backend)
    assert not backend.started
    assert trials(again) == trials(found)


def test_settings_that_do_not_go_together_fail_one_trial(here, known):
    space = '"train.average" = ["none", "ema"]\n"train.select_weights" = ["both", "average"]'
    _, found = swept(written('sampler = "grid"', space, '"optimizer.lr" = 0.1'))
    assert [t.state for t in found.trials] == ["complete", "failed", "complete", "complete"]
    assert "select_weights" in found.trials[1].reason


def test_where_every_trial_fails_the_command_fails(here, known):
    with pytest.raises(ChildProcessError, match="every trial failed; the first: trial-000-seed0 failed"):
        swept(written("trials = 2"), Formula(fails=["trial-000-seed0", "trial-001-seed0"]))


def test_a_failure_stops_the_trial_s_other_trainings(here, known):
    backend = Formula(at_once=2, fails=["trial-000-seed1"], hangs=["trial-000-seed0"])
    _, found = swept(written("trials = 2\nseeds = 2"), backend)
    assert [t.state for t in found.trials] == ["failed", "complete"]


def test_two_objectives_give_a_front(here, known):
    """validation_clean falls as validation_robust rises in the formula: no trial excels another in both."""
    objective = 'objective = ["validation_robust", "validation_clean"]\nsampler = "grid"'
    path, found = swept(written(objective, '"optimizer.lr" = [0.1, 0.2, 0.3]\n"method.steps" = [1]'))
    assert found.best == [0, 1, 2]
    assert (path / "sweep.md").read_text().count("front") == 3


# ---- the folder


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


# ---- backends


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--backend", "rya"], "did you mean 'ray'"),
        (["--address", "auto"], "--address needs --backend ray"),
        (["--slurm", "partition=gpu"], "--slurm needs --backend slurm"),
        (["--cpus", "2"], "use --train.threads"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_an_option_of_another_backend_is_one_line(here, words, part, capsys, monkeypatch):
    monkeypatch.setattr(extras.importlib, "import_module", lambda module: package)
    assert main(["sweep", written(), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_backend_that_is_not_installed_names_its_extra(name, monkeypatch):
    def absent(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=rf"pip install 'atent\[{name}\]'"):
        make(name)


@pytest.mark.parametrize(("value", "others", "kept"), [(0.5, [], True), (0.5, [0.6], False), (0.5, [0.4, 0.3], True)])
def test_asha_keeps_the_best_of_the_first_few(value, others, kept):
    known = dict(enumerate(others))
    assert keeps(value, known, factor=3, maximize=True) == kept
    assert keeps(-value, {n: -v for n, v in known.items()}, factor=3, maximize=False) == kept


def test_asha_keeps_a_third():
    values = [(n * 7) % 30 / 30 for n in range(30)]
    kept = [
        keeps(v, {n: o for n, o in enumerate(values) if n != i}, factor=3, maximize=True) for i, v in enumerate(values)
    ]
    assert sorted(values)[-10:] == sorted(v for v, keep in zip(values, kept) if keep)


# ---- trainings


@pytest.mark.slow
def test_a_killed_sweep_of_trainings_makes_the_same_trials(here):
    """Killed in a training and resumed: the figures of every trial are those of an unbroken sweep."""
    pytest.importorskip("optuna", reason="needs the extra sweep")
    file = written(
        'trials = 3\nseeds = 2\nsampler = "random"\nepochs = 6', f"{LR}\n{STEPS}", '"train.save_minutes" = 0'
    )
    assert main(["sweep", file, "--quiet", "--name", "whole"]) == 0
    broken = here / "runs" / "broken"
    for run in ("trial-000-seed1", "trial-002-seed0"):
        process = started("sweep", file, "--quiet", "--name", "broken")
        assert until(lambda run=run: (broken / run / "validation.jsonl").is_file(), process)
        process.kill()
        process.wait()
    assert main(["sweep", file, "--quiet", "--name", "broken"]) == 0
    found = [migrate.read(here / "runs" / name / "sweep.json", SweepFile) for name in ("whole", "broken")]
    assert trials(found[0]) == trials(found[1])
    assert not list(here.rglob("evaluation.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_cluster_gives_the_figures_of_this_machine(here, name, monkeypatch):
    for library in ("optuna", {"ray": "ray", "slurm": "submitit"}[name]):
        pytest.importorskip(library, reason=f"needs the extra {name}")
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    file = written('trials = 2\nsampler = "random"\nepochs = 2', LR)
    how = ["--slurm", "cluster=local"] if name == "slurm" else []
    assert main(["sweep", file, "--quiet", "--name", "local"]) == 0
    assert main(["sweep", file, "--quiet", "--name", "other", "--jobs", "2", "--backend", name, *how]) == 0
    found = [migrate.read(here / "runs" / each / "sweep.json", SweepFile) for each in ("local", "other")]
    assert trials(found[0]) == trials(found[1])


def test_a_training_without_the_test_set_is_evaluated_later(here, monkeypatch, capsys):
    def refuse(*args, **given):
        raise AssertionError("the test set was evaluated")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_model", refuse)
        words = ["train", "tiny.toml", "--validation-only", "--quiet", "--train.epochs", "2", "--name", "one"]
        words += ["--certifier", "crown", "--method.threat.eps", "1e-5"]
        assert main(words) == 0, capsys.readouterr().err
    run = here / "runs" / "one"
    assert not (run / "evaluation.json").exists()
    rows, metrics = (read_jsonl(run / name) for name in ("validation.jsonl", "metrics.jsonl"))
    assert rows == metrics
    certified = json.loads((run / "validation.json").read_text())
    # Verified images are correctly classified, and no attack within the threat changes that.
    best = next(row for row in reversed(rows) if row["best"])
    assert 0 < certified["validation_certified"] <= best["validation_robust"]
    assert certified["validation_certified_n"] == 20
    assert main(["train", "--resume", str(run), "--validation-only", "--quiet"]) == 0
    assert read_jsonl(run / "validation.jsonl") == metrics
    assert main(["evaluate", str(run), "--quiet"]) == 0
    assert (run / "evaluation.json").is_file()
    assert main(["train", "tiny.toml", "--validation-only", "--baseline"]) == 2


# ---- the page


def test_the_page_is_about_sweeps_that_can_be_made(here, known, capsys):
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    for block in re.findall(r"```toml\n(.*?)```", text, re.S):
        name = re.match(r"# (\S+\.toml)\n", block)[1]
        Path(name).write_text(block)
        read_sweep(name)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    for _, verb, *words in map(shlex.split, lines):
        own, _ = split_sections(words)
        assert given(verb, *own)
    rows = dict(re.findall(r"^\| `(\w+)`(?:, `\w+`)* \| ([^|]*) \|", text, re.M))
    fields = {each.name: each.default for each in dataclasses.fields(Sweep)}
    for name in ("sampler", "trials", "seeds", "pruner", "rung", "startup"):
        assert rows[name].split(",")[0].strip("`") in (json.dumps(fields[name]), str(fields[name]))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    swept("digits-sweep.toml")
    exec(compile(code, "docs/sweeps.md", "exec"), {})
    assert "optimizer.lr" in capsys.readouterr().out
