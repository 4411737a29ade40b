"""Losses, gradients and weights that are not finite: found before they are saved, with where they began."""

import math

import pytest
import torch
from torch import nn

from atent.checks import NotFinite, check_logits
from atent.data import DataSettings, load
from atent.methods import PGDAT, Standard
from atent.optim import Average, Optimizer
from atent.optim.settings import Walk
from atent.rng import fold
from atent.runs import LAST, read_config, read_rows
from atent.threat import Threat
from atent.train import Callback, Diverged, TrainSettings, fit
from atent.train.finite import Finite, finite, finite_logits, order_of
from atent.train.trainer import Trainer

NAN = math.nan


class Poisoned(nn.Module):
    """A network with batch-norm, whose gradient or loss is NaN in some of its training passes."""

    def __init__(self, gradient=(), loss=()):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)
        self.gradient, self.loss, self.passes = gradient, loss, 0

    def forward(self, x):
        z = self.first(x.flatten(1))
        if self.training and torch.is_grad_enabled():
            self.passes += 1
            if self.passes in self.gradient:
                z.register_hook(lambda g: g * NAN)
            if self.passes in self.loss:
                z = z * NAN
        return self.head(self.norm(z))


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=200, validation=60))


def settings(**changes):
    base = {"epochs": 2, "batch_size": 40, "validate_limit": 20, "validate_attack": "none", "device": "cpu"}
    return TrainSettings(**{**base, "watch": "off", **changes})


def trained(data, model, changes, **kept):
    torch.manual_seed(1)
    for layer in (model.first, model.norm, model.head):
        layer.reset_parameters()
    how = {"optimizer": Optimizer(lr=0.05), "progress": False, "settings": settings(**changes)}
    return fit(model, data, Standard(), **{**how, **kept})


def saved(run):
    return torch.load(run / LAST / "state.pt", weights_only=True)


def assert_finite(state):
    for part in (state["model"], state["optimizer"]["state"], state["average"] or {}):
        values = part.values() if isinstance(part, dict) else part
        for value in values:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            assert all(torch.isfinite(v).all() for v in inner if isinstance(v, torch.Tensor))


# -- stop


@pytest.mark.parametrize(
    ("poison", "text"),
    [
        ({"gradient": (3,)}, "the gradient of first.weight is not finite at epoch 1, step 3, the loss is"),
        ({"loss": (3,)}, "the loss is not finite at epoch 1, step 3"),
        # the last step of an epoch: no validation meets the weights
        ({"gradient": (10,)}, "the gradient of first.weight is not finite at epoch 2, step 5, the loss is"),
    ],
)
def test_the_line_says_where_it_began_and_nothing_bad_is_saved(digits, tmp_path, poison, text):
    """With a checkpoint at every step, the last one is that before the bad step."""
    run = tmp_path / "run"
    with pytest.raises(Diverged) as caught:
        trained(digits, Poisoned(**poison), {"save_minutes": 0, "average": "ema"}, run=run)
    line = str(caught.value)
    assert line.startswith(text)
    assert "\n" not in line
    state = saved(run)
    assert_finite(state)
    step = next(iter(poison.get("gradient") or poison["loss"]))
    assert state["mark"]["epoch"] * 5 + state["mark"]["step"] == step - 1


def checks(model, optimizer, average=None):
    return Finite(model, optimizer, average, TrainSettings(), None)


def test_what_would_be_saved_is_checked():
    """Weights, buffers, the optimizer's state and the averaged weights, each named."""

    def bad_weight(model, optimizer, average):
        model.head.bias.data[3] = math.inf

    def bad_buffer(model, optimizer, average):
        model.norm.running_var[2] = NAN

    def bad_state(model, optimizer, average):
        optimizer.state[model.first.bias]["momentum_buffer"][0] = math.inf

    def bad_average(model, optimizer, average):
        average.state()["mean"][0][0] = NAN

    found = []
    for spoil in (None, bad_weight, bad_buffer, bad_state, bad_average):
        model = Poisoned()
        model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        average = Average(model, "ema")
        check = checks(model, optimizer, average if spoil is bad_average else None)
        if spoil is bad_average:
            del model.mask
            check = checks(model, optimizer, average := Average(model, "ema"))
        model(torch.rand(4, 64)).sum().backward()
        optimizer.step()
        average.after_step(1.0)
        assert check.problem(5) is None
        if spoil is not None:
            spoil(model, optimizer, average)
            found.append(check.problem(5).split(" is not finite")[0])
    assert found == [
        "the weight head.bias", "the buffer norm.running_var", "the optimizer's momentum_buffer of first.bias",
        "the averaged weight number 0",
    ]  # fmt: skip


