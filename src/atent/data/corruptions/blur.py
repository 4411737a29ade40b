"""Blurs: defocus, frosted glass, motion and zoom."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atent.data.corruptions.registry import corruption
from atent.data.corruptions.sampling import correlate, enlarged, gaussian_blur, motion_blurred
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
    """Pixels are replaced by neighbours, between two Gaussian blurs.

    As in the code of CIFAR-10-C: it assigns two views of the image to each other, so that a pixel is copied over its
    neighbour, where the text says that both are swapped.
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
                places[:, here] = places.gather(1, there)[:, 0]
    mixed = soft.flatten(2).gather(2, places[:, None].expand(-1, c, -1)).view_as(x)
    return gaussian_blur(mixed, sigma).clamp(0, 1)


@corruption("blur", ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), smallest=16)
def motion_blur(x: Tensor, level: tuple[int, float], streams: PerSample) -> Tensor:
    """Blur along a line, at most 45 degrees from the horizontal."""
    radius, sigma = level
    angle = 90 * streams.uniform(x[:, 0, 0, :1]).squeeze(1) - 45
    return motion_blurred(x, radius, sigma, angle).clamp(0, 1)


@corruption("blur", (0.06, 0.11, 0.16, 0.21, 0.26), smallest=16)
def zoom_blur(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Mean of the image and of its enlargements by 1, 1.01, 1.02 ...

    The last factor is 1.06, 1.11, 1.15, 1.2 and 1.25 at severities 1 to 5.
    """
    # Those of CIFAR-10-C. Rounding adds the end of the range, 1 + level, at severities 1 and 2, and gives 1.25 the last
    # bit that makes 33 pixels of 26 in `enlarged`.
    factors = np.arange(1, 1 + level, 0.01).tolist()
    total = x + sum(enlarged(x, factor) for factor in factors)
    return (total / (len(factors) + 1)).clamp(0, 1)
