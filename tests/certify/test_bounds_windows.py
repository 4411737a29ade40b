"""Bounds by windows of the image equal those by rows of all its entries, on every path through a network."""

import pytest
import torch
from torch import nn

from atent.certify import bounds
from atent.certify.window import Units, Window, all_units, open_units, windows_of
from atent.threat import Threat

THREATS = [Threat("linf", 0.02), Threat("l2", 0.15)]
# Each bound is a sum of some hundred thousand rounded products, in another order.
CLOSE = 1e-10


class Two(nn.Module):
    """Two paths to a sum: kernels of different sizes, and a stride."""

    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.wide, self.small = nn.Conv2d(channels, 6, 5, 2, padding=2), nn.Conv2d(channels, 6, 1, 2)
        self.last = nn.Conv2d(6, 4, 3)
        self.out = nn.Linear(4, 5)
        self.register_buffer("ramp", torch.linspace(0, 1, 7))

    def forward(self, x):
        z = self.stem(x).relu()
        z = (self.wide(z).relu() + self.small(z)).relu()
        z = self.last(z * 0.7 + self.ramp).relu()
        return self.out(z.mean((2, 3)))


class Strides(nn.Module):
    """Two paths to a sum, at different strides: pooling, and a convolution with a large kernel."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool, self.wide = nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(3, 3, 8)
        self.out = nn.Linear(3 * 49, 5)

    def forward(self, x):
        z = self.stem(x).relu()
        return self.out((self.pool(z) - self.wide(z)).relu().flatten(1))


class Planes(nn.Module):
    """Constants that depend on the position, in a product and in a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Linear(4 * 144, 5)
        g = torch.Generator().manual_seed(2)
        self.register_buffer("gain", torch.rand(14, 14, generator=g) + 0.5)
        self.register_buffer("moved", torch.rand(3, 14, 14, generator=g) - 0.5)

    def forward(self, x):
        z = (self.first(x).relu() + self.moved) * self.gain
        return self.out(self.second(z).relu().flatten(1))


def stack(*layers):
    return nn.Sequential(*layers)


NETS = {
    "strides": lambda: stack(
        nn.Conv2d(2, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5),
    ),
    "uneven": lambda: stack(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1)), nn.ReLU(), nn.Conv2d(4, 4, (1, 3), padding=(1, 0)),
        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 13, 5),
    ),
    "groups and dilation": lambda: stack(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
    ),
    "batch-norm and no relu between": lambda: stack(
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(588, 5),
    ),
    "max-pooling": lambda: stack(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2, 1, dilation=2), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5),
    ),
    "average pooling": lambda: stack(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d((3, 2), stride=(1, 2)), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 5),
    ),
    "two ways": lambda: Two(3),
    "two strides": Strides,
    "constants by place": Planes,
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    net = NETS[name]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
    return net.eval(), torch.rand(2, 2, 14, 14, dtype=torch.float64)


@pytest.mark.parametrize(("threat", "method"), list(zip(THREATS, ("crown", "dual"))), ids=["linf crown", "l2 dual"])
@pytest.mark.parametrize("name", NETS)
def test_windows_and_whole_images_give_the_same_bounds(name, threat, method, monkeypatch):
    net, x = made(name)
    sizes = []
    wide = Window.wide
    monkeypatch.setattr(Window, "wide", lambda self, image: sizes.append(self.values.shape[-2:]) or wide(self, image))
    with torch.no_grad():
        found = bounds(net, x, threat, method)
        assert max(h * w for h, w in sizes) > 1
        monkeypatch.setattr(Window, "wide", lambda self, image: True)
        full = bounds(net, x, threat, method)
    for a, b in zip(found, full):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= CLOSE * (1 + b.abs().max())


SHAPE = (3, 5, 4)


def windows():
    """Of 6 units at 4 positions of 4 samples."""
    columns, samples = torch.tensor([7, 27, 0, 19, 59, 39]), torch.tensor([1, 1, 0, 2, 3, 2])
    places, spot = (columns % 20 * 4 + samples).unique(return_inverse=True)
    assert len(places) == 4
    return windows_of(Units(samples, columns, spot, places), 4, SHAPE, torch.float64), samples, columns


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_units_are_found_once_each_with_their_places(chunk):
    g = torch.Generator().manual_seed(5)
    mask = torch.rand(4, *SHAPE, generator=g) < 0.3
    for wanted, groups in (
        (torch.ones_like(mask), all_units(4, SHAPE, chunk, mask.device)),
        (mask, open_units(mask, chunk)),
    ):
        seen = torch.zeros_like(mask, dtype=torch.int64).flatten(1)
        for units in groups:
            assert len(units.columns) <= max(chunk, SHAPE[0])
            assert torch.equal(units.places[units.spot], units.columns % 20 * 4 + units.samples)
            seen[units.samples, units.columns] += 1
        assert torch.equal(seen.view_as(mask), wanted.long())


def test_a_unit_and_its_negative_are_one_hot():
    window, _, columns = windows()
    rows = window.dense(SHAPE).flatten(2)
    hot = torch.nn.functional.one_hot(columns, 60).double()
    assert torch.equal(rows, torch.stack([hot, -hot], 1))


def test_what_lies_in_windows_is_what_their_coefficients_weigh():
    """After a padded convolution some windows leave the image: values and coefficients are zero there."""
    window, samples, _ = windows()
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    with torch.no_grad():
        moved = window.moved(
            nn.functional.conv_transpose2d(window.values.flatten(0, 1), conv.weight, stride=2).unflatten(0, (6, 2)),
            (2, 2), (1, 1), (9, 8),
        )  # fmt: skip
        g = torch.Generator().manual_seed(4)
        z = torch.randn(4, 2, 9, 8, generator=g, dtype=torch.float64)
        rows = moved.dense((2, 9, 8))
        direct = nn.functional.conv_transpose2d(
            window.dense(SHAPE).flatten(0, 1), conv.weight, stride=2, padding=1, output_padding=(0, 1)
        ).unflatten(0, (6, 2))
    assert (rows - direct).abs().max() <= 1e-14
    weighed = (moved.values * moved.of(z)[:, None]).flatten(2).sum(2)
    assert (weighed - (rows * z[samples][:, None]).flatten(2).sum(2)).abs().max() <= 1e-13


def test_bounds_by_windows_have_the_gradient_of_the_weights():
    net, x = made("strides")
    found = []
    for wide in (Window.wide, lambda self, image: True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Window, "wide", wide)
            lower, _ = bounds(net, x, THREATS[0], "crown")
            found.append(torch.autograd.grad(lower.sum(), net[0].weight)[0])
    assert found[0].abs().max() > 0
    assert (found[0] - found[1]).abs().max() <= 1e-9 * found[1].abs().max()
