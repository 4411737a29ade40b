"""The nodes of the layers of torch, and of what layers and functions have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atent.certify import affine, copies, smooth
from atent.certify.convolution import conv1d, transposed

Kind = Literal["input", "affine", "sum", "cat", "relu", "maxpool", "smooth"]
CURVED: tuple[Kind, ...] = ("relu", "maxpool", "smooth")


@dataclass(frozen=True)
class Fork:
    """The sum of two lists of nodes, both after the same node."""

    one: Known
    other: Known


@dataclass(frozen=True)
class Cast:
    """A cast that changes nothing in a network of this dtype."""

    dtype: torch.dtype


Known = list["tuple[Kind, Any] | Fork | Cast"]
"""The sequence of nodes of a layer; empty for an identity."""
Limit = float | Callable[[], Tensor] | None
"""A number, a constant of the network, or no limit."""

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)


def times(number: float) -> tuple[Kind, Any]:
    return "affine", affine.scaled(lambda: torch.tensor(number, dtype=torch.float64))


def _plus(constant: float | Callable[[], Tensor], sign: float = 1.0) -> tuple[Kind, Any]:
    if callable(constant):
        return "affine", affine.shifted(lambda: sign * constant())
    return "affine", affine.shifted(lambda: torch.tensor(sign * constant, dtype=torch.float64))


RELU: tuple[Kind, Any] = ("relu", None)
TIMES_MINUS_1 = times(-1.0)


def leaky(slope: float) -> Known:
    """a z + (1 - a) relu(z): the lines of the ReLU give those of the leaky ReLU, and they are as tight."""
    return [Fork([times(slope)], [RELU, times(1 - slope)])]


def clamped(low: Limit, high: Limit) -> Known:
    """max(z, low) = low + relu(z - low), then min(z, high) = high - relu(high - z): intervals remain exact."""
    if any(not (side is None or callable(side) or isinstance(side, (int, float))) for side in (low, high)):
        raise ValueError("limits that are not numbers or constants: use numbers")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise ValueError(f"limits {low} > {high}: use low <= high")
    known: Known = []
    # An infinite number limits nothing; as a constant it would make the bounds infinite.
    if low is not None and low != -math.inf:
        known += [RELU] if low == 0 else [_plus(low, -1.0), RELU, _plus(low)]
    if high is not None and high != math.inf:
        known += [TIMES_MINUS_1, _plus(high), RELU, TIMES_MINUS_1, _plus(high)]
    return known


def _threshold(m: nn.Threshold) -> Known:
    if m.threshold != m.value:
        raise ValueError(f"threshold {m.threshold} and value {m.value}: use equal ones, or clamp")
    return clamped(m.threshold, None)


def _gelu(approximate: str = "none") -> Known:
    return [("smooth", smooth.GELU if approximate == "none" else smooth.GELU_TANH)]


def _elu(alpha: float = 1.0) -> Known:
    if alpha != 1:
        raise ValueError(f"alpha {alpha}: use 1")
    return [("smooth", smooth.ELU)]


def _zero_pad(m: Any) -> Known:
    widths = (m.padding,) * 2 if isinstance(m.padding, int) else tuple(m.padding)
    return [("affine", copies.padded(widths, value=getattr(m, "value", 0)))]


def _unflatten(m: nn.Unflatten) -> Known:
    sizes = [side for side in m.unflattened_size if isinstance(side, int)]
    if not isinstance(m.dim, int) or len(sizes) < len(m.unflattened_size):
        raise ValueError("named dimensions: use numbers")
    return unflattened(m.dim, sizes)


def unflattened(dim: int, sizes: Sequence[int]) -> Known:
    return [("affine", copies.within(lambda z: z.unflatten(dim, sizes), [dim]))]


def _pool(m: nn.MaxPool2d) -> Known:
    if m.ceil_mode or m.return_indices:
        raise ValueError("ceil_mode or return_indices: omit both")
    return [("maxpool", m)]


def _of_row(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], m: Any, **options: Any) -> Known:
    """Pooling of (n, channels, length): that of images of one row."""
    across = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    sides: dict[str, Any] = {k: (one, affine.dims(getattr(m, k))[-1]) for k, one in across.items() if hasattr(m, k)}
    layer = kind(**sides, **options)
    image, row = copies.within(lambda z: z.unsqueeze(-2), [-2], more=1), copies.within(lambda z: z.squeeze(-2), [-2])
    return [("affine", image), *LAYERS[kind](layer), ("affine", row)]


def _global(m: Any, sides: int) -> Known:
    # None: as many as the input has.
    if m.output_size is None or any(side != 1 for side in affine.dims(m.output_size)):
        raise ValueError(f"output size {m.output_size}: use 1, the mean over the image")
    return [("affine", affine.total(range(-sides, 0), keepdim=True, mean=True))]


def flattened(start: int = 1, end: int = -1) -> Known:
    if (start, end) == (1, -1):
        return [("affine", affine.flatten())]
    return [("affine", copies.within(lambda z: z.flatten(start, end), [start, end]))]


def _flat(m: nn.Flatten) -> Known:
    if m.start_dim == 0:
        raise ValueError("start_dim 0, that of the samples: use start_dim=1")
    return flattened(m.start_dim, m.end_dim)


def _nothing(m: nn.Module) -> Known:
    return []


LAYERS: dict[type[nn.Module], Callable[[Any], Known]] = {
    nn.Linear: lambda m: [("affine", affine.linear(m))],
    nn.Conv1d: lambda m: [("affine", conv1d(m))],
    nn.Conv2d: lambda m: [("affine", affine.conv(m))],
    nn.ConvTranspose1d: lambda m: [("affine", transposed(m))],
    nn.ConvTranspose2d: lambda m: [("affine", transposed(m))],
    nn.AvgPool1d: lambda m: _of_row(nn.AvgPool2d, m, ceil_mode=m.ceil_mode, count_include_pad=m.count_include_pad),
    nn.AvgPool2d: lambda m: [("affine", affine.average(m))],
    nn.BatchNorm1d: lambda m: [("affine", affine.batch_norm(m))],
    nn.BatchNorm2d: lambda m: [("affine", affine.batch_norm(m))],
    nn.MaxPool1d: lambda m: _of_row(nn.MaxPool2d, m, ceil_mode=m.ceil_mode, return_indices=m.return_indices),
    nn.MaxPool2d: _pool,
    nn.AdaptiveAvgPool1d: lambda m: _global(m, 1),
    nn.AdaptiveAvgPool2d: lambda m: _global(m, 2),
    nn.Flatten: _flat,
    nn.Unflatten: _unflatten,
    nn.ZeroPad1d: _zero_pad,
    nn.ZeroPad2d: _zero_pad,
    nn.ConstantPad1d: _zero_pad,
    nn.ConstantPad2d: _zero_pad,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout1d: _nothing,
    nn.Dropout2d: _nothing,
    nn.Dropout3d: _nothing,
    nn.AlphaDropout: _nothing,
    nn.FeatureAlphaDropout: _nothing,
    nn.ReLU: lambda m: [RELU],
    nn.LeakyReLU: lambda m: leaky(m.negative_slope),
    nn.RReLU: lambda m: leaky((m.lower + m.upper) / 2),
    nn.ReLU6: lambda m: clamped(0, 6),
    nn.Hardtanh: lambda m: clamped(m.min_val, m.max_val),
    nn.Sigmoid: lambda m: [("smooth", smooth.SIGMOID)],
    nn.Tanh: lambda m: [("smooth", smooth.TANH)],
    nn.SiLU: lambda m: [("smooth", smooth.SILU)],
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.ELU: lambda m: _elu(m.alpha),
    nn.CELU: lambda m: _elu(m.alpha),
    nn.Threshold: _threshold,
}
"""The layers of torch that bounds support, and the nodes of each."""
