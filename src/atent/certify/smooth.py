"""Relaxations of curved activations by two lines of one slope."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify.rounding import UNIT

BISECTIONS = 60
LARGE = 1e100
"""Largest argument with finite bounds: the cube of a larger one might overflow."""
OVERFLOW = 80.0
"""Largest threshold of a Softplus, up to which torch computes exp(z) in the network's dtype."""
STEEPEST = 2.0
"""Largest derivative."""
ULPS = 16
"""Largest error of torch's functions here, in units of roundoff relative to the larger of value and argument."""


@dataclass(frozen=True)
class Smooth:
    """A continuous function of one number, with a derivative in [-0.5, `STEEPEST`] that jumps at few places at most."""

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inflections: tuple[float, ...]
    """Extrema of the derivative, and where it jumps: between two of them, and outside the outermost, it is monotone."""
    lowest: tuple[float, float] | None = None
    """The minimiser, and a number just below the minimum; None: the function increases everywhere."""
    bounded: bool = False
    """Whether its error in floating point is relative to its value, for every argument."""
    jumps: tuple[float, ...] = ()
    """Those of the inflections at which the derivative jumps; it is that of one of the two sides there."""
    off: float = 0.0
    """The largest difference of what the network computes from the function, rounding aside."""


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * torch.sigmoid(-z))


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


