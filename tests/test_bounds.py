"""Deterministic bounds: sound on what an attack finds, equal to slow transcriptions, exact where theory says so."""

import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import BALLS, Syncs
from torch import nn
from torch.nn import functional as F

from atent.attacks import PGD
from atent.certify import METHODS, bounds, margins, read, verified
from atent.certify.region import region
from atent.models import Normalize, binary_logits, build, native_shape
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)
METHOD = pytest.mark.parametrize("method", METHODS)
EPS = {"linf": 0.03, "l2": 0.2}


class Block(nn.Module):
    """A residual sum of two branches, batch-norm in both."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class Residual(nn.Module):
    """Seven layers for digits: a stem, two blocks, the mean over the image, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize([0.3], [0.4])
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.block1, self.block2 = Block(6, 6, 1), Block(6, 8, 2)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.block2(self.block1(F.relu(self.stem(self.normalize(x)))))
        return self.fc(self.drop(x.mean((2, 3))))


def plain_net():
    """Four layers, a max-pooling and batch-norm for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained():
    """Two networks trained on 1,000 digits against FGSM, linf 0.08, 90 steps of Adam; float64 and in eval mode.

    Their weights are in a file: those of a training differ between processors in the last bits, and more where a tie of
    max-pooling falls differently.
    """
    nets = {}
    with np.load(Path(__file__).parent / "data" / "bounds.npz") as arrays:
        for name, make in (("residual", Residual), ("plain", plain_net)):
            net = make()
            net.load_state_dict({k: torch.tensor(arrays[f"{name}/{k}"]) for k in net.state_dict()})
            nets[name] = net.double().eval()
    return nets


@pytest.fixture
def images(batch):
    return lambda n=4: batch(n)


def shuffled(net, seed=0):
    """The network in float64 and eval mode with weights, biases and batch statistics that are all different."""
    g = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.copy_(noise * (0.3 if p.dim() < 2 else 1.5 / math.sqrt(p[0].numel())) + ("bn" in name))
        for name, b in net.named_buffers():
            if b.is_floating_point() and ("running" in name):
                b.copy_(torch.rand(b.shape, generator=g, dtype=torch.float64) + 0.2)
    return net


def inputs(shape, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=g, dtype=torch.float64)
    # Some pixels at the ends of the box, where the region is cut.
    return (1.4 * x - 0.2).clamp(0, 1)


def points(x, threat, count, seed=2):
    """(count, n, ...): points of each sample's region, in it, on its surface, and at its corners."""
    g = torch.Generator().manual_seed(seed)
    d = torch.randn(count, *x.shape, generator=g, dtype=x.dtype)
    if threat.norm == "linf":
        d[::2] = d[::2].sign()
        d[1::2] = torch.rand(d[1::2].shape, generator=g, dtype=x.dtype) * 2 - 1
    else:
        d[::3] *= torch.rand(d[::3].shape, generator=g, dtype=x.dtype) < 0.1
        d = 2 * d / d.flatten(2).norm(dim=2).clamp_min(1e-9).view(count, len(x), *[1] * (x.dim() - 1))
    return threat.project((x + float(threat.eps) * d).flatten(0, 1), x.repeat(count, *[1] * (x.dim() - 1))).view_as(d)


def extremes(net, x, threat, steps=20):
    """(2 classes, n, ...): points that PGD finds when it climbs each logit, and each logit's negative."""
    classes = net(x).shape[1]
    weight = torch.cat([torch.eye(classes, dtype=x.dtype), -torch.eye(classes, dtype=x.dtype)])
    weight = weight.repeat_interleave(len(x), 0)
    clean = x.repeat(2 * classes, *[1] * (x.dim() - 1))
    adv = clean.clone()
    for k in range(steps):
        adv.requires_grad_()
        (grad,) = torch.autograd.grad((net(adv) * weight).sum(), adv)
        adv = threat.project(adv.detach() + 2 * float(threat.eps) * (1 - k / steps) * threat.ascent(grad), clean)
    return adv.view(2 * classes, *x.shape)


