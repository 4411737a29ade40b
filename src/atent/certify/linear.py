"""Linear lower bounds carried backwards through a network (CROWN: Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atent.certify import copies, smooth
from atent.certify.affine import Affine, everywhere, plain, vectors
from atent.certify.graph import Graph, Node
from atent.certify.interval import Box
from atent.certify.operators import CURVED
from atent.certify.region import Region
from atent.certify.rounding import FLOOR, SAFE, UNIT, gamma
from atent.certify.window import Window

Relaxation = tuple[Tensor, ...]
"""Of a ReLU: slope below, slope above, offset above. Of max-pooling: index below, index above, slope above, offset
above. Of a smooth activation: slope, offset below, offset above. Each (n, ...); a slope below may be (n, s, ...), one
for each of s functions."""


Coefficients = Tensor | Window
"""Of the values of a node: of all of them (n, s, ...), or of those in a unit's receptive field."""


@dataclass(frozen=True)
class Form:
    """The function ``constant + sum over k of <pending[k], z_k>`` of the values z_k of some nodes.

    Shapes: pending[k] (n, s, *shape of z_k) for s functions of each of n samples, the others (n, s). n = 1: the same
    functions for every sample.
    """

    pending: dict[int, Coefficients]
    constant: Tensor
    error: Tensor | None = None
    """The largest increase of the function by rounding, without a graph; None where rounding is not bounded."""

    def plus(self, term: Tensor, error: Tensor | float = 0.0) -> Form:
        """The sum, with the error of ``term``."""
        constant = self.constant + term
        if self.error is None:
            return replace(self, constant=constant)
        return replace(self, constant=constant, error=self.error + error + UNIT * constant.detach().abs())

    def less(self, error: Tensor) -> Form:
        """The same function with more ``error``."""
        return self if self.error is None else replace(self, error=self.error + error)


def form(node: int, a: Coefficients, *, rounding: bool) -> Form:
    """The functions ``<a, z_node>``; ``a`` (n, s, ...)."""
    values = a.values if isinstance(a, Window) else a
    zero = values.new_zeros(values.shape[:2])
    return Form({node: a}, zero, zero if rounding else None)


def relax(node: Node, box: Box, *, adaptive: bool, rounding: bool) -> Relaxation:
    """Lines below and above a ReLU, max-pooling or a smooth activation whose input is in ``box``.

    A ReLU with l < 0 < u lies below u/(u-l) (z - l) and above s z. ``adaptive``: s is 1 where u > -l, else 0 (CROWN);
    otherwise s = u/(u-l), parallel to the line above: the dual bound of Wong and Kolter 2018. A window's maximum lies
    above its entry with the largest l, and below max(z_k, m) <= m + (u_k-m)/(u_k-l_k) (z_k - l_k) for the entry k with
    the largest u and m the second-largest: never above the constant max u of the literature, and z_k itself where
    l_k >= m. With ``rounding`` the lines are sound for the slopes as they are rounded: both ends of the box lie below
    the line above, which suffices for a convex function.
    """
    if node.kind == "maxpool":
        return _relax_max(node, box, rounding)
    if node.kind == "smooth":
        return smooth.lines(node.op, box.lower, box.upper, rounding=rounding)
    below, above = box.lower.clamp(max=0), box.upper.clamp(min=0)
    slope = _share(above, above - below, 0.0)
    flat = (above > -below).to(slope.dtype) if adaptive else slope
    lift = -slope * below
    if rounding:
        lift = torch.maximum(lift, (1 - slope) * above) * (1 + 4 * UNIT)
    return flat, slope, lift


def _share(part: Tensor, whole: Tensor, otherwise: float) -> Tensor:
    """part / whole; a constant where whole is 0."""
    positive = whole > 0
    return torch.where(positive, part / torch.where(positive, whole, 1), otherwise)


