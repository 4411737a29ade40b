"""Noise: Gaussian, shot and impulse noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atent.data.corruptions.registry import corruption
from atent.rng import PerSample


@corruption("noise", (0.04, 0.06, 0.08, 0.09, 0.10))
def gaussian_noise(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Gaussian noise of standard deviation ``level``."""
    return (x + level * streams.normal(x)).clamp(0, 1)


@corruption("noise", (500, 250, 100, 75, 50))
def shot_noise(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Poisson counts of ``level`` photons at white."""
    return (poisson(x.double() * level, streams.uniform(x.double())) / level).clamp(0, 1).to(x.dtype)


@corruption("noise", (0.01, 0.02, 0.03, 0.05, 0.07))
def impulse_noise(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """A share of the values becomes black or white."""
    white = (streams.uniform(x, use="colour") < 0.5).to(x.dtype)
    return torch.where(streams.uniform(x, use="place") < level, white, x)


_FEW = 4096
"""Up to this many different means, one table of the distribution costs less than a search for each pixel."""


def poisson(mean: Tensor, u: Tensor) -> Tensor:
    """The quantile ``u`` of the Poisson distribution with ``mean``, float64: the least k with P(X <= k) >= u."""
    most = float(mean.max()) if mean.numel() else 0.0
    # Beyond ten standard deviations and 40 counts the probability is below the resolution of u in double precision.
    count = math.ceil(most + 10 * math.sqrt(most) + 40)
    levels, which = mean.unique(return_inverse=True)
    if len(levels) > _FEW:
        return _searched(mean, u, count)
    counts = torch.arange(count, device=mean.device).double()
    logs = torch.special.xlogy(counts, levels[:, None]) - levels[:, None] - torch.lgamma(counts + 1)
    law = logs.exp().cumsum(1).clamp_max(1)
    # With row i shifted by i, the flattened table is in ascending order.
    line = (law + torch.arange(len(levels), device=mean.device)[:, None]).flatten()
    found: Tensor = (torch.searchsorted(line, u + which) - count * which).to(mean.dtype)
    return found


def _searched(mean: Tensor, u: Tensor, count: int) -> Tensor:
    """As `poisson`, below ``count``, by bisection: P(X <= k) is the regularised upper incomplete gamma function."""
    low = torch.full_like(mean, -1.0)
    for i in reversed(range(count.bit_length())):
        middle = low + 2**i
        low = torch.where(torch.special.gammaincc(middle + 1, mean) < u, middle, low)
    return low + 1
