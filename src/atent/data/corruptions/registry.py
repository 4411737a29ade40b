"""The type of a corruption, and the table of all corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atent.rng import PerSample

SEVERITIES = (1, 2, 3, 4, 5)

DEFINITIONS = 2
"""Version of the definitions of all corruptions, which results record: raised when any of them gives other images."""

Change = Callable[[Tensor, Any, PerSample], Tensor]
"""``change(x, level, streams)``: images (n, c, h, w) in [0, 1], the constants of a severity, random number streams."""


@dataclass(frozen=True)
class Corruption:
    """One corruption at five severities."""

    name: str
    kind: str
    """noise, blur, weather or digital."""
    levels: tuple[Any, ...]
    """The constants of each severity, in ascending order."""
    change: Change
    smallest: int = 1
    """Smallest side of an image, in pixels, that the corruption applies to."""


CORRUPTIONS: dict[str, Corruption] = {}
"""Name -> corruption."""


def corruption(kind: str, levels: Sequence[Any], *, smallest: int = 1) -> Callable[[Change], Change]:
    """Decorator that registers a function as a corruption under its name."""

    def register(change: Change) -> Change:
        name = change.__name__
        CORRUPTIONS[name] = Corruption(name, kind, tuple(levels), change, smallest)
        return change

    return register
