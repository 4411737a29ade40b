"""Numbers, state and sample numbers of `Method.backward` of another type are refused in one line, by every method."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from atent import Threat
from atent.methods import AWP, METHODS, PGDAT

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
NUMBERS = [None, "1", math.nan, math.inf, True, [1.0], 1j, torch.ones(2), torch.tensor(math.nan)]


def made(name):
    kind = METHODS[name]
    if all(field.name != "threat" for field in dataclasses.fields(kind)):
        return kind()
    try:
        return kind(Threat("linf", 0.1))
    except ValueError:
        return kind(Threat("l2", 0.5))


EVERY = {name: made(name) for name in METHODS} | {"AWP": AWP(PGDAT(Threat("linf", 0.1), steps=1))}
METHOD = pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)


def refused(call, *words):
    with pytest.raises(ValueError, match=words[0]) as error:
        call()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@METHOD
def test_what_is_no_finite_number_is_refused(method, net, number):
    for name in ("weight", "progress"):
        refused(lambda name=name: method.backward(net, X, Y, **{name: number}), f"{name} must be a finite number")
    if method.is_one_loss:
        refused(lambda: method(net, X, Y, progress=number), "progress must be a finite number")
    # A loop that gives a generator is one whose values are not checked, but for their types.
    if not isinstance(number, float):
        refused(lambda: method.backward(net, X, Y, weight=number, rng=torch.Generator()), "weight must be")
    assert all(p.grad is None for p in net.parameters())


@METHOD
def test_states_and_sample_numbers_of_another_type_are_refused(method, net):
    refused(lambda: method.backward(net, X, Y, state=[]), "state must be the dict that init returns", "a list")
    for ids in ("abc", torch.arange(5), torch.arange(6.0), torch.arange(6) - 1):
        refused(lambda ids=ids: method.backward(net, X, Y, ids=ids), "ids")


def test_numbers_of_numpy_and_torch_and_integers_are_taken(net):
    grads = []
    for half in (0.5, torch.tensor(0.5)):
        net.zero_grad()
        torch.manual_seed(1)
        EVERY["PGDAT"].backward(net, X, Y, weight=half, progress=1, ids=list(range(6)))
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize("rng", [None, torch.Generator()], ids=["own loop", "trusted"])
@METHOD
def test_a_network_without_trainable_weights_and_disabled_gradients_are_refused(method, net, rng):
    """Free has a gradient at its input in any case, and ATENT takes its gradients without a loss."""
    net.requires_grad_(False)
    refused(lambda: method.backward(net, X, Y, rng=rng), "no trainable parameters")
    net.requires_grad_(True)
    with torch.no_grad():
        refused(lambda: method.backward(net, X, Y, rng=rng), "gradients are disabled")
    assert all(p.grad is None for p in net.parameters())
