"""Averaged weights and training by the clock: closed forms, exact resume, and both kinds of weights evaluated."""

import dataclasses
import itertools
import os
import signal

import pytest
import torch
from commands import train_job
from kit import ROUNDING, Syncs, batch, network
from torch import nn

from atent import load as load_run
from atent import runs as folder
from atent.data import DataSettings, load
from atent.evaluate import evaluate
from atent.methods import PGDAT, Standard
from atent.models import build
from atent.optim import Average, Optimizer, Schedule, lr_factor
from atent.runs.checkpoint import read_weights
from atent.threat import Threat
from atent.train import Interrupted, TrainSettings, clock, fit, load_weights
from atent.train.clock import Clock

LINF = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=128, validation=40))


def train(data, path=None, method=None, schedule=None, resume=False, report=None, lr=0.1, **changes):
    quick = {"epochs": 4, "batch_size": 32, "validate_limit": 40, "validate_attack": "PGD(steps=1)", "device": "cpu"}
    torch.manual_seed(0)
    return fit(
        Net(), data, method or Standard(), optimizer=Optimizer(lr=lr), schedule=schedule, threat=LINF,
        settings=TrainSettings(**{**quick, **changes}), run=path, progress=False, resume=resume, report=report,
    )  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, x):
        return self.body(x)


# ---- the averages


def walk(model, steps, seed=0):
    """Moves the weights and the statistics at random; the float64 copies of each state on the way."""
    torch.manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(batch()[0].to(next(model.parameters()).dtype))
        yield {k: v.clone() for k, v in model.state_dict().items()}


