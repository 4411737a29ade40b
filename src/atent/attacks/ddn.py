"""Decoupled direction and norm (Rony et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import Iterate, annealed, farthest, track_smallest
from atent.checks import check_number
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit


def decoupled(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: int,
    first: float,
    gamma: float,
    levels: int | None = None,
) -> Tensor:
    """The smallest adversarial point of the search of Rony et al. 2019; the threat's eps is ignored.

    The norm starts at ``first``, is multiplied by 1 - ``gamma`` after a success and by 1 + ``gamma`` after a failure,
    and is at most the distance to the farthest corner of the box; the direction takes steps along the unit gradient of
    the cross-entropy, annealed by a cosine from nearly 1 to 0.01 of the box's width. ``steps`` forwards, ``steps - 1``
    backwards.
    """
    low, extent = threat.edges(x, lambda low, high: (low, high - low))
    limit = farthest(threat, x)
    size = torch.full_like(limit, first)

    def move(at: Iterate, k: int) -> Tensor:
        nonlocal size
        rate = threat.width * annealed(1.0, 0.01, (k + 1) / steps)
        size = torch.where(at.fooled, size * (1 - gamma), size * (1 + gamma)).minimum(limit)
        z = threat.clamp(x + per_sample(size, x) * unit(at.z - x + rate * unit(at.grad)))
        if levels is not None:
            z = low + extent * ((z - low) / extent * (levels - 1)).round() / (levels - 1)
        return z

    return track_smallest(oracle, x, y, threat=threat, steps=steps, loss=oracle.aimed(cross_entropy), move=move)


@attack
@dataclass(frozen=True)
class DDN(Attack):
    """The smallest l2 perturbation by decoupled direction and norm (Rony et al. 2019).

    Each step adds the unit gradient of the cross-entropy to the perturbation, then rescales it to a norm that decreases
    after a success and increases after a failure. ``steps`` forwards, ``steps - 1`` backwards: the authors' last
    gradient affects no evaluated point. Deviations: a zero gradient leaves the direction unchanged (the authors use a
    random one); the cosine is evaluated at (k + 1) / steps, as in the authors' first code, whose scheduler steps first;
    their later versions evaluate it at k / steps.

    References
    ----------
    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger 2019, "Decoupling direction and norm for efficient
    gradient-based L2 adversarial attacks and defenses", CVPR, arXiv 1811.09600.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import DDN
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = DDN(Threat("l2", 0.5), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.5 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    threat: Threat
    """l2 only; a perturbation longer than eps is not returned."""
    steps: int = 1000
    """Number of evaluated points, including x; the paper reports 100, 300 and 1000."""
    init_norm: float | None = None
    """Norm of the first perturbation, in pixel units. Default: the width of the box, 1 in [0, 1]."""
    gamma: float = 0.05
    """Factor by which the norm changes: (1 - gamma) after a success, (1 + gamma) after a failure; in [0, 1)."""
    levels: int | None = None
    """Number of equally spaced values of the box to which every point is rounded, 256 for 8-bit images, as in the
    authors' code. Default: no rounding. The point is rounded, not the perturbation, which is equivalent where x has
    these values."""

    def __post_init__(self) -> None:
        # The first point is x: with one step no other would be evaluated.
        check_number("steps", self.steps, 2, whole=True)
        if self.init_norm is not None:
            check_number("init_norm", self.init_norm, 0, above=True)
        check_number("gamma", self.gamma, 0, 1, below=True)
        if self.levels is not None:
            check_number("levels", self.levels, 2, whole=True)

    @property
    def saturates(self) -> bool:
        return True

    @property
    def passes(self) -> int:
        return 2 * self.steps

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        first = self.threat.width if self.init_norm is None else self.init_norm
        return decoupled(
            oracle, x, y, threat=self.threat, steps=self.steps, first=first, gamma=self.gamma,
            levels=self.levels,
        )  # fmt: skip
