"""Exact projection onto a hyperplane inside the box, for an entire batch."""

from __future__ import annotations

import torch
from torch import Tensor

from atent.threat import Threat


def to_hyperplane(threat: Threat, x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """Per sample the smallest d with <w, d> = gap and x + d in the box; shapes (n, ...), (n, ...) and (n,).

    Smallest in the threat's norm; its eps is ignored. If the box does not reach the hyperplane, x + d is the point of
    the box that is nearest to it in <w, d>; coordinates without weight do not change. ``x`` is in the box.

    As in FAB (Croce and Hein 2020), every coordinate moves in the direction that reduces the gap until it meets the
    box, by |d_i| = min(mu v_i, room_i) with v = 1 (linf) or |w| (l2), and <w, d> is piecewise linear in mu with
    breakpoints where a coordinate meets the box. Sorted breakpoints and two cumulative sums give the piece on which the
    gap closes. In l1 a unit of length gains most where |w| is largest: coordinates are filled in that order.
    """
    flat, weight = x.flatten(1), w.flatten(1)
    # Scaling (w, gap) does not change the hyperplane: the largest weight becomes 1, so that no square underflows.
    largest = weight.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    weight, gap = weight / scale, gap[:, None] / scale
    sign = torch.where(gap < 0, -weight, weight).sign()
    size, gap = weight.abs(), gap.abs()
    low, high = threat.edges(x)
    room = torch.where(sign > 0, (high - x).flatten(1), (x - low).flatten(1))
    if threat.norm == "l1":
        return (sign * _filled(size, room, gap)).view_as(x)
    rate = torch.ones_like(size) if threat.norm == "linf" else size
    # A coordinate without weight contributes to no piece; its breakpoint may be 0.
    ends, order = torch.where(size > 0, room / rate, torch.zeros_like(room)).sort(1)
    gain, full = (size * rate).gather(1, order), (size * room).gather(1, order)
    rising = gain.flip(1).cumsum(1).flip(1)
    met = full.cumsum(1) - full
    piece = torch.searchsorted(met + ends * rising, gap).clamp_max(flat.shape[1] - 1)
    left, slope = gap - met.gather(1, piece), rising.gather(1, piece)
    mu = torch.where(slope > 0, left / slope, torch.zeros_like(left)).clamp_min(0.0)
    return (sign * torch.minimum(mu * rate, room)).view_as(x)


def _filled(size: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Lengths (n, d) up to ``room`` with the smallest sum such that <size, lengths> = ``gap`` (n, 1), or all of it."""
    order = size.argsort(dim=1, descending=True, stable=True)
    size, room = size.gather(1, order), torch.where(size > 0, room, 0).gather(1, order)
    full = size * room
    left = gap - (full.cumsum(1) - full)
    part = torch.where(size > 0, left / size, 0).clamp_min(0)
    return torch.zeros_like(room).scatter(1, order, torch.minimum(part, room))
