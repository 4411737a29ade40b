import random

import numpy as np
import pytest
import torch
from torch import nn

from atent.guard import guard


class Restless(nn.Module):
    """Uses and changes everything that a guard must hand back."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.arange(3.0))
        self.register_buffer("absent", None)

    def forward(self, x):
        random.random()
        np.random.rand()  # noqa: NPY002
        self.calls += 1
        self.replaced = self.replaced * 2
        self.absent = torch.ones(2)
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(1))
        return self.out(self.drop(self.norm(x)))


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "values": [p.detach().clone() for p in model.parameters()],
        "grads": [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "buffers": [
            (name, b, None if b is None else b.clone()) for m in model.modules() for name, b in m._buffers.items()
        ],
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }


def assert_as_found(model, before):
    after = snapshot(model)
    for key in ("modes", "requires", "python"):
        assert after[key] == before[key], key
    assert torch.equal(after["torch"], before["torch"])
    assert all(np.array_equal(a, b) for a, b in zip(after["numpy"], before["numpy"]))
    assert all(torch.equal(a, b) for a, b in zip(after["values"], before["values"]))
    for (now, _), (was, value) in zip(after["grads"], before["grads"]):
        assert now is was
        assert was is None or torch.equal(now, value)
    assert [name for name, _, _ in after["buffers"]] == [name for name, _, _ in before["buffers"]]
    for (_, now, _), (_, was, value) in zip(after["buffers"], before["buffers"]):
        assert now is was
        assert was is None or torch.equal(now, value)


def lived_in():
    """Mixed modes, mixed requires_grad, some gradients, moved statistics."""
    torch.manual_seed(3)
    model = Restless()
    model(torch.randn(8, 4)).sum().backward()
    del model._buffers["late"]
    model.absent = None
    model.norm.eval()
    model.out.bias.requires_grad_(False)
    model.norm.bias.grad = None
    return model


@pytest.mark.parametrize("mode", ["eval", "train", "as-is"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("seed", [None, 11])
def test_the_model_comes_back_as_it_was(mode, fails, seed):
    model = lived_in()
    before = snapshot(model)

    def use():
        with guard(model, mode=mode, seed=seed):
            x = torch.randn(5, 4, requires_grad=True)
            model(x).sum().backward()
            model.train()
            model(x)
            assert model.calls > 2
            if fails:
                raise KeyError("in the middle")

    if fails:
        with pytest.raises(KeyError, match="in the middle"):
            use()
    else:
        use()
    assert_as_found(model, before)


def test_the_snapshot_would_notice():
    model = lived_in()
    before = snapshot(model)
    model(torch.randn(5, 4))
    with pytest.raises(AssertionError):
        assert_as_found(model, before)


@pytest.mark.parametrize("mode", ["eval", "train", "as-is"])
def test_inside_the_mode_is_as_asked(mode):
    model = lived_in()
    found = [m.training for m in model.modules()]
    with guard(model, mode=mode) as given:
        assert given is model
        inside = [m.training for m in model.modules()]
    assert inside == {"eval": [False] * len(found), "train": [True] * len(found), "as-is": found}[mode]


def test_inside_the_parameters_are_frozen_and_collect_nothing():
    model = lived_in()
    with guard(model):
        assert not any(p.requires_grad for p in model.parameters())
        x = torch.randn(5, 4, requires_grad=True)
        model(x).sum().backward()
        assert x.grad is not None
        with pytest.raises(RuntimeError, match="does not require grad"):
            model(torch.randn(5, 4)).sum().backward()
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]


def test_gradients_that_are_cleared_or_replaced_come_back():
    model = lived_in()
    before = snapshot(model)
    with guard(model):
        model.zero_grad()
        model.norm.bias.grad = torch.ones(4)
        model.out.weight.grad = torch.ones(3, 4)
    assert_as_found(model, before)


def test_statistics_that_moved_in_place_are_copied_back():
    model = nn.BatchNorm1d(4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with guard(model, mode="train"):
        model(torch.randn(16, 4) + 3)
        assert (model.running_mean - before["running_mean"]).abs().min() > 0.1
        assert int(model.num_batches_tracked) == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_untouched_buffers_leave_a_living_graph_alone():
    model = nn.BatchNorm1d(4).eval()
    x = torch.randn(6, 4, requires_grad=True)
    out = model(x).square().sum()
    with guard(model):
        model(x)
    out.backward()
    assert x.grad.abs().sum() > 0


def test_a_seed_makes_a_random_model_repeat():
    model = nn.Dropout(0.5).train()
    x = torch.ones(50)

    def use(seed):
        with guard(model, mode="as-is", seed=seed):
            return model(x)

    first, again, other = use(1), use(1), use(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # without a seed the caller's stream is used, and given back
    torch.manual_seed(5)
    assert torch.equal(use(None), use(None))


def test_guards_nest():
    model = lived_in()
    before = snapshot(model)
    with guard(model, mode="train", seed=1):
        inner = snapshot(model)
        with guard(model, mode="eval", seed=2):
            model(torch.randn(3, 4))
            torch.rand(3)
        assert_as_found(model, inner)
        model(torch.randn(3, 4))
    assert_as_found(model, before)


class Scripted(nn.Module):
    """Replaces a buffer and writes another."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        self.replaced = self.replaced * 2
        return self.lin(x)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("width", [4, 5])
def test_a_scripted_network_comes_back_as_it_was_and_so_does_the_random_state(freeze, width):
    model = torch.jit.script(Scripted().eval())
    if freeze:
        model = torch.jit.freeze(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try:
        with guard(model, mode="eval", seed=1):
            model(torch.rand(2, width))
    except RuntimeError:
        assert width == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_restored_keeps_nothing_else_from_being():
    class Stuck(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.locked = False

        def __setattr__(self, name, value):
            if name == "training" and getattr(self, "locked", False):
                raise RuntimeError("locked")
            super().__setattr__(name, value)

    model = Stuck()
    mean, state = model.norm.running_mean.clone(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="locked"), guard(model, mode="train", seed=1):  # noqa: PT012
        torch.rand(3)
        model.norm(torch.rand(5, 4))
        model.locked = True
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.norm.running_mean, mean)
    assert all(p.requires_grad for p in model.parameters())


class Meddling(nn.Module):
    """Sets what belongs to the whole process."""

    def forward(self, z):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return z.flatten(1)[:, :2]


def test_the_gradient_mode_and_the_default_dtype_come_back():
    try:
        with guard(Meddling()) as net:
            net(torch.rand(2, 4))
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32
        with torch.no_grad():
            with guard(Meddling()) as net:
                net(torch.rand(2, 4))
            assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
