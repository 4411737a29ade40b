"""The type of a layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """The names of one family of published code."""

    source: str
    """Name of the code."""
    renames: tuple[tuple[str, str], ...] = ()
    """Patterns of names and their replacements, applied in order."""
    unused: tuple[str, ...] = ()
    """Patterns of names that the forward pass of that code never uses."""

    def apply(self, state: Mapping[str, T]) -> dict[str, T] | None:
        """The state in the names of this library; None if two entries would get the same name."""
        named: dict[str, T] = {}
        for name, value in state.items():
            if any(re.match(pattern, name) for pattern in self.unused):
                continue
            for pattern, new in self.renames:
                name = re.sub(pattern, new, name)
            if name in named:
                return None
            named[name] = value
        return named
