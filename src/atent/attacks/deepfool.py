"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.boundary import Boundary, nearest_boundary
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import beyond
from atent.checks import check_number
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit

# In widths of the box. Without it, steps that the box clips would shrink before the boundary without crossing it.
_MORE = 1e-4


def to_boundary(threat: Threat, boundary: Boundary) -> Tensor:
    """The smallest step (n, ...) onto linear boundaries in the threat's norm, longer by 1e-4 of the box's width.

    Moosavi-Dezfooli et al. 2016, Eq. 9 (l2) and 14 (linf). The step is zero where the boundary is unreachable.
    """
    direction = unit(boundary.slope) if threat.norm == "l2" else boundary.slope.sign()
    far = boundary.distance
    return per_sample(torch.where(far.isfinite(), far + _MORE * threat.width, 0), direction) * direction


@attack
@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest of the linearised decision boundaries, in l2 and linf (DeepFool).

    Untargeted; the other classes are compared with the true one. The evaluated point is x + (1 + overshoot) times the
    sum of the steps, as in the authors' code, which also adds 1e-4 to the length of each step, here 1e-4 of the box's
    width; the point is clamped to the box. The search of a sample ends at the first misclassified point. At most
    ``steps + 2`` forwards and ``steps * (classes - 1)`` backwards; misclassified samples leave the batch after 1, 2, 4,
    8, ... steps.

    References
    ----------
    Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural networks",
    CVPR, Algorithm 2, arXiv 1511.04599.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import DeepFool
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = DeepFool(Threat("l2", 0.5), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.5 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True

    threat: Threat
    """l2 or linf; a perturbation longer than eps is not returned."""
    steps: int = 50
    """Largest number of steps."""
    overshoot: float = 0.02
    """Share by which the sum of the steps is lengthened, to cross the boundary."""
    classes: int = 10
    """Number of classes compared: the true one and those of the largest logits at x; at most all of the model's."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("overshoot", self.overshoot, 0)
        check_number("classes", self.classes, 2, whole=True)

    @property
    def passes(self) -> int:
        return self.steps * self.classes + 3

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        logits = oracle.logits(x, y)
        oracle = oracle.doubting(logits, y)
        others = min(self.classes, logits.shape[1]) - 1
        ranked = logits.scatter(1, y[:, None], -math.inf).topk(others, dim=1).indices
        fooled, total, rows = oracle.fooled(logits, y), torch.zeros_like(x), torch.arange(len(x), device=x.device)

        def reached(total: Tensor) -> Tensor:
            return self.threat.clamp(x[rows] + (1 + self.overshoot) * total)

        for k in range(self.steps):
            if k & (k - 1) == 0:
                rows = (~fooled).nonzero().squeeze(1)
                if not len(rows):
                    break
            part = oracle.take(rows)
            boundary, logits = nearest_boundary(part, reached(total[rows]), y[rows], ranked[rows], self.threat.norm)
            step = to_boundary(self.threat, boundary)
            done = beyond(part, logits, y[rows])
            total = total.index_add(0, rows, torch.where(per_sample(done, step), 0, step))
            fooled = fooled.index_copy(0, rows, done)
        else:
            part = oracle.take(rows)
            last = part.logits(reached(total[rows]), y[rows])
            fooled = fooled.index_copy(0, rows, beyond(part, last, y[rows]))
        rows = torch.arange(len(x), device=x.device)
        return torch.where(per_sample(fooled, x), reached(total), x)