@torch.no_grad()
def encloses(net, x, threat, method, random):
    """Logits and margins lie within the bounds at random and at adversarial points; returns how near some come."""
    lower, upper = bounds(net, x, threat, method)
    y = net(x).argmax(1)
    below = margins(net, x, y, threat, method)
    assert (lower <= upper).all()
    with torch.enable_grad():
        adversarial = extremes(net, x, threat)
    found = []
    for adv in torch.cat([points(x, threat, random), adversarial]).split(100):
        z = net(adv.flatten(0, 1)).view(len(adv), *lower.shape)
        assert ((lower <= z) & (z <= upper)).all()
        assert (below <= z.gather(2, y[None, :, None].expand(len(z), -1, 1)) - z).all()
        found.append(z)
    found = torch.cat(found)
    return (found.amax(0) - found.amin(0)).mean() / (upper - lower).mean()


# -- sound, layer by layer


def ending(*layers, width):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 4))


ODD = nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(0, 1), dilation=(2, 1), groups=2)
NORMS_OF_BATCHES = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
LAYERS = {
    "linear": (ending(nn.Linear(6, 9), nn.ReLU(), width=9), (6,)),
    "conv": (ending(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), width=36), (2, 5, 6)),
    "conv odd": (ending(ODD, nn.ReLU(), width=36), (2, 9, 7)),
    "conv same": (ending(nn.Conv2d(1, 3, 3, padding="same"), nn.ReLU(), width=48), (1, 4, 4)),
    "average": (ending(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 2, padding=1), width=16), (1, 6, 6)),
    "maximum": (ending(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), width=16), (1, 6, 6)),
    "overlapping": (ending(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), width=16), (1, 6, 6)),
    "batch-norm": (ending(*NORMS_OF_BATCHES, nn.BatchNorm1d(5, affine=False), nn.ReLU(), width=5), (1, 6, 6)),
    "normalize": (
        ending(Normalize([0.1, 0.4], [0.2, 0.5]), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), width=6),
        (2, 2, 2),
    ),
    "global mean": (ending(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), width=4), (1, 5, 6)),
}


@NORM
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_encloses_what_attacks_find(name, norm):
    net, shape = LAYERS[name]
    # 10,000 points: 10 samples, 1,000 each
    net, x = shuffled(copy.deepcopy(net)), inputs(shape, n=10)
    threat = Threat(norm, 0.1 if norm == "linf" else 0.3)
    for method in METHODS:
        near = encloses(net, x, threat, method, random=960 if method == "crown" else 20)
        if method == "crown":
            assert near > 0.3


@NORM
@METHOD
@pytest.mark.parametrize("name", ["residual", "plain"])
def test_trained_networks_enclose_what_attacks_find(name, method, norm, trained, images):
    threat = Threat(norm, EPS[norm])
    near = encloses(trained[name], images(10)[0], threat, method, random=960 if method in ("crown", "ibp") else 50)
    if method == "crown":
        assert near > 0.1


@NORM
@METHOD
@torch.no_grad()
def test_float32_is_as_sound_as_float64(method, norm, trained, images):
    # The bounds of the float32 network enclose what float64 and float32 say of the same weights. They are not compared
    # with those of the float64 network: of lines that are equally good a bound takes either, at a tie of max-pooling.
    x, y = images(10)
    x, threat = x.float(), Threat(norm, EPS[norm] / 2)
    for net in trained.values():
        rough = copy.deepcopy(net).float()
        below, (lower, upper) = margins(rough, x, y, threat, method), bounds(rough, x, threat, method)
        assert below.dtype == lower.dtype == torch.float32
        near = points(x, threat, 60)
        for answer, inside in ((net, near.double()), (rough, near)):
            z = answer(inside.flatten(0, 1)).view(len(near), *lower.shape).double()
            assert ((lower <= z) & (z <= upper)).all()
            assert (below <= z.gather(2, y[None, :, None].expand(len(z), -1, 1)) - z).all()


@METHOD
@torch.no_grad()
def test_float32_is_widened_by_little(method, trained, images):
    # Without max-pooling, and with weights that are the same everywhere, no line is chosen at a tie.
    x, y = images(10)
    net, threat = trained["residual"], Threat("linf", 0.02)
    exact = margins(net, x, y, threat, method)
    rough = margins(copy.deepcopy(net).float(), x.float(), y, threat, method).double()
    lower, upper = bounds(net, x, threat, method)
    assert (exact - rough).abs().max() < 5e-3 * (upper - lower).max()


