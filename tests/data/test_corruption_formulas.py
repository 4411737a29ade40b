"""The corruptions against slow transcriptions of the published code, in numpy and scipy, with the same random numbers.

hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py; docs/corruptions.md lists what differs.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_corruptions import pictures

from atent.data.corruptions import CORRUPTIONS, corrupt
from atent.rng import PerSample

PUBLISHED = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (0.06, 0.11, 0.16, 0.21, 0.26),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}
SIDE, N = 32, 2
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(float)
# Some hundred operations on numbers of up to a few units in float64, in another order.
ROUNDING = 1e-11


def test_the_constants_are_the_published_ones():
    assert {name: each.levels for name, each in CORRUPTIONS.items()} == PUBLISHED


def uniform(streams, *shape, **key):
    return streams.uniform(torch.zeros(N, *shape, dtype=torch.float64), **key).numpy()


def zoomed(x, factor):
    """The middle of x, enlarged by scipy, cropped."""
    middle = math.ceil(SIDE / factor)
    first = (SIDE - middle) // 2
    large = ndimage.zoom(x[first : first + middle, first : first + middle], factor, order=1)
    first = (len(large) - SIDE) // 2
    return large[first : first + SIDE, first : first + SIDE]


def streaked(x, radius, sigma, degrees):
    """The one-sided Gaussian of ImageMagick: 2 radius + 1 whole pixels along the direction, with the edge repeated."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    total = np.zeros_like(x)
    for i, weight in enumerate(weights / weights.sum()):
        down, right = (math.ceil(i * f(math.radians(degrees)) - 0.5) for f in (math.sin, math.cos))
        for r in range(SIDE):
            for c in range(SIDE):
                total[r, c] += weight * x[min(max(r + down, 0), SIDE - 1), min(max(c + right, 0), SIDE - 1)]
    return total


def defocus(x, level, streams):
    radius, alias = level
    places = np.arange(-8, 9)
    disc = (places[:, None] ** 2 + places**2 <= radius**2).astype(float)
    edge = np.exp(-np.array([1, 0, 1]) / (2 * alias**2))
    for axis in (0, 1):
        disc = ndimage.correlate1d(disc / disc.sum(), edge / edge.sum(), axis, mode="mirror")
    return [[ndimage.correlate(c, disc, mode="mirror") for c in each] for each in x]


def glass(x, level, streams):
    sigma, reach, rounds = level
    out = []
    for n, each in enumerate(x):
        image = np.stack([ndimage.gaussian_filter(c, sigma, mode="nearest") for c in each], 2)
        for k in range(rounds):
            moves = (streams.integers(2 * reach, (N, SIDE * SIDE, 2), use="moves", step=k) - reach)[n].tolist()
            for r in range(SIDE - reach, reach, -1):
                for c in range(SIDE - reach, reach, -1):
                    down, right = moves[r * SIDE + c]
                    # Both sides are views: the first assignment changes what the second reads.
                    image[r, c], image[r + down, c + right] = image[r + down, c + right], image[r, c]
        out.append([ndimage.gaussian_filter(c, sigma, mode="nearest") for c in image.transpose(2, 0, 1)])
    return out


def motion(x, level, streams):
    degrees = -45 + 90 * uniform(streams, 1)
    return [[streaked(c, *level, float(a)) for c in each] for each, a in zip(x, degrees[:, 0])]


def zoom(x, level, streams):
    factors = np.arange(1, 1 + level, 0.01)
    # By rounding, the end of the range is included at 0.06 and 0.11.
    assert len(factors) == {0.06: 7, 0.11: 12, 0.16: 16, 0.21: 21, 0.26: 26}[level]
    return [[(c + sum(zoomed(c, f) for f in factors)) / (len(factors) + 1) for c in each] for each in x]


def snow(x, level, streams):
    mean, deviation, factor, least, radius, sigma, kept = level
    drawn = streams.normal(torch.zeros(N, 1, SIDE, SIDE, dtype=torch.float64), use="flakes").numpy()
    angles, out = -135 + 90 * uniform(streams, 1, use="fall"), []
    for each, flakes, angle in zip(x, drawn[:, 0], angles[:, 0]):
        flakes = zoomed(mean + deviation * flakes, factor)
        flakes[flakes < least] = 0
        flakes = streaked(np.clip(flakes, 0, 1), radius, sigma, float(angle))
        grey = 0.299 * each[0] + 0.587 * each[1] + 0.114 * each[2]
        out.append(kept * each + (1 - kept) * np.maximum(each, 1.5 * grey + 0.5) + flakes + flakes[::-1, ::-1])
    return out


