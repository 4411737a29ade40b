"""Learning-rate schedules: a factor of the base rate as a pure function of where the training is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from atent.checks import Settings, check_number
from atent.fields import shown


@dataclass(frozen=True)
class Schedule(metaclass=Settings):
    """Settings of the schedule; ValueError for values out of range."""

    kind: Literal["constant", "step", "multistep", "cosine", "cyclic"] = "constant"
    """constant; step (x factor every `every`); multistep (x factor at each milestone); cosine (to 0 at the end);
    cyclic (linearly from 0 to the base rate at `peak`, and back to 0 at the end)."""
    unit: Literal["epoch", "step"] = "epoch"
    """Whether the schedule moves, and `every`, `milestones` and `warmup` count, by epoch or by step."""
    every: int = 0
    """Period of the step schedule."""
    milestones: tuple[int, ...] = ()
    """Epochs (or steps), counted from 0, from which each factor of the multistep schedule holds."""
    factor: float = 0.1
    """Factor of the step and multistep schedules."""
    factors: tuple[float, ...] = ()
    """Factor of the base rate from each milestone on; default: factor, factor^2, ..."""
    warmup: int = 0
    """Epochs (or steps) over which the rate first grows linearly."""
    peak: float = 0.5
    """Share of the training at which the cyclic schedule is at the base rate, above 0 and below 1."""

    def __post_init__(self) -> None:
        if self.kind == "step" and self.every < 1:
            raise ValueError(f"the step schedule needs every >= 1, got {self.every}")
        if self.kind == "multistep" and (not self.milestones or list(self.milestones) != sorted(self.milestones)):
            raise ValueError(f"the multistep schedule needs ascending milestones, got {shown(self.milestones)}")
        check_number("factor", self.factor, 0, above=True)
        for factor in self.factors:
            check_number("each of factors", factor, 0, above=True)
        if self.factors and len(self.factors) != len(self.milestones):
            raise ValueError(f"factors needs one per milestone, {len(self.milestones)}, got {len(self.factors)}")
        for name in ("every", "warmup"):
            check_number(name, getattr(self, name), 0, whole=True)
        if not 0 < self.peak < 1:
            raise ValueError(f"peak must lie between 0 and 1, got {self.peak}")
        # By epoch the whole first one would not move, at rate 0.
        if self.kind == "cyclic" and (self.unit == "epoch" or self.warmup):
            raise ValueError("the cyclic schedule needs unit step, and no warmup: it begins at 0 itself")


def lr_factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor of the learning rate at ``step`` (counted from 0 over the whole training).

    By epoch it holds for a whole epoch; by step it moves at every step. The cosine is
    (1 + cos(pi t / T)) / 2 with t and T counted after the warm-up. The cyclic one is a triangle, t / (peak T) up to
    the peak and (T - t) / (T - peak T) after it, one cycle in all (Smith 2017, as Wong et al. 2020 use it).
    """
    by_epoch = schedule.unit == "epoch"
    now = step // steps_per_epoch if by_epoch else step
    end = epochs if by_epoch else epochs * steps_per_epoch
    if now < schedule.warmup:
        return (now + 1) / schedule.warmup
    if schedule.kind == "step":
        return schedule.factor ** (now // schedule.every)
    if schedule.kind == "multistep":
        passed = sum(now >= m for m in schedule.milestones)
        return ([1.0, *schedule.factors])[passed] if schedule.factors else schedule.factor**passed
    if schedule.kind == "cosine":
        span = max(1, end - schedule.warmup)
        return (1 + math.cos(math.pi * (now - schedule.warmup) / span)) / 2
    if schedule.kind == "cyclic":
        return min(now / (schedule.peak * end), (end - now) / ((1 - schedule.peak) * end))
    return 1.0
