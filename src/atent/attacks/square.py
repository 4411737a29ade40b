"""Square attack: random search with windows, by the model's scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, Oracle, check_choice, check_number, restarted, worst_of
from atent.losses import LOSSES, margin
from atent.rng import Draws
from atent.threat import Threat, l2_norm, per_sample

# Of 10,000 queries, those after which the share of the image that a window covers is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers are drawn for so many queries at once, at most; between two such blocks, samples that fell drop out.
_BLOCK = 64


@dataclass(frozen=True)
class Square(Attack):
    """Andriushchenko et al. 2020 (Square Attack), in the form that is part of AutoAttack; no gradients.

    A query changes a square window of the best point so far, at a random place, and the change stays if the loss
    rises. The window covers a share p of the image: p_init at first, halved after 10, 50, 200, 500, 1000, 2000, 4000,
    6000 and 8000 of 10,000 queries, scaled to the number of queries. Every sample has windows of its own, and is done
    when it is misclassified.

    linf (Algorithm 2) starts with vertical stripes of +-eps, and sets a window to x + eps or x - eps, a random sign
    for each channel. l2 (Algorithm 3) starts with a grid of patterns eta, and gives to a window the mass of another
    one and what is left of eps, shaped as eta (transposed at random, a random sign for each channel) plus what the
    window held.

    Places are uniform over all windows inside the image, as in the paper; the authors' code never takes the last row
    or column. The grid covers the middle of the image with as many tiles of side // 5 as there is room for; theirs
    does so where that makes 5 tiles a side. Inputs (n, d) are images 1 x side x side where d is a square number,
    1 x 1 x d with windows of a single coordinate otherwise.
    """

    needs_gradient: ClassVar[bool] = False

    threat: Threat
    queries: int = 5000
    """Number of windows tried; the start is one forward more."""
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

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return worst_of(self.restarts, self._once, oracle, x, y, draws)

    def share(self, query: int) -> float:
        """p: the share of the image that the window of a query (0 .. queries-1) covers."""
        return self.p_init / 2 ** sum(query * 10_000 // self.queries > end for end in _HALVED)

    def blocks(self) -> Iterator[tuple[int, int, float]]:
        """(first query, number of queries, p): runs of at most 64 queries with the same p."""
        first = 0
        while first < self.queries:
            share, last = self.share(first), first + 1
            while last < min(first + _BLOCK, self.queries) and self.share(last) == share:
                last += 1
            yield first, last - first, share
            first = last

    def _once(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws, restart: int) -> Tensor:
        shape = x.shape
        clean = x.reshape(len(x), *as_image(shape[1:]))
        starts, windows = (stripes, squares) if self.threat.norm == "linf" else (tiles, masses)
        loss = LOSSES[self.loss]

        def judge(z: Tensor) -> tuple[Tensor, Tensor]:
            logits = oracle.logits(z.view(-1, *shape[1:]), y)
            wrong = margin(logits, y) > 0
            return loss(logits, y), wrong

        best = starts(self.threat, clean, draws, restart)
        value, fallen = judge(best)
        result, rows = best.clone(), torch.arange(len(x), device=x.device)
        for first, count, share in self.blocks():
            propose = windows(self.threat, clean, share, count, draws, restart, first)
            for k in range(count):
                z = propose(best, k)
                score, wrong = judge(z)
                better = ((score > value) | wrong) & ~fallen
                best = torch.where(per_sample(better, z), z, best)
                value, fallen = torch.where(better, score, value), fallen | wrong
            result[rows] = best
            standing = (~fallen).nonzero().squeeze(1)
            if not len(standing):
                break
            if len(standing) < len(fallen):
                rows, clean, y, best = rows[standing], clean[standing], y[standing], best[standing]
                value, fallen = value[standing], fallen[standing]
                oracle, draws = oracle.take(standing), draws.take(standing)
        return result.view(shape)


def as_image(shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
    """(c, h, w) of a sample: its own shape, or that of a vector read as an image."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    d = math.prod(shape)
    side = math.isqrt(d)
    return (1, side, side) if side * side == d else (1, 1, d)


def window_side(share: float, h: int, w: int, least: int) -> int:
    """Side of a square that covers about the share of an image, at least ``least`` and never more than its sides."""
    return min(max(round(math.sqrt(share * h * w)), least), h, w)


def _places(x: Tensor, side: int, count: int, draws: Draws, use: str, restart: int, step: int) -> tuple[Tensor, Tensor]:
    """First rows and columns (count, n) of windows that lie anywhere inside the image."""
    n, _, h, w = x.shape
    top = draws.integers(h - side + 1, (n, count), use=f"{use} row", restart=restart, step=step)
    left = draws.integers(w - side + 1, (n, count), use=f"{use} column", restart=restart, step=step)
    return top.T.to(x.device), left.T.to(x.device)


def _coins(x: Tensor, shape: tuple[int, ...], draws: Draws, use: str, restart: int, step: int = 0) -> Tensor:
    """Fair coins, bool, for each sample of ``shape``; shape (n, *shape)."""
    like = x.new_empty(len(x), math.prod(shape))
    return (draws.uniform(like, use=use, restart=restart, step=step) > 0.5).view(len(x), *shape)


