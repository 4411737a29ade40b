"""What the attacks on few elements, pixels or patches share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atent.threat import Threat, per_sample


def counts(threat: Threat, x: Tensor) -> Tensor:
    """How many blocks of each sample may change, no more than it has: int64 (n,)."""
    k = torch.as_tensor(threat.radii(x.double()), dtype=torch.float64, device=x.device)
    return k.expand(len(x)).clamp_max(threat.blocks(x.shape[1:]).count).long()


class Found:
    """The best point of each sample of a search that a sample leaves once it is misclassified.

    The first misclassified point, or the one with the largest margin as long as there is none.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        """The best points, the shape of x."""
        self._highest = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        self._rows = torch.arange(len(x), device=x.device)

    def see(self, z: Tensor, margin: Tensor) -> None:
        """Points of the samples that are still searched for, and by how much each is misclassified, (m,)."""
        held, margin = self._highest[self._rows], margin.double()
        better = (margin > held) & (held <= 0)
        self.points[self._rows] = torch.where(per_sample(better, z), z, self.points[self._rows])
        self._highest[self._rows] = torch.where(better, margin, held)

    def left(self) -> Tensor:
        """The places, among those searched for so far, of the samples that remain."""
        on = (self._highest[self._rows] <= 0).nonzero().squeeze(1)
        self._rows = self._rows[on]
        return on
