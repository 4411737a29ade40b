"""Shards of a measurement for processes that do not communicate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Piece ``index`` of a measurement and every ``count``-th one after it.

    Neighbouring pieces have similar costs in a sorted data set, so the pieces of a shard are spread over all of it.
    """

    index: int = 0
    """Index of the shard, from 0."""
    count: int = 1
    """Number of shards."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard index must lie in 0 to {self.count - 1}, got {self.index}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of the text "i/k", where i counts from 1; ValueError, in one line, for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if 1 <= number <= count:
            return cls(number - 1, count)
        shards = f"; the shards of {count} are 1/{count} to {count}/{count}" if count else ""
        raise ValueError(f"shard must be i/k, such as 1/4 for the first of four, got {text!r}{shards}")

    @property
    def text(self) -> str:
        """The text for `parse`."""
        return f"{self.index + 1}/{self.count}"

    @property
    def name(self) -> str:
        """The shard as part of a file name."""
        return f"shard-{self.index + 1}-of-{self.count}"

    def has(self, piece: int) -> bool:
        """Whether this shard contains the piece of that index."""
        return piece % self.count == self.index

    def of(self, pieces: Sequence[T]) -> list[T]:
        """The pieces of this shard."""
        return list(pieces[self.index :: self.count])

    def each(self) -> list[Shard]:
        """All shards, in order."""
        return [Shard(index, self.count) for index in range(self.count)]

    def check(self, n: int, size: int) -> None:
        """ValueError, in one line, if a shard of n samples in pieces of ``size`` would be empty."""
        pieces = -(-n // size)
        if self.count > pieces:
            smaller = f", or smaller batches, such as --batch-size {n // self.count}" if self.count <= n else ""
            raise ValueError(
                f"one of {self.count} shards of {n} samples in batches of {size} is empty: use at most"
                f" {max(pieces, 1)} shards{smaller}"
            )
