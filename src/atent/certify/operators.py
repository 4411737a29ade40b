"""The nodes of the layers of torch, and of what layers and functions have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
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


def leaky(slope: float | Callable[[], Tensor]) -> Known:
    """a z + (1 - a) relu(z): the lines of the ReLU give those of the leaky ReLU, and they are as tight.

    A slope that the network learns has one number for each channel, or one for all.
    """
    if not callable(slope):
        return [Fork([times(slope)], [RELU, times(1 - slope)])]
    rest = affine.scaled(lambda: 1 - slope().double(), channels=True)
    return [Fork([("affine", affine.scaled(slope, channels=True))], [RELU, ("affine", rest)])]


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


def _elu(alpha: float) -> Known:
    if not 0 < alpha <= smooth.STEEPEST:
        raise ValueError(f"alpha {alpha}: use a positive number up to {smooth.STEEPEST:g}")
    return [("smooth", smooth.elu(alpha))]


def _of_scaled(factor: float, name: str, f: smooth.Smooth) -> Known:
    """f(factor z) / factor."""
    if not 0 < factor < math.inf:
        raise ValueError(f"{name}: use a positive number")
    return [("smooth", f)] if factor == 1 else [times(factor), ("smooth", f), times(1 / factor)]


def _softplus(m: nn.Softplus) -> Known:
    if not m.threshold <= smooth.OVERFLOW:
        raise ValueError(
            f"threshold {m.threshold}, below which the exponential of float32 overflows: use one up to"
            f" {smooth.OVERFLOW:g}"
        )
    return _of_scaled(m.beta, f"beta {m.beta}", smooth.softplus(m.threshold))


def _hardsigmoid(m: nn.Hardsigmoid) -> Known:
    return [_plus(3.0), *clamped(0, 6), times(1 / 6)]


def _softshrink(m: nn.Softshrink) -> Known:
    """relu(z - l) - relu(-z - l): one of the two is 0, so that intervals remain exact."""
    if not 0 <= m.lambd < math.inf:
        raise ValueError(f"lambd {m.lambd}: use a number from 0")
    beyond: Known = [_plus(m.lambd, -1.0), RELU]
    return [Fork(beyond, [TIMES_MINUS_1, *beyond, TIMES_MINUS_1])]


def _pad(mode: str = "constant") -> Callable[[Any], Known]:
    def known(m: Any) -> Known:
        widths = (m.padding,) * 2 if isinstance(m.padding, int) else tuple(m.padding)
        return [("affine", copies.padded(widths, mode, getattr(m, "value", None)))]

    return known


def convolved(m: Any, make: Callable[[Any, tuple[int, ...]], affine.Affine]) -> Known:
    """A convolution, after a padding of its own where that is not as many zeros at both ends."""
    ends = affine.both_ends(m)
    if m.padding_mode == "zeros" and all(start == stop for start, stop in ends):
        return [("affine", make(m, tuple(start for start, _ in ends)))]
    widths = [width for side in reversed(ends) for width in side]
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    return [("affine", copies.padded(widths, mode)), ("affine", make(m, (0,) * len(ends)))]


def resized(size: Any, scale: Any, mode: str, recompute: bool | None = None) -> Known:
    """`torch.nn.functional.interpolate` by copies of the nearest value. ValueError for other modes."""
    if mode not in ("nearest", "nearest-exact"):
        raise ValueError(f"mode {mode!r}: use nearest")

    def resize(z: Tensor) -> Tensor:
        return F.interpolate(z, size, scale, mode, recompute_scale_factor=recompute)

    return [("affine", copies.copied(copies.nearest(resize), often=True))]


def pixels(move: Callable[[Tensor, int], Tensor], number: int) -> Known:
    """A map of images, of which torch would take the samples for channels."""

    def checked(z: Tensor) -> Tensor:
        affine.check_image(z.shape)
        return move(z, number)

    return [("affine", copies.copied(checked))]


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
    nn.Conv1d: lambda m: convolved(m, conv1d),
    nn.Conv2d: lambda m: convolved(m, affine.conv),
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
    nn.ZeroPad1d: _pad(),
    nn.ZeroPad2d: _pad(),
    nn.ConstantPad1d: _pad(),
    nn.ConstantPad2d: _pad(),
    nn.ReflectionPad1d: _pad("reflect"),
    nn.ReflectionPad2d: _pad("reflect"),
    nn.ReplicationPad1d: _pad("replicate"),
    nn.ReplicationPad2d: _pad("replicate"),
    nn.CircularPad1d: _pad("circular"),
    nn.CircularPad2d: _pad("circular"),
    nn.Upsample: lambda m: resized(m.size, m.scale_factor, m.mode, m.recompute_scale_factor),
    nn.PixelShuffle: lambda m: pixels(F.pixel_shuffle, m.upscale_factor),
    nn.PixelUnshuffle: lambda m: pixels(F.pixel_unshuffle, m.downscale_factor),
    nn.ChannelShuffle: lambda m: pixels(F.channel_shuffle, m.groups),
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout1d: _nothing,
    nn.Dropout2d: _nothing,
    nn.Dropout3d: _nothing,
    nn.AlphaDropout: _nothing,
    nn.FeatureAlphaDropout: _nothing,
    nn.ReLU: lambda m: [RELU],
    nn.LeakyReLU: lambda m: leaky(m.negative_slope),
    nn.PReLU: lambda m: leaky(lambda: m.weight),
    nn.RReLU: lambda m: leaky((m.lower + m.upper) / 2),
    nn.ReLU6: lambda m: clamped(0, 6),
    nn.Hardtanh: lambda m: clamped(m.min_val, m.max_val),
    nn.Sigmoid: lambda m: [("smooth", smooth.SIGMOID)],
    nn.Tanh: lambda m: [("smooth", smooth.TANH)],
    nn.SiLU: lambda m: [("smooth", smooth.SILU)],
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.ELU: lambda m: _elu(m.alpha),
    nn.CELU: lambda m: _of_scaled(1 / m.alpha if m.alpha else math.inf, f"alpha {m.alpha}", smooth.ELU),
    nn.SELU: lambda m: [("smooth", smooth.SELU)],
    nn.Mish: lambda m: [("smooth", smooth.MISH)],
    nn.Hardswish: lambda m: [("smooth", smooth.HARDSWISH)],
    nn.Softplus: _softplus,
    nn.LogSigmoid: lambda m: [TIMES_MINUS_1, ("smooth", smooth.SOFTPLUS), TIMES_MINUS_1],
    nn.Softsign: lambda m: [("smooth", smooth.SOFTSIGN)],
    nn.Tanhshrink: lambda m: [("smooth", smooth.TANHSHRINK)],
    nn.Threshold: _threshold,
    nn.Hardsigmoid: _hardsigmoid,
    nn.Softshrink: _softshrink,
}
"""The layers of torch that bounds support, and the nodes of each."""
