"""What the tests of the minimum-norm attacks share: threats, a linear model, and the comparison of walks."""

import torch
from kit import Recorded
from torch import nn

from atent.threat import Threat

FREE = {norm: Threat(norm, "inf") for norm in ("l2", "linf")}


def right(model, x, y, n):
    """The first n samples that the model gets right."""
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero().squeeze(1)[:n]
    return x[rows], y[rows]


def linear(corner, n=16, d=12, classes=5):
    """A linear model whose rows are orthogonal, inputs in the middle or in a corner of the box, their labels."""
    g = torch.Generator().manual_seed(2)
    net = nn.Linear(d, classes).double()
    x = torch.rand(n, d, generator=g, dtype=torch.float64)
    x = 0.2 * (x - 0.5).clamp_min(0) if corner else 0.35 + 0.3 * x
    with torch.no_grad():
        net.weight.copy_(100 * torch.linalg.qr(torch.randn(d, classes, generator=g, dtype=torch.float64))[0].T)
        net.bias.copy_(-net.weight @ x.mean(0) + 15 * torch.randn(classes, generator=g, dtype=torch.float64))
    return net, x, net(x).argmax(1)


def logits_and_gradient(model, z, of):
    """Logits of one sample and the gradient of ``of(logits)``."""
    z = z.clone().requires_grad_()
    out = model(z[None])[0]
    return out.detach(), torch.autograd.grad(of(out), z)[0]


def runner_up(logits, label):
    return max((v, k) for k, v in enumerate(logits.tolist()) if k != label)[1]


def assert_same_walk(attack, slow, model, x, y):
    """Every point looked at, and the result, up to what rounding becomes on the way.

    A walk may enlarge rounding, and kernels round differently on each processor: the transcription walks once more from
    a start that differs by 1e-13, and a hundred times the distance that comes of it is allowed, 1e-5 at most.
    """
    recorded = Recorded(model)
    found = attack(recorded, x, y)
    for i in range(len(x)):
        best, seen = slow(model, x[i], int(y[i]))[:2]
        beside = slow(model, x[i] * (1 - 1e-13), int(y[i]))[1]
        grown = max(float((a - b).abs().max()) for a, b in zip(seen, beside))
        allowed = min(1e-5, 1e-9 + 100 * grown)
        assert len(recorded.seen) == len(seen)
        # driven on from where it is wrong, a sample swings between the walls and rounding grows
        if not torch.equal(best, x[i]):
            assert max(float((a[i] - b).abs().max()) for a, b in zip(recorded.seen, seen)) <= allowed
        assert (found[i] - best).abs().max() <= allowed
    return found