class Centred(nn.Module):
    """Subtracts a running mean, a buffer to which each forward pass assigns a new tensor."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean = self.mean + 1.0
        return self.lin(x - self.mean)


def test_the_average_follows_weights_and_buffers_that_become_new_tensors():
    """Many optimizers set p.data, and forward passes assign to buffers: the tensors of the start are no longer used."""
    net = Centred()
    mean = Average(net, "swa")
    for value in (1.0, 2.0, 6.0):
        net.lin.weight.data = torch.full((10, 64), value)
        net(torch.zeros(1, 64))
        mean.after_epoch(1.0)
    own = net.lin.weight.clone(), net.mean.clone()
    with mean.applied():
        assert net.lin.weight.unique().tolist() == [3.0]
        assert net.mean.unique().tolist() == [2.0]
    assert torch.equal(net.lin.weight, own[0])
    assert torch.equal(net.mean, own[1])
    assert net.mean.unique().tolist() == [3.0]


def test_complex_weights_are_averaged():
    net = nn.Linear(2, 2, dtype=torch.complex64)
    mean = Average(net, "swa")
    for value in (1.0, 2.0j, 5.0 + 4.0j):
        nn.init.constant_(net.weight, value)
        mean.after_epoch(1.0)
    with mean.applied():
        assert net.weight.detach().flatten().numpy() == pytest.approx(2.0 + 2.0j)


def test_a_resumed_average_has_buffers_that_were_assigned(tmp_path, digits, monkeypatch):
    """The resumed training ends with the averaged weights of the undisturbed one."""

    def run(name, resume=False, report=None):
        torch.manual_seed(0)
        return fit(
            Centred(), digits, Standard(), settings=TrainSettings(epochs=4, batch_size=32, device="cpu", average="ema"),
            run=tmp_path / name, progress=False, resume=resume, report=report,
        )  # fmt: skip

    def stop(row):
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run("whole")
    with pytest.raises(Interrupted):
        run("cut", report=stop)
    run("cut", resume=True)
    for file in ("best.safetensors", "last/ema.safetensors"):
        one, other = (read_weights(tmp_path / name / file)[1] for name in ("whole", "cut"))
        assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}, file


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.995])
def test_ema_is_its_closed_form(decay):
    """sum_t (1 - d_t) prod_{s > t} d_s w_t with d_0 = 0, buffers included; counters are the last ones."""
    model = network(True)
    mean = Average(model, "ema", decay=decay)
    states = []
    for state in walk(model, 30):
        states.append(state)
        mean.after_step(0.5)
        mean.after_epoch(0.5)
    d = [0.0, *(min(decay, (1 + t) / (10 + t)) for t in range(1, 30))]
    shares = [(1 - d[t]) * torch.tensor(d[t + 1 :], dtype=torch.float64).prod() for t in range(30)]
    assert float(sum(shares)) == pytest.approx(1, rel=1e-12)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with mean.applied():
        found = {k: v.clone() for k, v in model.state_dict().items()}
    for name, value in found.items():
        if value.is_floating_point():
            expected = sum(share * state[name] for share, state in zip(shares, states, strict=True))
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=ROUNDING)
        else:
            assert torch.equal(value, states[-1][name])
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert torch.equal(found["1.running_mean"], own["1.running_mean"]) == (decay == 0)


def test_swa_is_the_mean_of_the_epochs():
    model = network(True)
    mean = Average(model, "swa", start=0.5)
    states = []
    for epoch, state in enumerate(walk(model, 8), 1):
        mean.after_step(epoch / 8)
        mean.after_epoch(epoch / 8)
        if epoch >= 4:
            states.append(state)
    assert mean.count == len(states) == 5
    with mean.applied():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected = torch.stack([s[name] for s in states]).mean(0)
                torch.testing.assert_close(value, expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_weights_come_back_after_an_exception():
    model = network(True)
    mean = Average(model, "ema", decay=0.5)
    for _ in walk(model, 5):
        mean.after_step(1.0)
    own = {k: v.clone() for k, v in model.state_dict().items()}

    def fails():
        with mean.applied():
            assert not torch.equal(model[0].weight, own["0.weight"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())


def test_weights_that_are_shared_are_averaged_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    mean = Average(model, "ema", decay=0.5)
    mean.after_step(1.0)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(2.0)
    mean.after_step(1.0)
    with mean.applied():
        # d = min(0.5, 2 / 11)
        torch.testing.assert_close(model[0].weight.detach(), before + 2.0 * 9 / 11)


def test_an_update_waits_for_nothing():
    model = network(True)
    mean = Average(model, "ema")
    with Syncs() as syncs:
        for _ in range(3):
            mean.after_step(1.0)
    assert not syncs.seen


@pytest.mark.parametrize(
    "bad", [{"average_decay": 1.0}, {"average_decay": -0.1}, {"average_start": 1.0}, {"average": "exp"},
            {"select_weights": "average"}, {"select_weights": "all"}, {"minutes": 0}, {"minutes": float("nan")},
            {"validations": 0}],
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainSettings(**bad)


# ---- in the loop


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_both_weights_are_evaluated_and_kept(digits, tmp_path, kind):
    fitted = train(digits, tmp_path / "run", average=kind, average_decay=0.9)
    rows = fitted.history
    part = digits.validation.first(40)
    x, y = part.batch(torch.arange(len(part)))
    clean = {"raw": "validation_clean", kind: "average_validation_clean"}
    robust = {"raw": "validation_robust", kind: "average_validation_robust"}
    assert all({*clean.values(), *robust.values(), "average_train_robust"} <= set(row) for row in rows)
    assert any(row[clean["raw"]] != row[clean[kind]] for row in rows)
    # Standard training has no threat of its own: clean accuracy selects
    tops = {}
    for name, key in clean.items():
        top = max(row[key] for row in rows)
        tops[name] = next(row for row in rows if row[key] == top)
        model = load_run_weights(tmp_path / "run" / f"{name}.safetensors")
        assert evaluate(model, x, y, []).clean["value"] == top
    winner = max(tops, key=lambda name: tops[name][clean[name]])
    assert fitted.best[clean[winner]] == max(tops[name][clean[name]] for name in tops)
    best, other = (load_run_weights(tmp_path / "run" / f) for f in ("best.safetensors", f"{winner}.safetensors"))
    if tops["raw"][clean["raw"]] != tops[kind][clean[kind]]:
        assert fitted.best["best_weights"] == ("raw" if winner == "raw" else "average")
        assert same(best, other)
    assert same(best, fitted.model)
    assert (tmp_path / "run" / "last" / f"{kind}.safetensors").is_file()
    assert load_weights(Net(), tmp_path / "run", which=kind)["weights"] == "average"


def load_run_weights(path):
    model = Net()
    load_weights(model, path)
    return model.eval()


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_average_changes_no_raw_weight(digits, tmp_path):
    plain = train(digits, tmp_path / "a", select="last")
    averaged = train(digits, tmp_path / "b", select="last", average="ema", select_weights="raw")
    assert same(plain.model, averaged.model)
    kept = train(digits, tmp_path / "c", select="last", average="ema")
    assert kept.best["best_weights"] == "average"
    assert not same(plain.model, kept.model)
    assert same(kept.model, load_run_weights(tmp_path / "c" / "last" / "ema.safetensors"))


def test_the_average_of_the_loop_is_that_of_its_steps(digits):
    """4 epochs of 4 steps, averaged from half of the training on, against a loop written out here."""
    fitted = train(digits, average="ema", average_decay=0.5, average_start=0.5, select="last")
    assert all("average_validation_clean" not in row for row in fitted.history[:1])
    seen = []

    class Spy(Standard):
        def backward(self, model, *args, **kwargs):
            seen.append({k: v.clone() for k, v in model.state_dict().items()})
            return super().backward(model, *args, **kwargs)

    last = train(digits, method=Spy(), select="last").model
    # the weights after step t are those that step t + 1 sees; statistics move in the pass itself
    after = [*seen[1:], last.state_dict()]
    mean = {k: v.double() for k, v in after[7].items()}
    for t, state in enumerate(after[8:], 1):
        d = min(0.5, (1 + t) / (10 + t))
        mean = {k: d * v + (1 - d) * state[k].double() for k, v in mean.items()}
    for name, value in fitted.model.state_dict().items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_resumed_equals_unbroken(digits, tmp_path, kind, monkeypatch):
    given = {"average": kind, "method": PGDAT(LINF, steps=1), "average_start": 0.25}
    whole = train(digits, tmp_path / "whole", **given)
    calls, backward = itertools.count(), PGDAT.backward

    def interrupting(self, *args, **kwargs):
        if next(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(PGDAT, "backward", interrupting)
    with pytest.raises(Interrupted):
        train(digits, tmp_path / "broken", **given)
    monkeypatch.setattr(PGDAT, "backward", backward)
    broken = train(digits, tmp_path / "broken", resume=True, **given)
    strip = ("seconds", "memory_mb")
    rows = [[{k: v for k, v in row.items() if k not in strip} for row in f.history] for f in (whole, broken)]
    assert rows[0] == rows[1]
    for name in ("best.safetensors", "raw.safetensors", f"{kind}.safetensors", f"last/{kind}.safetensors"):
        a, b = (load_run_weights(tmp_path / run / name) for run in ("whole", "broken"))
        assert same(a, b), name


def test_a_run_says_which_weights_it_kept(tmp_path, monkeypatch):
    from atent.experiments.pipeline import run_job

    monkeypatch.chdir(tmp_path)
    job = train_job(
        *["digits-linf-standard", "--data.limit", "64", "--train.epochs", "1", "--train.average", "ema",
         "--train.select", "last", "--train.validate_limit", "20", "--train.batch_size", "16", "--evaluate.limit",
         "20", "--evaluate.attacks", "FGSM", "--train.device", "cpu"]
    )  # fmt: skip
    done = run_job(job, tmp_path / "run", progress=False)
    assert done.evaluation.average is True
    assert same(load_run(tmp_path / "run"), load_run(tmp_path / "run", which="ema"))
    assert not same(load_run(tmp_path / "run"), load_run(tmp_path / "run", which="raw"))


# ---- by the clock


class Ticks:
    """In the place of the time module: a clock that is moved by hand."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def ticks(monkeypatch):
    made = Ticks()
    monkeypatch.setattr(clock, "time", made)
    return made


