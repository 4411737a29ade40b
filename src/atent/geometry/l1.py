"""Exact projection onto the intersection of the l1 ball and the box, for an entire batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def project(v: Tensor, room: Tensor | None, eps: Any) -> Tensor:
    """The nearest point to each ``v`` of the l1 ball around 0, intersected with a box.

    The minimiser of ||d - v||^2 subject to ||d||_1 <= eps and |d_i| <= room_i on the side of v_i is
    d_i = sign(v_i) clip(|v_i| - t, 0, room_i): t = 0 if that is in the ball, otherwise the t at which the lengths sum
    to eps. The sum is piecewise linear and decreasing in t with breakpoints at every |v_i| and |v_i| - room_i: the
    sorted breakpoints and a cumulative sum give the piece on which it equals eps. Clipping to the box before the
    projection onto the ball gives a different point. Without the box it is the projection of Duchi et al. 2008.

    Parameters
    ----------
    v
        (n, d), float64.
    room
        (n, d): the largest move of each coordinate in the direction of v, at least 0. None: no box.
    eps
        A number, or float64 (n, 1).

    Returns
    -------
    Tensor
        (n, d), float64.

    References
    ----------
    Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML, arXiv
    2103.01208.

    Duchi, Shalev-Shwartz, Singer and Chandra 2008, "Efficient projections onto the l1-ball for learning in high
    dimensions", ICML.
    """
    size = v.abs()
    clipped = size if room is None else torch.minimum(size, room)
    # Relative to the largest entry: of numbers much larger than eps only the differences matter, which remain exact.
    top = size.amax(1, keepdim=True)
    entry, limit = size - top, torch.zeros_like(top) + eps
    some, rooms = entry, room
    if v.device.type == "cpu":
        # Usually few coordinates are nonzero; on other devices their number would need a synchronisation.
        many = max(1, int((size > 0).sum(1).amax())) if len(v) else 1
        if 2 * many <= v.shape[1]:
            at = size.topk(many, dim=1, sorted=False).indices
            some, rooms = entry.gather(1, at), None if room is None else room.gather(1, at)
    t = _threshold(some, rooms, top, limit)
    shortened = torch.minimum((entry - t).clamp_min(0), clipped)
    fits = clipped.sum(1, keepdim=True) <= limit
    return v.sign() * torch.where(fits, clipped, shortened)


def _threshold(entry: Tensor, room: Tensor | None, top: Tensor, limit: Tensor) -> Tensor:
    """t - top (n, 1) at which the lengths sum to ``limit``, from |v| - top (n, m); meaningless where all of v fits."""
    ends, weights = entry, torch.ones_like(entry)
    if room is not None:
        # Breakpoints below t = 0 are irrelevant.
        ends = torch.cat([entry, torch.maximum(entry - room, -top)], 1)
        weights = torch.cat([weights, -weights], 1)
    ends, order = ends.sort(dim=1, descending=True)
    moving = weights.gather(1, order).cumsum(1)
    # The sum of the lengths at each breakpoint, from the largest down; between two of them `moving` coordinates grow.
    met = (moving[:, :-1] * (ends[:, :-1] - ends[:, 1:])).cumsum(1)
    met = torch.cat([torch.zeros_like(top), met], 1)
    piece = (torch.searchsorted(met, limit) - 1).clamp_min(0)
    left = limit - met.gather(1, piece)
    return ends.gather(1, piece) - left / moving.gather(1, piece).clamp_min(1)


def ascent(grad: Tensor) -> Tensor:
    """Steepest ascent of l1 norm 1: the sign of the largest coordinate of each gradient (n, ...), the first of ties."""
    flat = grad.flatten(1)
    at = flat.abs().argmax(1, keepdim=True)
    made: Tensor = torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()).view_as(grad)
    return made


def filled(value: Tensor, room: Tensor, total: Tensor) -> Tensor:
    """The lengths (n, d) between 0 and ``room`` that sum to ``total`` (n, 1) and maximise <value, lengths>.

    ``room`` itself if its sum is smaller. Coordinates are filled in order of decreasing ``value``, the gain per unit.
    """
    order = value.argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    before = room.cumsum(1) - room
    return torch.zeros_like(room).scatter(1, order, torch.minimum((total - before).clamp_min(0), room))
