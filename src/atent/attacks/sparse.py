"""Helpers of the sparse attacks, which change few elements, pixels or patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atent.threat import Threat, per_sample


def counts(threat: Threat, x: Tensor) -> Tensor:
    """The number of blocks of each sample that may change, at most all: int64 (n,)."""
    k = torch.as_tensor(threat.radii(x.double()), dtype=torch.float64, device=x.device)
    return k.expand(len(x)).clamp_max(threat.blocks(x.shape[1:]).count).long()


class BestPoints:
    """The best point of each sample in a search that ends for a sample once it is misclassified.

    The first misclassified point, or before that the one with the largest margin.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        """The best points, the shape of x."""
        self._highest = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        self._rows = torch.arange(len(x), device=x.device)

    def see(self, z: Tensor, margin: Tensor) -> None:
        """Update with points ``z`` of the remaining samples and their margins of misclassification (m,)."""
        highest, margin = self._highest[self._rows], margin.double()
        better = (margin > highest) & (highest <= 0)
        self.points[self._rows] = torch.where(per_sample(better, z), z, self.points[self._rows])
        self._highest[self._rows] = torch.where(better, margin, highest)

    def left(self) -> Tensor:
        """Drop the misclassified samples; returns the indices of the remaining ones among those before."""
        on = (self._highest[self._rows] <= 0).nonzero().squeeze(1)
        self._rows = self._rows[on]
        return on
