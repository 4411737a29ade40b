"""The functions, methods and operators of torch that bounds read, and the nodes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from atent.certify import affine
from atent.certify.affine import dims
from atent.certify.arguments import Parts, Size
from atent.certify.convolution import conv1d, transposed
from atent.certify.names import DROPOUTS, EXTREMES, SUMS
from atent.certify.operators import (
    LAYERS,
    RELU,
    TIMES_MINUS_1,
    Fork,
    Known,
    clamped,
    convolved,
    leaky,
    times,
)
from atent.certify.shapes import SHAPES, integers


def function(meaning: str, arguments: Sequence[Any], options: dict[str, Any]) -> Known | Parts | None:
    """The nodes, or the parts, of what has that meaning; None where bounds do not support it.

    Of the arguments, the first activation is given as the position of its node, another one as its step in the trace, a
    constant as a function that returns it, and a size as a `Size`.

    Raises
    ------
    ValueError
        For arguments that bounds cannot read; the text is the end of a sentence.
    """
    make = FUNCTIONS.get(meaning)
    if make is None:
        return None
    first = arguments[0] if arguments else None
    if meaning in EXTREMES and len(arguments) == 2 and callable(first):
        arguments = arguments[::-1]
    elif type(first) is not int:
        raise ValueError("a constant before its input, which bounds read of sums, products, maxima and minima alone")
    try:
        return make(*arguments, **options)
    except (TypeError, AssertionError):  # layers assert their settings
        form = _FORMS.get(meaning)
        raise ValueError("arguments that bounds cannot read" + f": use {form}" * bool(form)) from None


def arithmetic(meaning: str, constant: Callable[[], Tensor], factor: float, *, constant_first: bool) -> Known | None:
    """The nodes of a sum or a product with a constant, whose second operand is multiplied by ``factor``; None for a
    quotient by activations."""
    if meaning in SUMS and constant_first:
        return [*([] if factor == 1 else [times(factor)]), ("affine", affine.shifted(constant))]
    if meaning in SUMS:
        return [("affine", affine.shifted(constant if factor == 1 else lambda: factor * constant()))]
    if meaning == "mul":
        return [("affine", affine.scaled(constant))]
    return None if constant_first else [("affine", affine.scaled(constant, divided=True))]


# -- activations and pooling


def _as(kind: Callable[..., nn.Module]) -> Callable[..., Known]:
    """A function whose arguments, after its input, are those of its layer."""

    def known(z: int, *arguments: Any, **options: Any) -> Known:
        if any(callable(given) or isinstance(given, fx.Node) for given in (*arguments, *options.values())):
            raise TypeError
        layer = kind(*arguments, **options)
        if not isinstance(getattr(layer, "inplace", False), bool):  # another argument of a function of torch._C
            raise TypeError
        return LAYERS[type(layer)](layer)

    return known


def _randomized(
    z: int, lower: float = 1 / 8, upper: float = 1 / 3, training: Any = False, inplace: Any = False
) -> Known:
    _refuse_random(training)
    return leaky((lower + upper) / 2)


def _dropout(trains: bool) -> Callable[..., Known]:
    def known(z: int, p: Any = 0.5, training: Any = trains, inplace: Any = False, *, train: Any = None) -> Known:
        if p != 0:
            _refuse_random(training if train is None else train)
        return []

    return known


def _refuse_random(training: Any) -> None:
    if training is not False:
        raise ValueError("random numbers in eval mode too: give it training=self.training")


def _prelu(z: int, weight: Any) -> Known:
    _constants(weight)
    return leaky(weight)


def _clamp(z: int, min: Any = None, max: Any = None) -> Known:
    return clamped(min, max)


def _extreme(largest: bool, either: bool = False) -> Callable[..., Known]:
    """`torch.maximum` or `torch.minimum` with a constant; ``either``: `torch.max`, of which a number is a dimension."""

    def known(z: int, other: Any) -> Known:
        if either and not callable(other):
            raise TypeError
        return clamped(other, None) if largest else clamped(None, other)

    return known


def _average(z: int, kernel_size: Any, *arguments: Any, **options: Any) -> Known:
    image = [slice(2, None), slice(-2, None)]
    if kernel_size in [*(Size(z, sides) for sides in image), (Size(z, 2), Size(z, 3)), (Size(z, -2), Size(z, -1))]:
        kernel_size, square = None, False
    elif kernel_size in [Size(z, side) for side in (2, 3, -2, -1)]:
        kernel_size, square = None, True
    if kernel_size is None and not arguments and not options:
        return [("affine", affine.total((-2, -1), keepdim=True, mean=True, square=square))]
    return _as(nn.AvgPool2d)(z, kernel_size, *arguments, **options)


def _total(mean: bool) -> Callable[..., Known]:
    def known(z: int, dim: Any, keepdim: Any = False, *, dtype: Any = None) -> Known:
        if dtype is not None or not isinstance(keepdim, bool):
            raise TypeError
        return [("affine", affine.total(integers(dims(dim)), keepdim=keepdim, mean=mean))]

    return known


# -- weights


class _Arguments:
    """The attributes that an affine map reads of a layer, from a function's arguments; constants at each access."""

    def __init__(self, **given: Any) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        given = self._given[name]
        return given() if callable(given) else given


def _constants(*given: Any) -> None:
    if not all(each is None or callable(each) for each in given):
        raise ValueError("weights that depend on the input: use parameters and buffers")


