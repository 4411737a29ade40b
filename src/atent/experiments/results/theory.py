"""theory.json as a type: statements of the theory on one network, each with its verdict and the figure behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atent.experiments.results.base import Result, Samples, strict
from atent.runs.origin import commit_of

THEORY_VERSION = 1


@strict
@dataclass(frozen=True)
class Statement:
    """A statement, its check, and the result."""

    statement: str
    """T1 .. T14, as docs/theory.md numbers them."""
    claim: str
    checked: str
    verdict: str
    what: str
    """The quantity of ``value``."""
    value: float | None
    error: float | None
    """Half width of the 95 % interval of ``value``; None if it is exact to rounding."""
    n: int | None
    """Number of points, samples or chains."""
    basis: str
    reason: str
    note: str
    """The kind of evidence."""

    @property
    def figure(self) -> str:
        """The value with its error, as text: "0.973" or "0.604 ± 0.004"."""
        if self.value is None:
            return ""
        return f"{self.value:.4g}" + ("" if self.error is None else f" \u00b1 {self.error:.2g}")

    @property
    def behind(self) -> str:
        """The quantity, and the number of points, samples or chains."""
        n = "" if self.n is None else f"n = {self.n:,}"
        return ", ".join(part for part in (self.what, n) if part)


@strict
@dataclass(frozen=True)
class Curve:
    """A figure of the check: lines of (xs, ys) by label."""

    title: str
    x: str
    y: str
    log: str
    """The logarithmic axes: "", "x", "y" or "xy"."""
    lines: dict[str, tuple[list[float], list[float]]]
    error: Any = None
    mark: Any = None

    def ends(self) -> str:
        """The end points of each line, as text."""
        return "; ".join(f"{name}: {self.y} {ys[0]:.3g} to {ys[-1]:.3g}" for name, (_, ys) in self.lines.items())


@strict
@dataclass(frozen=True, kw_only=True)
class TheoryFile(Result):
    """theory.json."""

    schema_version: int
    data: Samples
    settings: dict[str, Any]
    n: int
    dim: int
    warnings: list[str]
    constants: dict[str, Any]
    rows: list[Statement]
    curves: dict[str, Curve]
    seconds: dict[str, float]
    provenance: dict[str, Any]
    run: str | None = None
    weights: str | None = None
    model: str | None = None
    epoch: int | None = None

    def summary(self) -> list[str]:
        """The context of the table: counts, settings, versions, seed."""
        verdicts = [row.verdict for row in self.rows]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        s, about = self.settings, self.provenance
        return [
            f"lines    {len(verdicts)}: {counts}",
            f"data     {self.data.name}, test images: {self.data.text}, d = {self.dim}",
            f"density  gamma {s['gamma']:g}, T {s['temperature']:.4g} (samples near l2 radius {s['radius']:g})",
            f"seed     {s['seed']}; {sum(self.seconds.values()):.0f} s",
            f"version  atent {about['version']}{commit_of(about)}; torch {about['torch']}",
            "Sampled checks and quadrature can refute a statement but not prove it: docs/theory.md has the proofs.",
        ]
