"""The functions, methods and operators of torch that bounds read, and the nodes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from atent.certify import affine, copies
from atent.certify.affine import dims
from atent.certify.arguments import Like, Parts, Size
from atent.certify.convolution import conv1d, transposed
from atent.certify.names import DROPOUTS, EXTREMES, SUMS
from atent.certify.operators import (
    LAYERS,
    RELU,
    TIMES_MINUS_1,
    Cast,
    Fork,
    Known,
    clamped,
    flattened,
    leaky,
    times,
    unflattened,
)


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
        return [("affine", affine.total(_integers(dims(dim)), keepdim=keepdim, mean=mean))]

    return known


# -- copies


def _integers(numbers: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(number) is int for number in numbers):
        raise TypeError
    return tuple(numbers)


def _within(move: Callable[[Tensor], Tensor], places: Any, others: Sequence[Any] = (), *, more: int = 0) -> Known:
    """A copy that acts on the dimensions ``places`` and has ``others`` as further arguments; see `copies.within`."""
    _integers(others)
    return [("affine", copies.within(move, _integers(dims(places)), more=more))]


def _flatten(z: int, start_dim: Any = 0, end_dim: Any = -1) -> Known:
    if start_dim == 0:
        raise TypeError
    return flattened(*_integers((start_dim, end_dim)))


def _unflatten(z: int, dim: Any, sizes: Any) -> Known:
    _integers((dim,))
    return unflattened(dim, _integers(sizes))


def _permute(z: int, *order: Any, dims: Any = None) -> Known:
    order = dims or (order[0] if len(order) == 1 else order)
    # The dimension that is left for the first place is that of the samples.
    return _within(lambda t: t.permute(order), order[1:], order[:1])


def _parted(slices: Callable[[Tensor, Any, int], Sequence[Tensor]]) -> Callable[..., Parts]:
    """A function that cuts its input into parts; how is its first argument."""

    def parts(z: int, *given: Any, dim: Any = 0, **named: Any) -> Parts:
        how, dim, *_ = (*given, *named.values(), dim)
        _integers((*dims(how), dim))
        if dim == 0:
            raise ValueError(affine.SAMPLES)
        return Parts(z, dim, lambda t: slices(t, how, dim))

    return parts


def _unbind(z: int, dim: Any = 0) -> Parts:
    return _parted(lambda t, _, dim: t.unbind(dim))(z, (), dim)


def _reshape(z: int, *sizes: Any) -> Known:
    first, *rest = (sizes[0] if sizes and isinstance(sizes[0], tuple) else sizes) or (None,)
    own = [side for side in rest if isinstance(side, Size) and side.of == z and side.number]
    numbers = [side for side in rest if type(side) is int]
    samples = (isinstance(first, Size) and first.samples) or (first == -1 and all(side > 0 for side in numbers))
    if not rest or not samples or len(own) + len(numbers) < len(rest):
        raise TypeError
    if len(rest) == 1 and isinstance(rest[0], int):
        return [("affine", affine.flatten(None if rest[0] == -1 else rest[0]))]
    return [("affine", copies.reshaped([side.side if isinstance(side, Size) else side for side in rest]))]


def _index(z: int, index: Any) -> Known:
    return [("affine", copies.sliced(index))]


def _pad(z: int, pad: Any, mode: str = "constant", value: Any = None) -> Known:
    return [("affine", copies.padded(pad, mode, value))]


def _cast(z: int, *arguments: Any, **options: Any) -> Known:
    """`Tensor.to`: a dtype is noted; a device or a layout of memory changes no value."""
    known: Known = []
    for given in (*arguments, *options.values()):
        if isinstance(given, torch.dtype):
            dtype: torch.dtype | None = given
        elif callable(given):  # a constant
            dtype = given().dtype
        elif isinstance(given, Like):
            dtype = given.dtype()
        elif given is None or isinstance(given, bool | str | torch.device | torch.memory_format | fx.Node):
            dtype = None
        else:
            raise TypeError
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"a cast to {dtype}: use float32 or float64")
        known += [] if dtype is None else [Cast(dtype)]
    return known


def _type(z: int, dtype: Any) -> Known:
    if isinstance(dtype, str):  # of torch.Tensor.to it is a device
        raise TypeError
    return _cast(z, dtype)


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


def _convolved(make: Callable[[Any], affine.Affine], sides: int) -> Callable[..., Known]:
    def known(z: int, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
              groups: int = 1, *, output_padding: Any = 0) -> Known:  # fmt: skip
        _constants(weight, bias)
        each = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
        layer = _Arguments(
            weight=weight, bias=bias, groups=groups, padding_mode="zeros",
            kernel_size=lambda: tuple(weight().shape[2:]), in_channels=lambda: weight().shape[1] * groups,
            **{name: _sides(value, sides) for name, value in each.items()},
        )  # fmt: skip
        return [("affine", make(layer))]

    return known


def _unconvolved(sides: int) -> Callable[..., Known]:
    convolved = _convolved(transposed, sides)

    def known(z: int, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
              groups: int = 1, dilation: Any = 1) -> Known:  # fmt: skip
        return convolved(z, weight, bias, stride, padding, dilation, groups, output_padding=output_padding)

    return known


def _sides(value: Any, sides: int) -> Any:
    """A setting of a convolution as its layer has it: a number for each side, or the name of a padding."""
    if isinstance(value, str):
        return value
    each = _integers(dims(value))
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
    "rrelu": _randomized,
    "relu6": _as(nn.ReLU6),
    "hardtanh": _as(nn.Hardtanh),
    "threshold": _as(nn.Threshold),
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
    "avg_pool1d": _as(nn.AvgPool1d),
    "avg_pool2d": _average,
    "max_pool1d": _as(nn.MaxPool1d),
    "max_pool2d": _as(nn.MaxPool2d),
    "adaptive_avg_pool1d": _as(nn.AdaptiveAvgPool1d),
    "adaptive_avg_pool2d": _as(nn.AdaptiveAvgPool2d),
    "mean": _total(mean=True),
    "sum": _total(mean=False),
    "positive": lambda z: [],
    "clone": lambda z, memory_format=None: [],
    "contiguous": lambda z, memory_format=None: [],
    "to": _cast,
    "type": _type,
    "type_as": lambda z, other: _cast(z, other),
    "float": lambda z, memory_format=None: [Cast(torch.float32)],
    "double": lambda z, memory_format=None: [Cast(torch.float64)],
    "getitem": _index,
    "pad": _pad,
    "flatten": _flatten,
    "reshape": _reshape,
    "unflatten": _unflatten,
    "permute": _permute,
    "transpose": lambda z, dim0, dim1: _within(lambda t: t.transpose(dim0, dim1), (dim0, dim1)),
    "mT": lambda z: _within(lambda t: t.mT, (-2, -1)),
    "movedim": lambda z, source, destination: _within(
        lambda t: t.movedim(source, destination), (*dims(source), *dims(destination))
    ),
    "squeeze": lambda z, dim: _within(lambda t: t.squeeze(dim), dim),
    "unsqueeze": lambda z, dim: _within(lambda t: t.unsqueeze(dim), dim, more=1),
    "select": lambda z, dim, index: _within(lambda t: t.select(dim, index), dim, (index,)),
    "narrow": lambda z, dim, start, length: _within(lambda t: t.narrow(dim, start, length), dim, (start, length)),
    "chunk": _parted(torch.chunk),
    "split": _parted(torch.split),
    "tensor_split": _parted(torch.tensor_split),
    "unbind": _unbind,
    "linear": _linear,
    "matmul": _matmul,
    "conv1d": _convolved(conv1d, 1),
    "conv2d": _convolved(affine.conv, 2),
    "conv_transpose1d": _unconvolved(1),
    "conv_transpose2d": _unconvolved(2),
    "batch_norm": _batch_norm,
}
_FORMS = {
    "flatten": "flatten(1)", "reshape": "view(n, -1) with n = x.shape[0], x's own sizes or fixed sides",
    "squeeze": "squeeze(dim)", "mean": "dimensions of a sample", "sum": "dimensions of a sample",
    "max": "max(x, constant)", "min": "min(x, constant)",
}  # fmt: skip
"""What bounds read of a function that they do not read in every form."""
