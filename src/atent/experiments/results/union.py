"""The union report as a type: a part of evaluation.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atent.experiments.results.base import Adversary, Result, Share, strict
from atent.experiments.results.studies import Mean


@strict
@dataclass(frozen=True)
class UnionAttack:
    """The result of one attack in the cascade of its threat."""

    attack: str
    """The attack, written as a call."""
    attacked: int
    """Samples that it met."""
    fooled: int
    forwards: int
    backwards: int
    seconds: float


@strict
@dataclass(frozen=True)
class ThreatResult:
    """The result of one threat."""

    threat: Adversary
    attacks: dict[str, UnionAttack]
    robust: Share
    """Samples that remain correctly classified under all of its attacks."""
    alone: int
    """Samples that only this threat fools."""


@strict
@dataclass(frozen=True, kw_only=True)
class UnionReport(Result):
    """Robust accuracy under several threats at once."""

    schema_version: int
    n: int
    seed: int
    clean: Share
    worst: Share
    """Samples that remain correctly classified under every threat: the union."""
    average: Mean
    """Mean over the threats of the robust accuracy."""
    threats: dict[str, ThreatResult]
    """By threat as text."""
    broken: dict[str, dict[str, int]]
    """For each pair of threats, the number of correctly classified samples that both break; on the diagonal, the number
    that one breaks."""
    by_count: list[int]
    """Numbers of correctly classified samples that are broken by 0, 1, 2, ... threats."""
    outcomes: dict[str, Any]
    """One character per sample: ids, clean (1 right, 0 wrong), and by threat 1 robust, 0 not."""