@METHOD
def test_a_deep_network_in_float32_is_widened_enough(method):
    torch.manual_seed(2)
    wide = [layer for _ in range(6) for layer in (nn.Linear(200, 200), nn.ReLU())]
    net = nn.Sequential(*wide, nn.Linear(200, 5)).eval()
    x = torch.rand(2, 200)
    for eps in (0.0, 1e-3):
        with torch.no_grad():
            below, above = bounds(net, x, Threat("linf", eps), method)
            lower, upper = bounds(copy.deepcopy(net).double(), x.double(), Threat("linf", eps), method)
        assert (below.double() <= lower).all()
        assert (above.double() >= upper).all()


# -- two forms


def matrix(f, shape):
    """An affine map as a matrix and a vector, column by column."""
    width = math.prod(shape)
    with torch.no_grad():
        zero = f(torch.zeros(1, *shape, dtype=torch.float64))
        columns = f(torch.eye(width, dtype=torch.float64).view(width, *shape)) - zero
    return columns.flatten(1).T, zero.flatten(), zero.shape[1:]


def segments_of_sequential(net, shape):
    """[(W, b, which outputs meet a ReLU)] of a Sequential of affine layers and ReLUs."""
    layers, found = [], []
    for layer in [*net, None]:
        if layer is not None and not isinstance(layer, nn.ReLU):
            layers.append(layer)
            continue
        w, b, shape = matrix(nn.Sequential(*layers), shape)
        found.append((w, b, torch.full_like(b, layer is not None, dtype=torch.bool)))
        layers = []
    return found


def segments_of_residual(net, shape):
    """The same for `Residual`: values that a shortcut carries stand beside those that meet a ReLU."""
    w, b, inner = matrix(lambda x: net.stem(net.normalize(x)), shape)
    found = [(w, b, torch.ones_like(b, dtype=torch.bool))]
    for block in (net.block1, net.block2):
        w1, b1, middle = matrix(nn.Sequential(block.conv1, block.bn1), inner)
        ws, bs, outer = matrix(block.skip, inner)
        found.append((torch.cat([w1, ws]), torch.cat([b1, bs]), torch.arange(len(b1) + len(bs)) < len(b1)))
        w2, b2, _ = matrix(nn.Sequential(block.conv2, block.bn2), middle)
        found.append(
            (torch.cat([w2, torch.eye(len(b2), dtype=torch.float64)], 1), b2, torch.ones_like(b2, dtype=torch.bool))
        )
        inner = outer
    w, b, _ = matrix(lambda x: net.fc(x.mean((2, 3))), inner)
    return [*found, (w, b, torch.zeros_like(b, dtype=torch.bool))]


def slow(segments, lower, upper, c, *, adaptive, best, refine=True):
    """min <c, output> of one sample over the box, by matrices. ``best``: the better of interval and linear bounds."""
    boxes = []

    def interval(low, high, w, b):
        return w.clamp(min=0) @ low + w.clamp(max=0) @ high + b, w.clamp(min=0) @ high + w.clamp(max=0) @ low + b

    def linear(rows, depth):
        """Lower bounds of rows times the values before segment `depth`'s ReLU."""
        rows, total = rows.clone(), torch.zeros(len(rows), dtype=torch.float64)
        for k in range(depth, -1, -1):
            w, b, _ = segments[k]
            total, rows = total + rows @ b, rows @ w
            if k:
                low, high = boxes[k - 1]
                met = segments[k - 1][2]
                for i in range(rows.shape[1]):
                    if not met[i] or low[i] >= 0:
                        continue
                    if high[i] <= 0:
                        rows[:, i] = 0
                        continue
                    s = high[i] / (high[i] - low[i])
                    t = (1.0 if high[i] > -low[i] else 0.0) if adaptive else s
                    negative = rows[:, i].clamp(max=0)
                    total = total - negative * s * low[i]
                    rows[:, i] = negative * s + rows[:, i].clamp(min=0) * t
        return total + rows.clamp(min=0) @ lower + rows.clamp(max=0) @ upper

    low, high = lower, upper
    for k, (w, b, met) in enumerate(segments[:-1]):
        before = interval(low, high, w, b)
        eye = torch.eye(len(b), dtype=torch.float64)
        if refine:
            after = linear(eye, k), -linear(-eye, k)
            before = (torch.maximum(before[0], after[0]), torch.minimum(before[1], after[1])) if best else after
        boxes.append(before)
        low, high = (torch.where(met, side.clamp(min=0), side) for side in before)
    w, b, _ = segments[-1]
    found = linear(c, len(segments) - 1)
    merged = interval(low, high, c @ w, c @ b)[0]
    return (merged, found, torch.maximum(found, merged))


