"""Threats: which changes of an input an adversary may make, and the geometry that every attack shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
NORMS: tuple[str, ...] = ("linf", "l2")


def radius(value: float | str, name: str = "eps") -> float:
    """A radius from a number or a fraction such as ``"8/255"``; ValueError unless finite and >= 0."""
    try:
        number = float(Fraction(value.strip())) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, TypeError, OverflowError):
        raise ValueError(f"{name} {value!r} is not a number: give one such as 0.3 or '8/255'") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return number


class Radii(tuple[float, ...]):
    """One radius for each sample: compared, hashed and written as a tuple; no single number."""

    def __new__(cls, values: Iterable[float | str]) -> Radii:
        return super().__new__(cls, (radius(v) for v in values))

    def __float__(self) -> float:
        raise ValueError(
            f"the threat has an eps for each of {len(self)} samples, and one number is needed here: attacks, evaluate"
            " and craft take one per sample"
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """For pydantic: no text of a file gives them."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)

    @property
    def tensor(self) -> Tensor:
        """The radii, float64 (n,)."""
        return torch.tensor(self, dtype=torch.float64)


if TYPE_CHECKING:
    Eps: TypeAlias = float | str | Radii
    Box: TypeAlias = tuple[Any, Any]
else:
    # What a recipe or an option may give: one number, and one box or one for each channel.
    Eps = float | str
    Box = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """Shape a vector of n values so that it broadcasts over the n samples of ``like``."""
    return v.reshape(-1, *[1] * (like.dim() - 1))


def l2_norm(d: Tensor) -> Tensor:
    """The l2 norm of each sample, shape (n,), summed in float64: no overflow of the squares, no drift with dim."""
    norm: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1, dtype=torch.float64).to(d.dtype)
    return norm


