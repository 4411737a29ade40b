"""The token attack: gradient steps on the few patches to which the network is most sensitive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.sparse import Found, counts
from atent.checks import check_choice, check_number
from atent.geometry.blocks import Blocks, largest
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit

# Steps between two evaluations of which samples are still searched for.
_CHECK = 8


@attack
@dataclass(frozen=True)
class TokenAttack(Attack):
    """Signed gradient steps on the K patches with the largest gradient, after Joshi, Jagatap and Hegde 2021.

    The gradient at x scores the patches of the threat's grid, the K best may change, and each of ``steps`` steps moves
    them by ``step_size`` along the sign of the gradient, into the box and, with ``inner="linf"``, to within
    ``inner_eps`` of x. A sample is done when it is misclassified; without a success the iterate with the largest margin
    is returned.
    ``steps`` forwards and backwards per restart and one forward more: the first gradient serves both the score and
    the first step. Restarts after the first begin at a random point of the K patches.

    ``score="l2"`` is the paper's score. ``"l1"`` ranks patches by what a signed step gains to first order, which is
    the best choice on a linear model. ``"greedy"`` adds the patches one after another, each by its l1 score at the
    point reached so far.

    Deviations from the authors' code, whose bound is around the current image and whose clamp is discarded: the
    result is in the ball and in the box. Samples that are misclassified at x stay as they are.

    References
    ----------
    Joshi, Jagatap and Hegde, "Adversarial Token Attacks on Vision Transformers", arXiv 2110.04337.
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("patch",)

    threat: Threat
    steps: int = 40
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 inner_eps / steps (the box's width where inner is free), K times
    that for score greedy."""
    score: Literal["l2", "l1", "greedy"] = "l2"
    """What ranks the patches: the norm of the gradient at x, or its l1 norm at each point where one is added."""
    restarts: int = 1
    """Number of starts: x, then random points; the worst result counts."""
    loss: Literal["ce", "margin", "dlr"] = "ce"
    """Loss to climb: cross-entropy, margin, or difference of logits ratio."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0, above=True)
        check_choice("score", self.score, ("l2", "l1", "greedy"))
        check_number("restarts", self.restarts, 1, whole=True)
        check_choice("loss", self.loss, tuple(LOSSES))

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps + 1, self.restarts)

    @property
    def resolved_step(self) -> float:
        """The step size in use."""
        return 2.5 * _reach(self.threat) / self.steps if self.step_size is None else self.step_size

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        threat, loss, z = self.threat.take(oracle.rows), oracle.aimed(LOSSES[self.loss]), x
        count, blocks = counts(threat, x), threat.blocks(x.shape[1:])
        chosen = torch.zeros(len(x), blocks.count, dtype=torch.bool, device=x.device)
        begin = x + _reach(threat) * (2 * streams.uniform(x, use="start", restart=restart) - 1)
        found, length = Found(x), self._lengths(x, count)
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
            limit = _reach(threat)
            z = threat.clamp(x + (z - x).clamp(-limit, limit))
            z = torch.where(blocks.spread(chosen), z, x)
        return found.points

    def _lengths(self, x: Tensor, count: Tensor) -> Tensor:
        """The step of each sample: under "greedy" the last of K patches has a Kth of the steps."""
        several = count if self.score == "greedy" and self.step_size is None else torch.ones_like(count)
        return per_sample(self.resolved_step * several.to(x.dtype), x)

    def _choose(self, blocks: Blocks, grad: Tensor, chosen: Tensor, count: Tensor, step: int) -> Tensor:
        """bool (n, patches): the patches that may change in this step."""
        if step and self.score != "greedy":
            return chosen
        scores = blocks.pool(unit(grad) ** 2 if self.score == "l2" else grad.abs())
        if self.score == "greedy":
            count = (1 + step * count // self.steps).minimum(count)
        # A patch once chosen is ranked before all others.
        return largest(torch.where(chosen, math.inf, scores), count)


def _reach(threat: Threat) -> float:
    """The most that a coordinate of a chosen patch may change."""
    return threat.width if threat.inner_eps is None else float(threat.inner_eps)
