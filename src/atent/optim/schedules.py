"""Learning-rate schedules: a factor of the base rate as a pure function of the position in the training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from atent.checks import Settings, check_number
from atent.fields import shown
from atent.messages import report_idle


@dataclass(frozen=True)
class Schedule(metaclass=Settings):
    """A learning-rate schedule: settings for `lr_factor`. ValueError for values out of range.

    Examples
    --------
    >>> from atent.optim import Schedule, lr_factor
    >>> schedule = Schedule("multistep", milestones=(50, 75), factor=0.1)
    >>> [round(lr_factor(schedule, step, steps_per_epoch=1, epochs=100), 3) for step in (0, 49, 50, 75)]
    [1.0, 1.0, 0.1, 0.01]
    """

    kind: Literal["constant", "step", "multistep", "cosine", "cyclic"] = "constant"
    """constant; step (x factor every `every`); multistep (x factor at each milestone); cosine (to 0 at the end);
    cyclic (linearly from 0 to the base rate at `peak`, and back to 0 at the end)."""
    unit: Literal["epoch", "step"] = "epoch"
    """Unit of changes of the schedule, and of `every`, `milestones` and `warmup`: epoch or step."""
    every: int = 0
    """Period of the step schedule."""
    milestones: tuple[int, ...] = ()
    """Epochs (or steps), counted from 0, from which each factor of the multistep schedule applies."""
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
        for milestone in self.milestones:
            check_number("each of milestones", milestone, 0, whole=True)
        check_number("factor", self.factor, 0, above=True)
        for factor in self.factors:
            check_number("each of factors", factor, 0, above=True)
        if self.factors and len(self.factors) != len(self.milestones):
            raise ValueError(f"factors needs one per milestone, {len(self.milestones)}, got {len(self.factors)}")
        for name in ("every", "warmup"):
            check_number(name, getattr(self, name), 0, whole=True)
        if not 0 < self.peak < 1:
            raise ValueError(f"peak must lie between 0 and 1, got {self.peak}")
        # By epoch the rate of the entire first epoch would be 0.
        if self.kind == "cyclic" and (self.unit == "epoch" or self.warmup):
            raise ValueError("the cyclic schedule needs unit step and no warmup, since it starts at 0")
        report_idle(self, "schedule.", _uses(self))


def _uses(schedule: Schedule) -> list[tuple[str, str, bool]]:
    """Fields that wait for others, see `report_idle`."""
    kind, listed = schedule.kind, bool(schedule.factors)
    by_step = schedule.unit == "step"
    several, scaled = kind == "multistep", kind == "step" or (kind == "multistep" and not listed)
    return [
        ("every", "set kind step", kind == "step"),
        ("milestones", "set kind multistep", several),
        ("factor", "omit factors" if several else "set kind step or multistep", scaled),
        ("peak", "set kind cyclic", kind == "cyclic"),
        ("unit", "set another kind", kind != "constant" or schedule.warmup > 0),
        # The first epoch has a single rate, which is then the full one; the cosine begins after it.
        ("warmup", "set unit step, or a longer warmup", schedule.warmup != 1 or by_step or kind == "cosine"),
    ]


def lr_factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor of the learning rate at a step of the training.

    With unit "epoch" the factor is constant within an epoch; with "step" it changes at every step. The cosine is
    (1 + cos(pi t / T)) / 2 with t and T counted after the warm-up. The cyclic schedule is a triangle, t / (peak T) up
    to the peak and (T - t) / (T - peak T) after it, one cycle in total (Smith 2017, as used by Wong et al. 2020).

    Parameters
    ----------
    schedule
        The schedule.
    step
        Number of the step, counted from 0 over the entire training.
    steps_per_epoch
        Steps in an epoch.
    epochs
        Epochs of the training.

    Returns
    -------
    float
        Factor of the base rate, at least 0.

    Examples
    --------
    >>> from atent.optim import Schedule, lr_factor
    >>> cosine = Schedule("cosine", unit="step")
    >>> [round(lr_factor(cosine, step, steps_per_epoch=10, epochs=2), 3) for step in (0, 5, 10, 15)]
    [1.0, 0.854, 0.5, 0.146]
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
