"""Sparse-RS: black-box random search for few changed pixels, from the model's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Loss, Oracle
from atent.attacks.sparse import counts
from atent.checks import check_number
from atent.geometry.blocks import Blocks, largest
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, per_sample

# Of 10,000 queries, the last one of each stage of the schedule, and the divisor of `p_init`.
_SHARES = ((0, 1), (50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15), (10_000, 20))
# Passes between two removals of finished samples from the batch.
_CHECK = 64


@attack
@dataclass(frozen=True)
class SparseRS(Attack):
    """Sparse-RS (Croce et al. 2022): black-box random search for at most k changed pixels or elements.

    A query resets some of the changed pixels to x and sets as many others to random corners of the box, and is accepted
    if the loss increases; no gradients are used. The share of the k pixels that are exchanged decreases from p_init by
    the authors' schedule (p_init divided by 2, 4, 5, 6, 8, 10, 12, 15, 20 after the start, 50, 200, 500, 1000, 2000,
    4000, 6000 and 8000 of 10,000 queries), with a minimum of one pixel. Each sample has its own pixels and colours, and
    is finished when it is misclassified.

    Deviation: a pixel whose random corner equals x takes the opposite corner, since it would not change; the authors'
    code does so for single exchanges only.

    References
    ----------
    Croce, Andriushchenko, Singh, Flammarion and Hein 2022, "Sparse-RS: a versatile framework for query-efficient sparse
    black-box adversarial attacks", AAAI, arXiv 2006.12834.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import SparseRS
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = SparseRS(Threat("l0", 3), queries=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 3)
    (torch.Size([2, 3, 4, 4]), True)
    """

    needs_gradient: ClassVar[bool] = False
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l0",)

    threat: Threat
    queries: int = 5000
    """Number of queries, one forward each; the start is one more. The authors' runs on ImageNet use 10,000, and 100,000
    with targets."""
    p_init: float = 0.8
    """Share of the changed pixels that the first queries exchange; above 0, at most 1. The default is that of the
    authors' class; their runs on ImageNet use 0.3, and 0.1 with targets."""
    restarts: int = 1
    """Number of searches; the worst result counts."""
    loss: Literal["margin", "ce"] = "margin"
    """Loss to maximise: margin or cross-entropy."""

    def __post_init__(self) -> None:
        check_number("queries", self.queries, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        check_number("p_init", self.p_init, 0, 1, above=True)

    @property
    def passes(self) -> int:
        return restarted(1 + self.queries, self.restarts)

    def share(self, query: int) -> float:
        """The share of the changed pixels that a query (0 .. queries-1) exchanges."""
        at = (query + 1) * 10_000 // self.queries
        return self.p_init / next(divisor for end, divisor in _SHARES if at <= end)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        threat, loss = self.threat.take(oracle.rows), oracle.aimed(LOSSES[self.loss])
        k, blocks = counts(threat, x), threat.blocks(x.shape[1:])
        mask = largest(streams.uniform(x.new_empty(len(x), blocks.count), use="blocks", restart=restart), k)
        best = torch.where(blocks.spread(mask), _corners(threat, blocks, x, streams, restart, 0), x)
        value, misclassified = _evaluate(oracle, best, y, loss)
        result, rows = best.clone(), torch.arange(len(x), device=x.device)
        for query in range(self.queries):
            if query and (query % _CHECK == 0 or query & (query - 1) == 0):
                result[rows] = best
                on = (~misclassified).nonzero().squeeze(1)
                if not len(on):
                    break
                if len(on) < len(rows):
                    rows, oracle, streams, threat = rows[on], oracle.take(on), streams.take(on), threat.take(on)
                    x, y, k, mask, best, value, misclassified = (
                        t[on] for t in (x, y, k, mask, best, value, misclassified)
                    )
            # As many pixels are reset as are set: at most the number of unchanged pixels.
            some = (self.share(query) * k).long().clamp_min(1).minimum(mask.shape[1] - k)
            keys = streams.uniform(x.new_empty(mask.shape), use="blocks", restart=restart, step=query + 1)
            leaving = largest(torch.where(mask, keys, -1.0), some)
            coming = largest(torch.where(mask, -1.0, keys), some)
            z = torch.where(blocks.spread(leaving), x, best)
            z = torch.where(blocks.spread(coming), _corners(threat, blocks, x, streams, restart, query + 1), z)
            score, wrong = _evaluate(oracle, z, y, loss)
            better = ((score > value) | wrong) & ~misclassified
            best = torch.where(per_sample(better, z), z, best)
            mask = torch.where(better[:, None], (mask & ~leaving) | coming, mask)
            value, misclassified = torch.where(better, score, value), misclassified | wrong
        result[rows] = best
        return result


def _evaluate(oracle: Oracle, z: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    values, logits = oracle.value(z, y, loss)
    return values, oracle.margin(logits, y) > 0


def _corners(threat: Threat, blocks: Blocks, x: Tensor, streams: Streams, restart: int, step: int) -> Tensor:
    """A random corner of the box for every block, different from x."""
    low, high = (torch.as_tensor(edge, dtype=x.dtype, device=x.device) for edge in threat.edges(x))
    up = streams.uniform(x, use="corners", restart=restart, step=step) > 0.5
    corners = torch.where(up, high, low)
    changed = blocks.pool((corners != x).to(x.dtype)) > 0
    return torch.where(blocks.spread(changed), corners, torch.where(up, low, high))
