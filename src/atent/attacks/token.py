"""The token attack: gradient steps on the patches to which the network is most sensitive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.sparse import BestPoints, counts
from atent.checks import check_number
from atent.geometry.blocks import Blocks, largest
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit

# Steps between two removals of finished samples from the batch.
_CHECK = 8


@attack
@dataclass(frozen=True)
class TokenAttack(Attack):
    """Signed gradient steps on the K patches with the largest gradient (token attack).

    The gradient at x scores the patches of the threat's grid and the K best are selected; each of ``steps`` steps moves
    them by ``step_size`` along the sign of the gradient, clipped to the box and, with ``inner="linf"``, to within
    ``inner_eps`` of x. A sample is finished when it is misclassified; without a success the iterate with the largest
    margin is returned. ``steps`` forwards and backwards per restart and one more forward: the first gradient serves
    both the score and the first step. Restarts after the first start at a random point of the K patches.

    ``score="l2"`` is the paper's score. ``"l1"`` ranks patches by the first-order gain of a signed step, which is
    optimal on a linear model. ``"greedy"`` adds patches one at a time, each by its l1 score at the current point.

    Deviation from the authors' code, which bounds the change of the current image and discards its clamp: the result
    is in the ball and in the box. Samples that are misclassified at x are not changed.

    References
    ----------
    Joshi, Jagatap and Hegde 2021, "Adversarial token attacks on vision transformers", arXiv 2110.04337.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import TokenAttack
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = TokenAttack(Threat("patch", 1, side=2), steps=5).run(model, x, y)
    >>> bool((outcome.norm <= 1).all())
    True
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("patch",)

    threat: Threat
    steps: int = 40
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units. Default: 2.5 inner_eps / steps (inner free: with the box's width in place of
    inner_eps), and K times that for score greedy. The authors' scripts use 0.1 with 32 steps and 0.01 with 100."""
    score: Literal["l2", "l1", "greedy"] = "l2"
    """Score of a patch: l2 or l1 norm of the gradient at x, or greedy, the l1 norm at the point where one is added."""
    restarts: int = 1
    """Number of starts: x, then random points; the worst result counts."""
    loss: Literal["ce", "margin", "dlr"] = "ce"
    """Loss to maximise: cross-entropy, margin, or difference of logits ratio."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0, above=True)
        check_number("restarts", self.restarts, 1, whole=True)

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps + 1, self.restarts)

    @property
    def resolved_step(self) -> float:
        """The step size in use."""
        return 2.5 * _largest_change(self.threat) / self.steps if self.step_size is None else self.step_size

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        threat, loss, z = self.threat.take(oracle.rows), oracle.aimed(LOSSES[self.loss]), x
        count, blocks = counts(threat, x), threat.blocks(x.shape[1:])
        chosen = torch.zeros(len(x), blocks.count, dtype=torch.bool, device=x.device)
        begin = x + _largest_change(threat) * (2 * streams.uniform(x, use="start", restart=restart) - 1)
        found, length = BestPoints(x), self._lengths(x, count)
        for step in range(self.steps + 1):
            if step and step % _CHECK == 0:
                on = found.left()
                if not len(on):
                    break
                if len(on) < len(x):
                    oracle, threat = oracle.take(on), threat.take(on)
                    x, y, z, count, chosen, begin, length = (t[on] for t in (x, y, z, count, chosen, begin, length))
            if step == self.steps:
                _, logits = oracle.value(z, y, loss)
            else:
                grad, _, logits = oracle.gradient(z, y, loss)
            found.see(z, oracle.margin(logits, y))
            if step == self.steps:
                break
            chosen = self._choose(blocks, grad, chosen, count, step)
            z = begin if restart and not step else z + length * grad.sign()
            limit = _largest_change(threat)
            z = threat.clamp(x + (z - x).clamp(-limit, limit))
            z = torch.where(blocks.spread(chosen), z, x)
        return found.points

    def _lengths(self, x: Tensor, count: Tensor) -> Tensor:
        """The step size of each sample: with "greedy" the last of K patches takes a Kth of the steps."""
        several = count if self.score == "greedy" and self.step_size is None else torch.ones_like(count)
        return per_sample(self.resolved_step * several.to(x.dtype), x)

    def _choose(self, blocks: Blocks, grad: Tensor, chosen: Tensor, count: Tensor, step: int) -> Tensor:
        """bool (n, patches): the patches that change in this step."""
        if step and self.score != "greedy":
            return chosen
        scores = blocks.pool(unit(grad) ** 2 if self.score == "l2" else grad.abs())
        if self.score == "greedy":
            count = (1 + step * count // self.steps).minimum(count)
        # A selected patch is ranked before all others.
        return largest(torch.where(chosen, math.inf, scores), count)


def _largest_change(threat: Threat) -> float:
    """The largest change of an element of a selected patch."""
    return threat.width if threat.inner_eps is None else float(threat.inner_eps)
