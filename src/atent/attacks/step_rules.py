"""Step rules of Auto-PGD: one for linf and l2, one for l1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from atent.threat import Threat, per_sample

_MOMENTUM = 0.75
# Share of the coordinates that the first l1 steps change; later steps change those of the best point over _FEWER.
_FIRST, _FEWER = 0.2, 1.5
# The size of an l1 step shrinks by the first factor, down to eps over the second.
_SHRINK, _LEAST = 1.5, 10.0


def checkpoints(steps: int) -> dict[int, int]:
    """Step -> steps since the previous checkpoint: the checkpoints of Auto-PGD (Croce and Hein 2020).

    w_j = ceil(p_j steps) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    """
    found, last, at, gap = {}, 0, 22, 22
    while at <= 100:
        step = -(-at * steps // 100)
        if step > last:
            found[step] = step - last
        last, gap = step, max(gap - 3, 6)
        at += gap
    return found


class Rule(Protocol):
    """The state of the steps of n samples, and their update."""

    checks: dict[int, int]
    """Steps after which `check` is called, each with the number of steps since the previous one."""

    def move(self, threat: Threat, x: Tensor, point: Tensor, before: Tensor, grad: Tensor, k: int) -> Tensor:
        """The point of step k (from 1) from ``point``, the one ``before`` it and the gradient at ``point``."""

    def see(self, values: Tensor) -> None:
        """Record the losses (n,) at a new point."""

    def check(self, k: int, x: Tensor, best: Tensor, best_value: Tensor) -> Tensor:
        """Adapt the steps; bool (n,): the samples that resume from their best point."""

    def take(self, rows: Tensor) -> Self:
        """The state of the samples ``rows``."""


@dataclass
class Halving:
    """linf, l2 (Croce and Hein 2020): momentum, and a step size that starts at 2 eps and is halved."""

    checks: dict[int, int]
    rho: float
    """Share of the steps since the last checkpoint that must increase the loss."""
    size: Tensor
    """Step size, (n,)."""
    last: Tensor
    """Loss at the latest point, (n,)."""
    at_check: Tensor
    """Best loss at the last checkpoint, (n,)."""
    raised: Tensor
    """Number of steps since the last checkpoint that increased the loss, (n,)."""
    halved: Tensor
    """bool (n,): the last checkpoint halved the step size."""

    @classmethod
    def begin(cls, threat: Threat, x: Tensor, values: Tensor, margin: Tensor, steps: int, rho: float) -> Halving:
        """The state at a start ``x`` with the losses ``values``."""
        size = torch.zeros_like(margin, dtype=x.dtype) + threat.radii(x, lambda eps: 2 * eps)
        halved = torch.zeros_like(values, dtype=torch.bool)
        return cls(checkpoints(steps), rho, size, values, values, torch.zeros_like(values), halved)

    def move(self, threat: Threat, x: Tensor, point: Tensor, before: Tensor, grad: Tensor, k: int) -> Tensor:
        moved = threat.project(point + per_sample(self.size, x) * threat.ascent(grad), x)
        if k > 1:
            step = _MOMENTUM * (moved - point) + (1 - _MOMENTUM) * (point - before)
            moved = threat.project(point + step, x)
        return moved

    def see(self, values: Tensor) -> None:
        self.raised, self.last = self.raised + (values > self.last), values

    def check(self, k: int, x: Tensor, best: Tensor, best_value: Tensor) -> Tensor:
        stuck = ~self.halved & (self.at_check >= best_value)
        self.halved = (self.raised < self.rho * self.checks[k]) | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.raised, self.at_check = torch.zeros_like(self.raised), best_value
        return self.halved

    def take(self, rows: Tensor) -> Halving:
        mine = (t[rows] for t in (self.size, self.last, self.at_check, self.raised, self.halved))
        return Halving(self.checks, self.rho, *mine)


@dataclass
class Sparse:
    """l1 (Croce and Hein 2021, Mind the box): equal changes of the coordinates with the largest gradients.

    A share of the coordinates, 0.2 at first, moves by equal amounts whose sum is the step size, without momentum. Every
    4 % of the steps the share is set to that of the coordinates in which the best point differs from x, over 1.5. If
    their number decreased by more than 5 %, the size is reset to eps and the sample to its best point; otherwise the
    size is divided by 1.5, to at least eps / 10.

    Deviations: coordinates at a face of the box that cannot move are not counted among the largest, since a step on
    them alone has no effect; and the number of coordinates is rounded down, since rounded up it never falls from 2 to
    1.
    """

    checks: dict[int, int]
    eps: Tensor
    """Radius, (n,)."""
    size: Tensor
    """Sum of the changes of a step, (n,)."""
    share: Tensor
    """Share of the coordinates that a step changes, (n,)."""
    changed: Tensor
    """Number of coordinates, (n,), in which the best point differed from x at the last check."""

    @classmethod
    def begin(cls, threat: Threat, x: Tensor, start: Tensor | None, steps: int) -> Sparse:
        """The state at ``start``, the end of an earlier search; None: at a random start."""
        d, eps = x[0].numel(), x.new_zeros(len(x)) + threat.radii(x)
        changed = eps.new_full(eps.shape, d) if start is None else _changed(start, x, eps).to(eps)
        share = torch.full_like(eps, _FIRST) if start is None else changed / (_FEWER * d)
        every = max(1, steps * 4 // 100)
        return cls({k: every for k in range(every, steps + 1, every)}, eps, eps, share, changed)

    def move(self, threat: Threat, x: Tensor, point: Tensor, before: Tensor, grad: Tensor, k: int) -> Tensor:
        low, high = threat.edges(point)
        # x plus its distance to a face of the box may round to a point inside the box.
        near = 4 * torch.finfo(x.dtype).eps * max(map(abs, threat.span))
        stopped = ((grad > 0) & (point >= high - near)) | ((grad < 0) & (point <= low + near))
        grad = torch.where(stopped, 0, grad).flatten(1)
        size, d = grad.abs(), grad.shape[1]
        # A share is a ratio of integers: its rounding must not decrease the count.
        count = (self.share.double() * d + 1e-6).floor().clamp(1, d).long()
        limit = size.sort(1).values.gather(1, d - count[:, None])
        sign = torch.where(size >= limit, grad.sign(), 0)
        length = self.size / sign.abs().sum(1).clamp_min(1)
        return threat.project(point + (length[:, None] * sign).view_as(x), x)

    def see(self, values: Tensor) -> None:
        pass

    def check(self, k: int, x: Tensor, best: Tensor, best_value: Tensor) -> Tensor:
        changed = _changed(best, x, self.eps).to(self.changed)
        fewer = changed < 0.95 * self.changed
        self.share, self.changed = changed / (_FEWER * x[0].numel()), changed
        self.size = torch.where(fewer, self.eps, torch.maximum(self.size / _SHRINK, self.eps / _LEAST))
        return fewer

    def take(self, rows: Tensor) -> Sparse:
        mine = {name: getattr(self, name)[rows] for name in ("eps", "size", "share", "changed")}
        return replace(self, **mine)


def _changed(z: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """The number of coordinates of each sample that differ from x by more than rounding.

    The projection leaves some coordinates at its threshold off by a unit in the last place of x or of the radius.
    """
    room = 4 * torch.finfo(x.dtype).eps * torch.maximum(x.abs(), per_sample(eps, x))
    return ((z - x).abs() > room).flatten(1).sum(1)


def stages(steps: int) -> list[tuple[float, int]]:
    """Radii of the l1 schedule in units of eps, with their steps: 3, 2, 1 with 30, 30 and 40 % of the steps.

    Croce and Hein 2021, as in AutoAttack; the last radius has at least one step.
    """
    first = min(math.ceil(0.3 * steps), (steps - 1) // 2)
    return [(factor, count) for factor, count in ((3.0, first), (2.0, first), (1.0, steps - 2 * first)) if count]
