"""Regions and visibility of changes, on which SAPF's group sparsity and its weights stand."""

import math

import pytest
import torch
from torch import nn

from atent.attacks import SAPF
from atent.attacks.regions import grid, superpixels, visibility
from atent.threat import Threat

ELEMENTS, PIXELS = Threat("l0", 4), Threat("l0", 4, group="pixel")
FLAT = 5
SHORT = {"steps": 100, "rounds": 2, "final_steps": 60, "search_steps": 4}


def images(n=2, channels=3, side=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, side, side, generator=g, dtype=torch.float64)


def half_flat(n=3, side=12):
    """Images that vary, but for the windows around the `FLAT` pixels on the left."""
    x = images(n, 1, side) * 0.6 + 0.2
    x[..., : FLAT + 1] = 0.5
    return x


def slow_visibility(image, low, high):
    """One image (c, h, w), pixel by pixel; a window that leaves the image repeats its edge."""
    level = image.mean(0) / (high - low)
    h, w = level.shape
    weight = torch.zeros(h, w, dtype=level.dtype)
    for i in range(h):
        for j in range(w):
            window = torch.stack([
                level[min(max(i + a, 0), h - 1), min(max(j + b, 0), w - 1)] for a in (-1, 0, 1) for b in (-1, 0, 1)
            ])  # fmt: skip
            weight[i, j] = 1 / (window.std(correction=0) + 1e-4)
    return (weight - weight.min()) / (weight.max() - weight.min())


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_visibility_is_the_inverse_of_how_much_the_window_varies(channels, box):
    x = box[0] + (box[1] - box[0]) * images(channels=channels)
    pixels = Threat("l0", 4, box, group="pixel") if channels == 3 else Threat("l0", 4, box)
    found = visibility(pixels, x)
    for image, weights in zip(x, found):
        slow = slow_visibility(image, *box).flatten()
        # 1 / (s + 1e-4) enlarges the rounding of s, a few units of 1e-16, by 1e8 at most.
        assert (weights - slow).abs().max() <= 1e-7
        assert (weights.min(), weights.max()) == (0, 1)
    elements = visibility(Threat("l0", 4, box), x)
    # The mean of the channels' equal values, over those of all.
    assert (elements.view(len(x), channels, -1) - found.view(len(x), 1, -1)).abs().max() <= 1e-15


def test_in_a_flat_image_all_changes_are_as_visible():
    assert torch.equal(visibility(ELEMENTS, torch.full((2, 1, 5, 5), 0.3)), torch.ones(2, 25))


@pytest.mark.parametrize(("group", "channels"), [("element", 1), ("pixel", 3)])
def test_flat_regions_of_different_levels_are_as_visible(group, channels):
    """Also in float32, where squares of levels such as 249/255 round by more than the square of 1e-4."""
    x = images(n=4, channels=channels, side=12).float()
    for image, levels in zip(x, [(172, 47, 117), (106, 152, 249), (1, 128, 254), (77, 200, 255)]):
        for level, (i, j) in zip(levels, [(0, 0), (0, 6), (6, 0)]):
            image[:, i : i + 6, j : j + 6] = level / 255
    found = visibility(Threat("l0", 4, group=group), x).view(4, 12, 12)
    inside = torch.stack([found[:, i + 1 : i + 5, j + 1 : j + 5] for i, j in [(0, 0), (0, 6), (6, 0)]])
    assert torch.equal(inside, torch.ones_like(inside))


class Sum(nn.Module):
    """Two classes: every element raises the margin of the wrong one alike, the flat ones slightly more."""

    def __init__(self, x):
        super().__init__()
        self.w = nn.Parameter(torch.ones_like(x[0]))
        with torch.no_grad():
            self.w[..., :FLAT] += 0.01
            self.b = float((x * self.w).flatten(1).sum(1).max()) + 0.6

    def forward(self, x):
        score = (x * self.w).flatten(1).sum(1) - self.b
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("hidden", [False, True])
def test_sapf_hides_changes_where_the_image_varies(hidden):
    x = half_flat()
    model, y = Sum(x), torch.zeros(len(x), dtype=torch.long)
    out = SAPF(ELEMENTS, visibility=hidden, **SHORT).run(model, x, y)
    assert out.success.all()
    changed = out.x_adv != x
    assert (changed.flatten(1).sum(1) <= 4).all()
    # Flat pixels are worth 1 % more, and cost many times more once visibility counts.
    assert float(changed[..., :FLAT].sum() / changed.sum()) == (0.0 if hidden else 1.0)


def test_the_grid_numbers_the_squares():
    numbers = grid(PIXELS, images(n=1, side=6), 4)[0].view(6, 6)
    assert numbers[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert numbers[5].tolist() == [2, 2, 2, 2, 3, 3]


def test_superpixels_without_the_library_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"atent\[superpixels\]"):
        superpixels(PIXELS, images())


@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_keep_to_the_edges_of_an_image(channels):
    pytest.importorskip("skimage", reason="scikit-image is not installed: pip install 'atent[superpixels]'")
    x = torch.full((2, channels, 24, 24), 0.1, dtype=torch.float64)
    x[0, :, :, 12:], x[1, :, 12:] = 0.9, 0.9
    threat = PIXELS if channels == 3 else ELEMENTS
    regions = superpixels(threat, x).view(2, 24, 24)
    sides = (regions[0, :, :12], regions[0, :, 12:]), (regions[1, :12], regions[1, 12:])
    for one, other in sides:
        assert not set(one.flatten().tolist()) & set(other.flatten().tolist())
    assert regions[0].unique().numel() > 4
    elements = superpixels(ELEMENTS, x).view(2, channels, 24, 24)
    assert all(torch.equal(elements[:, c], regions) for c in range(channels))


def test_sapf_takes_superpixels():
    pytest.importorskip("skimage", reason="scikit-image is not installed: pip install 'atent[superpixels]'")
    x = half_flat(side=16)
    model, y = Sum(x), torch.zeros(len(x), dtype=torch.long)
    attack = SAPF(Threat("l0", 8), regions="superpixels", region_weight=0.05, **SHORT)
    plain = SAPF(Threat("l0", 8), **SHORT)
    numbers = superpixels(attack.threat, x)

    def touched(out):
        assert out.success.all()
        changed = (out.x_adv != x).flatten(1)
        assert (changed.sum(1) <= 8).all()
        return sum(numbers[i][changed[i]].unique().numel() for i in range(len(x)))

    assert touched(attack.run(model, x, y)) <= touched(plain.run(model, x, y))
    assert math.isfinite(float(attack.run(model, x, y).norm.max()))