def test_large_numbers_sparse_complex_and_half_precision():
    big = torch.full((100,), 1e30)
    assert finite([big, torch.ones(3, dtype=torch.float64), torch.arange(3), torch.zeros(0)])
    sparse = torch.sparse_coo_tensor([[1]], [NAN], (4,))
    for bad in (torch.tensor([1.0, NAN]).bfloat16(), torch.tensor([complex(1, math.inf)]), sparse, -big / 0):
        assert not finite([big, bad])


def test_the_first_bad_step_is_remembered():
    model = Poisoned()
    check = checks(model, torch.optim.SGD(model.parameters(), 0.1))
    for step, (loss, grad) in enumerate([(1.0, 1.0), (1.0, NAN), (NAN, NAN)]):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model.norm.bias.grad[0] = grad
        check.see(7 + step, [torch.tensor(loss)])
    assert check.problem(5).startswith("the gradient of norm.bias is not finite at epoch 2, step 4, the loss is")
    check.reset()
    assert check.problem(5) is None
    # parameters without a gradient count as sound
    model.first.weight.grad = None
    check.see(0, [torch.tensor(1.0)])
    assert check.problem(5).startswith("the gradient of norm.bias")


# -- skip


@pytest.mark.parametrize(
    ("optimizer", "passes"),
    [
        (Optimizer(lr=0.05), 1),
        (Optimizer(lr=0.05, clip_norm=1.0), 1),
        (Optimizer("Adam", lr=0.01), 1),
        (Optimizer("EntropySGD", lr=0.05, walk=Walk(inner_steps=2)), 2),
    ],
    ids=["SGD", "clipped", "Adam", "EntropySGD"],
)
@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_a_skipped_step_leaves_nothing(digits, monkeypatch, optimizer, passes, kind):
    """The weights, their average and batch-norm are those of a training that does not make the step."""
    kept = {"optimizer": optimizer}
    changes = {"on_nonfinite": "skip", "average": "ema", "epochs": 1}
    model = Poisoned(**{kind: (2 * passes + 1,)})  # the first pass of the third step
    fitted = trained(digits, model, changes, **kept)
    assert [row["skipped"] for row in fitted.history] == [1]
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, order, e, s: None if s == 2 else step(self, order, e, s))
    other = Poisoned()
    reference = trained(digits, other, {**changes, "on_nonfinite": "stop"}, **kept)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert fitted.history[0]["loss"] == reference.history[0]["loss"]


def test_a_training_that_only_skips_ends(digits, monkeypatch):
    with pytest.raises(Diverged, match="no step of the epoch"):
        trained(digits, Poisoned(gradient=range(1, 6)), {"on_nonfinite": "skip"})
    with pytest.raises(Diverged, match=r"\d+ consecutive steps"):
        trained(digits, Poisoned(loss=range(1, 500)), {"on_nonfinite": "skip", "batch_size": 2})


def test_a_resumed_training_counts_what_was_skipped_before(digits, tmp_path):
    class Stop(Exception):
        pass

    class Breaks(Callback):
        def step(self, progress):
            if progress.step == 4:
                raise Stop

    run = tmp_path / "run"
    with pytest.raises(Stop):
        trained(
            digits, Poisoned(gradient=(2,)), {"on_nonfinite": "skip", "save_minutes": 0}, run=run, callbacks=[Breaks()]
        )
    again = trained(digits, Poisoned(), {"on_nonfinite": "skip", "save_minutes": 0}, run=run, resume=True)
    assert [row["skipped"] for row in again.history] == [1, 0]


# -- rollback


class Ends(Callback):
    """Ends the training at a step of an epoch, as a signal does."""

    def __init__(self, epoch, step):
        self.at = epoch, step

    def step(self, progress):
        if (progress.epoch, progress.step) == self.at:
            self.at = None
            raise KeyboardInterrupt