def _relax_max(node: Node, box: Box, rounding: bool) -> Relaxation:
    m = node.op
    arguments = (m.kernel_size, m.stride, m.padding, m.dilation)
    below = F.max_pool2d(box.lower, *arguments, return_indices=True)[1]
    upper, above = F.max_pool2d(box.upper, *arguments, return_indices=True)
    second = _second_largest(box.upper, m, upper)
    lower = box.lower.flatten(2).gather(2, above.flatten(2)).view_as(upper)
    second = torch.maximum(second, lower)
    slope = _share(upper - second, upper - lower, 1.0)
    lift = second - slope * lower
    if rounding:
        lift = torch.maximum(lift, upper - slope * upper)
        lift = lift + 4 * UNIT * (second.abs() + lower.abs() + 2 * upper.abs()).detach()
    return below, above, slope, lift


def _second_largest(z: Tensor, m: nn.MaxPool2d, like: Tensor) -> Tensor:
    kernel, padding = _pair(m.kernel_size), _pair(m.padding)
    if kernel[0] * kernel[1] == 1:
        return torch.full_like(like, -torch.inf)
    padded = F.pad(z, (padding[1], padding[1], padding[0], padding[0]), value=-torch.inf)
    windows: Tensor = F.unfold(padded, kernel, m.dilation, 0, m.stride).unflatten(1, (z.shape[1], -1))
    return windows.topk(2, dim=2).values[:, :, 1].reshape_as(like)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def back(
    graph: Graph,
    start: Form,
    boxes: Sequence[Box],
    relaxations: Mapping[int, Relaxation] | None = None,
    rows: Tensor | None = None,
) -> Form:
    """A lower bound of the functions ``start`` in terms of earlier nodes, by substitution.

    With ``relaxations`` (by position) down to the input; without, exactly, down to the nearest nonlinear nodes and the
    input. ``rows``: the samples of boxes and relaxations that the functions belong to.
    """
    lines = relaxations or {}
    todo, kept, bound = dict(start.pending), {}, replace(start, pending={})
    while todo:
        # Later nodes first: all nodes that use a node's value are done before it.
        place = max(todo)
        a, node = todo.pop(place), graph.nodes[place]
        if node.kind == "input" or (relaxations is None and node.kind in CURVED):
            kept[place] = a
            continue
        slack = boxes[place].slack
        if slack is not None:
            bound = bound.less(_weighed(a, slack, rows))
        shape = boxes[node.inputs[0]].lower.shape[1:]
        if node.kind == "affine":
            a, term = _back_affine(node.op, a, shape, boxes[place].lower.shape[1:])
            bound = bound if term is None else bound.plus(term)
        elif node.kind == "relu":
            a, term = _back_relu(a, lines[place], rows)
            # All terms have one sign: there is no cancellation.
            bound = bound.plus(term, gamma(shape.numel() + 4) * term.detach().abs())
        elif node.kind == "maxpool":
            a, term = _back_max(node.op, a, tuple(_of(a, t, rows) for t in lines[place]), shape)
            bound = bound.plus(term)
        elif node.kind == "smooth":
            a, term, size = _back_smooth(a, lines[place], rows)
            bound = bound.plus(term, gamma(2 * shape.numel() + 4) * size)
        for source, share in zip(node.inputs, _shares(node, a, [boxes[k].lower.shape[1:] for k in node.inputs])):
            if source not in todo:
                todo[source] = share
                continue
            todo[source] = _added(todo[source], share, boxes[source].lower.shape[1:])
            if bound.error is not None:
                bound = bound.less(UNIT * _weighed(todo[source], boxes[source].size(), rows))
    return replace(bound, pending=kept)


def widest(graph: Graph, start: int, boxes: Sequence[Box]) -> int:
    """The largest number of coefficients of one function of one unit of the node ``start`` in `back`."""
    shape = boxes[start].lower.shape[1:]
    views: dict[int, _View | None] = {start: ((1, 1), (1, 1)) if len(shape) == 3 else None}
    most = shape.numel() if len(shape) != 3 else shape[0]
    while max(views):
        place = max(views)
        node, view = graph.nodes[place], views.pop(place)
        for source in node.inputs:
            shape, there = boxes[source].lower.shape[1:], _before(node, view)
            if there is not None and 2 * there[0][0] * there[0][1] >= shape[1] * shape[2]:
                there = None
            views[source] = _common(views[source], there) if source in views else there
            there = views[source]
            most = max(most, shape.numel() if there is None else shape[0] * there[0][0] * there[0][1])
    return most


