"""Restarts of attacks, and parallel runs in one batch."""

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
    """Repeat a search on the samples that remain correctly classified; per sample the result with the largest margin.

    A search is ``once(oracle, x, y, streams, restart, *more)``; ``more`` are further tensors with one row per sample.
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
    """The number of samples per pass with ``runs`` rows each: at most the rows of ``x``, or 2^16 input elements.

    Small inputs fill the machine, and large ones have at most as many rows as the caller's batch.
    """
    return max(1, max(len(x), 2**16 // max(1, x[0].numel())) // max(1, runs))


def all_targets(classes: int) -> str:
    """The remark of an attack with more targets than the model has wrong classes."""
    return "targets the one wrong class" if classes == 2 else f"targets all {classes - 1} wrong classes"


def restarted(passes: int, restarts: int) -> int:
    """Passes of a search of ``passes`` passes under `worst_of`, including the verdict's."""
    return passes * restarts + (restarts if restarts > 1 else 0) + 1