def test_a_rollback_takes_another_order_is_recorded_and_resumes_exactly(digits, tmp_path):
    said = []
    changes = {"on_nonfinite": "rollback", "epochs": 3, "save_minutes": 0}
    whole = Poisoned(gradient=(8,))
    fitted = trained(digits, whole, changes, run=tmp_path / "a", say=said.append)
    assert len(said) == 1
    assert said[0].startswith("the gradient of first.weight is not finite at epoch 2, step 3, the loss is")
    assert said[0].endswith("back to epoch 2, step 3, with another order of the batches")
    assert [row.get("rollbacks") for row in read_rows(tmp_path / "a" / "metrics.jsonl")] == [None, 1, 1]
    (mark,) = saved(tmp_path / "a")["mark"]["rollbacks"]
    assert (mark["epoch"], mark["step"], mark["taken"]) == (1, 2, 80)
    assert read_config(tmp_path / "a" / "config.json")["train"]["on_nonfinite"] == "rollback"
    # killed after the rollback, in another process the network meets nothing bad any more
    with pytest.raises(KeyboardInterrupt):
        trained(digits, Poisoned(gradient=(8,)), changes, run=tmp_path / "b", callbacks=[Ends(2, 4)])
    again = Poisoned()
    resumed = trained(digits, again, changes, run=tmp_path / "b", resume=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in fitted.history]
    # without a bad step the order is another
    assert fitted.history[2]["loss"] != trained(digits, Poisoned(), {"epochs": 3}).history[2]["loss"]


def test_rollbacks_are_counted(digits, tmp_path):
    said = []
    changes = {"on_nonfinite": "rollback", "rollbacks": 2}
    with pytest.raises(Diverged, match="the loss is not finite"):
        trained(digits, Poisoned(loss=range(3, 500)), changes, run=tmp_path / "a", say=said.append)
    assert len(said) == 2
    assert_finite(saved(tmp_path / "a"))
    assert len(saved(tmp_path / "a")["mark"]["rollbacks"]) == 2


def test_a_rollback_needs_a_run_folder(digits):
    with pytest.raises(ValueError, match="on_nonfinite rollback needs a checkpoint"):
        trained(digits, Poisoned(), {"on_nonfinite": "rollback"})
    for bad in ({"on_nonfinite": "hope"}, {"rollbacks": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainSettings(**bad)


def test_the_order_keeps_what_was_taken_and_mixes_the_rest():
    rng = torch.Generator()
    plain = order_of(3, 4, 50, rng, [])
    rng.manual_seed(fold(3, "order", 4))
    assert torch.equal(plain, torch.randperm(50, generator=rng))
    here, earlier = {"epoch": 4, "taken": 20}, {"epoch": 2, "taken": 0}
    once, twice = order_of(3, 4, 50, rng, [here]), order_of(3, 4, 50, rng, [here, {"epoch": 4, "taken": 30}])
    assert torch.equal(once[:20], plain[:20])
    assert not torch.equal(once[20:], plain[20:])
    assert torch.equal(twice[:30], once[:30])
    assert not torch.equal(twice[30:], once[30:])
    for found in (plain, once, twice, order_of(3, 4, 50, rng, [earlier])):
        assert torch.equal(found.sort().values, torch.arange(50))
    assert not torch.equal(order_of(3, 4, 50, rng, [earlier]), plain)
    assert torch.equal(order_of(3, 1, 50, rng, [here]), order_of(3, 1, 50, rng, []))


def test_an_attack_and_replays_are_skipped_too(digits):
    torch.manual_seed(0)
    model = Poisoned(loss=(5,))
    method = PGDAT(Threat("linf", 0.05), 2)
    fitted = fit(model, digits, method, settings=settings(on_nonfinite="skip", epochs=1), progress=False)
    assert fitted.history[0]["skipped"] == 1
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_logits_that_are_not_finite_end_the_training_as_a_failed_one(tmp_path):
    """Weights may be finite, and too large for the forward pass of the validation."""
    found = rf"validation of epoch 3: lower optimizer\.lr \(now 0\.5\); .* remains in {tmp_path}"
    with pytest.raises(Diverged, match=found), finite_logits(3, 0.5, tmp_path):
        raise NotFinite
    with pytest.raises(Diverged, match="nothing was written"), finite_logits(1, 0.5, None):
        check_logits(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    with pytest.raises(ZeroDivisionError), finite_logits(1, 0.5, None):
        raise ZeroDivisionError
