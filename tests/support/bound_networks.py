"""The networks of the tests of bounds, and checks that points lie within bounds."""

import math

import pytest
import torch
from kit import BALLS
from torch import nn
from torch.nn import functional as F

from atent.certify import METHODS, bounds, margins
from atent.models import Normalize

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
    """(count, n, ...): points in each sample's region, on its surface, and at its corners."""
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
    """(2 classes, n, ...): points that PGD finds by maximising each logit, and each logit's negative."""
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
    """Logits and margins lie within the bounds at random and at adversarial points; returns the smallest distances."""
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


def ending(*layers, width):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 4))


def matrix(f, shape):
    """An affine map as a matrix and a vector, column by column."""
    width = math.prod(shape)
    with torch.no_grad():
        zero = f(torch.zeros(1, *shape, dtype=torch.float64))
        columns = f(torch.eye(width, dtype=torch.float64).view(width, *shape)) - zero
    return columns.flatten(1).T, zero.flatten(), zero.shape[1:]
