"""The nearest of the linearised decision boundaries, without storing the gradients of all classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from atent.attacks.oracle import Oracle
from atent.attacks.smallest import DUAL
from atent.threat import Norm, per_sample


class Boundary(NamedTuple):
    """For each of n samples the hyperplane <slope, d> = -difference on which the linearisation of z_k - z_y is 0."""

    slope: Tensor
    """Gradient of z_k - z_y at the point, the shape of x."""
    difference: Tensor
    """z_k - z_y at the point, (n,)."""
    distance: Tensor
    """|difference| / dual norm of the slope, (n,); inf where every slope is zero."""


def nearest_boundary(oracle: Oracle, x: Tensor, y: Tensor, classes: Tensor, norm: Norm) -> tuple[Boundary, Tensor]:
    """The nearest of the boundaries to ``classes`` (n, m) from ``x`` in ``norm``, and the logits (n, C).

    Moosavi-Dezfooli et al. 2016, Eq. 8 (l2), Eq. 13 (linf) and Eq. 11 with q = inf (l1). A boundary with zero slope is
    unreachable; if all are, the first one is returned, at distance inf. One forward and m backwards; for memory see
    `Oracle.slopes`.
    """
    best: Boundary | None = None
    dual = DUAL[norm]

    def see(grads: Tensor, differences: Tensor, first: int) -> None:
        nonlocal best
        # In float64: the squares of small and of large gradients leave the range of float32.
        sizes = torch.linalg.vector_norm(grads.flatten(2), dual, dim=2, dtype=torch.float64)
        far = torch.where(sizes > 0, differences.double().abs() / sizes, math.inf).to(grads.dtype)
        differences = differences.to(grads.dtype)
        distance, at = far.min(1)
        rows = torch.arange(len(x), device=x.device)
        found = Boundary(grads[rows, at], differences[rows, at], distance)
        if best is None:
            best = found
            return
        nearer = distance < best.distance
        best = Boundary(
            torch.where(per_sample(nearer, found.slope), found.slope, best.slope),
            torch.where(nearer, found.difference, best.difference),
            torch.where(nearer, distance, best.distance),
        )

    logits = oracle.slopes(x, y, classes, see)
    assert best is not None, "classes has at least one column"
    return best, logits
