"""Interval arithmetic through a network, node by node (Gowal et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify.affine import Affine, plain
from atent.certify.graph import Node
from atent.certify.region import Region

INEXACT = 2


@dataclass(frozen=True)
class Box:
    """Bounds of every value of a node, for n samples."""

    lower: Tensor
    """(n, ...), the shape of the node's value."""
    upper: Tensor
    """The same shape."""
    mixes: int = INEXACT
    """Mixing layers between the input and the node while all layers are affine and in one line: up to 1 the interval
    of an input box is exact. `INEXACT`: more than one, a sum or a ReLU."""
    value: Tensor | None = None
    """For l2 and ``mixes`` up to 1: the node's value at the centre."""
    reach: Tensor | None = None
    """With ``value``: the l2 norm of each value's gradient in the input, shape (1, ...)."""


def rounding(dtype: torch.dtype) -> float:
    """Relative widening of each layer: 8 units in the last place, against the rounding of its sums.

    An estimate for sums as matrix kernels do them (in blocks, their errors of random sign), not a worst case. Float64
    makes it 2e-15.
    """
    return 4 * torch.finfo(dtype).eps


def start(region: Region) -> Box:
    """The box of the input."""
    if region.norm == "linf":
        return Box(region.lower, region.upper, 0)
    return Box(region.lower, region.upper, 0, region.centre, torch.ones_like(region.centre[:1]))


def step(node: Node, boxes: list[Box], eps: float) -> Box:
    """The box of a node's value from the boxes of its inputs."""
    first = boxes[0]
    if node.kind == "affine":
        return _affine(node.op, first, eps)
    if node.kind == "sum":
        if first.lower.shape != boxes[1].lower.shape:
            shapes = tuple(first.lower.shape[1:]), tuple(boxes[1].lower.shape[1:])
            raise ValueError(f"{node.name} of shapes {shapes[0]} and {shapes[1]}: bounds add equal shapes only")
        return Box(first.lower + boxes[1].lower, first.upper + boxes[1].upper)
    if node.kind == "relu":
        return Box(first.lower.relu(), first.upper.relu())
    return Box(_max_pool(node, first.lower), _max_pool(node, first.upper))


def _max_pool(node: Node, z: Tensor) -> Tensor:
    m = node.op
    return F.max_pool2d(z, m.kernel_size, m.stride, m.padding, m.dilation)


def _affine(op: Affine, box: Box, eps: float) -> Box:
    t = rounding(box.lower.dtype)
    middle, half = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    half = half + t * (middle.abs() + half).detach()
    centre, radius = op.apply(middle, plain), op.apply(half, torch.abs)
    offset = op.offset(centre.dim() - 1)
    if offset is not None:
        centre, radius = centre + offset, radius + t * offset.abs().detach()
    lower, upper = _known(centre - radius, centre + radius)
    mixes = min(box.mixes + op.mixes, INEXACT)
    if box.value is None or box.reach is None or mixes == INEXACT:
        return Box(lower, upper, mixes)
    # In l2 a linear function moves by eps times its gradient's norm, often less than over the box around the ball.
    value = op.apply(box.value, plain)
    reach = op.apply(box.reach.square(), torch.square)
    # The root has no derivative at 0, where an output ignores its input.
    reach = torch.where(reach > 0, reach, 1).sqrt() * (reach > 0)
    size = t * op.apply(box.value.abs(), torch.abs).detach()
    if offset is not None:
        value, size = value + offset, size + t * offset.abs().detach()
    radius = eps * (1 + t) * reach + size
    return Box(torch.maximum(lower, value - radius), torch.minimum(upper, value + radius), mixes, value, reach)


def _known(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Where a sum overflowed nothing is known: NaN becomes an infinite bound."""
    inf = float("inf")
    return lower.nan_to_num(nan=-inf, posinf=inf, neginf=-inf), upper.nan_to_num(nan=inf, posinf=inf, neginf=-inf)
