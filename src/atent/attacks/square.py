"""Square attack: random search with windows, by the model's scores alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.windowed import Scores, Window
from atent.attacks.windows import Masses, Squares, as_image, viewed
from atent.checks import check_number
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, per_sample

# Of 10,000 queries, those after which the window's share of the image is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Passes between two removals of finished samples from the batch; initially after 1, 2, 4, 8 and so on.
_CHECK = 64


@attack
@dataclass(frozen=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al. 2020): black-box random search with square windows.

    A query changes a square window of the best point so far, at a random position, and is accepted if the loss
    increases; no gradients are used. The window covers a share p of the image: p_init at first, halved after 10, 50,
    200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries, by default scaled to the number of queries; AutoAttack
    does not scale them. Every sample has its own windows, and is finished when it is misclassified.

    linf: starts with vertical stripes of +eps and -eps, and sets a window to x + eps or x - eps, with a random sign per
    channel. Queries without effect are counted but not evaluated, see `Squares`; on a CPU only the part of the first
    layers that depends on the window is recomputed where the network is known, see `Scores`. l2: starts with a grid of
    patterns eta, and moves to a window the mass of another one and the unused rest of eps, shaped as eta (randomly
    transposed, with a random sign per channel) plus the former content of the window. l1 (Croce and Hein 2021): the
    same with lengths instead of squares, projected onto ball and box, see `Masses`.

    Positions are uniform over all windows inside the image, as in the paper; the authors' code excludes the last row
    and column. The grid covers the centre of the image with as many tiles of side // 5 as fit, as theirs does if 5
    tiles fit per side. Inputs (n, d) are images 1 x side x side if d is a square number, otherwise 1 x 1 x d with
    windows of a single coordinate.

    References
    ----------
    Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial attack via
    random search", ECCV, arXiv 1912.00049.

    Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML, arXiv
    2103.01208.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import Square
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = Square(Threat("linf", 0.1), queries=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    needs_gradient: ClassVar[bool] = False
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    threat: Threat
    queries: int = 5000
    """Number of windows, at most one forward each; the start is one more."""
    p_init: float = 0.8
    """Share of the image that the first windows cover; above 0, at most 1. AutoAttack's value; the authors' own runs in
    linf take 0.05 for ImageNet and 0.3 for defences on MNIST and CIFAR-10, except Madry et al.'s on MNIST (0.8)."""
    schedule: Literal["scaled", "absolute"] = "scaled"
    """Queries after which the share is halved: scaled to the number of queries, or absolute."""
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

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def share(self, query: int) -> float:
        """p: the share of the image that the window of a query (0 .. queries-1) covers."""
        at = query if self.schedule == "absolute" else query * 10_000 // self.queries
        return self.p_init / 2.0 ** sum(at > end for end in _HALVED)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        shape, loss = x.shape[1:], oracle.aimed(LOSSES[self.loss])
        image = x.reshape(len(x), *as_image(shape))
        shares = [self.share(query) for query in range(self.queries)]
        threat = viewed(self.threat.take(oracle.rows), shape)
        moves = (Squares if threat.norm == "linf" else Masses).sample(threat, image, shares, streams, restart)

        scores = Scores(oracle, x)

        def score_of(z: Tensor, window: Window | None = None) -> tuple[Tensor, Tensor, Tensor | float]:
            z = z.view(-1, *shape)
            logits = scores.logits(oracle, z, y, best, window)
            values = loss(logits, y)
            oracle.report(z, values)
            doubt = scores.doubt(logits)
            return values, oracle.margin(logits, y) > doubt, doubt

        best = moves.start(streams, restart)
        value, misclassified, _ = score_of(best)
        result, rows = best.clone(), torch.arange(len(x), device=x.device)
        # The next query of each sample, and the one that last changed its point.
        at, changed = torch.zeros_like(y), torch.zeros_like(y)
        for k in range(self.queries):
            if k and (k % _CHECK == 0 or k & (k - 1) == 0):
                result[rows] = best
                on = (~misclassified & (at < self.queries)).nonzero().squeeze(1)
                if not len(on):
                    break
                if len(on) < len(rows):
                    moves, oracle, rows, y = moves.take(on), oracle.take(on), rows[on], y[on]
                    scores.take(on)
                    best, value, misclassified, at, changed = (
                        best[on],
                        value[on],
                        misclassified[on],
                        at[on],
                        changed[on],
                    )
            query = moves.next(best, at, changed)
            z, window = moves.propose(best, query, k)
            score, wrong, doubt = score_of(z, window)
            better = ((score > value + doubt) | wrong) & ~misclassified
            scores.commit(better)
            best = torch.where(per_sample(better, z), z, best)
            value, misclassified = torch.where(better, score, value), misclassified | wrong
            at, changed = query + 1, torch.where(better, query, changed)
        result[rows] = best
        return result.view(x.shape)
