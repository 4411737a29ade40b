"""Metrics and changes of state of a step on several ranks, as values that can be summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atent.distributed import BatchShard, World
from atent.methods.base import Metrics


class Packed:
    """The metrics of a batch with parts on each rank, as values that are summed together with the gradient.

    A scalar has a place for each rank, in two numbers, which together hold 48 bits also in float32; a vector has one
    for each sample of the batch. Each rank fills its own places, so that the sums over the ranks are exact.
    """

    def __init__(self, found: Sequence[tuple[Metrics, BatchShard]], n: int, world: World, dtype: torch.dtype) -> None:
        first, shard = found[0]
        self.n, self.world = n, world
        self.scalars = [name for name, value in first.items() if not value.dim()]
        self.vectors = {name: len(value) // shard.length for name, value in first.items() if value.dim()}
        self.device = first["loss"].device
        parts = [self._means(found, dtype), *[self._rows(found, name, dtype) for name in self.vectors]]
        self.numbers = torch.cat([part.reshape(-1) for part in parts])

    def _means(self, found: Sequence[tuple[Metrics, BatchShard]], dtype: torch.dtype) -> Tensor:
        """(ranks, scalars, 2): this rank's row contains its share of each mean."""
        out = torch.zeros(self.world.size, len(self.scalars), 2, dtype=dtype, device=self.device)
        parts = [
            torch.stack([metrics[name].detach().double() for name in self.scalars]) * shard.weight
            for metrics, shard in found
            if shard.counts
        ]
        if parts:
            share = torch.stack(parts).sum(0)
            high = share.to(dtype)
            out[self.world.rank] = torch.stack([high, (share - high.double()).to(dtype)], 1)
        return out

    def _rows(self, found: Sequence[tuple[Metrics, BatchShard]], name: str, dtype: torch.dtype) -> Tensor:
        """(copies, samples of the batch): a vector, zero at samples of other ranks."""
        copies = self.vectors[name]
        out = torch.zeros(copies, self.n, dtype=dtype, device=self.device)
        for metrics, shard in found:
            if shard.counts:
                out[:, shard.rows] = metrics[name].detach().to(dtype).view(copies, shard.length)
        return out

    def metrics(self) -> Metrics:
        """The metrics of the batch, from the sums over the ranks."""
        sizes = [2 * self.world.size * len(self.scalars), *[copies * self.n for copies in self.vectors.values()]]
        means, *rows = self.numbers.split(sizes)
        values = means.double().view(self.world.size, len(self.scalars), 2).sum((0, 2))
        return dict(zip(self.scalars, values.unbind(), strict=True)) | dict(zip(self.vectors, rows, strict=True))


class Changes:
    """The change of one tensor of a method's state in a step on this rank, as values to sum over the ranks."""

    def __init__(self, value: Tensor, before: Tensor | None, weight: float) -> None:
        """``before``: the previous tensor, equal on all ranks, or None. ``weight``: this rank's share of the batch."""
        new = value if value.is_floating_point() else value.double()
        self.before = torch.zeros_like(new)
        if before is not None and before.shape == value.shape:
            self.before.copy_(before)
        elif before is not None and before.shape[1:] == value.shape[1:] and len(before) < len(value):
            self.before[: len(before)] = before  # a table by position in the batch has grown
        changed = (new != self.before).to(new.dtype) * float(weight > 0)
        # 0 times a value that is not finite would propagate to all ranks.
        own = torch.where(changed > 0, new, torch.zeros_like(new))
        self.sums = [changed, own, own * weight]

    def agreed(self, ranks: int) -> Tensor:
        """The tensor on all ranks; ``ranks``: the number of those with samples."""
        count, plain, weighted = self.sums
        several = torch.where(count == ranks, weighted, plain / count.clamp_min(1))
        return torch.where(count == 0, self.before, torch.where(count == 1, plain, several))
