"""Names of rows and columns in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROWS = {
    "atent": "ATENT",
    "atent-smoothing": "ATENT for smoothing",
    "mma": "MMA",
    "pgdat": "PGD-AT",
    "smoothadv": "SmoothAdv",
    "standard": "standard training",
    "trades": "TRADES",
    "trades-smoothing": "TRADES smoothing",
}
"""Names of the methods, by row."""
RADII = {"half": "half radius", "full": "full radius", "small": "radius of the second block"}
"""Names of Table S1's radii, by the first word of a column's key."""
PROTOCOLS = {"published": "published step", "weak": "released step", "autoattack": "AutoAttack"}
"""Names of its protocols, by the second word."""


def leads(rows: Sequence[str], accuracies: Sequence[str], gaps: Sequence[Any]) -> str:
    """The accuracy of the first row, then each other row's with the difference of the first to it."""
    first, *others = (f"{ROWS[row]} {accuracy}" for row, accuracy in zip(rows, accuracies))
    return "; ".join([first, *(f"{other}, difference {gap}" for other, gap in zip(others, gaps))])