_ROOT, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    t = torch.tanh(_ROOT * (z + _CUBIC * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _ROOT * (1 + 3 * _CUBIC * z * z)


SIGMOID = Smooth("sigmoid", torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), (0.0,), bounded=True)
TANH = Smooth("tanh", torch.tanh, lambda z: 1 - torch.tanh(z) ** 2, (0.0,), bounded=True)
SILU = Smooth("silu", F.silu, _silu_slope, (-2.3993572805154, 2.3993572805154), (-1.2784645427611, -0.2784645428))
GELU = Smooth("gelu", F.gelu, _gelu_slope, (-math.sqrt(2), math.sqrt(2)), (-0.7517915246935645, -0.1699712080))
GELU_TANH = Smooth(
    "gelu",
    lambda z: F.gelu(z, approximate="tanh"),
    _gelu_tanh_slope,
    (-1.4185040087908284, 1.4185040087908284),
    (-0.7524614220710162, -0.1700407507),
)


def elu(alpha: float) -> Smooth:
    """z for z > 0, otherwise alpha (exp(z) - 1)."""
    if alpha == 1:
        return Smooth("elu", F.elu, lambda z: torch.exp(z.clamp(max=0)), ())
    return Smooth("elu", lambda z: F.elu(z, alpha), _elu_slope(alpha, 1.0), (0.0,), jumps=(0.0,))


def _elu_slope(below: float, above: float) -> Callable[[Tensor], Tensor]:
    # At 0 the side on which the slope varies, so that it is monotone on that side.
    return lambda z: torch.where(z > 0, above, below * torch.exp(z.clamp(max=0)))


ELU = elu(1.0)
SELU = Smooth("selu", F.selu, _elu_slope(_ALPHA * _SCALE, _SCALE), (0.0,), jumps=(0.0,))


def _mish_slope(z: Tensor) -> Tensor:
    t = torch.tanh(_softplus(z))
    return t + z * (1 - t * t) * torch.sigmoid(z)


def _softplus(z: Tensor) -> Tensor:
    # Beyond 40 the difference from z is less than a rounding in float64.
    return F.softplus(z, threshold=40)


def softplus(threshold: float) -> Smooth:
    """log(1 + exp(z)), which the network replaces by z above ``threshold``, where the difference is largest.

    The factor is for the rounding of what the network compares with the threshold.
    """
    return replace(SOFTPLUS, off=1.001 * float(F.softplus(torch.tensor(-threshold, dtype=torch.float64))))


MISH = Smooth(
    "mish", F.mish, _mish_slope, (-2.2563763963607931, 1.4905711794854284), (-1.1924312145154952, -0.3088434131)
)
HARDSWISH = Smooth(
    "hardswish",
    F.hardswish,
    lambda z: torch.where(z < -3, 0, torch.where(z > 3, 1, (2 * z + 3) / 6)),
    (-3.0, 3.0),
    (-1.5, -0.375 - 1e-12),
    jumps=(-3.0, 3.0),
)
SOFTPLUS = Smooth("softplus", _softplus, torch.sigmoid, ())
SOFTSIGN = Smooth("softsign", F.softsign, lambda z: 1 / (1 + z.abs()) ** 2, (0.0,))
TANHSHRINK = Smooth("tanhshrink", F.tanhshrink, lambda z: torch.tanh(z) ** 2, (0.0,))


def interval(f: Smooth, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value between ``lower`` and ``upper``, before rounding.

    A function with a minimum decreases before it and increases after it, so that its largest value is at an end.
    """
    one, two = f.value(lower), f.value(upper)
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    if f.lowest is not None:
        place, least = f.lowest
        low = torch.where((lower < place) & (place < upper), torch.full_like(low, least), low)
    return low - f.off, high + f.off


def lines(f: Smooth, lower: Tensor, upper: Tensor, *, rounding: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(slope, offset below, offset above): f lies between two lines of this slope where ``lower`` <= z <= ``upper``.

    The slope s is that of the chord. Any s is sound: f - s z is smallest and largest at an end, where f' = s, or at a
    jump of f'. Between two inflections f' is monotone, so that bisection finds the only point with f' = s there, or an
    end of the piece. After the last bisection the error of the point is 2^-60 of the width, and that of the value twice
    that, since |f' - s| <= 2; where rounding decides the sign of f' - s, it is that rounding times the width. With
    ``rounding`` both are added to the offsets, with the rounding of f and of the product.
    """
    width = upper - lower
    known = (lower > -LARGE) & (upper < LARGE)
    a, b = (torch.where(known, side, 0) for side in (lower, upper))
    flat = ~known | (width <= 1e-12 * (1 + a.abs()))
    chord = (f.value(b) - f.value(a)) / torch.where(flat, 1, width)
    slope = torch.where(flat, torch.where(known, f.derivative(a), 0), chord)
    inner = _turning(f, a.detach(), b.detach(), slope.detach())
    # A point at an end has the derivative of that end.
    places = [a, b, *(torch.where(z <= a, a, torch.where(z >= b, b, z)) for z in inner)]
    found = torch.stack([f.value(z) - slope * z for z in places])
    below, above = found.amin(0) - f.off, found.amax(0) + f.off
    if rounding:
        size = torch.maximum(a.detach().abs(), b.detach().abs())
        off = ULPS * UNIT * (2 + 4 * size) + (2 * ULPS * UNIT + 2.0**-50) * (b - a).detach().abs()
        below, above = below - off, above + off
    inf = torch.full_like(below, torch.inf)
    return slope, torch.where(known, below, -inf), torch.where(known, above, inf)


@torch.no_grad()
def _turning(f: Smooth, a: Tensor, b: Tensor, slope: Tensor) -> list[Tensor]:
    """In each monotone piece of f' the point where f' = ``slope``, or the end of the piece that is nearest to it; and
    the jumps of f', or the end of the box that is nearest to them."""
    ends = (-math.inf, *f.inflections, math.inf)
    found = []
    for start, stop in itertools.pairwise(ends):
        left, right = a.clamp(start, stop), b.clamp(start, stop)
        first, last, end = f.derivative(left), f.derivative(right), right
        rising = last >= first
        # Bisection comes within a rounding of the end, but only the end itself has a derivative in the box's side.
        whole = (last < slope) == rising
        for _ in range(BISECTIONS):
            middle = left + (right - left) / 2
            before = (f.derivative(middle) < slope) == rising
            left, right = torch.where(before, middle, left), torch.where(before, right, middle)
        found.append(torch.where(whole, end, left).clamp(a, b))
    return [*found, *(torch.full_like(a, place).clamp(a, b) for place in f.jumps)]
