"""Normalisation as a layer, so that threats and attacks are in pixel units."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Maps x of shape (n, c, h, w) to (x - mean) / std, per channel.

    ``mean`` and ``std`` are buffers of shape (c, 1, 1): the state dict contains them, and training does not change
    them.

    Parameters
    ----------
    mean
        One finite number per channel, in the units of x (pixels in [0, 1]).
    std
        One finite number above 0 per channel, in the same units.

    Raises
    ------
    ValueError
        If the lengths differ or are 0, a value is not finite, or a standard deviation is not above 0.

    Examples
    --------
    >>> import torch
    >>> from atent.models import Normalize
    >>> model = torch.nn.Sequential(Normalize([0.5], [0.25]), torch.nn.Flatten(), torch.nn.Linear(784, 10))
    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if not mean or len(mean) != len(std):
            raise ValueError(f"normalize needs one mean and one std per channel, got {mean} and {std}")
        if not all(map(math.isfinite, mean + std)):
            raise ValueError(f"normalize needs finite numbers, got mean {mean} and std {std}")
        if min(std) <= 0:
            raise ValueError(f"normalize needs every std above 0, got {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
