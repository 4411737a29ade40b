"""Augmented Lagrangian adversarial attack (Rony et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.bisection import bisect
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import Iterate, track_smallest
from atent.checks import check_number
from atent.rng import Streams
from atent.threat import Threat, l2_norm, per_sample, unit


def penalty_slope(g: Tensor, rho: Tensor, multiplier: Tensor, cubic: bool) -> Tensor:
    """dP/dg of the penalty-Lagrangian functions of Birgin et al. 2005, with multiplier m.

    Where g >= 0, P3 = m g + m rho g^2, and P2 = P3 + rho^2 g^3 / 6 (``cubic``); where g < 0, both are
    m g / (1 - rho g).
    """
    above = multiplier * (1 + 2 * rho * g)
    if cubic:
        above = above + (rho * g) ** 2 / 2
    return torch.where(g >= 0, above, multiplier / (1 - rho * g.clamp_max(0)) ** 2)


def alpha_of(steps: int) -> float:
    """The default weight of the past for a number of steps: 0.9 + 0.4 log10(steps / 1000), in [0.2, 0.9].

    Interpolates the authors' 0.5 for 100 steps and 0.9 for 1000; with a longer memory a short run does not reach the
    decision boundary.
    """
    return min(0.9, max(0.2, 0.9 + 0.4 * math.log10(steps / 1000)))


@attack
@dataclass(frozen=True)
class ALMA(Attack):
    """The smallest l2 perturbation d by an augmented Lagrangian method (ALMA, Rony et al. 2021).

    Minimises ||d||_2 + P(g, rho, multiplier), d in widths of the box, subject to g < 0, where g is the true class's
    logit minus the largest other one plus ``tolerance``, divided by the gap between the first and the third logit. The
    multiplier is a running average of dP/dg, updated at every step; rho grows every ``check_steps`` steps if no
    adversarial point was found and g did not decrease. Steps are RMSProp with momentum; the learning rate is set per
    sample by the length of the first step and decays from the first success on. ``steps`` forwards, ``steps - 1``
    backwards.

    As in the authors' code, the average of squared gradients starts at 1, and its weight and the momentum are
    ``alpha``. Deviations: a zero gradient at x leaves the point unchanged (the authors use a random direction); where
    the box does not permit a first step of length ``first_step``, its length is measured without the box (the authors'
    search does not terminate); with targets g has the same denominator (theirs is the first logit less the mean of the
    third and the fourth), and ``tolerance`` makes it harder to reach the target (theirs easier).

    References
    ----------
    Rony, Granger, Pedersoli and Ben Ayed 2021, "Augmented Lagrangian adversarial attacks", ICCV, arXiv 2011.11857.

    Birgin, Castillo and Martinez 2005, "Numerical comparison of augmented Lagrangian algorithms for nonconvex
    problems", Computational Optimization and Applications 31.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import ALMA
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = ALMA(Threat("l2", 0.5), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.5 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    threat: Threat
    """l2 only; a perturbation longer than eps is not returned."""
    steps: int = 1000
    """Number of evaluated points, including x."""
    alpha: float | None = None
    """Weight of the past in all running averages, in [0, 1). Default: by the number of steps, see `alpha_of`."""
    penalty: Literal["p2", "p3"] = "p2"
    """Penalty-Lagrangian function: p2, the paper's choice, or p3, without its cubic term."""
    constraint: Literal["dlr", "margin"] | None = None
    """g: dlr, the difference of logits ratio (3 classes or more), or margin, the difference of logits. Default: dlr,
    and margin on models with 2 classes."""
    rho_init: float = 1.0
    """Initial penalty parameter rho."""
    multiplier_init: float = 1.0
    """Initial multiplier."""
    check_steps: int = 10
    """Steps between two checks of the constraint's improvement."""
    tau: float = 0.95
    """Share of its former value below which g counts as improved."""
    gamma: float = 1.2
    """Factor by which rho grows, at least 1."""
    first_step: float | None = None
    """Length (l2) of the first step in pixel units, which sets the learning rate. Default: 0.1 of the box's width."""
    final_rate: float = 0.01
    """Final learning rate as a share of the first one, in (0, 1]."""
    tolerance: float = 1e-4
    """Difference of logits by which a point must be misclassified, so that rounding does not reverse it."""

    def __post_init__(self) -> None:
        # The first point is x: with one step no other would be evaluated.
        check_number("steps", self.steps, 2, whole=True)
        if self.alpha is not None:
            check_number("alpha", self.alpha, 0, 1, below=True)
        check_number("rho_init", self.rho_init, 0, above=True)
        check_number("multiplier_init", self.multiplier_init, 0, above=True)
        check_number("check_steps", self.check_steps, 1, whole=True)
        check_number("tau", self.tau, 0)
        check_number("gamma", self.gamma, 1)
        if self.first_step is not None:
            check_number("first_step", self.first_step, 0, above=True)
        check_number("final_rate", self.final_rate, 0, 1, above=True)
        check_number("tolerance", self.tolerance, 0)

    @property
    def passes(self) -> int:
        return 2 * self.steps

    def remarks(self, classes: int) -> list[str]:
        few = self.constraint is None and classes < 3
        return ["its constraint is the difference of logits, as the ratio needs 3 classes"] if few else []

    def _constraint(self, oracle: Oracle, logits: Tensor, y: Tensor) -> Tensor:
        above = self.tolerance - oracle.margin(logits, y)
        if self.constraint == "margin" or (self.constraint is None and logits.shape[1] < 3):
            return above
        top = logits.to(above.dtype).topk(3, dim=1).values
        return above / (top[:, 0] - top[:, 2] + 1e-8)

    def _rate(self, x: Tensor, descent: Tensor) -> Tensor:
        """Per sample the factor of ``descent`` whose step inside the box has length ``first_step``."""
        direction, first = unit(descent), 0.1 * self.threat.width if self.first_step is None else self.first_step

        def far(t: Tensor) -> Tensor:
            return l2_norm(self.threat.clamp(x - per_sample(t, x) * direction) - x) > first

        free = torch.full(x.shape[:1], first, dtype=x.dtype, device=x.device)
        high = free
        for _ in range(30):
            high = torch.where(far(high), high, 2 * high)
        t = torch.where(far(high), bisect(far, high / 2, high, 40), free)
        norm = l2_norm(descent)
        return torch.where(norm > 0, t / norm.clamp_min(torch.finfo(x.dtype).tiny), 0)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        alpha = alpha_of(self.steps) if self.alpha is None else self.alpha
        cubic = self.penalty == "p2"
        rho = torch.full(y.shape, self.rho_init, dtype=x.dtype, device=x.device)
        multiplier = torch.full_like(rho, self.multiplier_init)
        rate = before = torch.zeros_like(rho)
        found = torch.zeros_like(y, dtype=torch.bool)
        found_at = torch.full_like(rho, self.steps + 1)
        square, momentum = torch.ones_like(x), torch.zeros_like(x)

        def move(at: Iterate, k: int) -> Tensor:
            nonlocal rho, multiplier, rate, before, found, found_at, square, momentum
            g = at.values.to(x.dtype)
            if k and (k + 1) % self.check_steps == 0:
                rho = torch.where(found | (g < self.tau * before), rho, self.gamma * rho)
            if k == 0 or (k + 1) % self.check_steps == 0:
                before = g
            if k:
                now = penalty_slope(g, rho, multiplier, cubic)
                multiplier = (alpha * multiplier + (1 - alpha) * now).clamp(1e-6, 1e12)
            found_at = torch.where(at.fooled & ~found, float(k), found_at)
            found = found | at.fooled
            # In widths of the box, so that the weight of the penalty does not depend on the box. The first term is the
            # gradient of ||z - x||_2, zero at x.
            slope = self.threat.width * at.grad
            descent = unit(at.z - x) + per_sample(penalty_slope(g, rho, multiplier, cubic), x) * slope
            if k == 0:
                rate = self._rate(x, descent)
            square = alpha * square + (1 - alpha) * descent**2
            momentum = alpha * momentum + descent / (square.sqrt() + 1e-8)
            decay = self.final_rate ** ((k - found_at).clamp_min(0) / (self.steps - found_at))
            return self.threat.clamp(at.z - per_sample(rate * decay, x) * momentum)

        if self.constraint == "dlr":
            why = "ALMA's difference of logits ratio needs 3 classes or more: use constraint='margin'"
            oracle = oracle.demanding(3, why)
        return track_smallest(
            oracle, x, y, threat=self.threat, steps=self.steps, loss=partial(self._constraint, oracle), move=move,
            confidence=self.tolerance,
        )  # fmt: skip
