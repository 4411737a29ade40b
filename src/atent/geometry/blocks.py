"""Changes of at most k blocks of a sample, where blocks are elements, pixels or patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """A partition of samples of one shape into blocks."""

    count: int
    """Number of blocks."""
    pool: Callable[[Tensor], Tensor]
    """Sums over each block, from (n, ...) to (n, count)."""
    spread: Callable[[Tensor], Tensor]
    """Values per block (n, count) at the elements of each block, as a view that broadcasts over (n, ...)."""

    def changed(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The number of blocks in which two samples differ, float64 (n,)."""
        return (self.pool((x_adv != x).double()) > 0).sum(1).double()

    def project(self, z: Tensor, inside: Tensor, x: Tensor, k: Any) -> Tensor:
        """The nearest point to ``z`` that differs from ``x`` in at most ``k`` blocks, which are those of ``inside``.

        ``inside`` is the nearest point to ``z`` of a product of intervals that contain x. With v = z - x and
        c = inside - x, keeping block b of it reduces the squared distance to z by |v_b|^2 - |v_b - c_b|^2; the k blocks
        with the largest reduction are kept, and all others are those of x, bit for bit. ``k`` is a number or (n,).
        """
        v, c = z.double() - x.double(), inside.double() - x.double()
        return torch.where(self.largest(self.pool(c * (2 * v - c)), k), inside, x)

    def largest(self, values: Tensor, k: Any) -> Tensor:
        """The blocks of the ``k`` largest ``values`` (n, count), as a mask that broadcasts over the samples."""
        return self.spread(largest(values, k))


def largest(values: Tensor, k: Any) -> Tensor:
    """bool (n, m): the ``k`` largest entries of each row, all if there are at most k; a number or one per row (n,)."""
    m = values.shape[1]
    if not isinstance(k, Tensor):
        at = values.topk(int(min(k, m)), dim=1, sorted=False).indices
        return torch.zeros_like(values, dtype=torch.bool).scatter(1, at, True)
    order = values.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(m, device=values.device).expand_as(order)
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, rank < k[:, None])
