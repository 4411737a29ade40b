"""Projected gradient descent (ascent on the loss)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from atent.attacks.base import Attack, Oracle, ascend, check_choice, check_number, restarted, worst_of
from atent.attacks.starts import Start, check_start, start
from atent.losses import LOSSES
from atent.rng import Draws
from atent.threat import Threat


@dataclass(frozen=True)
class PGD(Attack):
    """x <- project(x + step_size * ascent(g)), Madry et al. 2018; steepest ascent is the sign (linf) or the unit
    gradient (l2).

    All starts but ``cube`` are clamped to the box; ``cube`` takes its first gradient where it falls, outside the
    l2 ball and perhaps the box, as the published l2 evaluation of ATENT does. ``steps`` forwards and backwards per
    restart; with more than one restart, only samples that still stand go on.
    """

    threat: Threat
    steps: int = 20
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units; left out: 2.5 eps / steps."""
    restarts: int = 1
    """Number of starts; the worst result counts."""
    start: Start = "uniform"
    """zero, uniform, corner (linf), sphere (l2) or cube."""
    loss: Literal["ce", "margin", "dlr"] = "ce"
    """Loss to climb: cross-entropy, margin or difference of logits ratio."""
    keep: Literal["last", "best"] = "last"
    """Which iterate to return: the last, or the one with the highest loss (one forward more)."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0)
        check_start(self.threat, self.start)
        check_choice("loss", self.loss, tuple(LOSSES))
        check_choice("keep", self.keep, ("last", "best"))

    @property
    def resolved_step(self) -> float:
        """The step size in use."""
        return 2.5 * float(self.threat.eps) / self.steps if self.step_size is None else self.step_size

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps + (self.keep == "best"), self.restarts)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        threat, step = self.threat, self.resolved_step

        def once(oracle: Oracle, x: Tensor, y: Tensor, draws: Draws, restart: int) -> Tensor:
            begin = start(threat, self.start, x, draws, restart)
            return ascend(
                oracle,
                begin if self.start == "cube" else threat.clamp(begin),
                y,
                steps=self.steps,
                loss=LOSSES[self.loss],
                move=lambda z, grad, k: threat.project(z + step * threat.ascent(grad), x),
                keep=self.keep,
            )

        return worst_of(self.restarts, once, oracle, x, y, draws)
