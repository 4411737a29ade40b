"""The queries of the square attack: random windows of an image, in one form for linf and one for l2 and l1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.attacks.windowed import Window
from atent.rng import Streams
from atent.threat import Threat, l2_norm, per_sample

# Queries whose random numbers are generated in one call; a call allocates 8 bytes per number.
_BLOCK = 256
# Order of the norm that defines the mass of a window.
ORDER = {"l2": 2, "l1": 1}
# Number of queries ahead that are searched for one with an effect.
_AHEAD = 32


def as_image(shape: Sequence[int]) -> tuple[int, int, int]:
    """(c, h, w) of a sample: its own shape, or that of a vector viewed as an image."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    d = math.prod(shape)
    side = math.isqrt(d)
    return (1, side, side) if side * side == d else (1, 1, d)


def viewed(threat: Threat, shape: Sequence[int]) -> Threat:
    """The threat for samples of ``shape`` that `as_image` views in another one: a box for each channel, such as each
    lead of a signal, becomes one for each element."""
    low, high = threat.box
    if not isinstance(low, tuple) or not isinstance(high, tuple) or len(shape) == 3 or len(low) != shape[0]:
        return threat
    each = math.prod(shape[1:])
    return replace(
        threat, box=(tuple(v for v in low for _ in range(each)), tuple(v for v in high for _ in range(each)))
    )


def window_side(share: float, h: int, w: int, least: int) -> int:
    """Side of a square that covers about this share of an image, at least ``least`` and at most the image's sides."""
    return min(max(round(math.sqrt(share * h * w)), least), h, w)


def _uniforms(x: Tensor, queries: int, each: int, streams: Streams, restart: int) -> Tensor:
    """``each`` uniform numbers per query and sample, float32 (n, queries, each)."""
    blocks = []
    for step, first in enumerate(range(0, queries, _BLOCK)):
        like = torch.empty(len(x), min(_BLOCK, queries - first) * each, dtype=torch.float32, device=x.device)
        blocks.append(streams.uniform(like, use="query", restart=restart, step=step).view(len(x), -1, each))
    return torch.cat(blocks, dim=1)


def _places(u: Tensor, sides: Tensor, h: int, w: int) -> Tensor:
    """Window positions as row-major indices, int64 (n, queries): uniform over all windows inside the image."""
    return (u * ((h - sides + 1) * (w - sides + 1))).long()


def _coins(x: Tensor, shape: tuple[int, ...], streams: Streams, use: str, restart: int) -> Tensor:
    """Fair coins, bool (n, *shape)."""
    return (streams.uniform(x.new_empty(len(x), math.prod(shape)), use=use, restart=restart) > 0.5).view(-1, *shape)


def _last_time(keys: Tensor) -> Tensor:
    """For each entry of a row the index of the previous entry with the same key, -1 if there is none."""
    ordered, order = keys.sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    before = F.pad(order[:, :-1], (1, 0))
    return torch.empty_like(order).scatter_(1, order, torch.where(again, before, -1))


