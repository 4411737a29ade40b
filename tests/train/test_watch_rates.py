"""The rules of the watch, what they are measured from, and the page that reports their rates."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from atent.data import DataSettings, load
from atent.methods import FGSMRS
from atent.stats import by_image, image_error, paired, t_quantile
from atent.threat import Threat
from atent.train import TrainSettings, fit
from atent.train.watch import OK, STOP, WARNING, Watch, alignment

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("watch_benchmark", ROOT / "benchmarks" / "watch.py")
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # dataclasses look their module up
spec.loader.exec_module(benchmark)
LINF = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=200, validation=60))


def verdicts(digits, rows, **settings):
    """The verdicts and reasons of (PGD, training's attack, lower limit of the gap, alignment) by epoch."""
    watcher, found = Watch(FGSMRS(LINF), digits, TrainSettings(**settings), LINF), []
    for epoch, values in enumerate(rows, 1):
        names = ("watch_robust", "watch_training", "watch_gap_low", "watch_alignment")
        row = {"epoch": epoch, **dict(zip(names, values))}
        row["watch"] = watcher.assess(row)
        found.append((row["watch"], *watcher.reasons))
        if row["watch"] != OK:
            assert "\n" not in watcher.line(row)
    return found


def test_a_standing_gap_warns_after_its_window(digits):
    gap = (0.19, 0.46, 0.21, 0.9)
    assert verdicts(digits, [(0.20, 0.4, 0.1, 0.9), gap, gap, gap]) == [(OK,)] * 3 + [(WARNING, "gap")]
    assert verdicts(digits, [(0.20, 0.4, 0.1, 0.9), gap, gap], watch_window=2)[-1] == (WARNING, "gap")
    assert verdicts(digits, [(0.20, 0.4, 0.1, 0.9), *[gap] * 5], watch_gap=0.25) == [(OK,)] * 6
    # an epoch without the gap begins the window again
    assert verdicts(digits, [(0.20, 0.4, 0.1, 0.9), gap, gap, (0.19, 0.38, 0.1, 0.9), gap, gap]) == [(OK,)] * 6


def test_a_gap_of_a_network_that_improves_is_none(digits):
    rising = [(0.1 + 0.05 * k, 0.6 + 0.04 * k, 0.3, 0.9) for k in range(8)]
    assert verdicts(digits, rising) == [(OK,)] * 8


def test_gradients_that_lose_their_alignment_warn(digits):
    at = lambda *values: [(0.5, 0.6, 0.0, value) for value in values]  # noqa: E731
    assert verdicts(digits, at(0.7, 0.5, 0.39)) == [(OK,), (OK,), (WARNING, "alignment")]
    # never aligned, or without a gradient
    assert verdicts(digits, at(0.5, 0.2, None)) == [(OK,)] * 3
    assert verdicts(digits, at(0.7, None, 0.6)) == [(OK,)] * 3


def test_rows_of_earlier_versions_have_the_fall_alone(digits):
    assert verdicts(digits, [(0.5, 0.6), (0.05, 0.9)]) == [(OK,), (STOP, "fall")]


def test_what_lasts_is_said_once_and_a_fall_each_time(digits, monkeypatch):
    gap, fall = (0.45, 0.70, 0.21, 0.9), (0.38, 0.70, 0.25, 0.9)
    rows = [(0.5, 0.6, 0.0, 0.9), gap, gap, gap, gap, fall, fall]
    left, names = list(rows), ("watch_robust", "watch_training", "watch_gap_low", "watch_alignment")
    monkeypatch.setattr(Watch, "measure", lambda self, model: dict(zip(names, left.pop(0))))
    watcher = Watch(FGSMRS(LINF), digits, TrainSettings(), LINF)
    lines = [watcher.update({"epoch": epoch}, nn.Identity()) for epoch, _ in enumerate(rows, 1)]
    assert [line is not None for line in lines] == [False, False, False, True, False, True, True]
    assert "a gap above 15 points" in lines[3]
    again = watcher.fresh()
    assert (again.best, again.wide, again.reasons) == (None, 0, [])
    assert watcher.best is not None


def test_the_gap_is_the_lower_limit_of_the_paired_interval(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(model, digits, FGSMRS(Threat("linf", 0.02)), settings=TrainSettings(epochs=3, watch="off"), progress=False)
    watcher = Watch(FGSMRS(LINF, step_size=0.02, start="zero"), digits, TrainSettings(watch_limit=60), LINF)
    x, y = watcher.part.batch(torch.arange(60))
    found = watcher.measure(model)
    outcomes = []
    for name in ("watch_training", "watch_robust"):
        x_adv = watcher.attacks[name](model, x, y, seed=0, ids=watcher.part.ids)
        right = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
        assert found[name] == float(right.double().mean())
        outcomes.append("".join("01"[int(flag)] for flag in right))
    both = found["watch_training"], found["watch_robust"]
    assert both[0] > both[1]
    assert found["watch_gap_low"] == paired([both[0]], [both[1]], 60, ([outcomes[0]], [outcomes[1]])).low
    each = by_image([outcomes[0]], [outcomes[1]])
    assert found["watch_gap_low"] == pytest.approx(both[0] - both[1] - t_quantile(61) * image_error(each))


def test_the_alignment_of_a_linear_network_is_one_and_of_a_bent_one_what_it_is():
    ids, x, y = torch.arange(20), torch.rand(20, 1, 2, 2), torch.arange(20) % 2
    torch.manual_seed(0)
    line = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert alignment(line, LINF, x, y, seed=0, ids=ids) == pytest.approx(1.0)
    assert alignment(line, LINF, x, y, seed=0, ids=ids) == alignment(line, LINF, x, y, seed=0, ids=ids)

    class Bent(nn.Module):
        """Logits (s, -s), s = sum sin(40 x): the gradient turns within the ball."""

        def forward(self, x):
            s = torch.sin(40 * x).flatten(1).sum(1)
            return torch.stack([s, -s], 1)

    seen = {}
    for seed in (0, 1):
        for threat in (LINF, Threat("linf", 1e-6)):
            seen[seed, threat] = alignment(Bent(), threat, x, y, seed=seed, ids=ids)
    assert seen[0, LINF] < 0.5
    assert seen[0, LINF] != seen[1, LINF]
    assert seen[0, Threat("linf", 1e-6)] > 0.99

    class Flat(nn.Module):
        """No gradient at any input but those of the first sample."""

        def forward(self, x):
            s = x.flatten(1).sum(1) * (torch.arange(len(x)) == 0)
            return torch.stack([s, -s], 1)

    assert alignment(Flat(), LINF, x, y, seed=0, ids=ids) == pytest.approx(1.0)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(constant[1].weight)
    assert alignment(constant, LINF, x, y, seed=0, ids=ids) is None


# -- real trainings


def rows_of(name):
    return [json.loads(line) for line in (ROOT / "results" / "watch" / f"{name}.jsonl").read_text().splitlines()]


def test_recorded_collapses_on_real_images_are_seen():
    """Trainings by FGSM whose robustness fell, epoch by epoch as they were measured, meet the rules as they are now."""
    found = [
        benchmark.alarms(row)
        for name in benchmark.COMMON
        for known in [benchmark.references(name)]
        for row in rows_of(name)
        if benchmark.kind(row, known.get((row["data"], row["eps"]), 0.0)) == "collapsed"
    ]
    assert len(found) >= 5
    assert sum("stop" in rules for rules in found) >= 3
    assert sum(bool(rules) for rules in found) > len(found) / 2


def test_the_page_has_the_rates_of_the_results():
    text = (ROOT / "docs" / "reliability.md").read_text()
    assert benchmark.table("fresh") in text
    seeds = set()
    for name in benchmark.COMMON:
        assert len({r["name"] for r in rows_of(name)}) == len(rows_of(name))
        # The sets share no training, and no seed.
        own = {r["seed"] for r in rows_of(name)}
        assert not seeds & own
        seeds |= own


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten seconds on an idle core
def test_fgsm_collapses_on_small_mnist_and_the_watch_stops_it():
    """The same training again, with the watch as it is by default."""
    if not os.environ.get("ATENT_DATA_ROOT") or not (Path(os.environ["ATENT_DATA_ROOT"]) / "mnist").is_dir():
        pytest.skip("ATENT_DATA_ROOT holds no mnist")
    case = benchmark.Case("mnist", 0.2, "FGSMRS:start=zero,step=1", 0, 10, batch_size=32)
    data = benchmark.images(case.data)
    settings = TrainSettings(
        epochs=case.epochs, batch_size=case.batch_size, device="cpu", validate_limit=20, validate_attack="none"
    )
    model = benchmark.make(benchmark.ModelSettings(case.net), classes=10, shape=data.shape, seed=0)
    said = []
    optimizer = benchmark.Optimizer(lr=case.lr)
    fitted = fit(model, data, case.build(), optimizer=optimizer, settings=settings, progress=False, say=said.append)
    assert fitted.history[-1]["watch"] == STOP
    assert len(fitted.history) < case.epochs
    assert fitted.stopped == said[-1]
