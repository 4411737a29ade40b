"""The perturbed inputs of each sample: its ball, cut to the box of legal inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atent.certify.rounding import SAFE, Arithmetic, gamma
from atent.threat import Norm, Threat

# Newton steps on a concave, piecewise linear function, from below; any number of them is sound.
NEWTON = 12


@dataclass(frozen=True)
class Region:
    """``{x' : |x' - x| <= eps, x' in the box}`` for n samples, and the exact minimum of linear functions over it."""

    norm: Norm
    """Norm of the ball."""
    eps: float
    """Its radius."""
    centre: Tensor
    """x, clamped to the box, shape (n, ...)."""
    lower: Tensor
    """Least value of each coordinate in the region, the shape of ``centre``."""
    upper: Tensor
    """Largest value of each coordinate."""
    arithmetic: Arithmetic | None = None
    """Where rounding is bounded: how the network is evaluated."""

    def take(self, rows: Tensor) -> Region:
        """The regions of the samples ``rows``."""
        return replace(self, centre=self.centre[rows], lower=self.lower[rows], upper=self.upper[rows])

    def minimum(self, a: Tensor) -> Tensor:
        """min <a, x'> over the region: ``a`` (n, s, ...) or, one for all samples, (1, s, ...) gives (n, s).

        linf: the box of both, in closed form. l2: the Lagrangian dual
        ``max over m >= 0 of min over x' in the box of <a, x'> + m/2 (|x' - x|^2 - eps^2)``, which has no gap; 1/m^2 is
        found by Newton's method, and every m gives a lower bound. Differentiable in ``a``: at the optimal m the
        derivative is the minimiser (envelope theorem).
        """
        a, centre = a.flatten(2), self.centre.flatten(1)
        if self.norm == "linf":
            middle, half = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
            return _dot(a, middle.flatten(1)) - _dot(a.abs(), half.flatten(1))
        step, gap = self._minimiser(a.detach(), patient=a.device.type == "cpu" and not torch.is_grad_enabled())
        return _dot(a, centre) + (a * step).sum(2) + gap

    @torch.no_grad()
    def _minimiser(self, a: Tensor, *, patient: bool) -> tuple[Tensor, Tensor]:
        """The step x' - x (n, s, d) that minimises the Lagrangian at the best m found, and the value of m's term.
        ``patient``: the host may wait for the device to find which rows have converged."""
        centre = self.centre.flatten(1)[:, None]
        room = torch.where(a > 0, centre - self.lower.flatten(1)[:, None], self.upper.flatten(1)[:, None] - centre)
        # Entries are divided by the largest, so that squares of small ones do not vanish.
        largest = a.abs().amax(2)
        size, limit = a.abs() / torch.where(largest > 0, largest, 1)[..., None], self.eps**2
        size, room = torch.broadcast_tensors(size, room)
        t = _root(size.flatten(0, 1), room.flatten(0, 1), limit, patient=patient).view(size.shape[:2]).sqrt()
        length = torch.minimum(size * t[..., None], room)
        # Where every coordinate with a coefficient is at its bound the ball is inactive: m = 0.
        bounded = ((length >= room) | (size == 0)).all(2)
        gap = (length.square().sum(2) - limit) / (2 * t.clamp_min(torch.finfo(a.dtype).tiny))
        return -a.sign() * length, torch.where(bounded, 0, largest * gap)

    @torch.no_grad()
    def rounding(self, a: Tensor) -> Tensor:
        """A bound of the error of `minimum` in float64, without a graph, (n, s)."""
        # An l2 step is at most twice the largest value, and the ball's term at most eps |a|_2.
        size = 4 * torch.maximum(self.lower.abs(), self.upper.abs()) + self.eps
        return SAFE * gamma(2 * size.shape[1:].numel() + 64) * _dot(a.flatten(2).abs(), size.flatten(1))


def region(x: Tensor, threat: Threat, arithmetic: Arithmetic | None = None) -> Region:
    """The region of each sample of ``x`` (n, ...); ``x`` is clamped to the box first, as attacks do.

    With ``arithmetic`` it is in float64, rounded outwards, and has room for the rounding of an attack in that dtype: in
    float32 it contains all that `Threat.contains` accepts.
    """
    centre = threat.clamp(x)
    eps = float(threat.eps)
    if arithmetic is None:
        return Region(threat.norm, eps, centre, threat.clamp(centre - eps), threat.clamp(centre + eps))
    unit, pixel = arithmetic.unit, 1.01 * arithmetic.unit * max(1.0, *map(abs, threat.span))
    if threat.norm == "linf":
        eps = eps * (1 + 4 * unit) + pixel
    else:
        eps = eps * (1 + 18 * unit) + SAFE * pixel * math.sqrt(x.shape[1:].numel())
    centre = centre.double()
    low, high = threat.edges(centre, arithmetic.outwards)
    end = torch.full_like(centre, torch.inf)
    lower, upper = torch.nextafter(centre - eps, -end), torch.nextafter(centre + eps, end)
    return Region(threat.norm, eps, centre, lower.clamp(min=low), upper.clamp(max=high), arithmetic)


def _root(size: Tensor, room: Tensor, limit: float, *, patient: bool) -> Tensor:
    """t^2 (n,) for which the sum of min(size t, room)^2 over d entries, concave in t^2, is ``limit``.

    By Newton's method. ``patient``: rows that have converged take no more steps, with the same result.
    """
    square = limit / size.square().sum(1).clamp_min(1)
    result, rows = square, None
    for _ in range(NEWTON):
        free = size * square.sqrt()[:, None] < room
        slope = torch.where(free, size, 0).square().sum(1)
        rest = (limit - torch.where(free, 0, room).square().sum(1)).clamp_min(0)
        moved = torch.where(slope > 0, rest / slope, square)
        if not patient:
            square = result = moved
            continue
        going = moved != square
        square = moved
        result = square if rows is None else result.index_put((rows,), square)
        count = int(going.sum())
        if not count:
            break
        if 4 * count < 3 * len(going):
            size, room, square = size[going], room[going], square[going]
            rows = going.nonzero()[:, 0] if rows is None else rows[going]
    return result


def _dot(a: Tensor, v: Tensor) -> Tensor:
    return (a @ v[..., None]).squeeze(-1)