def _linear(z: int, weight: Any, bias: Any = None) -> Known:
    _constants(weight, bias)
    bias = None if bias is None else _shaped(bias, "a bias", "a vector", 0, 1)
    return [("affine", affine.linear(_Arguments(weight=_matrix(weight), bias=bias)))]


def _matmul(z: int, other: Any) -> Known:
    _constants(other)
    return _linear(z, lambda: _matrix(other)().mT)


def _matrix(constant: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return _shaped(constant, "a product with weights", "a matrix", 2)


def _shaped(constant: Callable[[], Tensor], what: str, form: str, *dims: int) -> Callable[[], Tensor]:
    """The constant; ValueError where its number of dimensions is none of ``dims``."""

    def get() -> Tensor:
        value = constant()
        if value.dim() not in dims:
            raise ValueError(f"{what} of shape {tuple(value.shape)}: use {form}")
        return value

    return get


def _convolved(nodes: Callable[[Any], Known], sides: int) -> Callable[..., Known]:
    def known(z: int, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
              groups: int = 1, *, output_padding: Any = 0) -> Known:  # fmt: skip
        _constants(weight, bias)
        each = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
        layer = _Arguments(
            weight=weight, bias=bias, groups=groups, padding_mode="zeros",
            kernel_size=lambda: tuple(weight().shape[2:]), in_channels=lambda: weight().shape[1] * groups,
            **{name: _sides(value, sides) for name, value in each.items()},
        )  # fmt: skip
        return nodes(layer)

    return known


def _unconvolved(sides: int) -> Callable[..., Known]:
    forward = _convolved(lambda layer: [("affine", transposed(layer))], sides)

    def known(z: int, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
              groups: int = 1, dilation: Any = 1) -> Known:  # fmt: skip
        return forward(z, weight, bias, stride, padding, dilation, groups, output_padding=output_padding)

    return known


def _sides(value: Any, sides: int) -> Any:
    """A setting of a convolution as its layer has it: a number for each side, or the name of a padding."""
    if isinstance(value, str):
        return value
    each = integers(dims(value))
    return each * sides if len(each) == 1 else each


def _batch_norm(z: int, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: Any = False, momentum: Any = 0.1, eps: float = 1e-5) -> Known:  # fmt: skip
    _constants(running_mean, running_var, weight, bias)
    if training is not False:
        raise ValueError("batch statistics in eval mode too: give it training=self.training")
    layer = _Arguments(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, eps=eps)
    return [("affine", affine.batch_norm(layer))]


FUNCTIONS: dict[str, Callable[..., Known | Parts]] = {
    **{name: _dropout(trains) for name, trains in DROPOUTS.items()},
    "neg": lambda z: [TIMES_MINUS_1],
    "abs": lambda z: [Fork([RELU], [TIMES_MINUS_1, RELU])],
    "relu": lambda z, inplace=False: [RELU],
    "leaky_relu": _as(nn.LeakyReLU),
    "prelu": _prelu,
    "rrelu": _randomized,
    "relu6": _as(nn.ReLU6),
    "hardtanh": _as(nn.Hardtanh),
    "threshold": _as(nn.Threshold),
    "hardsigmoid": _as(nn.Hardsigmoid),
    "softshrink": _as(nn.Softshrink),
    "clamp": _clamp,
    "clamp_min": lambda z, min: clamped(min, None),
    "clamp_max": lambda z, max: clamped(None, max),
    "maximum": _extreme(True),
    "minimum": _extreme(False),
    "max": _extreme(True, either=True),
    "min": _extreme(False, either=True),
    "sigmoid": _as(nn.Sigmoid),
    "tanh": _as(nn.Tanh),
    "silu": _as(nn.SiLU),
    "gelu": _as(nn.GELU),
    "elu": _as(nn.ELU),
    "celu": _as(nn.CELU),
    "selu": _as(nn.SELU),
    "mish": _as(nn.Mish),
    "hardswish": _as(nn.Hardswish),
    "softplus": _as(nn.Softplus),
    "logsigmoid": _as(nn.LogSigmoid),
    "softsign": _as(nn.Softsign),
    "tanhshrink": _as(nn.Tanhshrink),
    "avg_pool1d": _as(nn.AvgPool1d),
    "avg_pool2d": _average,
    "max_pool1d": _as(nn.MaxPool1d),
    "max_pool2d": _as(nn.MaxPool2d),
    "adaptive_avg_pool1d": _as(nn.AdaptiveAvgPool1d),
    "adaptive_avg_pool2d": _as(nn.AdaptiveAvgPool2d),
    "mean": _total(mean=True),
    "sum": _total(mean=False),
    **SHAPES,
    "linear": _linear,
    "matmul": _matmul,
    "conv1d": _convolved(lambda layer: convolved(layer, conv1d), 1),
    "conv2d": _convolved(lambda layer: convolved(layer, affine.conv), 2),
    "conv_transpose1d": _unconvolved(1),
    "conv_transpose2d": _unconvolved(2),
    "batch_norm": _batch_norm,
}
_FORMS = {
    "flatten": "flatten(1)", "reshape": "view(n, -1) with n = x.shape[0], x's own sizes or fixed sides",
    "squeeze": "squeeze(dim)", "mean": "dimensions of a sample", "sum": "dimensions of a sample",
    "max": "max(x, constant)", "min": "min(x, constant)", "repeat_interleave": "repeat_interleave(number, dim)",
    "expand": "x's own sizes, -1 or fixed sides",
}  # fmt: skip
"""What bounds read of a function that they do not read in every form."""
