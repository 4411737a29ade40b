"""Bounds in training and in batches: gradients, syncs, graphs, empty batches, overflow."""

import copy

import pytest
import torch
from bound_networks import EPS, METHOD, NORM, shuffled
from kit import BALLS, Syncs
from torch import nn
from torch.nn import functional as F

from atent.certify import bounds, margins, read, verified, verified_by
from atent.threat import Threat


@pytest.mark.parametrize(
    ("method", "norm"), [*((m, n) for m in ("ibp", "crown-ibp") for n in BALLS), ("dual", "linf"), ("crown", "linf")]
)
def test_gradients_by_finite_differences(method, norm, trained, batch):
    x, y = batch(1)
    threat = Threat(norm, EPS[norm] / 2)
    # Linear bounds of every layer are slow: one trained network suffices.
    names = trained if method in ("ibp", "crown-ibp") else ["residual"]
    for net in (*(copy.deepcopy(trained[name]) for name in names), _copying()):
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


def _copying():
    """A network that copies entries, and learns the slopes of an activation."""
    return shuffled(
        nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.PReLU(3),
            nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 3, 2, padding=1, padding_mode="circular"), nn.Mish(),
            nn.Flatten(), nn.Linear(32, 10),
        )
    )  # fmt: skip


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


class Cancelling(nn.Module):
    """Logits [1, act(b a x) / 10]: where a x overflows to inf, near x = 1, b subtracts inf from inf."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act, self.c = (
            nn.Linear(2, 2, bias=False),
            nn.Linear(2, 1, bias=False),
            act,
            nn.Linear(1, 2),
        )
        with torch.no_grad():
            self.a.weight.fill_(2e38)
            self.b.weight.copy_(torch.tensor([[1.0, -1.0]]))
            self.c.weight.copy_(torch.tensor([[0.0], [0.1]]))
            self.c.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return self.c(self.act(self.b(self.a(x))))


@METHOD
@pytest.mark.parametrize("act", [nn.Sigmoid(), nn.Tanh(), nn.ReLU6(), nn.ReLU()], ids=lambda act: type(act).__name__)
def test_an_overflow_in_the_ball_proves_nothing(method, act):
    """Before: the interval of a sigmoid of NaN was finite, so that a network with NaN logits was verified."""
    net, x, y = Cancelling(act).eval(), torch.full((2, 2), 0.8), torch.zeros(2, dtype=torch.long)
    assert net(x).isfinite().all()
    assert net(torch.full((1, 2), 1.0)).isnan().any()
    lower, upper = bounds(net, x, Threat("linf", 0.3), method)
    assert (lower == -torch.inf).all()
    assert (upper == torch.inf).all()
    below = margins(net, x, y, Threat("linf", 0.3), method)
    assert below.tolist() == [[0.0, -torch.inf]] * 2
    assert not verified(net, x, y, Threat("linf", 0.3), method).any()
    # It is the sample's own region that counts.
    small = Cancelling(act).eval()
    with torch.no_grad():
        small.a.weight.mul_(1e-38)
    assert verified(small, x, y, Threat("linf", 0.3), method).all()


@METHOD
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_network_without_finite_logits_is_refused(method, value, hidden):
    """Before: no sample was verified, without a word; behind a sigmoid, some were."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid() if hidden else nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        net[0 if hidden and value != value else 2].weight[0, 0] = value
    x, y = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long)
    for call in (
        lambda: bounds(net, x, Threat("linf", 0.1), method),
        lambda: margins(net, x, y, Threat("l2", 0.1), method),
        lambda: verified(net, x, y, Threat("linf", 0.1), method),
        lambda: verified_by(method, net, x, y, Threat("linf", 0.1)),
    ):
        with pytest.raises(ValueError, match="returned NaN or infinite logits: check its weights"):
            call()


def test_one_sample_without_finite_logits_is_refused_wherever_it_is():
    net, x = Cancelling(nn.Sigmoid()).eval(), torch.full((9, 2), 0.05)
    x[7] = 1.0
    y = torch.zeros(9, dtype=torch.long)
    with pytest.raises(ValueError, match="returned NaN or infinite logits"):
        verified(net, x, y, Threat("linf", 1e-3))
    lower, _ = bounds(net, x, Threat("linf", 1e-3), check=False)
    assert lower.isinf().all(1).nonzero().flatten().tolist() == [7]
    assert verified(net, x[:7], y[:7], Threat("linf", 1e-3), "ibp").all()