def two_forms(net, segments, x, eps):
    box = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    y = torch.arange(len(x)) % 3
    eye = torch.eye(len(segments[-1][1]), dtype=torch.float64)
    threat = Threat("linf", eps)
    for method, which, options in (
        ("ibp", 0, {"adaptive": True, "best": True, "refine": False}),
        ("crown-ibp", 1, {"adaptive": True, "best": True, "refine": False}),
        ("crown", 2, {"adaptive": True, "best": True}),
        ("dual", 1, {"adaptive": False, "best": False}),
    ):
        fast = margins(net, x, y, threat, method, chunk=37)
        for i in range(len(x)):
            by_matrix = slow(segments, box[0][i], box[1][i], eye[y[i]] - eye, **options)[which]
            torch.testing.assert_close(fast[i], by_matrix, rtol=1e-9, atol=1e-9)


def test_convolutions_agree_with_matrices():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 4, 2, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    net = shuffled(net)
    two_forms(net, segments_of_sequential(net, (1, 7, 8)), inputs((1, 7, 8)), 0.08)


def test_a_trained_residual_network_agrees_with_matrices(trained, images):
    net = trained["residual"]
    two_forms(net, segments_of_residual(net, (1, 8, 8)), images(2)[0], 0.03)


def test_logits_are_bounded_like_margins_of_one_class(trained, images):
    net = trained["residual"]
    x = images(3)[0]
    segments = segments_of_residual(net, (1, 8, 8))
    lower, upper = bounds(net, x, Threat("linf", 0.02), "dual")
    eye = torch.eye(10, dtype=torch.float64)
    for i in range(3):
        box = (x[i] - 0.02).clamp(0, 1).flatten(), (x[i] + 0.02).clamp(0, 1).flatten()
        torch.testing.assert_close(lower[i], slow(segments, *box, eye, adaptive=False, best=False)[1])
        torch.testing.assert_close(upper[i], -slow(segments, *box, -eye, adaptive=False, best=False)[1])


def dual_network(layers, x, eps, c):
    """Wong and Kolter 2018, Theorem 1 and Algorithm 1, as printed: max over the output of <c, z> from below.

    J(x) = -sum_i nu_{i+1}^T b_i - x^T nu_1hat - eps |nu_1hat|_1 + sum over open neurons of l [nu]_+.
    """
    bound = []

    def j(objective):
        """-J is an upper bound of <-objective, z>; here one objective per row, and nu_k = -objective."""
        nu = -objective
        total = torch.zeros(len(nu), dtype=torch.float64)
        for k in range(layers_known(), 0, -1):
            w, b = layers[k]
            total = total - nu @ b
            hat = nu @ w
            low, high = bound[k - 1]
            off, on = high <= 0, low >= 0
            open_ = ~off & ~on
            d = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low)))
            nu = hat * d
            total = total + (nu.clamp(min=0) * torch.where(open_, low, 0.0)).sum(1)
        w, b = layers[0]
        hat = nu @ w
        return total - nu @ b - hat @ x - eps * hat.abs().sum(1)

    def layers_known():
        return len(bound)

    for w, _ in layers[:-1]:
        eye = torch.eye(len(w), dtype=torch.float64)
        bound.append((j(eye), -j(-eye)))
    return j(c)


