"""`atent sweep`: which trials are made, and what a sweep that was stopped makes of its journal."""

import dataclasses

import pytest
from sweeps import LR, STEPS, Formula, folder_here, known_runs, swept, trials, written  # noqa: F401 - fixtures

from atent.experiments.comparison import measure
from atent.experiments.results import TrialSeed
from atent.experiments.sweep import collect
from atent.train.interrupt import Interrupted


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
