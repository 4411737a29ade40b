"""Bounds are exact for one layer, for ReLUs and windows of known sign, and for a radius of zero."""

import pytest
import torch
from bound_networks import METHOD, NORM, inputs, matrix, shuffled
from torch import nn
from torch.nn import functional as F

from atent.certify import bounds, margins
from atent.certify.region import region
from atent.models import Normalize, binary_logits
from atent.threat import Threat


def least_of_linear(a, x, eps, norm):
    """min <a, x'> over ball and box for one vector; l2 by bisection of the multiplier, in many steps."""
    if norm == "linf":
        return (a * torch.where(a > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))).sum()
    corner = torch.where(a > 0, torch.zeros_like(x), torch.ones_like(x)).where(a != 0, x)
    if (corner - x).norm() <= eps:
        return (a * corner).sum()
    low, high = 0.0, 1e12
    for _ in range(300):
        t = (low + high) / 2
        low, high = (t, high) if ((x - t * a).clamp(0, 1) - x).norm() <= eps else (low, t)
    return (a * (x - low * a).clamp(0, 1)).sum()


@NORM
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4, 2.0, 50.0])
def test_the_minimum_over_ball_and_box(norm, eps):
    g = torch.Generator().manual_seed(4)
    x, a = inputs((12,)), torch.randn(3, 5, 12, generator=g, dtype=torch.float64) ** 3
    a[:, 0, :] = 0
    a[:, 1, 3:] = 0
    found = region(x, Threat(norm, eps)).minimum(a)
    want = torch.tensor([[least_of_linear(a[i, s], x[i], eps, norm) for s in range(5)] for i in range(3)])
    torch.testing.assert_close(found, want.double(), rtol=1e-9, atol=1e-9)
    shared = region(x, Threat(norm, eps)).minimum(a[:1])
    torch.testing.assert_close(shared[0], found[0])
    assert shared.shape == (3, 5)


def test_a_search_that_stops_early_is_a_lower_bound(monkeypatch):
    g = torch.Generator().manual_seed(4)
    x, a = inputs((12,)), torch.randn(3, 5, 12, generator=g, dtype=torch.float64) ** 3
    place = region(x, Threat("l2", 0.4))
    exact = place.minimum(a)
    monkeypatch.setattr("atent.certify.region.NEWTON", 0)
    early = place.minimum(a)
    assert (early <= exact + 1e-12).all()
    assert (early < exact - 1e-3).any()


@NORM
@METHOD
def test_a_linear_classifier_has_a_closed_form(norm, method):
    net, x = shuffled(nn.Sequential(nn.Flatten(), nn.Linear(12, 4))), inputs((3, 2, 2))
    w, b = net[1].weight.detach(), net[1].bias.detach()
    y = torch.tensor([1, 2, 0])
    threat = Threat(norm, 0.2)
    found = margins(net, x, y, threat, method).detach()
    for i in range(3):
        for j in range(4):
            want = b[y[i]] - b[j] + least_of_linear(w[y[i]] - w[j], x[i].flatten(), 0.2, norm)
            assert float(found[i, j]) == pytest.approx(float(want), abs=1e-9)
    inner = 0.4 + 0.2 * x  # far from the box: w.x - eps |w|_dual
    found = margins(net, inner, y, Threat(norm, 0.1), method).detach()
    for i in range(3):
        for j in range(4):
            a = w[y[i]] - w[j]
            size = a.abs().sum() if norm == "linf" else a.norm()
            assert float(found[i, j]) == pytest.approx(
                float(a @ inner[i].flatten() + b[y[i]] - b[j] - 0.1 * size), abs=1e-9
            )


@NORM
def test_one_layer_needs_no_linear_bound(norm):
    # A layer's interval is exact for an input box; for a ball away from the box, by the norms of its rows.
    net = shuffled(
        nn.Sequential(Normalize([0.2, 0.3], [0.5, 0.2]), nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten())
    )
    x = inputs((2, 3, 3)) if norm == "linf" else 0.4 + 0.2 * inputs((2, 3, 3))
    lower, upper = (side.detach() for side in bounds(net, x, Threat(norm, 0.1), "ibp"))
    w, b, _ = matrix(net, (2, 3, 3))
    for i in range(3):
        for j in range(len(w)):
            v = x[i].flatten()
            assert float(lower[i, j]) == pytest.approx(float(b[j] + least_of_linear(w[j], v, 0.1, norm)), abs=1e-9)
            assert float(upper[i, j]) == pytest.approx(float(b[j] - least_of_linear(-w[j], v, 0.1, norm)), abs=1e-9)


@NORM
@pytest.mark.parametrize("method", ["crown-ibp", "crown", "dual"])
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_exact_where_every_relu_is_settled(norm, method, sign):
    net = shuffled(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    )
    with torch.no_grad():  # all on, all off, or one channel off and three on
        net[0].bias.copy_(torch.tensor([-50.0 if sign <= 0 else 50, 50, 50, 50]))
        net[2].bias.fill_(500.0 if sign >= 0 else -500.0)
    x = inputs((1, 6, 6))
    # The network is affine near the data, not at 0: its matrix is the Jacobian.
    for i in range(3):
        w = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], x[i]).flatten(1)
        b = net(x[i : i + 1])[0].detach() - w @ x[i].flatten()
        lower, upper = (t[0].detach() for t in bounds(net, x[i : i + 1], Threat(norm, 0.2), method))
        for j in range(5):
            v = x[i].flatten()
            assert float(lower[j]) == pytest.approx(float(b[j] + least_of_linear(w[j], v, 0.2, norm)), abs=1e-8)
            assert float(upper[j]) == pytest.approx(float(b[j] - least_of_linear(-w[j], v, 0.2, norm)), abs=1e-8)
        assert bool(w.any()) == (sign >= 0)


