"""Logits of images that differ in one window from images whose layers are kept: what it reaches is computed anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from atent.attacks.oracle import Oracle
from atent.attacks.reach import SLIDING, Reach, apply, constant, graph_of, layer, reach, sliding

# Numbers that are kept at most: 256 MiB in float32.
_MOST = 2**26


class Window(NamedTuple):
    """A square of pixels for each of n images."""

    top: Tensor
    left: Tensor
    side: Tensor
    """All int64 (n,)."""


@dataclass
class _Kept:
    """A layer of all images, (n, h, w, c) with a border of ``pad`` zeros."""

    values: Tensor
    pad: int

    @classmethod
    def of(cls, values: Tensor, pad: int) -> _Kept:
        """For ``values`` (n, c, h, w)."""
        return cls(F.pad(values.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous(), pad)

    @property
    def flat(self) -> Tensor:
        return self.values.view(-1, self.values.shape[3])

    def whole(self) -> Tensor:
        """A copy (n, c, h, w), which the network may overwrite."""
        (h, w), p = self.values.shape[1:3], self.pad
        inside = self.values[:, p : h - p, p : w - p].permute(0, 3, 1, 2)
        return inside.clone(memory_format=torch.channels_last)


@dataclass
class _Part:
    """A rectangle of a kept layer for each place of the window, as rows of `_Kept.flat`."""

    down: Tensor
    across: Tensor
    pattern: Tensor
    stride: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, kept: _Kept, down: Tensor, across: Tensor, shape: tuple[int, int]) -> _Part:
        """``down`` and ``across``: where it begins for each place of the window, the border not counted."""
        _, h, w, _ = kept.values.shape
        pattern = torch.arange(shape[0])[:, None] * w + torch.arange(shape[1])
        return cls((down + kept.pad) * w, across + kept.pad, pattern.flatten(), h * w, shape)

    def rows(self, top: Tensor, left: Tensor) -> Tensor:
        base = torch.arange(len(top)) * self.stride + self.down[top] + self.across[left]
        return (base[:, None] + self.pattern).flatten()

    def cut(self, kept: _Kept, top: Tensor, left: Tensor) -> Tensor:
        """A copy (n, c, ...)."""
        found = kept.flat.index_select(0, self.rows(top, left))
        return found.view(len(top), *self.shape, -1).permute(0, 3, 1, 2)


@dataclass
class Windowed:
    """The logits of images that differ from the kept ones in one window each; the network's own to rounding."""

    reach: Reach
    kept: dict[fx.Node, _Kept]
    ends: list[fx.Node]
    rest: fx.GraphModule
    """From the layers ``ends`` to the logits."""
    reads: dict[tuple[fx.Node, fx.Node], _Part]
    """What a layer reads of another that is kept."""
    writes: dict[fx.Node, _Part]
    """The part of a kept layer that is reached."""
    weights: dict[fx.Node, Tensor]
    pending: list[tuple[_Kept, Tensor, Tensor, Tensor]] = field(default_factory=list)
    """What the last query changed: a layer, rows of it, and their former and new values."""

    @classmethod
    def of(cls, graph: fx.GraphModule, x: Tensor, side: int) -> Windowed | None:
        """For images ``x`` (n, c, h, w) and windows of ``side``; None where they reach all, or too much is to keep."""
        found = reach(graph, x, side)
        if found is None:
            return None
        borders, sizes = found.borders(), 0
        for node, pad in borders.items():
            _, c, h, w = found.shapes[node]
            sizes += c * (h + 2 * pad) * (w + 2 * pad)
        if sizes * len(x) > _MOST:
            return None
        kept = {node: _Kept.of(value, borders[node]) for node, value in found.values(x) if node in borders}
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
                reads[node, arg] = _Part.of(kept[arg], *begin, shape)
        writes = {}
        for node, each in kept.items():
            down, across = found.spans[node]
            writes[node] = _Part.of(each, down.first, across.first, (down.length, across.length))
        return cls(found, kept, found.ends, found.rest(), reads, writes, weights)

    def logits(self, z: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Logits (n, classes) of ``z`` (n, c, h, w), which may differ from the kept images in the windows at ``top``
        and ``left`` (n,) alone. They are kept until `settle` says which of them stay."""
        side = self.reach.side
        top, left = (t.clamp_max(size - side) for t, size in zip((top, left), z.shape[2:]))
        self.pending.clear()
        patches: dict[fx.Node, Tensor] = {}
        along, each = torch.arange(side), torch.arange(len(z))[:, None, None]
        down, across = top[:, None, None] + along[:, None], left[:, None, None] + along
        for node in self.reach.spans:
            if node.op == "placeholder":
                patch = z[each, :, down, across].permute(0, 3, 1, 2)
            else:
                patch = self._patch(node, patches, top, left)
            patches[node] = patch
            if node in self.kept:
                self._write(node, patch, top, left)
        answer: Tensor = self.rest(*(self.kept[node].whole() for node in self.ends))
        return answer

    def _patch(self, node: fx.Node, patches: dict[fx.Node, Tensor], top: Tensor, left: Tensor) -> Tensor:
        """The part of a layer that the windows reach."""
        graph = self.reach.graph
        given: list[Any] = []
        for arg in node.args:
            if not isinstance(arg, fx.Node):
                given.append(arg)
            elif arg.op == "get_attr":
                given.append(constant(graph, arg))
            elif (node, arg) in self.reads:
                given.append(self.reads[node, arg].cut(self.kept[arg], top, left))
            else:
                given.append(patches[arg])
        slide = layer(graph, node)
        if isinstance(slide, nn.Conv2d):
            # The border of zeros is part of what was read.
            return F.conv2d(given[0], self.weights[node], slide.bias, slide.stride, 0, slide.dilation, slide.groups)
        return apply(graph, node, given)

    def _write(self, node: fx.Node, patch: Tensor, top: Tensor, left: Tensor) -> None:
        rows, flat = self.writes[node].rows(top, left), self.kept[node].flat
        after = patch.permute(0, 2, 3, 1).reshape(len(rows), -1)
        self.pending.append((self.kept[node], rows, flat.index_select(0, rows), after))
        flat.index_copy_(0, rows, after)

    def settle(self, stay: Tensor) -> None:
        """Keep the images of the last query where ``stay`` (n,), else those before."""
        for kept, rows, before, after in self.pending:
            chosen = torch.where(stay[:, None], after.view(len(stay), -1), before.view(len(stay), -1))
            kept.flat.index_copy_(0, rows, chosen.view_as(after))
        self.pending.clear()

    def take(self, rows: Tensor) -> None:
        """Keep some of the images only."""
        for kept in self.kept.values():
            kept.values = kept.values[rows]


class Scores:
    """The logits that a search by windows asks for: from the kept layers of its best points where that is cheaper.

    On the CPU, for networks that `graph_of` knows and windows that reach little: a GPU is not kept busy by parts of
    layers. Logits are the network's own to rounding; the first ones of each side of a window are compared with them.
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        known = x.device.type == "cpu" and x.dim() == 4
        self.graph = graph_of(oracle.model) if known else None
        self.side = max(x.shape[2:]) if known else 0
        self.windowed: Windowed | None = None

    @torch.no_grad()
    def logits(self, oracle: Oracle, z: Tensor, y: Tensor, best: Tensor, window: Window | None) -> Tensor:
        """Logits (n, classes) of ``z`` (n, c, h, w), which differ from ``best`` in the window."""
        if self.graph is None or window is None:
            return oracle.logits(z, y)
        side = int(window.side.max())
        if side != self.side:
            return self._begin(oracle, z, y, best, window, side)
        if self.windowed is None:
            return oracle.logits(z, y)
        oracle.forwards += oracle.seen
        return self.windowed.logits(z, window.top, window.left)

    def _begin(self, oracle: Oracle, z: Tensor, y: Tensor, best: Tensor, window: Window, side: int) -> Tensor:
        """Logits of ``z`` by the network itself, and whether windows of this side are computed from now on."""
        logits, self.side, self.windowed = oracle.logits(z, y), side, None
        assert self.graph is not None
        try:
            self.windowed = Windowed.of(self.graph, best, side)
            if self.windowed is not None:
                found = self.windowed.logits(z, window.top, window.left)
                # Parts of layers are summed in another order; anything else is off by more.
                near = torch.finfo(logits.dtype).eps ** 0.5 * logits.abs().amax()
                if not bool((found - logits).abs().amax() <= near):
                    self.graph = self.windowed = None
        except Exception:  # a layer that is more than its name says
            self.graph = self.windowed = None
        return logits

    def doubt(self, logits: Tensor) -> Tensor | float:
        """By how much the last ``logits`` may differ from the network's own, (n,): 0 where they are.

        A query that changes nothing has the same logits from the network, and nearly the same from kept layers: what is
        less than 16 units in the last place of the largest logit is no gain.
        """
        if self.windowed is None:
            return 0.0
        return 16 * torch.finfo(logits.dtype).eps * logits.abs().amax(1).nan_to_num(0.0, 0.0)

    def settle(self, better: Tensor) -> None:
        """The points of the last query are the best ones where ``better`` (n,)."""
        if self.windowed is not None:
            self.windowed.settle(better)

    def take(self, rows: Tensor) -> None:
        """Go on with some of the images only."""
        if self.windowed is not None:
            self.windowed.take(rows)
