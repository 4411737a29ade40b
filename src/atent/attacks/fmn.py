"""Fast minimum-norm attack (Pintor et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import DUAL, Iterate, annealed, farthest, track_smallest
from atent.checks import check_choice, check_number
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit

# Rounding decides whether a point exactly on the boundary, as estimated on a linear model, is adversarial.
_BEYOND = 1.001


@attack
@dataclass(frozen=True)
class FMN(Attack):
    """The smallest perturbation by projection onto a ball of adaptive radius (fast minimum-norm attack, FMN).

    From x, each step adds the l2-unit gradient of the margin, in every norm, and projects the perturbation to the
    radius r and the point onto the box. Until the first success r is the estimated distance to the boundary: the norm
    of the perturbation + |margin| / dual norm of the gradient. Afterwards r shrinks by ``gamma`` after a success (and
    to at most the best norm) and grows by it after a failure. Step size and ``gamma`` are annealed by cosines.
    ``steps`` forwards, ``steps - 1`` backwards. In l0 r is an integer that starts at 1 and changes by at least 1.

    ``projection="ball"`` is the form of the paper and of its first code: the nearest point of the ball, which never
    lengthens a perturbation. In l2 a step across the ball then ends inside it, and the clamp shortens it further, so
    that the point may stay in front of the boundary while r grows. ``"sphere"`` is the form of the authors' later
    library (adversarial-library): the perturbation is rescaled to length r. Default: sphere for l2, ball otherwise,
    where both codes use it.

    Deviations: in l1 and l0 the point is the nearest one of the intersection of ball and box; the estimated distance is
    multiplied by 1.001; r also grows if half of the steps had no success, since the estimate ignores the box and may be
    too small.

    References
    ----------
    Pintor, Roli, Brendel and Biggio 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    NeurIPS, arXiv 2102.12827.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FMN
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = FMN(Threat("l2", 0.5), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.5 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    threat: Threat
    """linf, l2, l1 or l0; a perturbation longer than eps is not returned."""
    steps: int = 1000
    """Number of evaluated points, including x; the paper reports 30 to 1000."""
    step_size: float | None = None
    """Length (l2) of the first step, in pixel units. Default: the width of the box, 1 in [0, 1]."""
    final_step_size: float | None = None
    """Length of the last step. Default: a hundredth of the first."""
    gamma: float = 0.05
    """Initial relative change of the radius; in [0, 1)."""
    final_gamma: float = 0.001
    """Final relative change of the radius; in [0, 1)."""
    projection: Literal["sphere", "ball"] | None = None
    """Projection onto the radius: sphere (l2 only) or ball. Default: sphere for l2, ball otherwise."""

    def __post_init__(self) -> None:
        # The first point is x: with one step no other would be evaluated.
        check_number("steps", self.steps, 2, whole=True)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0, above=True)
        if self.final_step_size is not None:
            check_number("final_step_size", self.final_step_size, 0)
        check_number("gamma", self.gamma, 0, 1, below=True)
        check_number("final_gamma", self.final_gamma, 0, 1, below=True)
        if self.projection is not None:
            allowed = ("sphere", "ball") if self.threat.norm == "l2" else ("ball",)
            check_choice(f"projection (for {self.threat.norm})", self.projection, allowed)

    @property
    def passes(self) -> int:
        return 2 * self.steps

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        threat = self.threat
        begin = threat.width if self.step_size is None else self.step_size
        last = begin / 100 if self.final_step_size is None else self.final_step_size
        on_sphere = threat.norm == "l2" and self.projection != "ball"
        limit = farthest(threat, x)
        radius = torch.full_like(limit, 1.0 if threat.norm == "l0" else torch.inf)

        def move(at: Iterate, k: int) -> Tensor:
            nonlocal radius
            step = annealed(begin, last, k / self.steps)
            gamma = annealed(self.gamma, self.final_gamma, k / self.steps)
            if threat.norm == "l0":
                near, far = (radius - 1).minimum((radius * (1 - gamma)).floor()), (radius * (1 + gamma)).floor()
                near, far = near.minimum(at.smallest), far.maximum(radius + 1)
            else:
                # In float64: the squares of small and of large gradients leave the range of float32.
                slope = torch.linalg.vector_norm(at.grad.flatten(1), DUAL[threat.norm], dim=1, dtype=torch.float64)
                near = (radius * (1 - gamma)).minimum(at.smallest)
                # A zero gradient gives no estimate of the distance.
                estimate = torch.where(slope > 0, at.values.double().abs() / slope, torch.inf).to(x.dtype)
                first = _BEYOND * (at.norm + estimate)
                growing = at.smallest.isfinite() | (2 * k >= self.steps)
                far = torch.where(growing, radius * (1 + gamma), first)
            radius = torch.where(at.fooled, near, far).minimum(limit)
            z = at.z + step * unit(at.grad)
            if on_sphere:
                return threat.clamp(x + per_sample(radius, x) * unit(z - x))
            return threat.project(z, x, radius)

        return track_smallest(oracle, x, y, threat=threat, steps=self.steps, loss=oracle.margin, move=move)
