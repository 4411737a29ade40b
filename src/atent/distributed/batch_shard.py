"""The part of a batch that a pass sees: which rows of the whole batch it has, and who has the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from atent.distributed.world import SINGLE, World


@dataclass(frozen=True)
class BatchShard:
    """The rows of a batch of ``n`` samples that this process has of a part of it, which the ranks share.

    No rank has a single row where the part has two or more: batch-norm could not normalise it. Ranks that have none
    take the first rows of the part, with weight 0, so that all ranks make the same passes and the same messages.
    """

    n: int
    """Samples of the whole batch."""
    part: slice
    """The rows that the ranks share: the whole batch, or one micro-batch of it."""
    world: World = SINGLE
    """The ranks that share them."""
    rows: slice = field(init=False)
    """The rows of this rank, numbered in the whole batch."""
    counts: bool = field(init=False)
    """Whether they are this rank's own; False for a rank that has none."""

    def __post_init__(self) -> None:
        own = self.rows_of(self.world.rank)
        object.__setattr__(self, "counts", own is not None)
        first = slice(self.part.start, min(self.part.start + 2, self.part.stop))
        object.__setattr__(self, "rows", first if own is None else own)

    def rows_of(self, rank: int) -> slice | None:
        """The rows of a rank; None where it has none."""
        if rank >= self.ranks:
            return None
        rows = World(rank, self.ranks).rows(self.part.stop - self.part.start)
        return slice(self.part.start + rows.start, self.part.start + rows.stop)

    @property
    def ranks(self) -> int:
        """How many ranks have rows."""
        return max(1, min(self.world.size, int(self.part.stop - self.part.start) // 2))

    @property
    def length(self) -> int:
        """How many rows this rank passes through the network."""
        return int(self.rows.stop - self.rows.start)

    @property
    def weight(self) -> float:
        """The share of the whole batch that counts here."""
        return self.length / self.n if self.counts else 0.0

    @property
    def whole(self) -> bool:
        """Whether this process has the whole batch."""
        return self.length == self.n and self.world.size == 1


class Passing:
    """A shard while a step passes it through the network, and how the rows of what is drawn are laid out.

    A first dimension of m times the shard's rows holds m copies of it, one after the other, as ``cat([x] * m)`` does.
    Inside a forward pass of the network the input tells how many copies there are: a longer first dimension, such as
    that of attention heads, then has several rows for each sample. Where the copies of a sample lie side by side
    (`adjacent`), all rows of a sample do.
    """

    def __init__(self, shard: BatchShard) -> None:
        self.shard = shard
        self.inputs: list[int] = []
        """Lengths of the inputs of the forward passes that are under way."""
        self.adjacent = self.undivided = self.by_hand = False

    def layout(self, length: int) -> tuple[int, int] | None:
        """(copies of the batch, rows of each sample in a copy) of a first dimension; None: it holds no samples."""
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
        """The rows of the shard among those of the whole batch."""
        copies, each = layout
        rows: Tensor = whole.unflatten(0, (copies, self.shard.n, each))
        return rows[:, self.shard.rows].flatten(0, 2)


now: Passing | None = None
"""The shard that is under way, read as an attribute of this module; None where the batch is whole."""


def shared() -> BatchShard | None:
    """The shard that is under way, where other ranks have rows of its batch; None elsewhere."""
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
    """Inside, the copies of a sample lie side by side, as those of ``repeat_interleave`` do."""
    with _set("adjacent"):
        yield


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, what is drawn has no dimension of samples: it is the same for all of them."""
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
