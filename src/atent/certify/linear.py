"""Linear lower bounds carried backwards through a network (CROWN: Zhang et al. 2018, Theorem 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify.graph import CURVED, Graph, Node
from atent.certify.interval import Box, rounding
from atent.certify.region import Region

Relaxation = tuple[Tensor, ...]
"""Of a ReLU: slope below, slope above, offset above. Of max-pooling: place below, place above, slope above, offset
above. Each (n, ...)."""


@dataclass(frozen=True)
class Form:
    """The function ``constant + sum over k of <pending[k], z_k>`` of the values z_k of some nodes.

    Shapes: pending[k] (n, s, *shape of z_k) for s functions of each of n samples, the others (n, s). n = 1: the same
    functions for every sample.
    """

    pending: dict[int, Tensor]
    constant: Tensor
    size: Tensor
    """Sum of the absolute terms of ``constant``, without a graph: what its rounding is measured against."""

    def plus(self, term: Tensor) -> Form:
        return replace(self, constant=self.constant + term, size=self.size + term.detach().abs())


def form(node: int, a: Tensor) -> Form:
    """The functions ``<a, z_node>``; ``a`` (n, s, ...)."""
    zero = a.new_zeros(a.shape[:2])
    return Form({node: a}, zero, zero)


def relax(node: Node, box: Box, *, adaptive: bool) -> Relaxation:
    """Lines that hold a ReLU, or max-pooling, between them where its input is in ``box``.

    A ReLU with l < 0 < u lies below u/(u-l) (z - l) and above s z. ``adaptive``: s is 1 where u > -l, else 0 (CROWN);
    otherwise s = u/(u-l), parallel to the line above: the dual bound of Wong and Kolter 2018. A window's maximum lies
    above its entry with the largest l, and below max(z_k, m) <= m + (u_k-m)/(u_k-l_k) (z_k - l_k) for the entry k with
    the largest u and m the second-largest: never above the constant max u of the literature, and z_k itself where
    l_k >= m.
    """
    if node.kind == "maxpool":
        return _relax_max(node, box)
    below, above = box.lower.clamp(max=0), box.upper.clamp(min=0)
    slope = _share(above, above - below, 0.0)
    flat = (above > -below).to(slope.dtype) if adaptive else slope
    return flat, slope, -slope * below


def _share(part: Tensor, whole: Tensor, otherwise: float) -> Tensor:
    """part / whole; a constant where whole is 0."""
    positive = whole > 0
    return torch.where(positive, part / torch.where(positive, whole, 1), otherwise)


def _relax_max(node: Node, box: Box) -> Relaxation:
    m = node.op
    arguments = (m.kernel_size, m.stride, m.padding, m.dilation)
    below = F.max_pool2d(box.lower, *arguments, return_indices=True)[1]
    upper, above = F.max_pool2d(box.upper, *arguments, return_indices=True)
    second = _second_largest(box.upper, m, upper)
    lower = box.lower.flatten(2).gather(2, above.flatten(2)).view_as(upper)
    second = torch.maximum(second, lower)
    slope = _share(upper - second, upper - lower, 1.0)
    return below, above, slope, second - slope * lower


def _second_largest(z: Tensor, m, like: Tensor) -> Tensor:
    kernel, padding = _pair(m.kernel_size), _pair(m.padding)
    if kernel[0] * kernel[1] == 1:
        return torch.full_like(like, -torch.inf)
    padded = F.pad(z, (padding[1], padding[1], padding[0], padding[0]), value=-torch.inf)
    windows = F.unfold(padded, kernel, m.dilation, 0, m.stride).unflatten(1, (z.shape[1], -1))
    return windows.topk(2, dim=2).values[:, :, 1].reshape_as(like)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def back(graph: Graph, start: Form, boxes: list[Box], relaxation: Callable[[int], Relaxation] | None = None) -> Form:
    """A lower bound of the functions ``start`` in terms of earlier nodes, by substitution.

    With ``relaxation`` (of a node by position) down to the input alone; without, exactly, down to the nearest ReLUs,
    max-poolings and the input.
    """
    todo, kept, bound = dict(start.pending), {}, replace(start, pending={})
    while todo:
        # Later nodes first: when one is taken, all that read it have been.
        place = max(todo)
        a, node = todo.pop(place), graph.nodes[place]
        if node.kind == "input" or (relaxation is None and node.kind in CURVED):
            kept[place] = a
            continue
        shape = boxes[node.inputs[0]].lower.shape[1:]
        if node.kind == "affine":
            offset = node.op.offset(a.dim() - 2)
            if offset is not None:
                bound = bound.plus(_sum(a.sum_to_size(*a.shape[:2], *_full(offset, a.dim() - 2)) * offset))
            a = node.op.transpose(a, shape)
        elif node.kind == "relu":
            flat, slope, lift = relaxation(place)  # type: ignore[misc]
            bound = bound.plus(_dot(a.clamp(max=0), lift))
            a = a * torch.where(a > 0, flat[:, None], slope[:, None])
        elif node.kind == "maxpool":
            a, term = _back_max(a, relaxation(place), shape)  # type: ignore[misc]
            bound = bound.plus(term)
        for source in node.inputs:
            todo[source] = todo[source] + a if source in todo else a
    return replace(bound, pending=kept)


def _back_max(a: Tensor, relaxation: Relaxation, shape: torch.Size) -> tuple[Tensor, Tensor]:
    below, above, slope, lift = relaxation
    a = a.expand(len(below), *a.shape[1:])
    positive, negative = a.clamp(min=0), a.clamp(max=0)
    out = a.new_zeros(*a.shape[:3], shape[1] * shape[2])
    for part, place in ((positive, below), (negative * slope[:, None], above)):
        part = part.flatten(3)
        out = out.scatter_add(3, place.flatten(2)[:, None].expand_as(part), part)
    return out.unflatten(3, shape[1:]), _dot(negative, lift)


def least(graph: Graph, bound: Form, boxes: list[Box], region: Region) -> Tensor:
    """The minimum (n, s) of each function over the region, with its pending nodes anywhere in their boxes.

    Lowered by the rounding of a float sum, see `interval.rounding`, once for every affine layer.
    """
    value, size = bound.constant, bound.size
    for place, a in bound.pending.items():
        if place == 0:
            value, size = value + region.minimum(a), size + region.magnitude(a)
        else:
            box = boxes[place]
            value = value + _dot(a.clamp(min=0), box.lower) + _dot(a.clamp(max=0), box.upper)
            size = size + _dot(a.detach().abs(), torch.maximum(box.lower.abs(), box.upper.abs()).detach())
    layers = 1 + sum(node.kind == "affine" for node in graph.nodes)
    # An overflow on the way (NaN) tells nothing.
    return (value - layers * rounding(value.dtype) * size).nan_to_num(
        nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
    )


def _dot(a: Tensor, v: Tensor) -> Tensor:
    """<a, v> for a (n or 1, s, ...) and v (n, ...): (n, s)."""
    return (a.flatten(2) @ v.flatten(1)[..., None]).squeeze(-1)


def _sum(a: Tensor) -> Tensor:
    return a.flatten(2).sum(2)


def _full(offset: Tensor, dims: int) -> tuple[int, ...]:
    return (1,) * (dims - offset.dim()) + tuple(offset.shape)
