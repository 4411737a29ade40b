"""One row of the table: a statement, its check, and the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "not applicable", "not converged"]
Basis = Literal["proof", "exact", "quadrature", "sampled"]

NOTES: dict[str, str] = {
    "proof": "proved: see docs/theory.md",
    "exact": "closed form, compared in float64",
    "quadrature": "numerical integration in float64, not a proof",
    "sampled": "a sampled check, not a proof",
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    statement: str
    """T1 .. T14, as docs/theory.md numbers them."""
    claim: str
    """The claim."""
    checked: str
    """The computation that checks it."""
    verdict: Verdict
    what: str = ""
    """The quantity of ``value``."""
    value: float | None = None
    """None if nothing was measured, or a chain has not converged."""
    error: float | None = None
    """Half width of the 95 % interval of ``value``, or None if it is exact to rounding."""
    n: int | None = None
    """Number of points, samples or chains behind it."""
    basis: Basis = "sampled"
    reason: str = ""
    """Why, where the verdict is not simply that the statement holds."""

    @property
    def note(self) -> str:
        """The kind of evidence, as text."""
        return NOTES[self.basis]


def agree(
    statement: str, claim: str, checked: str, off: float, allowed: float, *, error: float | None = None,
    n: int | None = None, basis: Basis = "quadrature", what: str = "largest relative difference", reason: str = "",
) -> Row:  # fmt: skip
    """A row that holds where ``off`` is at most ``allowed``; ValueError for a difference that is not finite."""
    if not math.isfinite(off):
        raise ValueError(f"{statement}, {checked}: the difference is {off}, so nothing was compared")
    return Row(
        statement, claim, checked, "holds" if off <= allowed else "fails", what, off, error, n, basis, reason
    )  # fmt: skip


def bounded(
    statement: str, claim: str, checked: str, ratios: float, violations: int, n: int, *, basis: Basis = "sampled",
    reason: str = "",
) -> Row:  # fmt: skip
    """A row on a bound: ``violations`` of ``n`` points, and the largest ratio of what is bounded to its bound."""
    counted = f"{violations} of {n:,} violate it" + (f"; {reason}" if reason else "")
    return Row(
        statement, claim, checked, "fails" if violations else "holds", "largest ratio to the bound", ratios, None, n,
        basis, counted,
    )  # fmt: skip


def skipped(statement: str, claim: str, checked: str, reason: str, *, converged: bool = True) -> Row:
    """A row without a figure: the statement does not apply, or a chain did not converge."""
    return Row(statement, claim, checked, "not applicable" if converged else "not converged", reason=reason)