@dataclass(frozen=True)
class Squares:
    """linf: every pixel is at x + eps or x - eps, and a query sets a window to one of them.

    Queries without effect are skipped: those that set a window to its present values, and those that failed before on
    the same point. For a deterministic model the result is the same as with them.
    """

    low: Tensor
    """x - eps in the box, (n, c, h, w)."""
    high: Tensor
    """x + eps in the box, (n, c, h, w)."""
    sides: Tensor
    """Side of the window of each query."""
    places: Tensor
    """int64 (n, queries): the window's upper left corner, a row-major index of all windows inside the image."""
    signs: Tensor
    """bool (n, queries, c): whether the window is set to ``high``."""
    before: Tensor
    """int64 (n, queries): the last query with the same proposal."""

    @classmethod
    def sample(cls, threat: Threat, x: Tensor, shares: Sequence[float], streams: Streams, restart: int) -> Squares:
        """The queries for images ``x`` (n, c, h, w), one for each share."""
        _, c, h, w = x.shape
        eps = threat.lengths(x)
        sides = torch.tensor([window_side(share, h, w, 1) for share in shares], device=x.device)
        u = _uniforms(x, len(shares), 1 + c, streams, restart)
        places, signs = _places(u[..., 0], sides, h, w), u[..., 1:] > 0.5
        if c <= 16:
            bits = (signs * 2 ** torch.arange(c, device=x.device)).sum(2)
            before = _last_time(((sides * h * w) + places) * 2**c + bits)
        else:
            before = torch.full_like(places, -1)
        return cls(threat.clamp(x - eps), threat.clamp(x + eps), sides, places, signs, before)

    def take(self, rows: Tensor) -> Squares:
        """The queries of the samples ``rows``."""
        mine = (self.places, self.signs, self.before)
        return Squares(self.low[rows], self.high[rows], self.sides, *(t[rows] for t in mine))

    def start(self, streams: Streams, restart: int) -> Tensor:
        """Vertical stripes: one sign per column and channel."""
        _, c, _, w = self.low.shape
        return torch.where(_coins(self.low, (c, 1, w), streams, "stripes", restart), self.high, self.low)

    def next(self, best: Tensor, at: Tensor, changed: Tensor) -> Tensor:
        """The first query from ``at`` (n,) on that can change ``best``, last changed by the query ``changed`` (n,); or
        the last one of the look-ahead."""
        _, c, _, w = best.shape
        ahead = torch.arange(_AHEAD, device=at.device)
        queries = (at[:, None] + ahead).clamp_max(len(self.sides) - 1)
        side = self.sides[queries]
        place, across = self.places.gather(1, queries), w - side + 1
        top, left = place // across, place % across
        # A summed-area table gives the number of pixels of a window that are at x + eps.
        sums = F.pad((best == self.high).float().cumsum(2).cumsum(3), (1, 0, 1, 0)).flatten(2)

        def corner(i: Tensor, j: Tensor) -> Tensor:
            return sums.gather(2, (i * (w + 1) + j)[:, None].expand(-1, c, -1))

        up = corner(top + side, left + side) - corner(top, left + side) - corner(top + side, left) + corner(top, left)
        sign = self.signs.gather(1, queries[..., None].expand(-1, -1, c)).transpose(1, 2)
        unchanged = (up == torch.where(sign, (side * side)[:, None], 0)).all(1)
        idle = unchanged | (self.before.gather(1, queries) >= changed[:, None])
        return (at + idle.long().cumprod(1).sum(1).clamp_max(_AHEAD - 1)).clamp_max(len(self.sides) - 1)

    def propose(self, best: Tensor, query: Tensor, k: int) -> tuple[Tensor, Window]:
        """The point of the query (n,) of each sample, in pass k, and the window in which it differs from ``best``."""
        _, _, h, w = best.shape
        side = self.sides[query]
        place = self.places.gather(1, query[:, None]).squeeze(1)
        top, left = place // (w - side + 1), place % (w - side + 1)

        def covered(first: Tensor, length: int) -> Tensor:
            i = torch.arange(length, device=best.device)
            return (i >= first[:, None]) & (i < (first + side)[:, None])

        window = covered(top, h)[:, None, :, None] & covered(left, w)[:, None, None, :]
        up = self.signs[torch.arange(len(query), device=query.device), query][:, :, None, None]
        return torch.where(window, torch.where(up, self.high, self.low), best), Window(top, left, side)


