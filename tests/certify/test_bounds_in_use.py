"""Bounds in training and in batches: gradients, syncs, graphs, empty batches, overflow."""

import copy

import pytest
import torch
from bound_networks import EPS, METHOD, NORM
from kit import BALLS, Syncs
from torch import nn
from torch.nn import functional as F

from atent.certify import bounds, margins, read, verified
from atent.threat import Threat


@pytest.mark.parametrize(
    ("method", "norm"), [*((m, n) for m in ("ibp", "crown-ibp") for n in BALLS), ("dual", "linf"), ("crown", "linf")]
)
def test_gradients_by_finite_differences(method, norm, trained, batch):
    x, y = batch(1)
    threat = Threat(norm, EPS[norm] / 2)
    # Linear bounds of every layer are slow: one network suffices.
    names = trained if method in ("ibp", "crown-ibp") else ["residual"]
    for net in (copy.deepcopy(trained[name]) for name in names):
        graph = read(net)

        def loss(graph=graph):
            return F.cross_entropy(-margins(graph, x, y, threat, method), y)

        names, weights = zip(*net.named_parameters())
        grads = torch.autograd.grad(loss(), weights)
        g = torch.Generator().manual_seed(3)
        for name, w, grad in zip(names, weights, grads):
            v = torch.randn(w.shape, generator=g, dtype=torch.float64)
            # Bounds have kinks, and the adaptive slope jumps: a smaller step crosses fewer.
            slopes = ((_shifted(loss, w, h * v) - _shifted(loss, w, -h * v)) / (2 * h) for h in (1e-6, 1e-8))
            got = float((grad * v).sum())
            assert any(got == pytest.approx(slope, rel=2e-4, abs=1e-5) for slope in slopes), name


def _shifted(loss, w, d):
    with torch.no_grad():
        before = w.clone()
        w.add_(d)
        value = float(loss())
        w.copy_(before)
    return value


@NORM
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "dual"])
def test_training_bounds_never_wait(norm, method, trained, batch):
    x, y = batch(4)
    for net in trained.values():
        graph = read(net)
        with Syncs() as syncs:
            margins(graph, x, y, Threat(norm, 0.05), method, check=False).sum().backward()
            bounds(graph, x, Threat(norm, 0.05), method, check=False)
        assert syncs.seen == []


def test_a_graph_moves_with_its_model(trained, batch):
    x = batch(4)[0]
    net = copy.deepcopy(trained["plain"])
    graph = read(net)
    before = bounds(graph, x, Threat("linf", 0.01))[0]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    after = bounds(graph, x, Threat("linf", 0.01))[0]
    assert not torch.allclose(before, after)
    assert torch.equal(after, bounds(net, x, Threat("linf", 0.01))[0])


def test_the_model_comes_back_as_it_was(trained, batch):
    x, y = batch(4)
    net = copy.deepcopy(trained["residual"])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    margins(net, x, y, Threat("linf", 0.02))
    verified(net, x, y, Threat("linf", 0.02))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not net.training


@METHOD
def test_an_empty_batch(method, trained, batch):
    x, y = (t[:0] for t in batch(1))
    for net in trained.values():
        assert margins(net, x, y, Threat("linf", 0.1), method).shape == (0, 10)
        assert bounds(net, x, Threat("l2", 0.1), method)[0].shape == (0, 10)


@METHOD
def test_an_overflow_proves_nothing(method):
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(16, 3)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * 2e3)
        lower, upper = bounds(net, torch.rand(2, 16), Threat("linf", 0.5), method)
        assert not lower.isnan().any()
        assert not upper.isnan().any()
        assert (lower == -torch.inf).all()
        assert not verified(net, torch.rand(2, 16), torch.tensor([0, 1]), Threat("linf", 0.5), method).any()
