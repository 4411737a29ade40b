"""Radii and boxes of a threat, parsed from numbers, text, sequences and tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from atent.contracts import check_dense
from atent.fields import LARGEST, shown


def radius(value: float | str, name: str = "eps") -> float:
    """A radius from a number or a fraction such as ``"8/255"``.

    Parameters
    ----------
    value
        A number, or text with a number or a fraction of two numbers.
    name
        Name of the setting in the error. Default: eps.

    Returns
    -------
    float
        The radius, finite and at least 0.

    Raises
    ------
    ValueError
        If ``value`` is not a number, negative, infinite, NaN or larger than the largest float32.

    Examples
    --------
    >>> from atent.threat import radius
    >>> round(radius("8/255"), 4)
    0.0314
    >>> radius(-1)
    Traceback (most recent call last):
    ValueError: eps must be finite and at least 0, got -1
    """
    try:
        number = _number(value)
    except (ValueError, ZeroDivisionError, TypeError, OverflowError, RuntimeError):
        raise ValueError(f"{name} {shown(value)} is not a number: give one such as 0.3 or '8/255'") from None
    quotes = "'"
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and at least 0, got {shown(value).strip(quotes)}")
    if number > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:.2g}, the largest of float32, got {shown(value)}")
    return number


def _number(value: Any) -> float:
    if not isinstance(value, str):
        if isinstance(value, bool | bytes | bytearray):
            raise TypeError("not a number")
        return float(value)
    # The fraction of 1e999999999 would exhaust the memory.
    if len(value) > 100 or any(int(power) > 400 for power in re.findall(r"[eE][+-]?(\d+)", value.replace("_", ""))):
        raise ValueError("too long")
    return float(Fraction(value.strip()))


class Radii(tuple[float, ...]):
    """One radius per sample: an immutable tuple of floats, which a `Threat` makes of a sequence or tensor as its eps.

    It has no value as a single number: ``float(radii)`` raises ValueError.

    Parameters
    ----------
    values
        Numbers or fractions as text, each finite and at least 0; one per sample, in the order of the batch.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.threat import Radii
    >>> eps = Radii([0.1, "8/255"])
    >>> len(eps), eps.tensor.dtype
    (2, torch.float64)
    >>> Threat("linf", eps) == Threat("linf", [0.1, 8 / 255])
    True
    """

    def __new__(cls, values: Iterable[float | str]) -> Radii:
        return super().__new__(cls, (radius(v) for v in values))

    def __float__(self) -> float:
        raise ValueError(
            f"the threat has an eps for each of {len(self)} samples, and one number is needed here: only attacks,"
            " evaluate and craft accept an eps per sample"
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """For pydantic: text in a file cannot express them."""
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
    # What a recipe or an option accepts: one number, and one box or one per channel.
    Eps = float | str
    Box = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]


def check_counts(norm: str, eps: float | Radii) -> None:
    """ValueError unless every eps is an integer of at least 1, or infinite."""
    what = {"l0": "elements or pixels", "patch": "patches"}[norm]
    for value in eps if isinstance(eps, Radii) else (eps,):
        if value != math.inf and (value < 1 or value != math.floor(value)):
            raise ValueError(f"{norm} eps is a number of {what}: give an integer of at least 1, got {shown(value)}")


def as_eps(value: Any) -> float | Radii:
    """A radius, inf, or one radius per sample; ValueError for others."""
    if isinstance(value, float):
        return value if value == math.inf else radius(value)
    if isinstance(value, Radii):
        return value
    if isinstance(value, str):
        return math.inf if value == "inf" else radius(value)
    if isinstance(value, Tensor):
        check_dense("eps", value)
    if hasattr(value, "ndim") and value.ndim > 1:
        raise ValueError(f"eps must be a number or one for each sample, (n,), got {shown(value)}")
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return Radii(value.tolist() if hasattr(value, "tolist") else value)
    return math.inf if value == math.inf else radius(value)


def as_box(value: Any) -> Box:
    """A pair of numbers, or a pair of tuples with one number per channel; ValueError for others."""
    message = f"box must be (low, high), finite, with low < high, got {shown(value)} (or a sequence each, per channel)"
    if isinstance(value, str | bytes | dict | set):
        raise ValueError(message)
    try:
        low, high = (v.tolist() if hasattr(v, "tolist") else v for v in value)
        pairs = [(low, high)]
        several = isinstance(low, list | tuple) or isinstance(high, list | tuple)
        if several:
            pairs = list(zip(low, high, strict=True))
        numbers = [(_number(a), _number(b)) for a, b in pairs]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, RuntimeError):
        raise ValueError(message) from None
    if not numbers or not all(-LARGEST <= a < b <= LARGEST for a, b in numbers):
        raise ValueError(message)
    return (tuple(a for a, _ in numbers), tuple(b for _, b in numbers)) if several else numbers[0]


def rounding(span: tuple[float, float], x_adv: Tensor, x: Tensor) -> tuple[float, Any]:
    """What float32 rounds in a box that reaches from one number to another: a share of a radius per pixel, and the
    coordinates of each sample.

    Half a unit in the last place is at most 6e-8 of a value, and 3e-8 of one below 1, so that in a box that reaches to
    1 the radius needs no share of its own. The coordinates of a sample may be far smaller than a wide box.
    """
    top = max(map(abs, span))
    if top <= 1:
        return 0.0 if top == 1 else 6e-8, 6e-8 * top
    largest = torch.maximum(x_adv.abs(), x.abs()).flatten(1).amax(1).double()
    return 6e-8, 6e-8 * largest.clamp_min(1)


def intervals(box: Any) -> str:
    """A box as the closed interval that it is, or one for each channel."""
    low, high = box
    if not isinstance(low, Iterable):
        return f"[{low:g}, {high:g}]"
    return ", ".join(f"[{first:g}, {last:g}]" for first, last in zip(low, high, strict=True)) + " by channel"
