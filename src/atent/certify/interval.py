"""Interval arithmetic through a network, node by node (Gowal et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify import copies, smooth
from atent.certify.affine import Affine, check_image, plain
from atent.certify.graph import Node
from atent.certify.region import Region
from atent.certify.rounding import FLOOR, SAFE, UNIT, Arithmetic, gamma

INEXACT = 2


@dataclass(frozen=True)
class Box:
    """Bounds of every value of a node, for n samples."""

    lower: Tensor
    """(n, ...), the shape of the node's value."""
    upper: Tensor
    """The same shape."""
    mixes: int = INEXACT
    """Number of mixing layers between the input and the node, in a chain of affine layers: up to 1 the interval of an
    input box is exact. `INEXACT`: more than one, one after copies of an input, or a sum, a cat or an activation before
    the node."""
    value: Tensor | None = None
    """For l2 and ``mixes`` up to 1: the node's value at the centre."""
    gradient_norm: Tensor | None = None
    """With ``value``: the l2 norm of each value's gradient with respect to the input, shape (1, ...)."""
    drift: Tensor | None = None
    """With ``value``, where rounding is bounded: the largest error of the network's own value at the centre."""
    slack: Tensor | None = None
    """Where rounding is bounded and this node rounds: the error of a linear function <a, z> of the node's value z when
    the node's inputs are substituted for z, per unit of |a|; (n, ...)."""
    repeats: bool = False
    """Whether several values may be copies of one input, in a chain of affine layers."""

    def size(self) -> Tensor:
        """The largest absolute value of each entry, without a graph."""
        return torch.maximum(self.lower.detach().abs(), self.upper.detach().abs())


def start(region: Region) -> Box:
    """The box of the input."""
    if region.norm == "linf":
        return Box(region.lower, region.upper, 0)
    drift = None if region.arithmetic is None else torch.zeros_like(region.centre)
    return Box(region.lower, region.upper, 0, region.centre, torch.ones_like(region.centre[:1]), drift)


def step(node: Node, boxes: list[Box], region: Region) -> Box:
    """The box of a node's value from the boxes of its inputs."""
    first = boxes[0]
    if node.kind == "affine":
        return _affine(node.op, first, region)
    if node.kind == "sum":
        return _sum(node, first, boxes[1], region.arithmetic)
    if node.kind == "relu":
        # The products of a linear function's coefficients with the slopes of lines are rounded.
        slack = None if region.arithmetic is None else 2 * UNIT * first.size()
        return Box(first.lower.relu(), first.upper.relu(), slack=slack)
    if node.kind == "smooth":
        return _smooth(node.op, first, region.arithmetic)
    if node.kind == "cat":
        lower, upper = (copies.joined([getattr(b, side) for b in boxes], node.op) for side in ("lower", "upper"))
        return Box(lower, upper)
    return _max_pool(node, first, region.arithmetic)


def _smooth(f: smooth.Smooth, box: Box, arithmetic: Arithmetic | None) -> Box:
    lower, upper = smooth.interval(f, box.lower, box.upper)
    if arithmetic is None:
        return Box(lower, upper)
    size = torch.maximum(lower.detach().abs(), upper.detach().abs())
    size = size if f.bounded else torch.maximum(size, box.size())
    slack = arithmetic.slack(size, smooth.ULPS, smooth.ULPS)
    # The substitution multiplies by a line's slope, which is below 2.
    return Box(*_known(lower - slack, upper + slack), slack=slack + 8 * UNIT * (box.size() + size))


def _sum(node: Node, one: Box, other: Box, arithmetic: Arithmetic | None) -> Box:
    if one.lower.shape != other.lower.shape:
        shapes = tuple(one.lower.shape[1:]), tuple(other.lower.shape[1:])
        raise ValueError(f"sums of shapes {shapes[0]} and {shapes[1]}: bounds add equal shapes only")
    lower, upper = one.lower + other.lower, one.upper + other.upper
    if arithmetic is None:
        return Box(lower, upper)
    slack = arithmetic.slack(one.size() + other.size(), 1, 4)
    return Box(*_known(lower - slack, upper + slack), slack=slack)


