"""Bounds enclose the results of attacks, layer by layer and for trained networks, in float32 and float64."""

import copy

import pytest
import torch
from bound_networks import EPS, METHOD, NORM, encloses, ending, inputs, points, shuffled
from torch import nn

from atent.certify import METHODS, bounds, margins
from atent.models import Normalize
from atent.threat import Threat

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
def test_trained_networks_enclose_what_attacks_find(name, method, norm, trained, batch):
    threat = Threat(norm, EPS[norm])
    near = encloses(trained[name], batch(10)[0], threat, method, random=960 if method in ("crown", "ibp") else 50)
    if method == "crown":
        assert near > 0.1


@NORM
@METHOD
@torch.no_grad()
def test_float32_is_as_sound_as_float64(method, norm, trained, batch):
    # The bounds of the float32 network enclose the logits in float64 and in float32 for the same weights. They are not
    # compared with those of the float64 network: at a tie of max-pooling a bound takes either of two lines.
    x, y = batch(10)
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
def test_float32_is_widened_by_little(method, trained, batch):
    # Without max-pooling, and with weights that are the same everywhere, no line is chosen at a tie.
    x, y = batch(10)
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
