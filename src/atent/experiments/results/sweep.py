"""sweep.json as a type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from atent.experiments.results.base import Result, strict
from atent.experiments.results.comparison import Spread

SWEEP_VERSION = 1

State = Literal["complete", "pruned", "failed"]
"""How a trial ended, in the order in which tables show them."""


@strict
@dataclass(frozen=True)
class TrialSeed:
    """One training of a trial that came to its end."""

    seed: int
    run: str
    values: list[float]
    """Each objective's figure at the best epoch, which the recipe selects."""
    best_epoch: int
    epochs: int
    """Epochs that were trained."""
    low: list[float | None] = field(default_factory=list)
    """Lower end of each figure's exact 95 % interval on the validation images, where it is a share of them."""
    high: list[float | None] = field(default_factory=list)


@strict
@dataclass(frozen=True)
class TrialResult:
    """One choice of the settings."""

    number: int
    state: State
    settings: dict[str, Any]
    values: list[Spread]
    """Each objective over the seeds; none where the trial is not complete."""
    seeds: list[TrialSeed]
    reached: int | None = None
    """The epoch at which the trial was pruned."""
    figure: float | None = None
    """The objective of a pruned trial at that epoch, of the first seed."""
    reason: str | None = None
    """The last message of a failed trial."""


@strict
@dataclass(frozen=True)
class SweepFile(Result):
    """sweep.json."""

    schema_version: int
    command: str
    recipe: str
    sampler: str
    pruner: str
    sampler_seed: int
    seeds: list[int]
    objectives: dict[str, str]
    """Figures of the validation split, and which way each is better."""
    space: dict[str, Any]
    fixed: dict[str, Any]
    """Settings that differ from the recipe's in all trials."""
    interval: str
    trials: list[TrialResult]
    best: list[int]
    """The best trial's number; of several objectives, of every trial that no other excels in all."""
    importance: dict[str, dict[str, float]]
    """For each objective, the share of its variance over the complete trials that each setting explains (fANOVA);
    empty if there are too few."""
    provenance: dict[str, Any]
    optuna: str
    """Its version."""
