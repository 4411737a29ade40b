"""Logits of images that differ in one window from images with cached layers: only the affected parts are recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from atent.attacks.affected import SLIDING, Affected, affected, apply, constant, graph_of, layer, sliding
from atent.attacks.oracle import LOGITS, Oracle
from atent.losses import magnitude

# Largest number of cached elements: 256 MiB in float32.
_MOST = 2**26


class Window(NamedTuple):
    """A square of pixels for each of n images; all fields are int64 (n,)."""

    top: Tensor
    left: Tensor
    side: Tensor


@dataclass
class _Cached:
    """The values of a layer for all images, (n, h, w, c) with a border of ``pad`` zeros."""

    values: Tensor
    pad: int

    @classmethod
    def of(cls, values: Tensor, pad: int) -> _Cached:
        """For ``values`` (n, c, h, w)."""
        return cls(F.pad(values.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous(), pad)

    @property
    def flat(self) -> Tensor:
        return self.values.view(-1, self.values.shape[3])

    def copy(self) -> Tensor:
        """A copy (n, c, h, w) without the border, which the network may overwrite."""
        (h, w), p = self.values.shape[1:3], self.pad
        inside = self.values[:, p : h - p, p : w - p].permute(0, 3, 1, 2)
        return inside.clone(memory_format=torch.channels_last)


@dataclass
class _Part:
    """A rectangle of a cached layer for each position of the window, as rows of `_Cached.flat`."""

    down: Tensor
    across: Tensor
    pattern: Tensor
    stride: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, cached: _Cached, down: Tensor, across: Tensor, shape: tuple[int, int]) -> _Part:
        """``down`` and ``across``: its start for each position of the window, not counting the border."""
        _, h, w, _ = cached.values.shape
        pattern = torch.arange(shape[0])[:, None] * w + torch.arange(shape[1])
        return cls((down + cached.pad) * w, across + cached.pad, pattern.flatten(), h * w, shape)

    def rows(self, top: Tensor, left: Tensor) -> Tensor:
        base = torch.arange(len(top)) * self.stride + self.down[top] + self.across[left]
        return (base[:, None] + self.pattern).flatten()

    def cut(self, cached: _Cached, top: Tensor, left: Tensor) -> Tensor:
        """A copy (n, c, ...)."""
        found = cached.flat.index_select(0, self.rows(top, left))
        return found.view(len(top), *self.shape, -1).permute(0, 3, 1, 2)


@dataclass
class Windowed:
    """Logits of images that differ from the cached ones in one window each; the network's own up to rounding."""

    affected: Affected
    cached: dict[fx.Node, _Cached]
    ends: list[fx.Node]
    rest: fx.GraphModule
    """From the layers ``ends`` to the logits."""
    reads: dict[tuple[fx.Node, fx.Node], _Part]
    """The part that a layer reads of a cached layer."""
    writes: dict[fx.Node, _Part]
    """The affected part of a cached layer."""
    weights: dict[fx.Node, Tensor]
    pending: list[tuple[_Cached, Tensor, Tensor, Tensor]] = field(default_factory=list)
    """The changes of the last query: a layer, its rows, and their former and new values."""

    @classmethod
    def of(cls, graph: fx.GraphModule, x: Tensor, side: int) -> Windowed | None:
        """For images ``x`` (n, c, h, w) and windows of ``side``; None if they affect all of every layer, or the cache
        is too large."""
        found = affected(graph, x, side)
        if found is None:
            return None
        borders, sizes = found.borders(), 0
        for node, pad in borders.items():
            _, c, h, w = found.shapes[node]
            sizes += c * (h + 2 * pad) * (w + 2 * pad)
        if sizes * len(x) > _MOST:
            return None
        cached = {node: _Cached.of(value, borders[node]) for node, value in found.values(x) if node in borders}
        reads: dict[tuple[fx.Node, fx.Node], _Part] = {}
        weights: dict[fx.Node, Tensor] = {}
        for node, (down, across) in found.spans.items():
            slide = layer(graph, node)
            if isinstance(slide, nn.Conv2d):
                weights[node] = slide.weight.contiguous(memory_format=torch.channels_last)
            for arg in (arg for arg in node.args if isinstance(arg, fx.Node) and arg in found.spans):
                begin, shape = (down.first, across.first), (down.length, across.length)
                if isinstance(slide, SLIDING):
                    sides = sliding(slide)
                    begin = down.first * sides[0][1] - sides[0][2], across.first * sides[1][1] - sides[1][2]
                    (kernel, stride, _), (wide, apart, _) = sides
                    shape = (down.length - 1) * stride + kernel, (across.length - 1) * apart + wide
                elif all(a.same(b) for a, b in zip(found.spans[arg], (down, across))):
                    continue
                reads[node, arg] = _Part.of(cached[arg], *begin, shape)
        writes = {}
        for node, each in cached.items():
            down, across = found.spans[node]
            writes[node] = _Part.of(each, down.first, across.first, (down.length, across.length))
        return cls(found, cached, found.ends, found.rest(), reads, writes, weights)

    def logits(self, z: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Logits (n, classes) of ``z`` (n, c, h, w), which differs from the cached images at most in the windows at
        ``top`` and ``left`` (n,). The cache holds ``z`` until `commit` decides per image which one to keep."""
        side = self.affected.side
        top, left = (t.clamp_max(size - side) for t, size in zip((top, left), z.shape[2:]))
        self.pending.clear()
        patches: dict[fx.Node, Tensor] = {}
        along, each = torch.arange(side), torch.arange(len(z))[:, None, None]
        down, across = top[:, None, None] + along[:, None], left[:, None, None] + along
        for node in self.affected.spans:
            if node.op == "placeholder":
                patch = z[each, :, down, across].permute(0, 3, 1, 2)
            else:
                patch = self._patch(node, patches, top, left)
            patches[node] = patch
            if node in self.cached:
                self._write(node, patch, top, left)
        logits: Tensor = self.rest(*(self.cached[node].copy() for node in self.ends))
        return logits

    def _patch(self, node: fx.Node, patches: dict[fx.Node, Tensor], top: Tensor, left: Tensor) -> Tensor:
        """The part of a layer that the windows affect."""
        graph = self.affected.graph
        given: list[Any] = []
        for arg in node.args:
            if not isinstance(arg, fx.Node):
                given.append(arg)
            elif arg.op == "get_attr":
                given.append(constant(graph, arg))
            elif (node, arg) in self.reads:
                given.append(self.reads[node, arg].cut(self.cached[arg], top, left))
            else:
                given.append(patches[arg])
        slide = layer(graph, node)
        if isinstance(slide, nn.Conv2d):
            # The zero padding is part of the cached layer.
            return F.conv2d(given[0], self.weights[node], slide.bias, slide.stride, 0, slide.dilation, slide.groups)
        return apply(graph, node, given)

    def _write(self, node: fx.Node, patch: Tensor, top: Tensor, left: Tensor) -> None:
        rows, flat = self.writes[node].rows(top, left), self.cached[node].flat
        after = patch.permute(0, 2, 3, 1).reshape(len(rows), -1)
        self.pending.append((self.cached[node], rows, flat.index_select(0, rows), after))
        flat.index_copy_(0, rows, after)

    def commit(self, accepted: Tensor) -> None:
        """Keep the images of the last query where ``accepted`` (n,), otherwise the previous ones."""
        for cached, rows, before, after in self.pending:
            chosen = torch.where(accepted[:, None], after.view(len(accepted), -1), before.view(len(accepted), -1))
            cached.flat.index_copy_(0, rows, chosen.view_as(after))
        self.pending.clear()

    def take(self, rows: Tensor) -> None:
        """Keep the cached images ``rows`` only."""
        for cached in self.cached.values():
            cached.values = cached.values[rows]


class Scores:
    """The logits of a search by windows, computed from cached layers of its best points where that is cheaper.

    On the CPU only, for networks that `graph_of` supports and windows that affect small parts: parts of layers do not
    fill a GPU. The logits equal the network's up to rounding; this is verified at the first query of each window side.
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        known = x.device.type == "cpu" and x.dim() == 4
        self.graph = graph_of(oracle.model) if known else None
        self.side = max(x.shape[2:]) if known else 0
        self.windowed: Windowed | None = None

    @torch.no_grad()
    def logits(self, oracle: Oracle, z: Tensor, y: Tensor, best: Tensor, window: Window | None) -> Tensor:
        """Logits (n, classes) of ``z`` (n, c, h, w), which differs from ``best`` in the window."""
        if self.graph is None or window is None:
            return oracle.logits(z, y)
        side = int(window.side.max())
        if side != self.side:
            return self._begin(oracle, z, y, best, window, side)
        if self.windowed is None:
            return oracle.logits(z, y)
        oracle.forwards += oracle.seen
        logits = self.windowed.logits(z, window.top, window.left)
        if oracle.undefined is not None:
            oracle.undefined.note(logits, LOGITS)
        return logits

    def _begin(self, oracle: Oracle, z: Tensor, y: Tensor, best: Tensor, window: Window, side: int) -> Tensor:
        """Logits of ``z`` by the network itself; prepares the cache for windows of this side if it is usable."""
        logits, self.side, self.windowed = oracle.logits(z, y), side, None
        assert self.graph is not None
        try:
            self.windowed = Windowed.of(self.graph, best, side)
            if self.windowed is not None:
                found = self.windowed.logits(z, window.top, window.left)
                # Parts of layers are summed in another order; any other difference is larger.
                near = torch.finfo(logits.dtype).eps ** 0.5 * magnitude(logits).amax()
                # Logits with a large number in common: an improvement would be hidden by the doubt.
                hidden = (8 * self.doubt(logits) > oracle.margin(logits, y).abs()).sum() > len(z) // 2
                if bool(hidden) or not bool((found - logits).abs().amax() <= near):
                    self.graph = self.windowed = None
        except Exception:  # a layer that deviates from its documented behaviour
            self.graph = self.windowed = None
        return logits

    def doubt(self, logits: Tensor) -> Tensor | float:
        """An upper bound of the rounding difference between the last ``logits`` and the network's own, (n,) or 0.

        A query without effect has identical logits from the network, but slightly different ones from cached layers:
        differences below 16 units in the last place of their `magnitude` do not count as an improvement.
        """
        if self.windowed is None:
            return 0.0
        return 16 * torch.finfo(logits.dtype).eps * magnitude(logits).nan_to_num(0.0, 0.0)

    def commit(self, accepted: Tensor) -> None:
        """Make the points of the last query the best ones where ``accepted`` (n,)."""
        if self.windowed is not None:
            self.windowed.commit(accepted)

    def take(self, rows: Tensor) -> None:
        """Keep the images ``rows`` only."""
        if self.windowed is not None:
            self.windowed.take(rows)
