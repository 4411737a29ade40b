"""Starting points of attacks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from atent.checks import check_choice, check_number
from atent.messages import report_setting
from atent.rng import Streams
from atent.threat import COUNTS, Radii, Threat, per_sample, unit

Start = Literal["zero", "uniform", "corner", "sphere", "boundary", "cube"]

# The corner start is defined for linf only.
ALLOWED: dict[str, tuple[str, ...]] = {
    "linf": ("zero", "uniform", "corner", "boundary", "cube"),
    "l2": ("zero", "uniform", "sphere", "boundary", "cube"),
    "l1": ("zero", "uniform", "sphere", "boundary"),
    "l0": ("zero", "uniform"),
    "patch": ("zero", "uniform"),
}


# Starts at the radius, within the cube around the ball or outside: no path of that length is needed.
_ON_THE_BOUNDARY = ("corner", "sphere", "boundary", "cube")


def check_start(threat: Threat, kind: str) -> None:
    """ValueError for a start that is not defined in the threat's norm."""
    check_choice(f"start (for {threat.norm})", kind, ALLOWED[threat.norm])


def check_step(threat: Threat, step_size: float) -> None:
    """ValueError for a negative length, and for one of a signed step that crosses the box and, four times, the ball: it
    ends in a corner of the ball wherever it begins, usually because 2 was written for 2/255."""
    check_number("step_size", step_size, 0)
    eps = _largest(threat)
    if threat.norm == "linf" and step_size >= max(threat.width, 4 * eps) and not threat.allow_large_eps:
        levels = step_size * threat.width
        guess = f"did you mean {levels:g}/255?" if levels / 255 < threat.width else "give a smaller one"
        raise ValueError(
            f"linf step_size must be below the box width {threat.width:g}, got {step_size:g}: {guess}"
            " (--allow-large-eps to insist; in Python Threat(..., allow_large_eps=True))"
        )


def _largest(threat: Threat) -> float:
    """The radius, or the largest of those per sample."""
    return max(threat.eps, default=0.0) if isinstance(threat.eps, Radii) else float(threat.eps)


def report_path(threat: Threat, kind: str, steps: int, step_size: float) -> None:
    """Report, once, a path of ``steps`` that is shorter than the radius, from a start ``kind`` that is not there.

    Published steps are rounded, such as 0.031 for 8/255.
    """
    eps, path = _largest(threat), steps * step_size
    if threat.norm not in COUNTS and kind not in _ON_THE_BOUNDARY and path < 0.95 * eps < math.inf:
        # A share, which is the same while eps and the steps grow together.
        report_setting(
            f"{steps} step{'s' if steps > 1 else ''} of step_size reach {100 * path / eps:.3g} % of {threat.norm} eps:"
            " increase steps or step_size, or omit step_size"
        )


def start(threat: Threat, kind: str, x: Tensor, streams: Streams, restart: int = 0) -> Tensor:
    """A starting point for each sample of ``x``; not clamped to the box.

    zero      x itself
    uniform   uniform in the ball; l0, patch: k random elements, pixels or patches, uniform over their allowed values
    corner    x + eps * (+-1 per coordinate), linf
    sphere    uniform on the sphere of radius eps, l2 and l1
    boundary  linf: U(-1, 1)^d divided by its largest entry, times eps; l2: as sphere; l1: Gaussian noise of the box's
              width, projected onto ball and box; the start of Auto-PGD
    cube      x + U(-eps, eps)^d, in l2 mostly far outside the ball: the start of the published l2 evaluation
    """
    if kind == "zero":
        return x
    if threat.norm == "l1":
        return _l1(threat, kind, x, streams, restart)
    if threat.norm in COUNTS:
        return _count(threat, x, streams, restart)
    eps: float | Tensor = threat.lengths(x)
    if kind == "cube" or (kind == "uniform" and threat.norm == "linf"):
        return x + eps * (2.0 * streams.uniform(x, use="start", restart=restart) - 1.0)
    if kind == "corner":
        # A comparison instead of a sign: a uniform number can be exactly 0.5, whose sign would be 0.
        return x + eps * (2.0 * (streams.uniform(x, use="start", restart=restart) > 0.5).to(x.dtype) - 1.0)
    if kind == "boundary" and threat.norm == "linf":
        return x + eps * unit(2.0 * streams.uniform(x, use="start", restart=restart) - 1.0, math.inf)
    direction = unit(streams.normal(x, use="start", restart=restart))
    if kind in ("sphere", "boundary"):
        return x + eps * direction
    dim = math.prod(x.shape[1:])
    share = streams.uniform(x.flatten(1)[:, :1], use="radius", restart=restart).squeeze(1) ** (1.0 / dim)
    return x + per_sample(threat.radii(x) * share, x) * direction


def _l1(threat: Threat, kind: str, x: Tensor, streams: Streams, restart: int) -> Tensor:
    """Uniform in the ball or on the sphere, from normalised exponential lengths (ball: one more); or boundary."""
    if kind == "boundary":
        return threat.project(x + threat.width * streams.normal(x, use="start", restart=restart), x)
    tiny = torch.finfo(x.dtype).tiny
    lengths = -streams.uniform(x, use="start", restart=restart).clamp_min(tiny).log()
    total = lengths.flatten(1).sum(1)
    if kind == "uniform":
        rest = streams.uniform(x.flatten(1)[:, :1], use="radius", restart=restart).squeeze(1)
        total = total - rest.clamp_min(tiny).log()
    signs = 2.0 * (streams.uniform(x, use="sign", restart=restart) > 0.5).to(x.dtype) - 1.0
    return x + per_sample(threat.radii(x) / total.clamp_min(tiny), x) * signs * lengths


def _count(threat: Threat, x: Tensor, streams: Streams, restart: int) -> Tensor:
    """k random elements, pixels or patches, each element uniform over its allowed values."""
    blocks = threat.blocks(x.shape[1:])
    order = streams.uniform(x.new_empty(len(x), blocks.count), use="place", restart=restart)
    u = streams.uniform(x, use="start", restart=restart)
    if threat.inner_eps is None:
        low, high = threat.edges(x)
        moved = low + (high - low) * u
    else:
        moved = x + float(threat.inner_eps) * (2.0 * u - 1.0)
    return torch.where(blocks.largest(order, threat.radii(x)), moved, x)
