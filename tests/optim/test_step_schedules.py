"""Per step of a training, against closed forms: learning rate, progress and averages; and the best epoch, recounted."""

import functools
import itertools
import math
import os
import signal
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from atent.data import DataSettings, load
from atent.methods import Method
from atent.optim import Optimizer, Schedule
from atent.train import Callback, Interrupted, TrainSettings, fit
from atent.train.best import Best
from atent.train.meter import Meter
from atent.train.validation import Validation
from atent.train.watch import STOP

EPOCHS, STEPS = 4, 3
TOTAL = EPOCHS * STEPS
# A weight between -TOTAL and 0 in float32, and an average of up to TOTAL of them.
FLOAT32 = 2.0**-23 * TOTAL * 4


@dataclass(frozen=True)
class Fall(Method):
    """A loss whose gradient is 1 for each weight: a step of SGD lowers it by the learning rate."""

    seen: list = field(default_factory=list, compare=False)

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        self.seen.append(progress)
        return sum(p.sum() for p in model.parameters()), {}


class Record(Callback):
    """The weights after each step, and an interrupt after one of them."""

    def __init__(self, stop=None):
        self.weights, self.stop = [], stop

    def step(self, progress):
        self.weights.append(progress.model[1].bias[0].item())
        if len(self.weights) == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=96, validation=40))


def train(data, schedule, run=None, stop=None, resume=False, **changes):
    """(weights, progresses, the final network): from weights of 0, a base rate of 1."""
    net, record, method = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Record(stop), Fall()
    for p in net.parameters():
        nn.init.zeros_(p)
    settings = TrainSettings(
        epochs=EPOCHS, batch_size=32, validate_attack="none", device="cpu", select="last", **changes
    )
    try:
        net = fit(
            net, data, method, optimizer=Optimizer(lr=1.0, momentum=0.0, weight_decay=0.0), schedule=schedule,
            settings=settings, run=run, resume=resume, progress=False, callbacks=[record],
        ).model  # fmt: skip
    except Interrupted:
        assert stop
    # The checks before a training take a step of their own.
    return record.weights, method.seen[-len(record.weights) :], net


def slow_factor(schedule, t):
    """The factor at step t, from the words of the settings."""
    unit = STEPS if schedule.unit == "epoch" else 1
    now, end = t // unit, TOTAL // unit
    if now < schedule.warmup:
        return [(k + 1) / schedule.warmup for k in range(schedule.warmup)][now]
    if schedule.kind == "step":
        return math.prod(schedule.factor for k in range(1, now + 1) if k % schedule.every == 0)
    if schedule.kind == "multistep":
        kept = [1.0, *(schedule.factors or itertools.accumulate([schedule.factor] * 9, float.__mul__))]
        return kept[len([m for m in schedule.milestones if m <= now])]
    if schedule.kind == "cosine":
        return math.cos(math.pi / 2 * (now - schedule.warmup) / (end - schedule.warmup)) ** 2
    if schedule.kind == "cyclic":
        top = schedule.peak * end
        return now / top if now <= top else (end - now) / (end - top)
    return 1.0