def _bump(h: int, w: int, power: int) -> Tensor:
    """A bump centred in a rectangle: the sum of (k + 1)^-power over all k from the distance to the centre on."""
    i, j = torch.arange(h)[:, None], torch.arange(w)[None, :]
    away = torch.maximum((i - h // 2).abs(), (j - w // 2).abs())
    terms = 1.0 / torch.arange(1, max(h, w) // 2 + 2, dtype=torch.float64) ** power
    return terms.flip(0).cumsum(0).flip(0)[away]


def eta(side: int, like: Tensor, order: int = 2) -> Tensor:
    """The pattern of the l2 and the l1 attack (``order``), shape (side, side), norm 1: a positive and a negative bump.

    Andriushchenko et al. 2020; in l1 the bumps decay with the fourth power (Croce and Hein 2021).
    """
    half, power = side // 2, {2: 2, 1: 4}[order]
    bumps = [_bump(half, side, power), _bump(side - half, side, power)]
    upper, lower = (bump / bump.norm(order) if bump.numel() else bump for bump in bumps)
    pattern = torch.cat([upper, -lower])
    made: Tensor = (pattern / pattern.norm(order)).to(like)
    return made


@dataclass(frozen=True)
class Masses:
    """l2: a query moves to a window the mass of another one and the unused rest of eps.

    l1 (Croce and Hein 2021): lengths replace their squares, the mass of the window is multiplied by the number of
    channels, and the point is projected onto ball and box.
    """

    threat: Threat
    x: Tensor
    sides: tuple[int, ...]
    """Side of the window of each query."""
    patterns: dict[int, Tensor]
    """The flattened pattern eta of each side, upright and transposed: (2, side * side)."""
    windows: Tensor
    """int64 (n, queries): the window that receives the mass, as `Squares.places`."""
    sources: Tensor
    """int64 (n, queries): the window whose mass moves."""
    coins: Tensor
    """bool (n, queries, 1 + c): whether the pattern is transposed, and its sign per channel."""

    @classmethod
    def sample(cls, threat: Threat, x: Tensor, shares: Sequence[float], streams: Streams, restart: int) -> Masses:
        """The queries for images ``x`` (n, c, h, w), one for each share."""
        _, c, h, w = x.shape
        least = [window_side(share, h, w, 3) for share in shares]
        sides = tuple(min(side + 1 - side % 2, h, w) for side in least)
        u, each = _uniforms(x, len(shares), 3 + c, streams, restart), torch.tensor(sides, device=x.device)
        windows, sources = (_places(u[..., i], each, h, w) for i in (0, 1))
        upright = {side: eta(side, x, ORDER[threat.norm]) for side in set(sides)}
        patterns = {side: torch.stack([p.flatten(), p.T.flatten()]) for side, p in upright.items()}
        return cls(threat, x, sides, patterns, windows, sources, u[..., 2:] > 0.5)

    def take(self, rows: Tensor) -> Masses:
        """The queries of the samples ``rows``."""
        mine = (self.windows, self.sources, self.coins)
        return Masses(self.threat.take(rows), self.x[rows], self.sides, self.patterns, *(t[rows] for t in mine))

    def start(self, streams: Streams, restart: int) -> Tensor:
        """A grid of patterns eta, scaled to length eps; each is randomly transposed, with a random sign per channel.

        In l1 a pattern has length 1 in widths of the box, or more if eps requires it, before the projection.
        """
        n, c, h, w = self.x.shape
        side = max(min(h, w) // 5, 1)
        down, across = h // side, w // side
        up = _coins(self.x, (c, down, 1, across, 1), streams, "tile signs", restart)
        turned = _coins(self.x, (1, down, 1, across, 1), streams, "tile turns", restart)
        pattern = eta(side, self.x, self.order)
        tile = torch.where(turned, pattern.T[:, None], pattern[:, None])
        grid = torch.where(up, tile, -tile).reshape(n, c, down * side, across * side)
        top, left = (h - down * side) // 2, (w - across * side) // 2
        delta = torch.zeros_like(self.x)
        delta[:, :, top : top + down * side, left : left + across * side] = grid
        if self.order == 1:
            total = delta.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
            delta = delta * (self.threat.lengths(delta) / total).clamp_min(self.threat.width)
        return self._full(delta)

    @property
    def order(self) -> int:
        """2 for l2, 1 for l1."""
        return ORDER[self.threat.norm]

    def _full(self, delta: Tensor) -> Tensor:
        """x plus delta rescaled to length eps, in the box; l1: the nearest point of ball and box."""
        if self.order == 1:
            return self.threat.project(self.x + delta, self.x)
        eps = self.threat.radii(delta)
        length = eps * (l2_norm(delta) + 1e-12 * eps).clamp_min(torch.finfo(delta.dtype).tiny).reciprocal()
        return self.threat.clamp(self.x + delta * per_sample(length, delta))

    def next(self, best: Tensor, at: Tensor, changed: Tensor) -> Tensor:
        """The next query is ``at``: all have an effect."""
        return at

    def _cells(self, places: Tensor, k: int) -> Tensor:
        """Indices (n, c, side * side) of the windows' pixels in the flattened image."""
        _, c, _, w = self.x.shape
        side, cells = self.sides[k], torch.arange(self.sides[k], device=places.device)
        place, across = places[:, k, None], w - side + 1
        rows, columns = place // across + cells, place % across + cells
        return (rows[:, :, None] * w + columns[:, None, :]).flatten(1)[:, None].expand(-1, c, -1)

    def propose(self, best: Tensor, query: Tensor, k: int) -> tuple[Tensor, None]:
        """The points of query k, common to all samples: all of the perturbation is rescaled, not only a window."""
        delta = (best - self.x).flatten(2)
        window, source = self._cells(self.windows, k), self._cells(self.sources, k)
        (upright, lying), coins = self.patterns[self.sides[k]], self.coins[:, k, :, None]
        shape = torch.where(coins[:, :1], lying, upright)
        square, order, channels = self.order == 2, self.order, len(delta[0])

        def mass(t: Tensor, dims: tuple[int, ...]) -> Tensor:
            return (t.square() if square else t.abs()).sum(dims, keepdim=True)

        total = self.threat.lengths(delta, lambda eps: eps**order)
        spare = (total - mass(delta, (1, 2))).clamp_min(0.0) / channels
        content = delta.gather(2, window)
        emptied = delta.scatter(2, window, 0.0)
        # Where the windows overlap, the mass counts once.
        both = spare + (mass(content, (2,)) + mass(emptied.gather(2, source), (2,)))
        length = content.norm(order, dim=2, keepdim=True) + 1e-12 * self.threat.lengths(delta)
        content = content / length.clamp_min(torch.finfo(delta.dtype).tiny)
        new = torch.where(coins[:, 1:], shape, -shape) + content
        new = new / (new.norm(order, dim=2, keepdim=True) + 1e-12) * (both.sqrt() if square else both * channels)
        return self._full(emptied.scatter(2, source, 0.0).scatter(2, window, new).view_as(best)), None