def plasma(streams, decay):
    """Diamond-square on a torus, point by point."""
    fields = np.zeros((N, SIDE, SIDE))
    step, height, level = SIDE, 1.0, 0
    while step >= 2:
        half, count = step // 2, SIDE // step
        noise = {
            use: 2 * uniform(streams, count, count, use=use, step=level) - 1 for use in ("centres", "rows", "columns")
        }
        for n, field in enumerate(fields):
            points = [(i, j) for i in range(count) for j in range(count)]

            def at(i, j, field=field):
                return field[i % SIDE, j % SIDE]

            for i, j in points:
                r, c = i * step, j * step
                four = at(r, c) + at(r, c + step) + at(r + step, c) + at(r + step, c + step)
                field[r + half, c + half] = four / 4 + height * noise["centres"][n, i, j]
            for i, j in points:
                r, c = i * step, j * step
                four = at(r, c) + at(r, c + step) + at(r + half, c + half) + at(r - half, c + half)
                field[r, c + half] = four / 4 + height * noise["rows"][n, i, j]
                four = at(r, c) + at(r + step, c) + at(r + half, c + half) + at(r + half, c - half)
                field[r + half, c] = four / 4 + height * noise["columns"][n, i, j]
        # The published amplitude is the square of a number that is divided by `decay`.
        step, height, level = half, height / decay**2, level + 1
    return [(f - f.min()) / (f.max() - f.min()) for f in fields]


def fog(x, level, streams):
    weight, decay = level
    return [
        (each + weight * cloud) * each.max() / (each.max() + weight)
        for each, cloud in zip(x, plasma(streams, decay))
    ]  # fmt: skip


def contrast(x, level, streams):
    return [[(c - c.mean()) * level + c.mean() for c in each] for each in x]


def elastic(x, level, streams):
    amount, sigma, reach = (SIDE * part for part in level)
    middle, half = SIDE // 2, SIDE // 3
    # OpenCV's points are (column, row), and its map is that of a pixel to its place in the result.
    corners = middle + half * np.array([[1, 1], [-1, 1], [-1, -1]], dtype=float)
    moves = reach * (2 * uniform(streams, 3, 2, use="corners") - 1)
    drawn = [2 * uniform(streams, 1, SIDE, SIDE, use=use)[:, 0] - 1 for use in ("down", "right")]
    out = []
    for n, each in enumerate(x):
        a = np.linalg.solve(np.c_[corners, np.ones(3)], corners + moves[n])
        where = (np.stack([ROWS, COLUMNS], 2) - a[2]) @ np.linalg.inv(a[:2])
        each = [ndimage.map_coordinates(c, [where[..., 0], where[..., 1]], order=1, mode="mirror") for c in each]
        if amount:
            d = [amount * ndimage.gaussian_filter(u[n], sigma, mode="reflect", truncate=3) for u in drawn]
            where = [ROWS + d[0], COLUMNS + d[1]]
            each = [ndimage.map_coordinates(c, where, order=1, mode="reflect") for c in each]
        out.append(each)
    return out


SLOW = {
    "defocus_blur": defocus, "glass_blur": glass, "motion_blur": motion, "zoom_blur": zoom, "snow": snow, "fog": fog,
    "contrast": contrast, "elastic_transform": elastic,
}  # fmt: skip


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", SLOW)
def test_each_corruption_equals_its_transcription(name, severity):
    # Without white and black: fog refers to the largest value of an image.
    x, ids = 0.05 + 0.8 * pictures(N), torch.tensor([3, 8])
    found = corrupt(x, name, severity, seed=5, ids=ids).numpy()
    streams = PerSample(5, ids, f"corruption/{name}")
    wanted = np.clip(np.array(SLOW[name](x.numpy(), PUBLISHED[name][severity - 1], streams)), 0, 1)
    assert abs(found - wanted).max() < ROUNDING
