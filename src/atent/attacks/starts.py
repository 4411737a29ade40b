"""Where an attack begins."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from atent.checks import check_choice
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit

Start = Literal["zero", "uniform", "corner", "sphere", "boundary", "cube"]

# A corner is a point of the linf sphere; the other sphere is round.
ALLOWED: dict[str, tuple[str, ...]] = {
    "linf": ("zero", "uniform", "corner", "boundary", "cube"),
    "l2": ("zero", "uniform", "sphere", "boundary", "cube"),
}


def check_start(threat: Threat, kind: str) -> None:
    """ValueError where a start is not defined for the threat's norm."""
    check_choice(f"start (for {threat.norm})", kind, ALLOWED[threat.norm])


def start(threat: Threat, kind: str, x: Tensor, streams: Streams, restart: int = 0) -> Tensor:
    """A starting point for each sample of ``x``; not clamped to the box.

    zero      x itself
    uniform   uniform in the ball
    corner    x + eps * (+-1 per coordinate), linf
    sphere    uniform on the sphere of radius eps, l2
    boundary  linf: U(-1, 1)^d divided by its largest entry, times eps; l2: as sphere; the start of Auto-PGD
    cube      x + U(-eps, eps)^d, in l2 far outside the ball: the start of the published l2 evaluation
    """
    eps: float | Tensor = threat.lengths(x)
    if kind == "zero":
        return x
    if kind == "cube" or (kind == "uniform" and threat.norm == "linf"):
        return x + eps * (2.0 * streams.uniform(x, use="start", restart=restart) - 1.0)
    if kind == "corner":
        # A comparison, not a sign: a generator's uniform can be exactly 0.5, which has none.
        return x + eps * (2.0 * (streams.uniform(x, use="start", restart=restart) > 0.5).to(x.dtype) - 1.0)
    if kind == "boundary" and threat.norm == "linf":
        return x + eps * unit(2.0 * streams.uniform(x, use="start", restart=restart) - 1.0, math.inf)
    direction = unit(streams.normal(x, use="start", restart=restart))
    if kind in ("sphere", "boundary"):
        return x + eps * direction
    dim = math.prod(x.shape[1:])
    share = streams.uniform(x.flatten(1)[:, :1], use="radius", restart=restart).squeeze(1) ** (1.0 / dim)
    return x + per_sample(threat.radii(x) * share, x) * direction