@dataclass(frozen=True)
class Threat:
    """The ball ``{x' : |x' - x| <= eps}`` in a norm, inside the box of legal inputs.

    Inputs are in pixel units, that is in ``box`` (images: [0, 1]); a model normalises inside itself.
    A tensor or a sequence as ``eps`` gives each sample its own radius, in the order of the batch that is attacked; it
    is kept as a tuple of numbers, and `take` goes with some of the samples. A ``box`` of two sequences gives each
    channel (the first dimension of a sample) its own: ``((0.0, -1.0), (1.0, 1.0))`` for two channels.
    ValueError for an unknown norm, an ``eps`` that is negative or not a number, or an empty box.
    """

    norm: Norm
    """Norm of the perturbation: linf or l2."""
    eps: Eps
    """Radius in pixel units; a fraction such as 8/255 is understood. "inf": no limit, for minimum-norm attacks."""
    box: Box = (0.0, 1.0)
    """Smallest and largest legal value of an input coordinate, or the smallest and the largest ones of each channel."""
    allow_large_eps: bool = field(default=False, compare=False, repr=False)
    """Permit an eps that covers the whole box, which is otherwise refused where it is used: see `check_eps`."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            hint = ""
            for norm, eps in ((self.norm, self.eps), (self.eps, self.norm)):  # other case, or the two exchanged
                if isinstance(norm, str) and norm.lower() in NORMS:
                    hint = f"did you mean Threat({norm.lower()!r}, {eps!r})? "
            raise ValueError(f"unknown norm {self.norm!r}: {hint}use one of {', '.join(NORMS)}")
        object.__setattr__(self, "eps", _eps(self.eps))
        object.__setattr__(self, "box", _box(self.box))

    @cached_property
    def width(self) -> float:
        """Width of the box, that of the widest channel: the unit of every length that has no other."""
        low, high = self.box
        return float(high - low if type(low) is float else max(b - a for a, b in zip(low, high)))

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest legal value of all channels."""
        low, high = self.box
        return (low, high) if type(low) is float else (min(low), max(high))

    def edges(self, x: Tensor, of: Callable[[Any, Any], tuple[Any, Any]] = lambda low, high: (low, high)) -> Any:
        """``of(low, high)``: numbers, or where channels differ tensors in the type of ``x`` that broadcast over it.

        ``of`` computes in float64. ValueError where ``x`` (n, c, ...) has another number of channels than the box.
        """
        if type(self.box[0]) is float:
            return of(*self.box)
        self.check_channels(x.shape[1:])
        shape = (1, -1, *[1] * (x.dim() - 2)) if x.shape[1] == len(self.box[0]) else (1, *x.shape[1:])
        return tuple(v.to(x).view(shape) for v in of(*(torch.tensor(v, dtype=torch.float64) for v in self.box)))

    def check_channels(self, shape: Sequence[int]) -> None:
        """ValueError where samples of ``shape`` have other channels than a box of channels.

        A box with an entry for each number of a sample fits too: so vectors may be seen as images.
        """
        if type(self.box[0]) is not float and len(self.box[0]) not in (shape[0], math.prod(shape)):
            raise ValueError(
                f"the threat's box is for {len(self.box[0])} channels, got inputs of {shape[0]}: give one pair for all,"
                f" or {shape[0]} smallest and {shape[0]} largest values"
            )

    def scaled(self, factor: float) -> Threat:
        """The same threat with ``factor * eps``."""
        if isinstance(self.eps, Radii):
            return replace(self, eps=Radii(eps * factor for eps in self.eps))
        return replace(self, eps=float(self.eps) * factor)

    def take(self, index: Tensor | None) -> Threat:
        """The threat for the samples of that ``index``: itself where all have one eps, or for None."""
        if index is None or not isinstance(self.eps, Radii):
            return self
        return replace(self, eps=Radii(self.eps.tensor[index.cpu()].tolist()))

    def radii(self, like: Tensor, of: Callable[[Any], Any] | None = None) -> Any:
        """eps, or ``of(eps)``, as a number, or where samples differ in eps as a tensor (n,) in the type of ``like``."""
        if type(self.eps) is float:
            return self.eps if of is None else of(self.eps)
        eps = cast(Radii, self.eps).tensor
        return (eps if of is None else of(eps)).to(like)

    def lengths(self, x: Tensor, of: Callable[[Any], Any] | None = None) -> Any:
        """As `radii`, and a tensor has the shape (n, 1, ...) that broadcasts over the samples of ``x``."""
        if type(self.eps) is float:
            return self.eps if of is None else of(self.eps)
        return per_sample(self.radii(x, of), x)

    def check_samples(self, n: int) -> None:
        """ValueError where there is an eps for each of another number of samples."""
        if isinstance(self.eps, Radii) and len(self.eps) != n:
            raise ValueError(f"the threat has an eps for each of {len(self.eps)} samples, got {n} samples: give {n}")

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, which `Threat` takes back; ``allow_large_eps`` only where it is set."""
        return {k: v for k, v in asdict(self).items() if k != "allow_large_eps" or v}

    def check_eps(self, shape: Sequence[int]) -> None:
        """ValueError, in one line, for an eps that covers the whole box of samples of ``shape`` (no batch dimension).

        That is a linf eps of at least the box width, or an l2 eps of at least the box diagonal, sqrt(d) times the
        width: any sample may become any other, which is mostly 8 written for 8/255. An infinite eps, which only
        minimum-norm attacks take, and threats with ``allow_large_eps`` pass.
        """
        if type(self.box[0]) is not float:
            self.check_channels(shape)
        eps = max(self.eps, default=0.0) if isinstance(self.eps, Radii) else float(self.eps)
        name, limit = "width", self.width
        if self.norm == "l2" and type(self.box[0]) is float:
            name, limit = "diagonal", math.sqrt(math.prod(shape)) * limit
        elif self.norm == "l2":
            squares = [(b - a) ** 2 for a, b in zip(*self.box)]
            name, limit = "diagonal", math.sqrt(math.prod(shape) / len(squares) * math.fsum(squares))
        # A diagonal that the caller computed in another order is one all the same.
        if self.allow_large_eps or math.isinf(eps) or eps < limit * (1 - 1e-12):
            return
        levels = eps * self.width
        guess = f"did you mean {levels:g}/255?" if levels / 255 < limit else "give a smaller one"
        raise ValueError(
            f"{self.norm} eps must be below the box {name} {limit:g}, got {eps:g}: {guess}"
            " (--allow-large-eps to insist; in Python Threat(..., allow_large_eps=True))"
        )

    def clamp(self, x: Tensor) -> Tensor:
        """Nearest point of the box."""
        return x.clamp(*(self.box if type(self.box[0]) is float else self.edges(x)))

    def project_ball(self, x_adv: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Nearest point of the ball around ``x``, box ignored; ``eps`` (n,) gives each sample its own radius."""
        d = x_adv - x
        if self.norm == "linf":
            own = self.eps if type(self.eps) is float else self.lengths(d)
            limit: Any = own if eps is None else per_sample(eps.to(d.dtype), x)
            return x + d.clamp(-limit, limit)
        # The floor keeps 0/0 away: a zero perturbation stays zero, and eps = 0 gives x bit for bit.
        norm = l2_norm(d).clamp_min(torch.finfo(d.dtype).tiny)
        # torch divides a number by a tensor as its reciprocal times the number: radii per sample give the same bits.
        shrink = (self.radii(d) * norm.reciprocal() if eps is None else eps.to(d.dtype) / norm).clamp_max(1.0)
        return x + d * per_sample(shrink, d)

    def project(self, x_adv: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Ball first, then box: for ``x`` in the box the clamp never leaves the ball. Shapes (n, ...)."""
        return self.clamp(self.project_ball(x_adv, x, eps))

    def ascent(self, grad: Tensor) -> Tensor:
        """Direction of steepest ascent of unit length: the sign (linf) or g / ||g||_2 per sample (l2).

        A zero gradient gives a zero direction, not NaN.
        """
        return grad.sign() if self.norm == "linf" else unit(grad)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Norm of each perturbation, measured in float64, shape (n,)."""
        d = (x_adv.double() - x.double()).flatten(1)
        return d.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(d, dim=1)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Per sample: in the box, and within ``eps`` as near as float32 can say, shape (n,), bool.

        Tolerance: 6e-8 per pixel (linf), a relative 1e-6 and 6e-8 sqrt(dim) (l2), measured in float64, where the box
        reaches to 1; in another box 6e-8 times its largest absolute value in the place of 6e-8.
        """
        (low, high), (first, last) = self.edges(x_adv), self.span
        inside = ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
        eps = self.radii(x.double())
        # Half a unit in the last place of a coordinate, which grows with the box.
        pixel = 6e-8 * max(abs(first), abs(last))
        limit = eps + pixel if self.norm == "linf" else eps * (1 + 1e-6) + pixel * math.sqrt(x[:1].numel())
        found: Tensor = inside & (self.distance(x_adv, x) <= limit)
        return found


def _eps(value: Any) -> float | Radii:
    """A radius, inf, or one radius for each sample."""
    if isinstance(value, float):
        return value if value == math.inf else radius(value)
    if isinstance(value, Radii):
        return value
    if isinstance(value, str):
        return math.inf if value == "inf" else radius(value)
    if hasattr(value, "ndim") and value.ndim > 1:
        raise ValueError(f"eps must be a number or one for each sample, (n,), got shape {tuple(value.shape)}")
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return Radii(value.tolist() if hasattr(value, "tolist") else value)
    return math.inf if value == math.inf else radius(value)


def _box(value: Any) -> Box:
    """A pair of numbers, or a pair of tuples with one number for each channel."""
    message = f"box must be (low, high), finite, with low < high, got {value} (or one sequence for each)"
    try:
        low, high = (v.tolist() if hasattr(v, "tolist") else v for v in value)
        pairs = [(low, high)]
        several = isinstance(low, list | tuple) or isinstance(high, list | tuple)
        if several:
            pairs = list(zip(low, high, strict=True))
        numbers = [(float(a), float(b)) for a, b in pairs]
    except (TypeError, ValueError):
        raise ValueError(message) from None
    if not numbers or not all(a < b and math.isfinite(a) and math.isfinite(b) for a, b in numbers):
        raise ValueError(message)
    return (tuple(a for a, _ in numbers), tuple(b for _, b in numbers)) if several else numbers[0]


def unit(grad: Tensor, order: float = 2) -> Tensor:
    """g / ||g||_order per sample, zero where g is zero. Scaled by the largest entry, so tiny gradients survive."""
    flat = grad.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    scaled = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = torch.linalg.vector_norm(scaled, order, dim=1, keepdim=True)
    made: Tensor = (scaled / norm.clamp_min(torch.finfo(grad.dtype).tiny)).view_as(grad)
    return made
