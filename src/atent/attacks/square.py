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
from atent.attacks.windows import Masses, Squares, as_image
from atent.checks import check_choice, check_number
from atent.losses import LOSSES
from atent.rng import Streams
from atent.threat import Threat, per_sample

# Of 10,000 queries, those after which the share of the image that a window covers is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Passes between two evaluations of which samples are done; in the beginning, after 1, 2, 4, 8 and so on.
_CHECK = 64


@attack
@dataclass(frozen=True)
class Square(Attack):
    """Andriushchenko et al. 2020 (Square Attack), in the form that is part of AutoAttack; no gradients.

    A query changes a square window of the best point so far, at a random place, and the change stays if the loss
    rises. The window covers a share p of the image: p_init at first, halved after 10, 50, 200, 500, 1000, 2000, 4000,
    6000 and 8000 of 10,000 queries, scaled to the number of queries. Every sample has windows of its own, and is done
    when it is misclassified.

    linf (Algorithm 2) starts with vertical stripes of +-eps, and sets a window to x + eps or x - eps, a random sign
    for each channel. Queries that cannot change anything are counted, but not asked: see `Squares`; on a CPU a query
    computes what its window reaches of the first layers, where the network is known: see `Scores`. l2 (Algorithm 3)
    starts with a grid of patterns eta, and gives to a window the mass of another one and what is left of eps, shaped
    as eta (transposed at random, a random sign for each channel) plus what the window held. l1 (Croce and Hein 2021)
    does so with lengths in the place of squares, and projects onto ball and box: see `Masses`.

    Places are uniform over all windows inside the image, as in the paper; the authors' code never takes the last row
    or column. The grid covers the middle of the image with as many tiles of side // 5 as there is room for; theirs
    does so where that makes 5 tiles a side. Inputs (n, d) are images 1 x side x side where d is a square number,
    1 x 1 x d with windows of a single coordinate otherwise.

    References
    ----------
    Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
    ECCV, Algorithms 1 to 3.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import Square
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> Square(Threat("linf", 0.1), queries=5).run(model, x, y).x_adv.shape
    torch.Size([2, 3, 4, 4])
    """

    needs_gradient: ClassVar[bool] = False
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    threat: Threat
    queries: int = 5000
    """Number of windows tried, at most one forward each; the start is one more."""
    p_init: float = 0.8
    """Share of the image that the first windows cover; above 0, at most 1."""
    restarts: int = 1
    """Number of searches; the worst result counts."""
    loss: Literal["margin", "ce"] = "margin"
    """Loss to climb: margin or cross-entropy."""

    def __post_init__(self) -> None:
        check_number("queries", self.queries, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        check_number("p_init", self.p_init, 0, above=True)
        if self.p_init > 1:
            raise ValueError(f"p_init must be at most 1, got {self.p_init}")
        check_choice("loss", self.loss, ("margin", "ce"))

    @property
    def passes(self) -> int:
        return restarted(1 + self.queries, self.restarts)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, streams)

    def share(self, query: int) -> float:
        """p: the share of the image that the window of a query (0 .. queries-1) covers."""
        return self.p_init / 2.0 ** sum(query * 10_000 // self.queries > end for end in _HALVED)

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
        shape, loss = x.shape[1:], oracle.aimed(LOSSES[self.loss])
        image = x.reshape(len(x), *as_image(shape))
        shares = [self.share(query) for query in range(self.queries)]
        threat = self.threat.take(oracle.rows)
        moves = (Squares if threat.norm == "linf" else Masses).draw(threat, image, shares, streams, restart)

        scores = Scores(oracle, x)

        def score_of(z: Tensor, window: Window | None = None) -> tuple[Tensor, Tensor, Tensor | float]:
            z = z.view(-1, *shape)
            logits = scores.logits(oracle, z, y, best, window)
            values = loss(logits, y)
            oracle.report(z, values)
            doubt = scores.doubt(logits)
            return values, oracle.margin(logits, y) > doubt, doubt

        best = moves.start(streams, restart)
        value, fallen, _ = score_of(best)
        result, rows = best.clone(), torch.arange(len(x), device=x.device)
        # The query at which each sample is, and the one that last changed its point.
        at, changed = torch.zeros_like(y), torch.zeros_like(y)
        for k in range(self.queries):
            if k and (k % _CHECK == 0 or k & (k - 1) == 0):
                result[rows] = best
                on = (~fallen & (at < self.queries)).nonzero().squeeze(1)
                if not len(on):
                    break
                if len(on) < len(rows):
                    moves, oracle, rows, y = moves.take(on), oracle.take(on), rows[on], y[on]
                    scores.take(on)
                    best, value, fallen, at, changed = best[on], value[on], fallen[on], at[on], changed[on]
            query = moves.next(best, at, changed)
            z, window = moves.propose(best, query, k)
            score, wrong, doubt = score_of(z, window)
            better = ((score > value + doubt) | wrong) & ~fallen
            scores.settle(better)
            best = torch.where(per_sample(better, z), z, best)
            value, fallen = torch.where(better, score, value), fallen | wrong
            at, changed = query + 1, torch.where(better, query, changed)
        result[rows] = best
        return result.view(x.shape)
