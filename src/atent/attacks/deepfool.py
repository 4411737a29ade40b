"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, Oracle, check_number
from atent.attacks.smallest import beyond, wrong
from atent.rng import Draws
from atent.threat import Norm, Threat, per_sample, unit

# In pixel units. Where the box cuts steps off, they would shrink before the boundary and never cross it.
_MORE = 1e-4


def to_boundary(norm: Norm, grads: Tensor, differences: Tensor) -> Tensor:
    """The smallest step (n, ...) to the nearest of m linear boundaries, where some difference of logits becomes 0.

    ``differences`` (n, m) are z_k - z_y, ``grads`` (n, m, ...) their gradients: the length of the step to boundary k
    is |difference| / dual norm of its gradient, plus 1e-4; Moosavi-Dezfooli et al. 2016, Eq. 8, 9 (l2) and 11, 12
    (linf). A boundary without a gradient is out of reach, and the step is zero where all are.
    """
    slopes = torch.linalg.vector_norm(grads.flatten(2), 2 if norm == "l2" else 1, dim=2)
    lengths = torch.where(slopes > 0, differences.abs() / slopes, math.inf)
    size, nearest = lengths.min(1)
    grad = grads[torch.arange(len(grads), device=grads.device), nearest]
    direction = unit(grad) if norm == "l2" else grad.sign()
    return per_sample(torch.where(size.isfinite(), size + _MORE, 0), direction) * direction


@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest of the linearised boundaries, Moosavi-Dezfooli et al. 2016, Algorithm 2.

    Untargeted; classes are compared with the true one. The point looked at is x + (1 + overshoot) times the sum of
    the steps, as in the authors' code, which also adds 1e-4 to each step's length; here it is put into the box as
    well. The search of a sample ends at the first point that is misclassified. At most ``steps + 2`` forwards and
    ``steps * (classes - 1)`` backwards; a sample that has fallen leaves after 1, 2, 4, 8, ... steps.
    """

    minimum_norm: ClassVar[bool] = True

    threat: Threat
    """l2 or linf; a perturbation longer than eps is not returned."""
    steps: int = 50
    """Largest number of steps."""
    overshoot: float = 0.02
    """Share by which the sum of the steps is lengthened, to land beyond the boundary."""
    classes: int = 10
    """Number of classes compared: the true one and those of the largest logits at x; all where the model has fewer."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("overshoot", self.overshoot, 0)
        check_number("classes", self.classes, 2, whole=True)

    @property
    def passes(self) -> int:
        return self.steps * self.classes + 3

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        logits = oracle.logits(x, y)
        others = min(self.classes, logits.shape[1]) - 1
        ranked = logits.scatter(1, y[:, None], -math.inf).topk(others, dim=1).indices
        fooled, total, rows = wrong(logits, y), torch.zeros_like(x), torch.arange(len(x), device=x.device)

        def reached(total: Tensor) -> Tensor:
            return self.threat.clamp(x[rows] + (1 + self.overshoot) * total)

        for k in range(self.steps):
            if k & (k - 1) == 0:
                rows = (~fooled).nonzero().squeeze(1)
                if not len(rows):
                    break
            grads, logits = oracle.take(rows).jacobian(reached(total[rows]), y[rows], ranked[rows])
            differences = logits.gather(1, ranked[rows]) - logits.gather(1, y[rows, None])
            step = to_boundary(self.threat.norm, grads, differences.to(x.dtype))
            done = beyond(logits, y[rows])
            total = total.index_add(0, rows, torch.where(per_sample(done, step), 0, step))
            fooled = fooled.index_copy(0, rows, done)
        else:
            last = oracle.take(rows).logits(reached(total[rows]), y[rows])
            fooled = fooled.index_copy(0, rows, beyond(last, y[rows]))
        rows = torch.arange(len(x), device=x.device)
        return torch.where(per_sample(fooled, x), reached(total), x)