def test_dual_is_the_bound_of_wong_and_kolter():
    net = shuffled(
        nn.Sequential(
            nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)
        )
    )
    x = 0.3 + 0.4 * inputs((6,))  # the theorem knows no box
    layers = [(m.weight.detach(), m.bias.detach()) for m in net if isinstance(m, nn.Linear)]
    y = torch.tensor([0, 1, 3])
    eye = torch.eye(4, dtype=torch.float64)
    fast = margins(net, x, y, Threat("linf", 0.15), "dual")
    for i in range(3):
        torch.testing.assert_close(fast[i], dual_network(layers, x[i], 0.15, eye[y[i]] - eye), rtol=1e-9, atol=1e-9)
    crown = margins(net, x, y, Threat("linf", 0.15), "crown")
    assert not torch.allclose(fast, crown, atol=1e-3)


# -- exact


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
def test_a_radius_of_zero_gives_the_logits(norm, method, trained, images):
    x, y = images()
    for net in trained.values():
        z = net(x).detach()
        for side in bounds(net, x, Threat(norm, 0.0), method):
            torch.testing.assert_close(side, z, rtol=0, atol=1e-10)
        want = z.gather(1, y[:, None]) - z
        torch.testing.assert_close(margins(net, x, y, Threat(norm, 0.0), method), want, rtol=0, atol=1e-10)


def test_maximum_of_a_window_that_is_settled_is_exact():
    # One entry of each window lies above all others: max-pooling picks it, as a slice would.
    conv = nn.Conv2d(1, 1, 1)
    net = nn.Sequential(conv, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)).double().eval()
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(0.1)
    x = 0.2 * inputs((1, 4, 4))
    x[:, :, ::2, 1::2] += 0.6
    threat = Threat("linf", 0.1)
    lower, upper = (side.detach() for side in bounds(net, x, threat, "crown-ibp"))
    for i in range(3):
        w, b = 2 * net[3].weight.detach(), net[3].bias.detach() + 0.1 * net[3].weight.detach().sum(1)
        v = x[i, 0, ::2, 1::2].flatten()
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
    # Beside a logit that is 0: bounds take no network with one output.
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


# -- how the methods compare


@NORM
def test_crown_is_nowhere_looser_than_intervals(norm, trained, images):
    x, y = images(5)
    for net in trained.values():
        for eps in (0.2 * EPS[norm], 2 * EPS[norm], 10 * EPS[norm]):
            threat = Threat(norm, eps)
            low, high = bounds(net, x, threat, "ibp")
            lower, upper = bounds(net, x, threat, "crown")
            assert (lower >= low).all()
            assert (upper <= high).all()
            crown, ibp = (margins(net, x, y, threat, m) for m in ("crown", "ibp"))
            assert (crown >= ibp).all()
        assert (lower > low).any()


def test_crown_alone_can_be_looser():
    # Why the better of the two is kept: relu(z) for z in [-1, 1.1] lies above the line z, at -1 its end, and above 0.
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(2.1)
        net[0].bias.fill_(-1.0)
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, threat = torch.full((1, 1), 0.5, dtype=torch.float64), Threat("linf", 0.5)
    want = pytest.approx({"ibp": 0.0, "crown-ibp": -1.0, "crown": 0.0, "dual": -1.1 / 2.1})
    with torch.no_grad():
        assert {method: float(bounds(net, x, threat, method)[0][0, 0]) for method in METHODS} == want
        y = torch.tensor([0])
        assert {method: float(margins(net, x, y, threat, method)[0, 1]) for method in METHODS} == want


def test_margins_are_tighter_than_differences_of_bounds(trained, images):
    x, y = images(10)
    for net in trained.values():
        for method in METHODS:
            lower, upper = bounds(net, x, Threat("linf", 0.03), method)
            below = margins(net, x, y, Threat("linf", 0.03), method)
            assert below.gather(1, y[:, None]).abs().max() == 0
            own = torch.eye(10, dtype=torch.bool)[y]
            if method in ("ibp", "dual"):
                assert (below >= lower.gather(1, y[:, None]) - upper - 1e-9)[~own].all()
            assert (below - (lower.gather(1, y[:, None]) - upper))[~own].mean() > 0.01


@pytest.mark.parametrize("method", ["crown", "dual"])
def test_chunks_and_batches_change_nothing(method, trained, images):
    x, y = images(3)
    for net in trained.values():
        whole = margins(net, x, y, Threat("l2", 0.1), method)
        torch.testing.assert_close(margins(net, x, y, Threat("l2", 0.1), method, chunk=50), whole, rtol=1e-9, atol=1e-9)
        single = torch.cat([margins(net, x[i : i + 1], y[i : i + 1], Threat("l2", 0.1), method) for i in range(3)])
        torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-9)


