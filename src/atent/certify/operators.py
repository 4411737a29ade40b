"""The nodes of the layers and functions of torch."""

from __future__ import annotations

from collections.abc import Callable
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


Known = list["tuple[Kind, Any] | Fork"]
"""The sequence of nodes of a layer; empty for an identity."""

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)


def times(number: float) -> tuple[Kind, Any]:
    return "affine", affine.scaled(lambda: torch.tensor(number, dtype=torch.float64))


def _plus(number: float) -> tuple[Kind, Any]:
    return "affine", affine.shifted(lambda: torch.tensor(number, dtype=torch.float64))


RELU: tuple[Kind, Any] = ("relu", None)
TIMES_MINUS_1 = times(-1.0)
DROPOUTS = {"dropout": True, "dropout1d": True, "dropout2d": True, "dropout3d": True, "feature_dropout": True,
            "alpha_dropout": False, "feature_alpha_dropout": False}  # fmt: skip
"""The functions that return their input unless they are told that they train, and whether they are by default."""


def leaky(slope: float = 0.01) -> Known:
    """a z + (1 - a) relu(z): the lines of the ReLU give those of the leaky ReLU, and they are as tight."""
    return [Fork([times(slope)], [RELU, times(1 - slope)])]


def _randomized(
    z: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: Any = False, inplace: Any = False
) -> Known:
    """The randomised leaky ReLU, whose slope is the mean one in eval mode."""
    _refuse_random(training)
    return leaky((lower + upper) / 2)


def _dropout(trains: bool) -> Callable[..., Known]:
    def known(z: Any, p: Any = 0.5, training: Any = trains, inplace: Any = False, *, train: Any = None) -> Known:
        if p != 0:
            _refuse_random(training if train is None else train)
        return []

    return known


def _refuse_random(training: Any) -> None:
    if training is not False:
        raise ValueError("random numbers in eval mode too: give it training=self.training")


def clamped(low: float | None, high: float | None) -> Known:
    """max(z, low) = low + relu(z - low), then min(z, high) = high - relu(high - z): intervals remain exact."""
    for side in (low, high):
        if side is not None and not isinstance(side, (int, float)):
            raise ValueError("limits that are not numbers: use numbers")
    if low is not None and high is not None and low > high:
        raise ValueError(f"limits {low} > {high}: use low <= high")
    known: Known = []
    if low is not None:
        known += [RELU] if low == 0 else [_plus(-float(low)), RELU, _plus(float(low))]
    if high is not None:
        known += [TIMES_MINUS_1, _plus(float(high)), RELU, TIMES_MINUS_1, _plus(float(high))]
    return known


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
    if m.dim != 1 or not all(isinstance(side, int) for side in m.unflattened_size):
        raise ValueError("a dimension other than 1, or named sizes: use Unflatten(1, sizes)")
    sizes = [int(side) for side in m.unflattened_size]
    return [("affine", copies.copied(lambda z: z.unflatten(1, sizes)))]


def _pool(m: nn.MaxPool2d) -> Known:
    if m.ceil_mode or m.return_indices:
        raise ValueError("ceil_mode or return_indices: omit both")
    return [("maxpool", m)]


def _global(m: nn.AdaptiveAvgPool2d) -> Known:
    if m.output_size not in (1, (1, 1)):
        raise ValueError(f"output size {m.output_size}: use 1, the mean over the image")
    return [("affine", affine.mean(True))]


def _flat(m: nn.Flatten) -> Known:
    if (m.start_dim, m.end_dim) != (1, -1):
        raise ValueError("start_dim or end_dim: omit both")
    return [("affine", affine.flatten())]


def _nothing(m: nn.Module) -> Known:
    return []