def stripes(threat: Threat, x: Tensor, draws: Draws, restart: int) -> Tensor:
    """x +- eps, one sign for each column and channel."""
    _, c, _, w = x.shape
    up = _coins(x, (c, 1, w), draws, "stripes", restart)
    return threat.clamp(x + torch.where(up, float(threat.eps), -float(threat.eps)).to(x.dtype))


def squares(
    threat: Threat, x: Tensor, share: float, count: int, draws: Draws, restart: int, step: int
) -> Callable[[Tensor, int], Tensor]:
    """``propose(best, k)`` sets the window of query k of this block to x + eps or x - eps."""
    _, c, h, w = x.shape
    eps, side = float(threat.eps), window_side(share, h, w, 1)
    top, left = _places(x, side, count, draws, "window", restart, step)
    up = _coins(x, (count, c, 1, 1), draws, "sign", restart, step).transpose(0, 1)
    low, high = threat.clamp(x - eps), threat.clamp(x + eps)

    def covered(first: Tensor, length: int) -> Tensor:
        i = torch.arange(length, device=x.device)
        return (i >= first[..., None]) & (i < first[..., None] + side)

    rows, columns = covered(top, h)[:, :, None, :, None], covered(left, w)[:, :, None, None, :]

    def propose(best: Tensor, k: int) -> Tensor:
        return torch.where(rows[k] & columns[k], torch.where(up[k], high, low), best)

    return propose


def _hill(h: int, w: int) -> Tensor:
    """A hill in the middle of a rectangle: the sum of 1 / (k + 1)^2 over all k from the distance to the middle on."""
    i, j = torch.arange(h)[:, None], torch.arange(w)[None, :]
    away = torch.maximum((i - h // 2).abs(), (j - w // 2).abs())
    terms = 1.0 / torch.arange(1, max(h, w) // 2 + 2, dtype=torch.float64) ** 2
    return terms.flip(0).cumsum(0).flip(0)[away]


def eta(side: int, like: Tensor) -> Tensor:
    """The pattern of the l2 attack, shape (side, side), of length 1: a hill above a valley (Eq. 2)."""
    half = side // 2
    hills = [_hill(half, side), _hill(side - half, side)]
    upper, lower = (hill / hill.norm() if hill.numel() else hill for hill in hills)
    pattern = torch.cat([upper, -lower])
    return (pattern / pattern.norm()).to(like)


def _scaled(threat: Threat, x: Tensor, d: Tensor) -> Tensor:
    """x plus d at length eps, in the box."""
    return threat.clamp(x + d * per_sample(float(threat.eps) / (l2_norm(d) + 1e-12), d))


def tiles(threat: Threat, x: Tensor, draws: Draws, restart: int) -> Tensor:
    """A grid of patterns eta of length eps; each is transposed at random, with a random sign for each channel."""
    n, c, h, w = x.shape
    side = max(min(h, w) // 5, 1)
    down, across = h // side, w // side
    up = _coins(x, (c, down, 1, across, 1), draws, "tile signs", restart)
    turned = _coins(x, (1, down, 1, across, 1), draws, "tile turns", restart)
    pattern = eta(side, x)
    tile = torch.where(turned, pattern.T[:, None], pattern[:, None])
    grid = torch.where(up, tile, -tile).reshape(n, c, down * side, across * side)
    top, left = (h - down * side) // 2, (w - across * side) // 2
    delta = torch.zeros_like(x)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return _scaled(threat, x, delta)


def masses(
    threat: Threat, x: Tensor, share: float, count: int, draws: Draws, restart: int, step: int
) -> Callable[[Tensor, int], Tensor]:
    """``propose(best, k)`` moves the mass of one window, and what is left of eps, to another one."""
    _, c, h, w = x.shape
    side = window_side(share, h, w, 3)
    side = min(side + 1 - side % 2, h, w)
    ends = [_places(x, side, count, draws, use, restart, step) for use in ("window", "source")]
    cells = torch.arange(side, device=x.device)
    # Positions (count, n, 1, side * side) in the flat image.
    here, there = (
        (((top[..., None] + cells) * w)[..., :, None] + (left[..., None] + cells)[..., None, :]).flatten(2)[:, :, None]
        for top, left in ends
    )
    turned = _coins(x, (count, 1, 1), draws, "turn", restart, step).transpose(0, 1)
    up = _coins(x, (count, c, 1), draws, "sign", restart, step).transpose(0, 1)
    pattern = eta(side, x)
    upright, lying = pattern.flatten(), pattern.T.flatten()

    def propose(best: Tensor, k: int) -> Tensor:
        delta = (best - x).flatten(2)
        window, source = here[k].expand(-1, c, -1), there[k].expand(-1, c, -1)
        shape = torch.where(turned[k], lying, upright)
        spare = (float(threat.eps) ** 2 - delta.square().sum((1, 2), keepdim=True)).clamp_min(0.0) / c
        held = delta.gather(2, window)
        emptied = delta.scatter(2, window, 0.0)
        # Where the windows overlap, the mass counts once.
        mass = held.square().sum(2, keepdim=True) + emptied.gather(2, source).square().sum(2, keepdim=True)
        new = torch.where(up[k], shape, -shape) + held / (held.norm(dim=2, keepdim=True) + 1e-12)
        new = new / (new.norm(dim=2, keepdim=True) + 1e-12) * (spare + mass).sqrt()
        delta = emptied.scatter(2, source, 0.0).scatter(2, window, new)
        return _scaled(threat, x, delta.view_as(x))

    return propose