@NORM
@METHOD
def test_a_radius_of_zero_gives_the_logits(norm, method, trained, batch):
    x, y = batch(4)
    for net in trained.values():
        z = net(x).detach()
        for side in bounds(net, x, Threat(norm, 0.0), method):
            torch.testing.assert_close(side, z, rtol=0, atol=1e-10)
        want = z.gather(1, y[:, None]) - z
        torch.testing.assert_close(margins(net, x, y, Threat(norm, 0.0), method), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("offset", [0.1, -5.0])
@pytest.mark.parametrize(
    ("pool", "rows", "columns"), [(nn.MaxPool2d(2), [0, 2], [1, 3]), (nn.MaxPool2d(2, 2, 1), [0, 1, 3], [0, 1, 3])]
)
def test_maximum_of_a_window_that_is_settled_is_exact(pool, rows, columns, offset):
    # One entry of each window lies above all others: max-pooling picks it, as a slice would. Padding is below it, also
    # where all entries are negative.
    conv, places = nn.Conv2d(1, 1, 1), [4 * row + column for row in rows for column in columns]
    net = nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(len(places), 3)).double().eval()
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(offset)
    x = 0.2 * inputs((1, 4, 4))
    x.flatten(1)[:, places] += 0.6
    threat = Threat("linf", 0.1)
    lower, upper = (side.detach() for side in bounds(net, x, threat, "crown-ibp"))
    for i in range(3):
        w, b = 2 * net[3].weight.detach(), net[3].bias.detach() + offset * net[3].weight.detach().sum(1)
        v = x[i].flatten()[places]
        for j in range(3):
            assert float(lower[i, j]) == pytest.approx(float(b[j] + least_of_linear(w[j], v, 0.1, "linf")), abs=1e-9)
            assert float(upper[i, j]) == pytest.approx(float(b[j] - least_of_linear(-w[j], v, 0.1, "linf")), abs=1e-9)


def test_the_line_over_a_maximum_by_hand():
    split = nn.Conv2d(1, 2, 1)
    pool = nn.MaxPool2d((1, 2))
    net = nn.Sequential(split, pool, nn.Flatten(), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        split.weight.copy_(torch.tensor([1.0, 1.0]).view(2, 1, 1, 1))
        split.bias.zero_()
        net[3].weight.copy_(torch.tensor([[1.0, 0.0]]))
    x = torch.tensor([[[[1.0, 0.5]]]], dtype=torch.float64)
    # linf 0.5 in the box [0.2, 3]: a in [0.5, 1.5], b in [0.2, 1]; k = a (u 1.5), m = 1, above: 1 + 0.5 (a - 0.5)
    within = Threat("linf", 0.5, box=(0.2, 3.0))
    # With a second logit that is 0: bounds refuse a network with one output.
    lower, upper = (side[:, 1].detach() for side in bounds(binary_logits(net).eval(), x, within, "crown-ibp"))
    assert float(upper) == pytest.approx(1.5)
    assert float(lower) == pytest.approx(0.5)
    # Minus 0.5 a, which the line above cancels: 0.75 for every a, where a constant above would give 1.5 - 0.25.
    skip = binary_logits(Skipped(net, -0.5).double()).eval()
    assert float(bounds(skip, x, within, "crown-ibp")[1][:, 1].detach()) == pytest.approx(0.75)


class Skipped(nn.Module):
    """A network plus a multiple of its first input."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.first = net, nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[factor, 0.0]]))

    def forward(self, x):
        return self.net(x) + self.first(x.flatten(1))


COPIES = {
    "repeat": lambda z: z.repeat(1, 2),
    "expand": lambda z: z.unsqueeze(1).expand(-1, 3, -1).flatten(1),
    "circular": lambda z: F.pad(z, (2, 2), "circular"),
    "enlarged": lambda z: F.interpolate(z.unsqueeze(1), scale_factor=2).flatten(1),
}


class Copied(nn.Module):
    """The sum and the mean of copies of four inputs; ``turned``: copied after a linear layer."""

    def __init__(self, move, turned):
        super().__init__()
        self.move, self.turn = move, nn.Linear(4, 4) if turned else nn.Identity()
        self.sums = nn.Linear(move(torch.zeros(1, 4)).shape[1], 2)

    def forward(self, x):
        return self.sums(self.move(self.turn(x)))


@METHOD
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("move", COPIES.values(), ids=COPIES)
def test_copies_of_an_input_move_together_in_l2(move, turned, method):
    """As if they were different inputs, k copies would have a gradient that is smaller by the root of k."""
    net = Copied(move, turned).double().eval()
    with torch.no_grad():
        net.sums.weight.fill_(1.0)
    threat, x = Threat("l2", 0.1), torch.full((1, 4), 0.5, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(lambda x: net(x)[0, 0], x)[0]
    lower, upper = (side[0, 0] for side in bounds(net, x, threat, method))
    with torch.no_grad():
        value, most = net(x)[0, 0], 0.1 * gradient.norm()
    assert lower <= value - (1 - 1e-9) * most
    assert upper >= value + (1 - 1e-9) * most
    assert method == "ibp" or upper - lower <= 2 * (1 + 1e-6) * most + 1e-6
