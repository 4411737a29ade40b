"""The loops that attacks share: ascent, restarts, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from atent.attacks.oracle import Loss, Oracle
from atent.rng import Streams
from atent.threat import per_sample


def ascend(
    oracle: Oracle,
    x_adv: Tensor,
    y: Tensor,
    *,
    steps: int,
    loss: Loss,
    move: Callable[[Tensor, Tensor, int], Tensor],
    keep: str = "last",
) -> Tensor:
    """Climb the loss (descend it where labels are targets): ``x_adv = move(x_adv, gradient, k)``, k = 0 .. steps-1.

    ``keep="best"`` returns for each sample the iterate after the start with the highest loss, at the price of
    one more forward; ``"last"`` returns the last one.
    """
    loss, best = oracle.aimed(loss) if oracle.targeted else loss, x_adv
    # The losses keep their own precision: rounded to that of x, a smaller one could pass for the larger.
    best_value: Tensor | None = None

    def remember(values: Tensor) -> None:
        nonlocal best, best_value
        if best_value is None:
            best_value = torch.full_like(values, -math.inf)
        better = values > best_value
        best = torch.where(per_sample(better, x_adv), x_adv, best)
        best_value = torch.where(better, values, best_value)

    for k in range(steps):
        grad, values, _ = oracle.gradient(x_adv, y, loss)
        if keep == "best" and k:
            remember(values)
        x_adv = move(x_adv, grad, k)
    if keep == "best":
        values = loss(oracle.logits(x_adv, y), y)
        oracle.report(x_adv, values)
        remember(values)
        return best
    return x_adv


def worst_of(
    restarts: int,
    once: Callable[..., Tensor],
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    *more: Tensor,
) -> Tensor:
    """Repeat a search on the samples that remain correctly classified; per sample the result with the largest margin
    wins.

    A search is ``once(oracle, x, y, draws, restart, *more)``; ``more`` are further tensors of one row per sample.
    """
    x_adv = once(oracle, x, y, streams, 0, *more)
    if restarts == 1:
        return x_adv
    best = oracle.margin(oracle.logits(x_adv, y), y)
    for restart in range(1, restarts):
        rows = (best <= 0).nonzero().squeeze(1)
        if not len(rows):
            break
        part = oracle.take(rows)
        candidate = once(part, x[rows], y[rows], streams.take(rows), restart, *(t[rows] for t in more))
        score = oracle.margin(part.logits(candidate, y[rows]), y[rows])
        better = score > best[rows]
        x_adv = x_adv.index_copy(0, rows, torch.where(per_sample(better, x), candidate, x_adv[rows]))
        best = best.index_copy(0, rows, torch.maximum(score, best[rows]))
    return x_adv


def side_by_side(x: Tensor, runs: int) -> int:
    """How many samples may have ``runs`` rows each in one pass: no more rows than ``x`` has, or than 2^16 numbers make.

    So small networks are busy, and large ones see no more rows than the caller's batch.
    """
    return max(1, max(len(x), 2**16 // max(1, x[0].numel())) // max(1, runs))


def all_targets(classes: int) -> str:
    """The remark of an attack that asks for more targets than there are wrong classes."""
    return "aims at the one wrong class" if classes == 2 else f"aims at the {classes - 1} wrong classes that there are"


def restarted(passes: int, restarts: int) -> int:
    """Passes of a search of ``passes`` under `worst_of`, with the verdict's."""
    return passes * restarts + (restarts if restarts > 1 else 0) + 1
