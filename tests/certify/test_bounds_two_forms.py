"""Bounds equal slow transcriptions of the papers' equations."""

import torch
from bound_networks import inputs, matrix, shuffled
from torch import nn

from atent.certify import bounds, margins
from atent.threat import Threat


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
    """The same for `Residual`, with the values of a shortcut in addition to those that pass a ReLU."""
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


def test_a_trained_residual_network_agrees_with_matrices(trained, batch):
    net = trained["residual"]
    two_forms(net, segments_of_residual(net, (1, 8, 8)), batch(2)[0], 0.03)


def test_logits_are_bounded_like_margins_of_one_class(trained, batch):
    net = trained["residual"]
    x = batch(3)[0]
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
    x = 0.3 + 0.4 * inputs((6,))  # the theorem has no box
    layers = [(m.weight.detach(), m.bias.detach()) for m in net if isinstance(m, nn.Linear)]
    y = torch.tensor([0, 1, 3])
    eye = torch.eye(4, dtype=torch.float64)
    fast = margins(net, x, y, Threat("linf", 0.15), "dual")
    for i in range(3):
        torch.testing.assert_close(fast[i], dual_network(layers, x[i], 0.15, eye[y[i]] - eye), rtol=1e-9, atol=1e-9)
    crown = margins(net, x, y, Threat("linf", 0.15), "crown")
    assert not torch.allclose(fast, crown, atol=1e-3)
