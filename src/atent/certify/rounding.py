"""Error terms of bounds in floating point; docs/certification.md derives them from the standard model of rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-53
"""Unit roundoff of float64, in which bounds are computed."""
SAFE = 1 + 2.0**-20
"""Factor for the rounding of the error terms themselves: sums of fewer than 2^32 products that are all >= 0."""
FLOOR = 1e-150
"""Larger than all errors by underflow in float64, while no value exceeds its inverse."""


def gamma(roundings: int, unit: float = UNIT) -> float:
    """n u / (1 - n u): relative to the sum of the absolute terms, the error of n roundings in any order."""
    return roundings * unit / (1 - roundings * unit)


@dataclass(frozen=True)
class Arithmetic:
    """The network's own dtype, whose rounding a certificate covers in addition to that of the bounds."""

    dtype: torch.dtype

    @property
    def unit(self) -> float:
        return torch.finfo(self.dtype).eps / 2

    @property
    def largest(self) -> float:
        """Sums of absolute terms above it may overflow: their bounds are infinite. So may six times an argument, from
        which torch computes the Hardswish."""
        return min(torch.finfo(self.dtype).max / 8, 1 / FLOOR)

    def slack(self, size: Tensor, roundings: int, own: int) -> Tensor:
        """The error of a value whose terms have absolute values that sum to ``size``.

        ``roundings``: the number of roundings by the network; ``own``: by the bound, in float64.
        """
        size = torch.where(size < self.largest, size, torch.inf)
        share = SAFE * (gamma(roundings, self.unit) + gamma(own))
        return share * size + (roundings + 1) * torch.finfo(self.dtype).tiny

    def outwards(self, low: Any, high: Any) -> tuple[Any, Any]:
        """The sides of a box, numbers or float64 tensors, or their values in the network's dtype where these are
        further out."""
        if isinstance(low, Tensor):
            return torch.minimum(low, low.to(self.dtype).double()), torch.maximum(high, high.to(self.dtype).double())
        near = [float(np.float32(side)) if self.dtype == torch.float32 else side for side in (low, high)]
        return min(low, near[0]), max(high, near[1])


def down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` (float64) in ``dtype``, rounded towards minus infinity; its derivative is 1."""
    near = value.to(dtype)
    if dtype == value.dtype:
        return near
    with torch.no_grad():
        below = torch.nextafter(near, torch.full_like(near, -torch.inf))
        step = torch.where(near.to(value.dtype) > value, below - near, 0)
    return near + step