_View = tuple[tuple[int, int], tuple[int, int]]
"""Height and width of a unit's window, and by how much it moves from one unit to the next; None: the entire image."""


def _before(node: Node, view: _View | None) -> _View | None:
    """The window before the node for the one after it."""
    if view is None or node.kind == "cat" or (node.kind == "affine" and node.op.windows is None):
        return None
    if node.kind == "affine":
        (high, wide), stride = node.op.windows.kernel, node.op.windows.stride
    elif node.kind == "maxpool":
        (high, wide), stride = _extent(node.op), _pair(node.op.stride)
    else:
        return view
    (height, width), (down, right) = view
    size = stride[0] * (height - 1) + high, stride[1] * (width - 1) + wide
    return size, (stride[0] * down, stride[1] * right)


def _common(one: _View | None, other: _View | None) -> _View | None:
    """The window of the sum of the coefficients of two branches."""
    if one is None or other is None or one[1] != other[1]:
        return None
    (size, stride), (more, _) = one, other
    return (max(size[0], more[0]), max(size[1], more[1])), stride


def _extent(m: nn.MaxPool2d) -> tuple[int, int]:
    (high, wide), (d, e) = _pair(m.kernel_size), _pair(m.dilation)
    return d * (high - 1) + 1, e * (wide - 1) + 1


def _back_affine(
    op: Affine, a: Coefficients, shape: torch.Size, after: torch.Size
) -> tuple[Coefficients, Tensor | None]:
    """The coefficients of the layer's input, and the term of its offset; ``shape``, ``after``: of its input and output
    for one sample."""
    values = a.values if isinstance(a, Window) else a
    offset, term = op.offset(values.dim() - 2, values.dtype, plain), None
    if offset is not None and isinstance(a, Window) and not everywhere(offset):
        term = _dot(values, a.of(offset.expand(1, *after)))
    elif offset is not None:
        term = _sum(values.sum_to_size(*values.shape[:2], *_full(offset, values.dim() - 2)) * offset)
    if not isinstance(a, Window):
        return op.transpose(a, shape), term
    moved = op.windows.transpose(values) if op.windows is not None else None
    if moved is None or op.windows is None:
        return op.transpose(a.dense(after), shape), term
    there = a.moved(moved, op.windows.stride, op.windows.padding, shape[1:])
    return there.dense(shape) if there.wide(shape[1:]) else there, term


def _back_relu(a: Coefficients, lines: Relaxation, rows: Tensor | None) -> tuple[Coefficients, Tensor]:
    """The coefficients of a ReLU's input, and the term of the offsets of its lines."""
    flat, slope, lift = (_of(a, t, rows) for t in lines)
    values = a.values if isinstance(a, Window) else a
    term = _dot(values.clamp(max=0), lift)
    # Each function may have its own slopes.
    below = flat if flat.dim() == values.dim() else flat[:, None]
    values = values * torch.where(values > 0, below, slope[:, None])
    return replace(a, values=values) if isinstance(a, Window) else values, term


def _back_smooth(a: Coefficients, lines: Relaxation, rows: Tensor | None) -> tuple[Coefficients, Tensor, Tensor]:
    """The coefficients of a smooth activation's input, the term of its lines' offsets, and the term's absolute sum."""
    slope, below, above = (_of(a, t, rows) for t in lines)
    values = a.values if isinstance(a, Window) else a
    # Where the input is unbounded the offsets are infinite: a coefficient of 0 ignores them.
    positive, negative = values.clamp(min=0), values.clamp(max=0)
    term = _dot(positive, below) + _dot(negative, above)
    size = _dot(positive.detach(), below.detach().abs()) + _dot(-negative.detach(), above.detach().abs())
    values = values * slope[:, None]
    return replace(a, values=values) if isinstance(a, Window) else values, term, size