def timed(ticks, seconds, seen):
    """Plain training of which each step takes so many seconds."""

    class Slow(Standard):
        def backward(self, model, *args, progress=1.0, **kwargs):
            seen.append(progress)
            ticks.now += seconds
            return super().backward(model, *args, progress=progress, **kwargs)

    return Slow()


def test_a_given_time_is_kept_and_the_schedule_ends_with_it(digits, tmp_path, ticks):
    """A minute of steps of 4 s: 15 of them, 3 epochs of 4 and 3 more; progress is the share of the minute."""
    seen, reported, schedule = [], [], Schedule("cosine", unit="step")
    fitted = train(
        digits, tmp_path / "run", method=timed(ticks, 4.0, seen), schedule=schedule, minutes=1.0, epochs=2, lr=0.1,
        report=reported.append,
    )  # fmt: skip
    assert seen == pytest.approx([4 * i / 60 for i in range(15)])
    rows = fitted.history
    assert [row["passes"] for row in rows] == [1.0, 2.0, 3.0, 3.75]
    assert [row["elapsed"] for row in rows] == [16.0, 32.0, 48.0, 60.0]
    # a schedule written for 2 epochs of 4 steps, at the share of the time that is gone
    at = [min(int(8 * seen[i]), 7) for i in (3, 7, 11, 14)]
    assert [row["lr"] for row in rows] == pytest.approx([0.1 * lr_factor(schedule, t, 4, 2) for t in at])
    assert "validation_clean" in rows[-1]
    assert rows == folder.read_jsonl(tmp_path / "run" / folder.METRICS)
    # what is over is over
    again = train(
        digits, tmp_path / "run", method=timed(ticks, 4.0, seen), schedule=schedule, minutes=1.0, epochs=2, lr=0.1,
        resume=True,
    )  # fmt: skip
    assert len(seen) == 15
    assert same(again.model, fitted.model)


