"""Slopes of the lower lines of ReLUs by gradient ascent on the bound (alpha-CROWN: Xu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from atent.certify.graph import Graph
from atent.certify.interval import Box
from atent.certify.linear import Coefficients, Form, Relaxation, back, least
from atent.certify.region import Region

STEPS = 20
"""Steps of ascent."""
STEP_SIZE, DECAY = 0.5, 0.98
"""Of Adam: the first step size, and its factor after each step."""

Slopes = dict[int, Tensor]
"""By the position of a ReLU: a slope in [0, 1] for each function and each value, (n, s, ...)."""


def with_slopes(relaxations: Mapping[int, Relaxation], slopes: Slopes) -> dict[int, Relaxation]:
    """The relaxations with other lower lines, which are sound for every slope in [0, 1]."""
    return {k: (slopes[k], *lines[1:]) if k in slopes else lines for k, lines in relaxations.items()}


def ascended(
    graph: Graph,
    start: Form,
    boxes: Sequence[Box],
    relaxations: Mapping[int, Relaxation],
    place: Region,
    steps: int,
    dtype: torch.dtype,
) -> Slopes:
    """The slopes with the largest minimum over the region for each of the functions ``start``, of all steps.

    Projected Adam from the slopes in ``relaxations``, in ``dtype`` and without bounds of the rounding: it only proposes
    slopes, and all are sound. Boxes and upper lines do not change. The slopes have no graph.
    """
    light = [Box(b.lower.detach().to(dtype), b.upper.detach().to(dtype)) for b in boxes]
    centre, lower, upper = (t.to(dtype) for t in (place.centre, place.lower, place.upper))
    region = replace(place, centre=centre, lower=lower, upper=upper, arithmetic=None)
    lines = {k: tuple(_cast(t, dtype) for t in each) for k, each in relaxations.items()}
    pending: dict[int, Coefficients] = {
        k: a.detach().to(dtype) for k, a in start.pending.items() if isinstance(a, Tensor)
    }
    begin = Form(pending, start.constant.detach().to(dtype))
    slopes, undecided = {}, {}
    for k, (below, *_) in lines.items():
        if graph.nodes[k].kind == "relu":
            box = light[graph.nodes[k].inputs[0]]
            undecided[k] = ((box.lower < 0) & (box.upper > 0))[:, None]
            shape = (len(below), begin.constant.shape[1], *below.shape[1:])
            slopes[k] = below[:, None].expand(shape).clone().requires_grad_()
    best, kept = torch.tensor(-torch.inf, dtype=dtype, device=centre.device), {k: t.detach() for k, t in slopes.items()}
    if not slopes:
        return kept
    adam = torch.optim.Adam(slopes.values(), STEP_SIZE, maximize=True)
    for step in range(steps + 1):
        with torch.enable_grad():
            value = least(back(graph, begin, light, with_slopes(lines, slopes)), light, region)
            total = value.sum()
        if not total.requires_grad:
            return kept  # all of these ReLUs are in parts of the network that the functions do not use
        better = value.detach() > best
        best = torch.where(better, value.detach(), best)
        kept = {k: torch.where(_as(better, t), t.detach(), kept[k]) for k, t in slopes.items()}
        if step == steps:
            break
        # The gradient of an infinite bound is NaN or infinite: replaced by 0.
        gradients = torch.autograd.grad(total, list(slopes.values()), allow_unused=True)
        for (k, slope), gradient in zip(slopes.items(), gradients):
            slope.grad = None if gradient is None else torch.where(undecided[k], gradient, 0).nan_to_num(0, 0, 0)
        adam.step()
        adam.param_groups[0]["lr"] *= DECAY
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return kept


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Lines in another dtype; the indices of max-pooling remain integers."""
    return t.detach().to(dtype) if t.is_floating_point() else t


def _as(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.dim() - 2))
