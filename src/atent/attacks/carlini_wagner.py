"""The l2 attack of Carlini and Wagner (2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import adam, beyond, keep_smaller, next_weight
from atent.checks import check_number
from atent.rng import Streams
from atent.threat import Threat, l2_norm, per_sample


@attack
@dataclass(frozen=True)
class CarliniWagner(Attack):
    """The smallest l2 perturbation by Adam in tanh space, with a search over the constant c (Carlini and Wagner).

    Minimises ||z - x||_2^2 + c max(0, z_y - max other logit + confidence) over w, where z = centre of the box + half
    its width times tanh(w) stays in the box, from w(x), for ``search_steps`` values of c: ten times the last one until
    a success, then the midpoint of the largest failure and the smallest success (with ten or more values, the last one
    repeats the smallest success).

    With ``abort_early`` a sample leaves a descent when a tenth of the steps lowers its objective by less than 0.01 %;
    the authors' code does so by default, with the sum over the batch. Deviations: ``steps`` is 1000 by default, 10,000
    in the authors' code; the objective is compared after the last step of each tenth, not after the first of the next
    one. At most ``steps * search_steps`` forwards and backwards, and one forward at x.

    References
    ----------
    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", IEEE Symposium on Security and
    Privacy, Section VI, arXiv 1608.04644.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import CarliniWagner
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = CarliniWagner(Threat("l2", 0.5), steps=10, search_steps=2).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.5 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    threat: Threat
    """l2 only; a perturbation longer than eps is not returned."""
    steps: int = 1000
    """Steps of Adam per constant."""
    search_steps: int = 9
    """Number of constants c."""
    step_size: float = 0.01
    """Learning rate of Adam, in units of w."""
    initial_const: float | None = None
    """The first c, in squared pixel units per logit. Default: 1e-3 squared widths of the box, 1e-3 in [0, 1]."""
    confidence: float = 0.0
    """Margin of logits by which the result must be misclassified."""
    abort_early: bool = False
    """Stop a descent that no longer decreases: saves a fifth to two fifths of the passes on small networks; norms may
    be larger."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("search_steps", self.search_steps, 1, whole=True)
        check_number("step_size", self.step_size, 0, above=True)
        if self.initial_const is not None:
            check_number("initial_const", self.initial_const, 0, above=True)
        check_number("confidence", self.confidence, 0)

    @property
    def passes(self) -> int:
        return 2 * self.steps * self.search_steps + 2

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        total, extent = self.threat.edges(x, lambda low, high: (low + high, high - low))
        # The factor keeps w finite at the faces of the box.
        begin = ((2 * x - total) / extent * (1 - 1e-6)).atanh()
        best, smallest = x, torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
        logits = oracle.logits(x, y)
        smallest = torch.where(oracle.fooled(logits, y), 0.0, smallest)
        oracle = oracle.doubting(logits, y)
        # In squared widths of the box, like all terms of the objective.
        first = 1e-3 if self.initial_const is None else self.initial_const / self.threat.width**2
        c = torch.full_like(smallest, first)
        lower, upper = torch.zeros_like(c), torch.full_like(c, math.inf)
        for repeat in range(self.search_steps):
            if self.search_steps >= 10 and repeat == self.search_steps - 1:
                c = torch.where(upper.isinf(), c, upper)
            z, norm = self._descend(oracle, x, y, c, begin)
            success = norm.isfinite()
            best, smallest = keep_smaller(best, smallest, z, norm, success)
            c, lower, upper = next_weight(c, lower, upper, success)
        return best

    def _descend(self, oracle: Oracle, x: Tensor, y: Tensor, c: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest success for the constants ``c`` (n,), and its norm: inf without a success."""
        best, smallest = x, torch.full_like(c, math.inf)
        rows, last = torch.arange(len(x), device=x.device), torch.full_like(c, math.inf)
        state: tuple[Tensor, ...] = (begin, torch.zeros_like(x), torch.zeros_like(x))
        tenth = max(1, self.steps // 10)
        for first in range(0, self.steps, tenth):
            ks = range(first, min(first + tenth, self.steps))
            state, z, norm, objective = self._adam(oracle.take(rows), x[rows], y[rows], c[rows], state, ks)
            z, norm = keep_smaller(best[rows], smallest[rows], z, norm, norm.isfinite())
            best, smallest = best.index_copy(0, rows, z), smallest.index_copy(0, rows, norm)
            if self.abort_early:
                going = (objective <= 0.9999 * last).nonzero().squeeze(1)
                if not len(going):
                    break
                rows, last, state = rows[going], objective[going], tuple(t[going] for t in state)
        return best, smallest

    def _adam(
        self, oracle: Oracle, x: Tensor, y: Tensor, c: Tensor, state: tuple[Tensor, ...], ks: range
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
        """The steps ``ks`` of a descent: w and its moments, the smallest success with its norm, the last objective."""
        w, mean, square = state
        middle, half = self.threat.edges(x, lambda low, high: ((low + high) / 2, (high - low) / 2))
        width = self.threat.width
        best, smallest, objective = x, torch.full_like(c, math.inf), c

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            return (self.confidence - oracle.margin(logits, y)).clamp_min(0)

        for k in ks:
            squashed = w.tanh()
            # Where tanh rounds to 1 the sum may round past the face of the box.
            z = self.threat.clamp(middle + half * squashed)
            grad, short, logits = oracle.gradient(z, y, hinge)
            norm, fooled = l2_norm(z - x), beyond(oracle, logits, y, self.confidence)
            best, smallest = keep_smaller(best, smallest, z, norm, fooled)
            objective = (norm / width) ** 2 + c * short
            # The chain rule through z / width, so that Adam's epsilon has the same effect in every box.
            grad = (2 * (z - x) / width + per_sample(c, x) * (width * grad)) / 2 * (1 - squashed**2)
            mean, square, direction, scale = adam(mean, square, grad, k)
            w = w - self.step_size * direction / scale
        return (w, mean, square), best, smallest, objective