def test_measurements_are_spread_over_the_time(digits, tmp_path, ticks):
    seen, reported = [], []
    fitted = train(
        digits, tmp_path / "run", method=timed(ticks, 1.0, seen), minutes=1.0, validations=3, report=reported.append
    )
    measured = [row["elapsed"] for row in fitted.history if "validation_clean" in row]
    assert measured == [20.0, 40.0, 60.0]
    assert len(fitted.history) == 15
    assert [row["elapsed"] for row in reported] == measured


def test_resumed_by_the_clock_goes_on_where_it_was(digits, tmp_path, ticks):
    """With steps that take equal times, the interrupted run equals the unbroken one; checkpoints take no time of it."""
    given = {"minutes": 0.5, "average": "ema", "schedule": Schedule("cosine", unit="step")}
    whole_seen, seen = [], []
    whole = train(digits, tmp_path / "whole", method=timed(ticks, 1.5, whole_seen), **given)

    class Stops(type(timed(ticks, 1.5, seen))):
        def backward(self, model, *args, **kwargs):
            if len(seen) == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().backward(model, *args, **kwargs)

    Stops.__name__ = "Slow"
    with pytest.raises(Interrupted):
        train(digits, tmp_path / "broken", method=Stops(), **given)
    ticks.now += 1000.0
    broken = train(digits, tmp_path / "broken", method=timed(ticks, 1.5, seen), resume=True, **given)
    assert seen == pytest.approx(whole_seen)
    assert len(seen) == 20
    assert same(broken.model, whole.model)
    strip = ("seconds", "memory_mb")
    rows = [[{k: v for k, v in row.items() if k not in strip} for row in f.history] for f in (whole, broken)]
    assert rows[0] == rows[1]


def test_without_a_given_time_progress_is_that_of_the_steps():
    c = Clock(5, 7, None)
    assert [c.progress(t) for t in (0, 14, 35)] == [0.0, 0.4, 1.0]
    assert [c.position(t, 0.3) for t in (0, 14, 34)] == [0, 14, 34]
    assert not c.spent()
    assert [c.over(e) for e in (0, 4, 5)] == [False, False, True]
    assert [c.due(e, 2, 20, 0.0) for e in (1, 2, 4, 5)] == [False, True, True, True]


def test_settings_of_the_loop_are_on_the_command_line():

    words = ["--train.minutes", "2.5", "--train.average", "swa", "--train.average_start", "0.5"]
    made = train_job("digits-linf-pgdat", *words)
    bare = train_job("digits-linf-pgdat")
    assert made.train == dataclasses.replace(bare.train, minutes=2.5, average="swa", average_start=0.5)
    assert build(made.model.name) is not None
