"""The part of a batch in a pass: its rows of the full batch, and the ranks that have the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from atent.distributed.world import SINGLE, World


@dataclass(frozen=True)
class BatchShard:
    """The rows of this process in a part of a batch of ``n`` samples that the ranks share.

    No rank has a single row if the part has two or more, since batch-norm cannot normalise a single row. Ranks without
    rows use the first rows of the part, with weight 0, so that all ranks make the same passes and the same messages.
    """

    n: int
    """Samples of the full batch."""
    part: slice
    """The rows that the ranks share: the full batch, or one of its micro-batches."""
    world: World = SINGLE
    """The ranks that share them."""
    rows: slice = field(init=False)
    """The rows of this rank, as indices in the full batch."""
    counts: bool = field(init=False)
    """Whether the rows belong to this rank; False for a rank without rows."""

    def __post_init__(self) -> None:
        own = self.rows_of(self.world.rank)
        object.__setattr__(self, "counts", own is not None)
        first = slice(self.part.start, min(self.part.start + 2, self.part.stop))
        object.__setattr__(self, "rows", first if own is None else own)

    def rows_of(self, rank: int) -> slice | None:
        """The rows of a rank; None if it has none."""
        if rank >= self.ranks:
            return None
        rows = World(rank, self.ranks).rows(self.part.stop - self.part.start)
        return slice(self.part.start + rows.start, self.part.start + rows.stop)

    @property
    def ranks(self) -> int:
        """The number of ranks with rows."""
        return max(1, min(self.world.size, int(self.part.stop - self.part.start) // 2))

    @property
    def length(self) -> int:
        """The number of rows that this rank passes through the network."""
        return int(self.rows.stop - self.rows.start)

    @property
    def weight(self) -> float:
        """The weight of these rows: their share of the full batch."""
        return self.length / self.n if self.counts else 0.0

    @property
    def whole(self) -> bool:
        """Whether this process has the full batch."""
        return self.length == self.n and self.world.size == 1


class Passing:
    """The shard of the current pass, and the layout of rows in random tensors.

    A first dimension of m times the shard's rows contains m consecutive copies of it, as ``cat([x] * m)`` does. Inside
    a forward pass of the network the input determines the number of copies: a longer first dimension, such as that of
    attention heads, then has several rows for each sample. Within `adjacent` the rows of a sample are consecutive.
    """

    def __init__(self, shard: BatchShard) -> None:
        self.shard = shard
        self.inputs: list[int] = []
        """Lengths of the inputs of the current forward passes."""
        self.adjacent = self.undivided = self.by_hand = False

    def layout(self, length: int) -> tuple[int, int] | None:
        """(copies of the batch, rows of each sample in a copy) of a first dimension; None if it is not a dimension of
        samples."""
        own = self.shard.length
        if self.undivided or not length or length % own:
            return None
        if self.adjacent:
            return 1, length // own
        seen = (self.inputs[-1] if self.inputs else 0) or length
        if seen % own or length % seen:
            seen = length
        return seen // own, length // seen

    def take(self, whole: Tensor, layout: tuple[int, int]) -> Tensor:
        """The rows of the shard, from those of the full batch."""
        copies, each = layout
        rows: Tensor = whole.unflatten(0, (copies, self.shard.n, each))
        return rows[:, self.shard.rows].flatten(0, 2)


now: Passing | None = None
"""The current shard, read as an attribute of this module; None for a full batch."""


def shared() -> BatchShard | None:
    """The current shard if other ranks have rows of its batch, else None."""
    return now.shard if now is not None and now.shard.world.size > 1 else None


@contextmanager
def under_way(shard: BatchShard) -> Iterator[Passing]:
    """Inside, passes and random numbers are those of the shard."""
    global now
    before, now = now, Passing(shard)
    try:
        yield now
    finally:
        now = before


@contextmanager
def adjacent() -> Iterator[None]:
    """Inside, the copies of a sample are consecutive, as in ``repeat_interleave``."""
    with _set("adjacent"):
        yield


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, random tensors have no dimension of samples: they are the same for all samples."""
    with _set("undivided"):
        yield


@contextmanager
def _set(name: str) -> Iterator[None]:
    held, before = now, getattr(now, name, False)
    try:
        if held is not None:
            setattr(held, name, True)
        yield
    finally:
        if held is not None:
            setattr(held, name, before)
