"""Minimum-norm attacks: a path from x that records its smallest adversarial point, and what several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from atent.attacks.oracle import Loss, Oracle
from atent.losses import magnitude
from atent.threat import COUNTS, Threat, l2_norm, per_sample


class Iterate(NamedTuple):
    """The current point of an iteration and what is known of it, for n samples."""

    z: Tensor
    """The point, the shape of x."""
    grad: Tensor
    """Gradient of each sample's loss at z, the shape of x."""
    values: Tensor
    """Loss, (n,)."""
    fooled: Tensor
    """bool (n,): z is adversarial."""
    norm: Tensor
    """Distance from x to z in the threat's norm, (n,)."""
    smallest: Tensor
    """The smallest distance of an adversarial point so far, including z; inf without one, (n,)."""


DUAL: dict[str, float] = {"linf": 1, "l2": 2, "l1": math.inf}
"""Order of the dual norm: margin / dual norm of the gradient estimates the distance to the boundary."""


def length(threat: Threat, d: Tensor) -> Tensor:
    """The norm of each sample, (n,), in the dtype of ``d``; the threat's eps is ignored."""
    if threat.norm == "l2":
        return l2_norm(d)
    if threat.norm == "l1":
        return d.flatten(1).abs().sum(1, dtype=torch.float64).to(d.dtype)
    if threat.norm in COUNTS:
        return threat.blocks(d.shape[1:]).changed(d, torch.zeros_like(d)).to(d.dtype)
    return d.flatten(1).abs().amax(1)


def farthest(threat: Threat, x: Tensor) -> Tensor:
    """Distance from ``x`` to the farthest corner of the box, (n,): an upper bound on every perturbation."""
    low, high = threat.edges(x)
    return length(threat, torch.maximum(x - low, high - x))


def annealed(first: float, last: float, share: float) -> float:
    """Cosine annealing from ``first`` (share 0) to ``last`` (share 1)."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def beyond(oracle: Oracle, logits: Tensor, y: Tensor, confidence: float = 0.0) -> Tensor:
    """bool (n,): misclassified by a margin of logits above ``confidence`` and above rounding error.

    The smallest perturbation ends where two logits agree, and kernels round differently with the batch size: a margin
    below 64 units in the last place of the `magnitude` of the logits does not count, so that the final verdict on the
    returned point agrees with that of the search. `Oracle.doubting` limits it.
    """
    gap = oracle.margin(logits, y)
    rounding = 64 * torch.finfo(gap.dtype).eps * magnitude(logits)
    if oracle.doubt is not None:
        rounding = rounding.minimum(oracle.doubt)
    return gap > rounding.clamp_min(confidence)


def keep_smaller(best: Tensor, smallest: Tensor, z: Tensor, norm: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor]:
    """``best`` and ``smallest``, replaced by ``z`` and ``norm`` where z is adversarial and closer."""
    better = fooled & (norm < smallest)
    return torch.where(per_sample(better, z), z, best), torch.where(better, norm, smallest)


def next_weight(
    c: Tensor, lower: Tensor, upper: Tensor, success: Tensor, most: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """The next weight of the loss per sample, (n,), and the limits of the search (Carlini and Wagner 2017).

    Ten times ``c``, at most ``most``, until a success, then the midpoint of the largest failure ``lower`` and the
    smallest success ``upper``, which is inf without one.
    """
    lower, upper = torch.where(success, lower, c), torch.where(success, c, upper)
    return torch.where(upper.isinf(), (10 * c).clamp_max(most), (lower + upper) / 2), lower, upper


def adam(mean: Tensor, square: Tensor, grad: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adam's two moments after the gradient of step ``k``, and the numerator and the denominator of its direction
    (Kingma and Ba 2015, with the default decay rates)."""
    mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
    return mean, square, mean / (1 - 0.9 ** (k + 1)), (square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8


def track_smallest(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: int,
    loss: Loss,
    move: Callable[[Iterate, int], Tensor],
    confidence: float = 0.0,
) -> Tensor:
    """The smallest adversarial one of ``steps`` points: x, then ``z = move(iterate, k)`` for k = 0 .. steps-2.

    x itself if there is none, or if x is adversarial. One forward per point serves the verdict and the gradient; the
    last point needs no gradient: ``steps`` forwards, ``steps - 1`` backwards.
    """
    z, best = x, x
    smallest = torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
    for k in range(steps):
        last = k + 1 == steps
        if last:
            logits = oracle.logits(z, y)
            if oracle.watch is not None:
                oracle.report(z, loss(logits, y))
        else:
            grad, values, logits = oracle.gradient(z, y, loss)
        if not k:
            oracle = oracle.doubting(logits, y)
        distance = length(threat, z - x)
        fooled = beyond(oracle, logits, y, confidence) if k else oracle.fooled(logits, y)
        best, smallest = keep_smaller(best, smallest, z, distance, fooled)
        if not last:
            z = move(Iterate(z, grad, values, fooled, distance, smallest), k)
    return best