SCHEDULES = [
    Schedule(),
    Schedule("step", every=2, factor=0.5),
    Schedule("step", unit="step", every=5, factor=0.5, warmup=2),
    Schedule("multistep", milestones=(1, 3), factors=(0.5, 0.2), warmup=1),
    Schedule("multistep", unit="step", milestones=(4, 5, 10), factor=0.5, warmup=3),
    Schedule("cosine", warmup=2),
    Schedule("cosine", unit="step", warmup=4),
    Schedule("cyclic", unit="step", peak=0.25),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_step_has_its_rate_and_its_progress(schedule, digits):
    weights, progresses, _ = train(digits, schedule)
    assert progresses == [t / TOTAL for t in range(TOTAL)]
    rates = [before - after for before, after in itertools.pairwise([0.0, *weights])]
    assert rates == pytest.approx([slow_factor(schedule, t) for t in range(TOTAL)], abs=FLOAT32)


@pytest.mark.parametrize("stop", [4, 6, 11])
def test_a_resumed_training_has_the_rates_and_the_progress_of_the_rest(stop, digits, tmp_path):
    schedule = Schedule("cosine", unit="step", warmup=5)
    whole = train(digits, schedule)
    first = train(digits, schedule, run=tmp_path / "run", stop=stop)
    rest = train(digits, schedule, run=tmp_path / "run", resume=True)
    assert first[0] + rest[0] == whole[0]
    assert first[1] + rest[1] == whole[1]
    assert torch.equal(rest[2][1].bias, whole[2][1].bias)


@pytest.mark.parametrize("start", [0.0, 0.5, 0.6])
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_the_average_is_that_of_the_weights_on_the_way(kind, start, digits):
    """SWA: the epochs that end at ``start`` or later. EMA: the steps, with the decay that grows to its limit."""
    decay = 0.3
    weights, _, net = train(
        digits, Schedule("cosine", unit="step"), average=kind, average_decay=decay, average_start=start,
        select_weights="average",
    )  # fmt: skip
    if kind == "swa":
        kept = [weights[(e + 1) * STEPS - 1] for e in range(EPOCHS) if (e + 1) / EPOCHS >= start]
        expected = sum(kept) / len(kept)
    else:
        kept = [w for t, w in enumerate(weights) if (t + 1) / TOTAL >= start]
        expected = kept[0]
        for t, w in enumerate(kept[1:], 1):
            d = min(decay, (1 + t) / (10 + t))
            expected = d * expected + (1 - d) * w
    assert net[1].bias[0].item() == pytest.approx(expected, abs=FLOAT32)


# ---- the best epoch


def chosen(rows, select, weights, average):
    """The rows that `Best` marks, and the kinds of weights that it keeps last."""
    validation = SimpleNamespace(select=select)
    validation.score = functools.partial(Validation.score, validation)
    best = Best(validation, SimpleNamespace(average=average, select_weights=weights))
    kept = {}
    for row in rows:
        kept |= {name: (row["epoch"], kind) for name, kind in best.add(row).items()}
    return best.row, kept


@pytest.mark.parametrize(("average", "weights"), [("none", "raw"), ("ema", "raw"), ("ema", "average"), ("ema", "both")])
@pytest.mark.parametrize("select", ["robust", "clean", "last"])
def test_the_best_epoch_recounted(select, weights, average):
    """The highest accuracy on the validation split, robust ties by the clean one, then the earlier epoch; never one
    at which the watch stopped the training."""
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows, cells = [], {"raw": [], "average": []}
        for epoch in range(1, 8):
            row = {"epoch": epoch}
            u = torch.randint(0, 3, (4,), generator=random).tolist()
            for prefix, kind, (robust, clean) in (("", "raw", u[:2]), ("average_", "average", u[2:])):
                if kind == "raw" or average != "none":
                    row |= {f"{prefix}validation_robust": robust / 2, f"{prefix}validation_clean": clean / 2}
                    score = {"robust": (robust, clean), "clean": (clean, 0), "last": (epoch, 0)}[select]
                    cells[kind].append((score, -epoch, kind))
            if epoch == 7 and u[0] == 0:
                row["watch"] = STOP
                for kind in cells.values():
                    del kind[6:]
            rows.append(row)
        found, kept = chosen(rows, select, weights, average)
        allowed = ["raw", "average"] if weights == "both" else [weights]
        # Of equal scores in one epoch the raw weights, where the last epoch is selected the averaged ones.
        first = {"raw": select != "last", "average": select == "last"}
        top = max((c for kind in allowed for c in cells[kind]), key=lambda c: (*c[:2], first[c[2]]))
        assert found["epoch"] == -top[1] == max(row["epoch"] for row in rows if row["best"])
        assert kept["best"] == (-top[1], top[2])
        if average != "none":
            assert kept["raw"] == (-max(cells["raw"])[1], "raw")
            assert kept["ema"] == (-max(cells["average"])[1], "average")


# ---- the figures of an epoch


def test_the_figures_of_an_epoch_weigh_samples_and_not_batches():
    """A mean over batches of unlike size, and quantiles of all samples: the nearest of their order."""
    meter = Meter()
    for value, each in ((1.0, [9.0, 3.0, 5.0]), (4.0, [7.0])):
        meter.add({"loss": torch.tensor(value), "distance": torch.tensor(each)}, len(each))
    assert meter.summary() == {
        "loss": (3 * 1.0 + 4.0) / 4, "distance_q10": 3.0, "distance_median": 7.0, "distance_q90": 9.0,
    }  # fmt: skip
    again = Meter.restore(meter.state())
    meter.add({"loss": torch.tensor(0.0), "distance": torch.arange(6.0)}, 6)
    again.add({"loss": torch.tensor(0.0), "distance": torch.arange(6.0)}, 6)
    # 0 1 2 3 3 4 5 5 7 9: places 0.9, 4.5 (to even) and 8.1.
    assert meter.summary() == again.summary()
    assert meter.summary() == {"loss": 0.7, "distance_q10": 1.0, "distance_median": 3.0, "distance_q90": 7.0}
