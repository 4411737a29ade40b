"""What attacks share that begin more than once: restarts, and runs side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atent.attacks.oracle import Oracle
from atent.rng import Streams
from atent.threat import per_sample


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

    A search is ``once(oracle, x, y, streams, restart, *more)``; ``more`` are further tensors of one row per sample.
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
