"""The networks and the functions in a forward pass that bounds read."""

import copy

import pytest
import torch
from bound_networks import encloses, inputs, points, shuffled
from torch import nn
from torch.nn import functional as F

from atent.certify import bounds, read
from atent.models import build, native_shape
from atent.threat import Threat


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
    """Common code of a forward pass."""

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