LAYERS: dict[type[nn.Module], Callable[[Any], Known]] = {
    nn.Linear: lambda m: [("affine", affine.linear(m))],
    nn.Conv1d: lambda m: [("affine", conv1d(m))],
    nn.Conv2d: lambda m: [("affine", affine.conv(m))],
    nn.ConvTranspose1d: lambda m: [("affine", transposed(m))],
    nn.ConvTranspose2d: lambda m: [("affine", transposed(m))],
    nn.AvgPool2d: lambda m: [("affine", affine.average(m))],
    nn.BatchNorm1d: lambda m: [("affine", affine.batch_norm(m))],
    nn.BatchNorm2d: lambda m: [("affine", affine.batch_norm(m))],
    nn.MaxPool2d: _pool,
    nn.AdaptiveAvgPool2d: _global,
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
    nn.RReLU: lambda m: _randomized(None, m.lower, m.upper),
    nn.ReLU6: lambda m: clamped(0, 6),
    nn.Hardtanh: lambda m: clamped(m.min_val, m.max_val),
    nn.Sigmoid: lambda m: [("smooth", smooth.SIGMOID)],
    nn.Tanh: lambda m: [("smooth", smooth.TANH)],
    nn.SiLU: lambda m: [("smooth", smooth.SILU)],
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.ELU: lambda m: _elu(m.alpha),
}
"""The layers of torch that bounds support, and the nodes of each."""


@dataclass(frozen=True)
class _Weights:
    """The attributes that `affine.linear` and `affine.conv` read of a layer, for a function with weight arguments."""

    read_weight: Callable[[], Tensor]
    read_bias: Callable[[], Tensor] | None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def weight(self) -> Tensor:
        return self.read_weight()

    @property
    def bias(self) -> Tensor | None:
        return None if self.read_bias is None else self.read_bias()

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1] * self.groups


def _weighed(make: Callable[[Any], affine.Affine]) -> Callable[..., Known]:
    def known(z: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
              groups: int = 1) -> Known:  # fmt: skip
        if not callable(weight) or not (bias is None or callable(bias)):
            raise ValueError("weights that depend on the input: use parameters and buffers")
        layer = _Weights(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)
        return [("affine", make(layer))]

    return known


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


def _index(z: Any, index: Any) -> Known:
    return [("affine", copies.sliced(index))]


def _pad(z: Any, pad: Any, mode: str = "constant", value: Any = None) -> Known:
    return [("affine", copies.padded(pad, mode, value))]


def _clamp(z: Any, min: Any = None, max: Any = None) -> Known:
    return clamped(min, max)


_FUNCTIONS: dict[str, Callable[..., Known]] = {
    **{name: _dropout(trains) for name, trains in DROPOUTS.items()},
    "neg": lambda z: [TIMES_MINUS_1],
    "abs": lambda z: [Fork([RELU], [TIMES_MINUS_1, RELU])],
    "contiguous": lambda z: [],
    "getitem": _index,
    "pad": _pad,
    "leaky_relu": lambda z, negative_slope=0.01, inplace=False: leaky(negative_slope),
    "rrelu": _randomized,
    "relu6": lambda z, inplace=False: clamped(0, 6),
    "hardtanh": lambda z, min_val=-1.0, max_val=1.0, inplace=False: clamped(min_val, max_val),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda z, min: clamped(min, None),
    "clamp_max": lambda z, max: clamped(None, max),
    "sigmoid": lambda z: [("smooth", smooth.SIGMOID)],
    "tanh": lambda z: [("smooth", smooth.TANH)],
    "silu": lambda z, inplace=False: [("smooth", smooth.SILU)],
    "gelu": lambda z, approximate="none": _gelu(approximate),
    "linear": lambda z, weight, bias=None: _weighed(affine.linear)(z, weight, bias),
    "conv2d": _weighed(affine.conv),
    "elu": lambda z, alpha=1.0, inplace=False: _elu(alpha),
}


def function(name: str, arguments: list[Any], options: dict[str, Any]) -> Known | None:
    """The nodes of a function or a tensor's method of that name; None where bounds do not support it.

    Raises
    ------
    ValueError
        For arguments that bounds cannot read; the text is the end of a sentence.
    """
    make = _FUNCTIONS.get(name)
    return None if make is None else make(*arguments, **options)
