"""Bounds read the code: what changes in place must not be read again under another name."""

import pytest
import torch
from torch import nn
from zoo import BOUNDS, CAN_BE_BOUNDED, LINF, PLAIN, ZOO, alike, data, made, refused, untouched

from atent import Threat
from atent.certify import bounds


@PLAIN
def test_bounds_are_those_of_the_twin_or_refused(name):
    net, twin = (make() for make in ZOO[name])
    x, y = data()
    for function in BOUNDS.values():
        if name in CAN_BE_BOUNDED:
            assert alike(untouched(net, function, x, y), untouched(twin, function, x, y))
        else:
            refused(function, net, x, y)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.lin = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 3)


class OtherName(Residual):
    def forward(self, z):
        z = self.a(z.flatten(1))
        old = z
        z -= 0.3
        return self.lin(self.b(z).relu() + old)


class OtherView(Residual):
    def forward(self, z):
        flat = z.flatten(1)
        z -= 0.3
        return self.lin(self.a(flat).relu())


class Summed(Residual):
    def forward(self, z):
        z = self.a(z.flatten(1))
        old = z
        z += self.b(z)
        return self.lin(old.relu())


class Written(Residual):
    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.zeros(36))

    def forward(self, z):
        h = self.offset
        h += z.flatten(1)
        return self.lin(h.relu())


@pytest.mark.parametrize("kind", [OtherName, OtherView, Written])
def test_bounds_refuse_a_change_in_place_that_is_read_elsewhere(kind):
    refused(bounds, made(kind), data()[0], LINF, says="in place")


class Usual(Residual):
    def forward(self, z):
        old = self.a(z.flatten(1))
        z = self.b(old.relu())
        z += old
        return self.lin(z.relu_())


@pytest.mark.parametrize("kind", [Usual, Summed])
def test_bounds_take_a_residual_sum_in_place(kind):
    """Of the second, the code goes on with what it changed, under the name that it had before."""
    x, net = data()[0], made(kind)
    lower, upper = bounds(net, x, Threat("linf", 0.01))
    assert bool((lower <= net(x)).all() and (net(x) <= upper).all())
