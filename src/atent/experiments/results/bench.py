"""bench.json as a type: what `atent bench` measured on one machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atent.experiments.results.base import Result, Share, strict

BENCH_VERSION = 1


@strict
@dataclass(frozen=True)
class Quartiles:
    """The median of n rounds between their quartiles."""

    median: float
    q25: float
    q75: float
    n: int


@strict
@dataclass(frozen=True)
class RatioOf:
    """Seconds of a row over those of another in the same round."""

    base: str
    """The row below the line."""
    rounds: Quartiles
    mean: float
    """Geometric mean over the rounds, with its 95 % interval."""
    low: float
    high: float


@strict
@dataclass(frozen=True)
class Growth:
    """The exponent b of a cost a + c v^b in a value v, with its 95 % interval."""

    exponent: float
    low: float
    high: float
    """The search range is 0.2 to 3; an interval that ends there is open."""


@strict
@dataclass(frozen=True)
class BenchRow:
    """The times of one piece of work over the rounds."""

    name: str
    cpu: Quartiles
    """CPU seconds of the process, of all its threads."""
    wall: Quartiles
    """Seconds by the clock."""
    ratio: RatioOf | None = None
    robust: Share | None = None
    """Attacks: images that remain correctly classified, counted by this library."""
    figures: dict[str, float] = field(default_factory=dict)
    """Further figures: passes, bytes, images per second, FLOP."""


@strict
@dataclass(frozen=True)
class BenchCase:
    """Rows that were measured in the same rounds."""

    name: str
    settings: dict[str, Any]
    rows: list[BenchRow]
    growth: Growth | None = None


@strict
@dataclass(frozen=True)
class BenchSection:
    """One question to the machine."""

    title: str
    cases: list[BenchCase]
    omitted: dict[str, str]
    """Omitted measurements, with reasons."""
    seconds: float


@strict
@dataclass(frozen=True)
class Roof:
    """The measured peak of the machine."""

    flops: float
    """FLOP per second of a matrix product in float32, the best of several sizes."""
    bandwidth: float
    """Bytes per second of the sum of two long vectors into a third."""


@strict
@dataclass(frozen=True, kw_only=True)
class BenchFile(Result):
    """bench.json."""

    schema_version: int
    clock: str
    """The clock of ratios, exponents and rates: cpu or wall seconds."""
    settings: dict[str, Any]
    machine: dict[str, Any]
    """Processor, instruction sets, cores, caches, versions of other packages."""
    roof: Roof | None
    """None if the section roofline was not requested."""
    sections: dict[str, BenchSection]
    seconds: float
    provenance: dict[str, Any]