RADII = {
    "ibp": {"linf": 0.002, "l2": 0.006},
    "crown-ibp": {"linf": 0.003, "l2": 0.012},
    "crown": {"linf": 0.03, "l2": 0.18},
    "dual": {"linf": 0.03, "l2": 0.15},
}
"""About where a method proves some of the images and not all."""


@NORM
@METHOD
def test_nothing_verified_falls(norm, method, trained, images):
    x, y = images(20)
    for net in trained.values():
        counts = []
        for eps in (RADII[method][norm] / 2, RADII[method][norm] * 2):
            threat = Threat(norm, eps)
            proved = verified(net, x, y, threat, method)
            assert proved.dtype == torch.bool
            counts.append(int(proved.sum()))
            fooled = PGD(threat, steps=20, step_size=eps / 5, loss="margin", restarts=2).run(net, x, y).success
            assert not (proved & fooled).any()
        assert counts[0] > 0
        assert counts[1] < len(x)
        # Where the attack breaks most, nothing of that is proved.
        wide = Threat(norm, {"linf": 0.15, "l2": 1.0}[norm])
        broken = PGD(wide, steps=10, step_size=float(wide.eps) / 4, loss="margin").run(net, x[:10], y[:10]).success
        assert broken.any()
        assert not (verified(net, x[:10], y[:10], wide, method) & broken).any()


def test_a_wrong_label_is_never_verified(trained, images):
    x = images(20)[0]
    net = trained["plain"]
    wrong = (net(x).argmax(1) + 1) % 10
    assert not verified(net, x, wrong, Threat("linf", 0.0)).any()
    right = net(x).argmax(1)
    assert verified(net, x, right, Threat("linf", 0.0)).all()


# -- gradients, syncs, graphs


@pytest.mark.parametrize(
    ("method", "norm"), [*((m, n) for m in ("ibp", "crown-ibp") for n in BALLS), ("dual", "linf"), ("crown", "linf")]
)
def test_gradients_by_finite_differences(method, norm, trained, images):
    x, y = images(1)
    threat = Threat(norm, EPS[norm] / 2)
    # Linear bounds of every layer take their time: one network will do.
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
            # Bounds have kinks, and the adaptive slope jumps: a smaller step steps over fewer.
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
def test_training_bounds_never_wait(norm, method, trained, images):
    x, y = images()
    for net in trained.values():
        graph = read(net)
        with Syncs() as syncs:
            margins(graph, x, y, Threat(norm, 0.05), method, check=False).sum().backward()
            bounds(graph, x, Threat(norm, 0.05), method, check=False)
        assert syncs.seen == []


def test_a_graph_moves_with_its_model(trained, images):
    x = images()[0]
    net = copy.deepcopy(trained["plain"])
    graph = read(net)
    before = bounds(graph, x, Threat("linf", 0.01))[0]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    after = bounds(graph, x, Threat("linf", 0.01))[0]
    assert not torch.allclose(before, after)
    assert torch.equal(after, bounds(net, x, Threat("linf", 0.01))[0])


def test_the_model_comes_back_as_it_was(trained, images):
    x, y = images()
    net = copy.deepcopy(trained["residual"])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    margins(net, x, y, Threat("linf", 0.02))
    verified(net, x, y, Threat("linf", 0.02))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not net.training


# -- reading networks


@pytest.mark.parametrize(
    "name", ["small_cnn", "lenet5", "digits_cnn", "resnet20", "resnet110", "kw_small", "kw_resnet"]
)
def test_built_in_networks(name):
    torch.manual_seed(0)
    c = native_shape(name)[0]
    shape = (c, 16, 16) if name == "small_cnn" else (c, 8, 8)
    net = shuffled(build(name, shape=shape, normalize=([0.5] * c, [0.25] * c)))
    x = inputs(shape, n=2)
    with torch.no_grad():
        lower, upper = bounds(net, x, Threat("linf", 1e-4), "crown-ibp")
        assert (lower <= upper).all()
        for adv in points(x, Threat("linf", 1e-4), 5):
            z = net(adv)
            assert ((lower <= z) & (z <= upper)).all()


