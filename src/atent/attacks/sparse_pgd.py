"""Sparse PGD: joint gradient ascent on a magnitude and a mask."""

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
from atent.geometry.blocks import largest
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, unit

# Steps between two removals of finished samples from the batch.
_CHECK = 16


@attack
@dataclass(frozen=True)
class SparsePGD(Attack):
    """Sparse PGD for at most k changed pixels or elements (sPGD, Zhong, Huang and Liu 2024).

    The perturbation is a magnitude p times a mask of the k largest scores sigmoid(s). A step moves p by ``step_size``
    along the sign of its gradient, clipped to the box, and s by ``mask_step`` sqrt(dim) along its unit gradient. If the
    mask does not change for ``patience`` steps, the scores are resampled. p starts uniformly within one box width of x,
    s normally distributed. A sample is finished when it is misclassified; without a success the iterate with the
    largest margin is returned. ``steps`` forwards and backwards per restart and one more forward.

    ``gradient="unprojected"`` weights the gradient of p by the sigmoid of the scores, so that magnitudes outside the
    mask are updated too (the paper's default, which explores); ``"projected"`` weights it by the mask (which exploits).
    The paper's sAA is the worst case over both and `SparseRS`, there on cross-entropy with 10,000 queries.

    Deviations from the authors' code (CityU-MLO/sPGD): one loss throughout, where theirs maximises the difference of
    logits in place of the cross-entropy once the true class leads by less than 0.5; ``patience`` counts consecutive
    steps, where theirs resets the count only in a step that changes every mask of the batch.

    References
    ----------
    Zhong, Huang and Liu 2024, "Towards efficient training and evaluation of robust models against l0 bounded
    adversarial perturbations", ICML, arXiv 2405.05075.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import SparsePGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = SparsePGD(Threat("l0", 3), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 3)
    (torch.Size([2, 3, 4, 4]), True)
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l0",)

    threat: Threat
    steps: int = 300
    """Number of gradient steps."""
    restarts: int = 1
    """Number of starts; the worst result counts."""
    gradient: Literal["unprojected", "projected"] = "unprojected"
    """Weight of the magnitude's gradient: the sigmoid of the scores, or the mask."""
    step_size: float = 0.25
    """Step of the magnitude, in widths of the box."""
    mask_step: float = 0.25
    """Step of the scores, in units of sqrt(number of elements)."""
    patience: int = 3
    """Steps without a change of the mask after which its scores are resampled."""
    loss: Literal["ce", "margin", "dlr"] = "ce"
    """Loss to maximise: cross-entropy, margin, or difference of logits ratio."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        check_number("step_size", self.step_size, 0, above=True)
        check_number("mask_step", self.mask_step, 0, above=True)
        check_number("patience", self.patience, 1, whole=True)

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps + 1, self.restarts)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        threat, loss = self.threat.take(oracle.rows), oracle.aimed(LOSSES[self.loss])
        blocks, width = threat.blocks(x.shape[1:]), threat.width
        k, mask_step = counts(threat, x), self.mask_step * math.sqrt(x[0].numel())
        p = threat.clamp(x + width * (2 * streams.uniform(x, use="start", restart=restart) - 1)) - x
        scores = streams.normal(x.new_empty(len(x), blocks.count), use="mask", restart=restart)
        mask, idle = largest(scores, k), torch.zeros_like(y)
        found = BestPoints(x)
        for step in range(self.steps + 1):
            if step and step % _CHECK == 0:
                on = found.left()
                if not len(on):
                    break
                if len(on) < len(x):
                    oracle, streams, threat = oracle.take(on), streams.take(on), threat.take(on)
                    x, y, k, p, scores, mask, idle = (t[on] for t in (x, y, k, p, scores, mask, idle))
            z = threat.clamp(torch.where(blocks.spread(mask), x + p, x))
            if step == self.steps:
                _, logits = oracle.value(z, y, loss)
            else:
                grad, _, logits = oracle.gradient(z, y, loss)
            found.see(z, oracle.margin(logits, y))
            if step == self.steps:
                break
            soft = scores.sigmoid()
            weight = soft if self.gradient == "unprojected" else mask.to(x.dtype)
            slope, toward = grad * blocks.spread(weight), blocks.pool(grad * p) * soft * (1 - soft)
            p = threat.clamp(x + (p + width * self.step_size * slope.sign()).clamp(-width, width)) - x
            scores = scores + mask_step * unit(toward)
            moved = largest(scores, k)
            idle = torch.where((moved == mask).all(1), idle + 1, 0)
            anew = idle >= self.patience
            # Sampled for all samples in every step: the random numbers of a sample must not depend on the others.
            fresh = streams.normal(scores, use="mask", restart=restart, step=step + 1)
            scores = torch.where(anew[:, None], fresh, scores)
            mask, idle = torch.where(anew[:, None], largest(scores, k), moved), torch.where(anew, 0, idle)
        return found.points
