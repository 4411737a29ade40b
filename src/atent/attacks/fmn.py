"""Fast minimum-norm attack (Pintor et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, Oracle, check_number
from atent.attacks.smallest import Look, annealed, check_share, farthest, walk
from atent.losses import margin
from atent.rng import Draws
from atent.threat import Threat, unit

# A point on the very boundary, where a linear model's first estimate ends, is adversarial or not as rounding decides.
_BEYOND = 1.001


@dataclass(frozen=True)
class FMN(Attack):
    """The smallest perturbation by projections on a ball that follows the boundary, Pintor et al. 2021, Algorithm 1.

    Untargeted, from x. Each step adds the l2-unit gradient of the margin, for either norm, and projects on the ball
    of radius r, then on the box. Until a first success r is the distance to the boundary as the gradient tells it:
    the point's norm + |margin| / dual norm of the gradient; afterwards r shrinks by ``gamma`` after a success (and to
    the best norm at most) and grows by it after a failure. Step and ``gamma`` fall on cosines. ``steps`` forwards,
    ``steps - 1`` backwards. Deviations: the estimated distance is lengthened by 0.1 %; r also grows where half of the
    steps went by without a success, since the estimate knows nothing of the box and may stay short of the boundary.
    """

    minimum_norm: ClassVar[bool] = True

    threat: Threat
    """l2 or linf; a perturbation longer than eps is not returned."""
    steps: int = 1000
    """Number of points looked at, x included; the paper reports 30 to 1000."""
    step_size: float = 1.0
    """Length (l2) of the first step, in pixel units."""
    final_step_size: float | None = None
    """Length of the last step; left out: step_size / 100."""
    gamma: float = 0.05
    """Factor by which the radius changes at first; in [0, 1)."""
    final_gamma: float = 0.001
    """The same at the end; in [0, 1)."""

    def __post_init__(self) -> None:
        # x comes first: with one step the attack would see nothing else.
        check_number("steps", self.steps, 2, whole=True)
        check_number("step_size", self.step_size, 0, above=True)
        if self.final_step_size is not None:
            check_number("final_step_size", self.final_step_size, 0)
        check_share("gamma", self.gamma)
        check_share("final_gamma", self.final_gamma)

    @property
    def passes(self) -> int:
        return 2 * self.steps

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        threat, last = self.threat, self.step_size / 100 if self.final_step_size is None else self.final_step_size
        dual = 2 if threat.norm == "l2" else 1
        limit = farthest(threat, x)
        radius = torch.full_like(limit, torch.inf)

        def move(look: Look, k: int) -> Tensor:
            nonlocal radius
            step = annealed(self.step_size, last, k / self.steps)
            gamma = annealed(self.gamma, self.final_gamma, k / self.steps)
            slope = torch.linalg.vector_norm(look.grad.flatten(1), dual, dim=1).clamp_min(1e-12)
            near = (radius * (1 - gamma)).minimum(look.smallest)
            first = _BEYOND * (look.norm + look.values.abs() / slope)
            growing = look.smallest.isfinite() | (2 * k >= self.steps)
            far = torch.where(growing, radius * (1 + gamma), first)
            radius = torch.where(look.fooled, near, far).minimum(limit)
            return threat.project(look.z + step * unit(look.grad), x, radius)

        return walk(oracle, x, y, norm=threat.norm, steps=self.steps, loss=margin, move=move)