def _shares(node: Node, a: Coefficients, shapes: Sequence[torch.Size]) -> list[Coefficients]:
    """The coefficients of each input of a node, once its own function is substituted."""
    if node.kind != "cat":
        return [a] * len(shapes)
    dense = a
    if isinstance(a, Window):
        whole = copies.joined([a.values.new_empty(1, *shape) for shape in shapes], node.op).shape[1:]
        dense = a.dense(whole)
    assert isinstance(dense, Tensor)
    return list(copies.parted(dense, node.op, shapes))


def _of(a: Coefficients, t: Tensor, rows: Tensor | None) -> Tensor:
    """The entries of ``t`` (samples, ...) that the coefficients multiply; ``rows``: the samples of dense ones."""
    if isinstance(a, Window):
        return a.of(t)
    return t if rows is None else t[rows]


def _added(a: Coefficients, b: Coefficients, shape: torch.Size) -> Coefficients:
    if isinstance(a, Window) and isinstance(b, Window) and a.stride == b.stride:
        return a.plus(b)
    # Windows that move at different strides have no common window that is the same at every position.
    one, two = (each.dense(shape) if isinstance(each, Window) else each for each in (a, b))
    return one + two


def _back_max(
    m: nn.MaxPool2d, a: Coefficients, relaxation: Relaxation, shape: torch.Size
) -> tuple[Coefficients, Tensor]:
    """The coefficients of the input of max-pooling, and the term of the offsets of its lines."""
    below, above, slope, lift = relaxation
    values = a.values if isinstance(a, Window) else a.expand(len(below), *a.shape[1:])
    positive, negative = values.clamp(min=0), values.clamp(max=0)
    parts, term = ((positive, below), (negative * slope[:, None], above)), _dot(negative, lift)
    if isinstance(a, Window):
        there = a.scattered(parts, _extent(m), _pair(m.stride), _pair(m.padding), shape[1:])
        return there.dense(shape) if there.wide(shape[1:]) else there, term
    out = values.new_zeros(*values.shape[:3], shape[1] * shape[2])
    for part, place in parts:
        out = out.scatter_add(3, place.flatten(2)[:, None].expand_as(part.flatten(3)), part.flatten(3))
    return out.unflatten(3, shape[1:]), term


def least(bound: Form, boxes: Sequence[Box], region: Region, rows: Tensor | None = None) -> Tensor:
    """The minimum (n, s) of each function over the region and the boxes of its pending nodes, less the rounding error.

    ``rows``: the samples that the functions belong to.
    """
    for place, a in bound.pending.items():
        if place == 0:
            there = a.region(region) if isinstance(a, Window) else region if rows is None else region.take(rows)
            values = a.values if isinstance(a, Window) else a
            term = there.minimum(values)
            bound = bound.plus(term, 0.0 if bound.error is None else there.rounding(values))
            continue
        box, values = boxes[place], a.values if isinstance(a, Window) else a
        term = _dot(values.clamp(min=0), _of(a, box.lower, rows)) + _dot(values.clamp(max=0), _of(a, box.upper, rows))
        error = 0.0 if bound.error is None else gamma(values.shape[2:].numel() + 4) * _weighed(a, box.size(), rows)
        bound = bound.plus(term, error)
    value = bound.constant
    if bound.error is not None:
        value = value - (SAFE * bound.error + 2 * UNIT * value.detach().abs() + FLOOR)
    # After an overflow, NaN or infinite, the bound is minus infinity.
    return value.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


@torch.no_grad()
def _weighed(a: Coefficients, v: Tensor, rows: Tensor | None = None) -> Tensor:
    """<|a|, v>, as `_dot`; ``rows``: the samples of ``v`` that dense coefficients belong to."""
    values = a.values if isinstance(a, Window) else a
    return _dot(values.abs(), _of(a, v, rows))


def _dot(a: Tensor, v: Tensor) -> Tensor:
    """<a, v> for a (n or 1, s, ...) and v (n, ...): (n, s)."""
    if len(a) == 1:
        return vectors(v) @ vectors(a[0]).T
    return (vectors(a, 2) @ vectors(v)[..., None]).squeeze(-1)


def _sum(a: Tensor) -> Tensor:
    return vectors(a, 2).sum(2)


def _full(offset: Tensor, dims: int) -> tuple[int, ...]:
    return (1,) * (dims - offset.dim()) + tuple(offset.shape)
