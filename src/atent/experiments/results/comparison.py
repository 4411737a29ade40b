"""comparison.json as a type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from atent.experiments.results.base import Adversary, EvaluatedSamples, Result, Share, strict

COMPARISON_VERSION = 2


@strict
@dataclass(frozen=True)
class Spread:
    """A value over seeds; one seed has no standard deviation."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@strict
@dataclass(frozen=True)
class SeedResult:
    """One training of a comparison."""

    seed: int
    run: str
    clean: Share
    attacks: dict[str, Share]
    worst: Share
    last: Share | None
    seconds_per_epoch: float
    memory_mb: float | None
    best_epoch: int
    passes: float | None
    """Passes over the training samples; None in a file that does not say."""
    minutes: float | None
    provenance: dict[str, Any]


@strict
@dataclass(frozen=True)
class RecipeResult:
    """One recipe of a comparison, over its seeds."""

    recipe: str
    method: str
    threat: Adversary | None
    clean: Spread
    attacks: dict[str, Spread]
    worst: Spread
    last: Spread | None
    seconds_per_epoch: Spread
    memory_mb: Spread | None
    best_epoch: Spread
    passes: Spread | None
    minutes: Spread | None
    best: dict[str, Any]
    """Figures whose intervals lie above those of every other recipe."""
    seeds: list[SeedResult]


@strict
@dataclass(frozen=True)
class Difference:
    """An accuracy less another, paired by seed and image, with its 95 % interval."""

    value: float
    low: float
    high: float
    p: float | None
    """McNemar's exact test on the images; None if an older evaluation has no outcomes by image."""


@strict
@dataclass(frozen=True)
class PairResult:
    """One recipe less another."""

    one: str
    other: str
    clean: Difference
    worst: Difference
    basis: str
    """The variation that the intervals cover: other seeds, other images, or both."""


@strict
@dataclass(frozen=True)
class ComparisonFile(Result):
    """comparison.json."""

    schema_version: int
    command: str
    data: EvaluatedSamples
    model: str
    epochs: int | None
    """None where finished runs differ in it, and so for batch_size."""
    minutes: float | None
    batch_size: int | None
    seeds: list[int]
    threats: list[str]
    at_once: int
    interval: str
    caveat: str | None
    rows: list[RecipeResult]
    provenance: dict[str, Any]
    cascade: bool | Literal["threat"] = False
    """Each attack met only the images that remained correctly classified after those before it."""
    differs: list[str] = field(default_factory=list)
    """Settings, other than the method's, in which finished runs differ."""
    pairs: list[PairResult] = field(default_factory=list)
    """Every row less every later one; none for a single seed without outcomes by image."""
    remarks: list[str] = field(default_factory=list)
    """Remarks on the attacks, with the rows that they concern unless they concern all, and a line for each run whose
    training is unfinished."""