def _max_pool(node: Node, box: Box, arithmetic: Arithmetic | None) -> Box:
    m = node.op
    check_image(box.lower.shape)
    lower, upper, *size = (
        F.max_pool2d(z, m.kernel_size, m.stride, m.padding, m.dilation)
        for z in (box.lower, box.upper, *(() if arithmetic is None else (box.size(),)))
    )
    if arithmetic is None:
        return Box(lower, upper)
    # Windows may overlap: then an entry's coefficient is a sum. Offsets of lines are at most twice a window's values.
    overlap = 2 * (m.kernel_size if isinstance(m.kernel_size, int) else max(m.kernel_size)) ** 2
    return Box(lower, upper, slack=SAFE * gamma(overlap + 2 * lower.shape[1:].numel() + 8) * size[0])


def _affine(op: Affine, box: Box, region: Region) -> Box:
    arithmetic = region.arithmetic
    forward, backward = op.roundings(box.lower.shape[1:])
    repeats = box.repeats or op.repeats
    if not forward:
        known = box.value, box.gradient_norm, box.drift
        value, gradient_norm, drift = (None if t is None else op.apply(t, plain) for t in known)
        sides = op.apply(box.lower, plain), op.apply(box.upper, plain)
        return Box(*sides, box.mixes, value, gradient_norm, drift, repeats=repeats)
    middle, half = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    if arithmetic is not None:
        half = torch.maximum(half, torch.maximum(box.upper - middle, middle - box.lower)) * (1 + 4 * UNIT)
    centre, radius = op.apply(middle, plain), op.apply(half, torch.abs)
    dims, dtype = centre.dim() - 1, centre.dtype
    offset, slack, back = op.offset(dims, dtype, plain), None, None
    if offset is not None:
        centre = centre + offset
    if arithmetic is not None:
        size = op.apply(box.size(), torch.abs)
        absolute = op.offset(dims, dtype, torch.abs)
        size = (size if absolute is None else size + absolute).detach()
        # Here the bound rounds the centre, the radius and their sum; in the backward pass, the coefficients, their
        # product with the offset and their products with a line's slope.
        slack = arithmetic.slack(size, forward, 2 * forward + 16)
        back = slack + SAFE * gamma(backward + centre.shape[1:].numel() + 4) * size
        radius = radius + slack
    lower, upper = _known(centre - radius, centre + radius)
    # The sum of two copies of one input is not that of two inputs.
    mixes = INEXACT if op.mixes and (box.mixes or box.repeats) else box.mixes + op.mixes
    if box.value is None or box.gradient_norm is None or mixes == INEXACT:
        return Box(lower, upper, mixes, slack=back, repeats=repeats)
    # In l2 a linear function changes by eps times its gradient's norm, often less than over the box around the ball.
    value, gradient_norm = op.apply(box.value, plain), op.apply(box.gradient_norm.square(), torch.square)
    if offset is not None:
        value = value + offset
    if slack is None or box.drift is None:
        # The root has no derivative at 0, where an output ignores its input.
        gradient_norm = torch.where(gradient_norm > 0, gradient_norm, 1).sqrt() * (gradient_norm > 0)
        ball, drift = region.eps * gradient_norm, None
    else:
        gradient_norm = (gradient_norm + FLOOR**2).sqrt() * (1 + gamma(forward + 8))
        drift = op.apply(box.drift, torch.abs).detach()
        drift = SAFE * drift + slack
        ball = (1 + 8 * UNIT) * region.eps * gradient_norm + drift
    sides = torch.maximum(lower, value - ball), torch.minimum(upper, value + ball)
    return Box(*sides, mixes, value, gradient_norm, drift, back, repeats)


def _known(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds, infinite where a sum overflowed to NaN."""
    inf = float("inf")
    return lower.nan_to_num(nan=-inf, posinf=inf, neginf=-inf), upper.nan_to_num(nan=inf, posinf=inf, neginf=-inf)
