"""What a corruption is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atent.rng import PerSample

SEVERITIES = (1, 2, 3, 4, 5)

Change = Callable[[Tensor, Any, PerSample], Tensor]
"""``change(x, level, draws)``: images (n, c, h, w) in [0, 1], the constants of a severity, and random numbers."""


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
    """The smallest side of an image on which its lengths, which are in pixels, leave something to see."""


CORRUPTIONS: dict[str, Corruption] = {}
"""Name -> corruption."""


def corruption(kind: str, levels: Sequence[Any], *, smallest: int = 1) -> Callable[[Change], Change]:
    """Decorator that makes a function known as a corruption by its name."""

    def register(change: Change) -> Change:
        name = change.__name__
        CORRUPTIONS[name] = Corruption(name, kind, tuple(levels), change, smallest)
        return change

    return register