@pytest.mark.parametrize("name", ["resnet18", "wrn_28_4", "wrn_28_10", "wrn_34_10", "dm_large"])
def test_large_built_in_networks_are_read(name):
    with torch.device("meta"):
        net = build(name).eval()
    graph = read(net)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    assert sum(node.kind == "affine" for node in graph.nodes) >= len(layers)


class Functional(nn.Module):
    """What people write in a forward pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(16, 4)
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = 1 - (x - self.mean) / 0.4
        x = 2 * x + 0.1
        a = torch.relu(self.conv(x))
        b = F.max_pool2d(a, 2)
        c = F.avg_pool2d(a, kernel_size=2, stride=2)
        b += c * self.gain
        b = F.dropout(b.relu(), 0.5, self.training)
        return self.fc(b.view(b.size(0), -1)) - 0.5 + F.adaptive_avg_pool2d(c, 1).reshape(c.shape[0], 4)


class Flat(nn.Module):
    def forward(self, x):
        return torch.flatten(x, 1).view(-1, 16)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize(
    "net", [Functional(), nn.Sequential(Flat(), nn.Linear(16, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))]
)
def test_functions_in_the_forward_pass(net, method):
    net = shuffled(copy.deepcopy(net))
    x = inputs((1, 4, 4))
    encloses(net, x, Threat("linf", 0.05), method, random=50)
    torch.testing.assert_close(bounds(net, x, Threat("linf", 0.0), method)[0], net(x).detach(), rtol=0, atol=1e-10)


class Renamed(nn.Linear):
    pass


def test_a_subclass_that_changes_nothing_is_its_layer():
    net = shuffled(nn.Sequential(Renamed(3, 4), nn.ReLU(), Renamed(4, 3)))
    torch.testing.assert_close(bounds(net, inputs((3,)), Threat("linf", 0.0))[0], net(inputs((3,))), rtol=0, atol=1e-10)


def test_parametrised_weights_are_seen():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)).double().eval()
    net, x = nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 3).double()).eval(), inputs((5,))
    torch.testing.assert_close(bounds(net, x, Threat("linf", 0.0))[0], net(x), rtol=0, atol=1e-10)


# -- refusals


def refused(call, *parts):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    for part in parts:
        assert part in text


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x).exp()


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        before = self.fc(x)
        return self.act(before) + before


class Wide(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x * self.scale


def hooked():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda m, a, out: out * 2)
    return net


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), ["1 (Sigmoid)", "not supported", "Conv2d, ReLU"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), ["1 (Softmax)", "Conv2d, ReLU"]),
        (nn.Sequential(Own(3, 3)), ["0 (Own)", "not supported"]),
        (Branch(), ["branch"]),
        (Aliased(), ["act (ReLU)", "inplace=False"]),
        (hooked(), ["0 (Linear)", "hook"]),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), ["track_running_stats"]),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), ["circular", "zeros"]),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), ["same", "odd kernel"]),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), ["ceil_mode"]),
        (nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False)), ["count_include_pad"]),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), ["ceil_mode"]),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), ["2", "mean over the image"]),
        (nn.Sequential(nn.Flatten(0)), ["start_dim"]),
        (Wide(torch.ones(3, 3)), ["(3, 3)", "samples"]),
        (Wide(torch.ones(1, 1)), None),
    ],
)
def test_networks_that_are_refused(net, parts):
    net, x = net.double().eval(), inputs((3,))
    if parts is None:
        bounds(net, x, Threat("linf", 0.1))
    else:
        refused(lambda: bounds(net, x, Threat("linf", 0.1)), *parts)


def test_what_is_no_call_for_bounds(trained, images):
    net, (x, y) = trained["plain"], images(3)
    threat = Threat("linf", 0.1)
    loose = copy.deepcopy(net)
    graph = read(loose)
    loose[1].train()
    refused(lambda: bounds(loose, x, threat), "1 (BatchNorm2d)", "train mode", "model.eval()")
    refused(lambda: bounds(graph, x, threat), "train mode")
    refused(lambda: bounds(copy.deepcopy(net).train(), x, threat), "the model is in train mode", "model.eval()")
    refused(lambda: bounds(net, x, threat, "lp"), "'lp'", "ibp, crown-ibp, crown, dual")
    refused(lambda: bounds(net, x, threat, chunk=0), "chunk")
    refused(lambda: bounds(net, x, Threat("linf", "inf")), "finite eps")
    refused(lambda: bounds(net, x.float(), threat), "float32", "float64")
    refused(lambda: bounds(net, 255 * x, threat), "outside the box")
    refused(lambda: bounds(net, x[:, :, :5], threat), "(3, 1, 5, 8)")
    refused(lambda: bounds(net, x.expand(-1, 2, -1, -1), threat), "(3, 2, 8, 8)", "cannot take")
    refused(lambda: margins(net, x, y[:2], threat), "3 integers")
    refused(lambda: margins(net, x, y.double(), threat), "labels")
    refused(lambda: verified(net, x, y + 8, threat), "out of range", "10 outputs")
    refused(lambda: bounds(nn.Sequential(nn.Conv2d(1, 2, 3)).double().eval(), x, threat), "(n, classes)")
    stretch = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), Wide(torch.ones(3))).double().eval()
    refused(lambda: bounds(stretch, x, threat), "(1,)", "(3,)")


@METHOD
def test_an_empty_batch(method, trained, images):
    x, y = (t[:0] for t in images(1))
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


def _replaced(net):
    layer = net[1]
    layer.forward = lambda z: 3 * F.linear(z, layer.weight, layer.bias)
    return net


class _Standardised(nn.Conv2d):
    def _conv_forward(self, z, weight, bias):
        return super()._conv_forward(z, 3 * (weight - weight.mean((1, 2, 3), keepdim=True)), bias)


class _Around(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.ones(()))
        self.count = torch.ones(())


class _Filled(_Around):
    def forward(self, z):
        self.scale.fill_(3.0)
        return self.net(z) * self.scale


class _NewBuffer(_Around):
    def forward(self, z):
        self.scale = torch.tensor(3.0)
        return self.net(z) * self.scale


class _Counted(_Around):
    def forward(self, z):
        self.count = self.count + 1
        return self.net(z) * self.count


class _Autocast(_Around):
    def forward(self, z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(z)


class _Noisy(_Around):
    def forward(self, z):
        return self.net(z) + torch.randn(3)


class _Depth(_Around):
    def forward(self, z):
        return self.net(z) * (1 if random.random() < 0.5 else 2)


def _net16():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


UNSEEN = {
    "a replaced forward": lambda: _replaced(_net16()),
    "another _conv_forward": lambda: nn.Sequential(_Standardised(1, 3, 3), nn.Flatten(), nn.Linear(12, 3)).eval(),
    **{kind.__name__: lambda kind=kind: kind(_net16()).eval() for kind in _Around.__subclasses__()},
}


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_what_a_trace_cannot_see_is_refused(name, method):
    # Before, each gave bounds of another network: a point of the ball had logits outside of them.
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = UNSEEN[name]()
    random_state = torch.get_rng_state()
    says = "draws random numbers" if name in ("_Noisy", "_Depth") else "bounds cannot see"
    for call in (
        lambda: bounds(net, x, Threat("linf", 1e-4), method),
        lambda: verified(net, x, torch.zeros(3, dtype=torch.long), Threat("l2", 1e-4), method),
        lambda: bounds(read(net), x, Threat("linf", 1e-4), method),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_hook_on_all_modules_is_refused():
    x = torch.rand(3, 1, 4, 4)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 2 if isinstance(m, nn.Linear) else None)
    try:
        with pytest.raises(ValueError, match="bounds cannot see"):
            bounds(_net16(), x, Threat("linf", 1e-4))
    finally:
        hook.remove()


def test_a_network_that_seeds_the_generators_itself_is_a_fixed_function():
    class Seeded(_Around):
        def forward(self, z):
            torch.manual_seed(3)
            return self.net(z) + torch.randn(3)

    x, net = torch.rand(3, 1, 4, 4), Seeded(_net16()).eval()
    lower, upper = bounds(net, x, Threat("linf", 0.01))
    assert ((lower <= net(x)) & (net(x) <= upper)).all()
