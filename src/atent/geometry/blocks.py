"""Changes of at most k blocks of a sample, whatever the blocks are: elements, pixels or patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """How samples of one shape fall into blocks that do not overlap and cover the sample."""

    count: int
    """Number of blocks."""
    pool: Callable[[Tensor], Tensor]
    """The sum of each block, from (n, ...) to (n, count)."""
    spread: Callable[[Tensor], Tensor]
    """From (n, count) to a view that broadcasts over (n, ...): each block's value at its elements."""

    def changed(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The number of blocks in which two samples differ, float64 (n,)."""
        return (self.pool((x_adv != x).double()) > 0).sum(1).double()

    def project(self, z: Tensor, inside: Tensor, x: Tensor, k: Any) -> Tensor:
        """The nearest point to ``z`` that differs from ``x`` in at most ``k`` blocks, which are those of ``inside``.

        ``inside`` is the nearest point of a product of intervals that hold x. Keeping block b of it, with
        v = z - x and c = inside - x, brings the distance to z down by |v_b|^2 - |v_b - c_b|^2, the gain; so the k
        largest gains are kept, and all other blocks are those of x, bit for bit. ``k`` is a number or (n,).
        """
        v, c = z.double() - x.double(), inside.double() - x.double()
        return torch.where(self.largest(self.pool(c * (2 * v - c)), k), inside, x)

    def largest(self, values: Tensor, k: Any) -> Tensor:
        """The blocks of the ``k`` largest ``values`` (n, count), as a mask that broadcasts over the samples."""
        return self.spread(largest(values, k))


def largest(values: Tensor, k: Any) -> Tensor:
    """bool (n, m): the ``k`` largest of each row, a number or one for each row (n,); all where there are no more."""
    m = values.shape[1]
    if not isinstance(k, Tensor):
        at = values.topk(int(min(k, m)), dim=1, sorted=False).indices
        return torch.zeros_like(values, dtype=torch.bool).scatter(1, at, True)
    order = values.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(m, device=values.device).expand_as(order)
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, rank < k[:, None])
