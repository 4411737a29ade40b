"""Blurs: defocus, frosted glass, motion and zoom."""

from __future__ import annotations

import torch
from torch import Tensor

from atent.data.corruptions.registry import corruption
from atent.data.corruptions.sampling import correlate, gaussian_blur, motion_blurred, zoomed
from atent.rng import PerSample


@corruption("blur", ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), smallest=16)
def defocus_blur(x: Tensor, level: tuple[float, float], streams: PerSample) -> Tensor:
    """Mean over a disc with an edge softened by a Gaussian."""
    radius, alias = level
    reach = int(radius) + 2
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (places[:, None] ** 2 + places**2 <= radius**2).double()
    edge = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / alias) ** 2)
    edge = edge / edge.sum()
    disc = correlate((disc / disc.sum())[None, None], edge[:, None] * edge, "reflect")[0, 0]
    return correlate(x, disc, "reflect").clamp(0, 1)


@corruption("blur", ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), smallest=16)
def glass_blur(x: Tensor, level: tuple[float, int, int], streams: PerSample) -> Tensor:
    """Neighbouring pixels are swapped, between two Gaussian blurs.

    The authors' code swaps two views, which copies one pixel over the other; here both are exchanged, as in the text.
    """
    sigma, reach, rounds = level
    n, c, h, w = x.shape
    soft = gaussian_blur(x, sigma)
    places = torch.arange(h * w, device=x.device).expand(n, -1).clone()
    for k in range(rounds):
        down, right = (streams.integers(2 * reach, (n, h * w, 2), use="moves", step=k) - reach).unbind(2)
        moves = w * down + right
        for i in range(h - reach, reach, -1):
            for j in range(w - reach, reach, -1):
                here = i * w + j
                there = (here + moves[:, here])[:, None]
                other = places.gather(1, there)
                places.scatter_(1, there, places[:, here, None].clone())
                places[:, here] = other[:, 0]
    mixed = soft.flatten(2).gather(2, places[:, None].expand(-1, c, -1)).view_as(x)
    return gaussian_blur(mixed, sigma).clamp(0, 1)


@corruption("blur", ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), smallest=16)
def motion_blur(x: Tensor, level: tuple[int, float], streams: PerSample) -> Tensor:
    """Blur along a line, at most 45 degrees from the horizontal."""
    radius, sigma = level
    angle = 90 * streams.uniform(x[:, 0, 0, :1]).squeeze(1) - 45
    return motion_blurred(x, radius, sigma, angle).clamp(0, 1)


@corruption("blur", (0.06, 0.11, 0.16, 0.21, 0.26))
def zoom_blur(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Mean of the image and of its enlargements by 1, 1.01, 1.02 ... below 1 + level.

    In the authors' code rounding adds the enlargement by 1 + level at severities 1 and 2 (numpy's ``arange``).
    """
    count = round(100 * level)
    total = x + sum(zoomed(x, 1 + i / 100) for i in range(count))
    return (total / (count + 1)).clamp(0, 1)
