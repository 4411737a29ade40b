"""Affine layers z -> W z + b for bounds, with W, |W|, its squared entries and W^T as functions, never as matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Entrywise = Callable[[Tensor], Tensor]


def plain(w: Tensor) -> Tensor:
    """W itself; ``torch.abs`` gives |W| and ``torch.square`` its squared entries."""
    return w


@dataclass(frozen=True)
class Windows:
    """W^T on windows of an image, the same at every position."""

    transpose: Callable[[Tensor], Tensor | None]
    """a (n, s, c, h, w) -> W^T a on the window that a depends on; None where W depends on the position."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    kernel: tuple[int, int] = (1, 1)
    """Height and width of the receptive field of one output."""


@dataclass(frozen=True)
class Affine:
    """The map z -> W z + b of one sample. Weights are read at each call, so that training changes it."""

    apply: Callable[[Tensor, Entrywise], Tensor]
    """(z (n, ...), f) -> f(W) z (n, ...), f applied to each entry of W: `plain`, ``torch.abs`` or ``torch.square``.
    Computed in the dtype of z, as is W itself where it is computed from several parameters."""
    transpose: Callable[[Tensor, torch.Size], Tensor]
    """(a (n, s, ...), shape of one input) -> W^T a (n, s, *shape)."""
    offset: Callable[[int, torch.dtype, Entrywise], Tensor | None]
    """(number of dimensions of one output sample, dtype, f) -> b, broadcastable to the output, f applied to each of the
    terms whose sum is b; None: no b."""
    roundings: Callable[[torch.Size], tuple[int, int]]
    """Shape of one input -> the largest number of roundings of a term of one output of W z + b, and of one entry of
    W^T a, for every order of summation."""
    mixes: bool = True
    """Whether an output may depend on several inputs; False: W has at most one entry per row."""
    repeats: bool = False
    """Whether an input may be copied to several outputs, without ``mixes``."""
    windows: Windows | None = None
    """For layers whose W^T can act on a part of an image."""
    cached: Callable[[], Affine] | None = None
    """The same map with a cache of what it computes from its weights; None where that is cheap."""


Cache = dict[Any, Tensor]
"""What a layer caches during one call of the bounds."""


def _cached(cache: Cache | None, key: Any, make: Callable[[], Tensor]) -> Tensor:
    if cache is None:
        return make()
    if key not in cache:
        cache[key] = make()
    return cache[key]


def linear(m: Any, cache: Cache | None = None) -> Affine:
    """x W^T + b on the last dimension, for ``nn.Linear`` or what has its attributes."""

    def weight(dtype: torch.dtype) -> Tensor:
        return _cached(cache, dtype, lambda: m.weight.to(dtype))

    return Affine(
        lambda z, of: F.linear(z, of(weight(z.dtype))),
        lambda a, shape: a @ weight(a.dtype),
        lambda dims, dtype, of: None if m.bias is None else of(m.bias.to(dtype)),
        lambda shape: (m.weight.shape[1] + 1, m.weight.shape[0]),
        cached=lambda: linear(m, {}),
    )


def conv(m: nn.Conv2d, padding: tuple[int, ...], cache: Cache | None = None) -> Affine:
    """A convolution with ``padding`` zeros at both ends of each side, and its transpose."""
    padding, stride, dilation = _two(padding), _two(m.stride), _two(m.dilation)
    high, wide = (d * (k - 1) + 1 for k, d in zip(m.kernel_size, dilation))

    def weight(dtype: torch.dtype) -> Tensor:
        return _cached(cache, dtype, lambda: m.weight.to(dtype))

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        return F.conv2d(z, of(weight(z.dtype)), None, stride, padding, dilation, m.groups)

    def spread(rows: Tensor, padding: tuple[int, int], shape: Sequence[int]) -> Tensor:
        """W^T of rows (n, c, h, w) in an image with sides ``shape``."""
        if rows.is_cuda or m.groups > 1 or rows.dtype != torch.float64:
            rest = _rest(shape, rows, m.kernel_size, stride, padding, dilation)
            return F.conv_transpose2d(rows, weight(rows.dtype), None, stride, padding, rest, m.groups, dilation)
        # On a CPU torch has no fast transpose in float64: one product for all rows, and overlaps are added.
        matrix = _cached(cache, ("matrix", rows.dtype), lambda: weight(rows.dtype).flatten(1).T.contiguous())
        parts = torch.bmm(matrix.expand(len(rows), -1, -1), rows.flatten(2))
        return F.fold(parts, tuple(shape[-2:]), m.kernel_size, dilation, padding, stride)

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        back: Tensor = spread(a.flatten(0, 1), padding, shape).unflatten(0, a.shape[:2])
        return back

    def window(a: Tensor) -> Tensor:
        rows = a.flatten(0, 1)
        h, w = stride[0] * (a.shape[-2] - 1) + high, stride[1] * (a.shape[-1] - 1) + wide
        entries = a.shape[-2] * a.shape[-1]
        exact = rows.dtype == torch.float64 or not torch.is_grad_enabled()
        if cache is None or not exact or h * w > DENSE * math.prod(m.kernel_size):
            found = spread(rows, (0, 0), (h, w))
        else:
            # A small window: one product with all of W^T there, zeros included.
            def dense() -> Tensor:
                eye = torch.eye(a.shape[2] * entries, dtype=a.dtype, device=a.device)
                return spread(eye.view(-1, *a.shape[2:]), (0, 0), (h, w)).flatten(1)

            found = (rows.flatten(1) @ _cached(cache, (*a.shape[2:], a.dtype), dense)).view(
                len(rows), m.in_channels, h, w
            )
        back: Tensor = found.unflatten(0, a.shape[:2])
        return back

    def offset(dims: int, dtype: torch.dtype, of: Entrywise) -> Tensor | None:
        return None if m.bias is None else of(m.bias.to(dtype)).view(-1, 1, 1)

    def roundings(shape: torch.Size) -> tuple[int, int]:
        outputs, *window = m.weight.shape
        return math.prod(window) + 1, outputs // m.groups * math.prod(window[1:])

    windows = Windows(window, stride, padding, (high, wide))
    return Affine(apply, transpose, offset, roundings, windows=windows, cached=lambda: conv(m, padding, {}))


DENSE = 16
"""The largest ratio of the multiplications of a window's W^T as a dense matrix to those without its zeros."""


def average(m: nn.AvgPool2d) -> Affine:
    """Average pooling, as a convolution of each channel with 1 / k^2. ValueError for windows of changing size."""
    kernel, padding = _two(m.kernel_size), _two(m.padding)
    stride = _two(m.stride)
    if m.ceil_mode or (any(padding) and not m.count_include_pad):
        raise ValueError("windows of changing size: use ceil_mode=False and count_include_pad=True")
    value = 1 / (m.divisor_override or kernel[0] * kernel[1])

    def weight(like: Tensor) -> Tensor:
        return torch.full((1, 1, *kernel), value, dtype=like.dtype, device=like.device)

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        check_image(z.shape)
        planes = F.conv2d(z.flatten(0, 1).unsqueeze(1), of(weight(z)), None, stride, padding)
        out: Tensor = planes.squeeze(1).unflatten(0, z.shape[:2])
        return out

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        rows = a.flatten(0, 2).unsqueeze(1)
        rest = _rest(shape, a, kernel, stride, padding, (1, 1))
        rows = F.conv_transpose2d(rows, weight(a), None, stride, padding, rest)
        back: Tensor = rows.squeeze(1).unflatten(0, a.shape[:3])
        return back

    def window(a: Tensor) -> Tensor:
        rows = F.conv_transpose2d(a.flatten(0, 2).unsqueeze(1), weight(a), None, stride)
        back: Tensor = rows.squeeze(1).unflatten(0, a.shape[:3])
        return back

    # The weight 1 / k^2 is rounded too, or is a division afterwards.
    count = kernel[0] * kernel[1] + 2
    windows = Windows(window, stride, padding, kernel)
    return Affine(apply, transpose, _no_offset, lambda shape: (count, count), windows=windows)


SAMPLES = "a dimension of the samples, which bounds treat separately: use others"


def inner(dims: Sequence[int], count: int) -> list[int]:
    """The dimensions, of values with ``count`` of them, counted from the last. ValueError for that of the samples."""
    if not all(-count <= dim < count for dim in dims):
        raise IndexError(f"dimensions {', '.join(map(str, dims))} of values with {count}, the samples included")
    if any(dim % count == 0 for dim in dims):
        raise ValueError(SAMPLES)
    return [dim % count - count for dim in dims]


def check_image(shape: torch.Size) -> None:
    """ValueError where values (n, ...) are not images, of which torch would take the samples for channels."""
    if len(shape) != 4:
        raise ValueError(
            f"pooling or a shuffle of values of shape {tuple(shape[1:])}: bounds need (channels, height, width)"
        )


def total(over: Sequence[int], *, keepdim: bool, mean: bool, square: bool = False) -> Affine:
    """The sum, or the mean, over dimensions that are not that of the samples. ``square``: of square images alone."""
    if not over or 0 in over:  # no dimensions: all of them
        raise ValueError(SAMPLES)

    def count(shape: Sequence[int]) -> int:
        return math.prod(shape[place] for place in inner(over, len(shape)))

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        if square and z.shape[-2] != z.shape[-1]:
            raise ValueError(f"a square window of the side of an image of shape {tuple(z.shape[-2:])}: use fixed sides")
        out = z.sum(inner(over, z.dim()), keepdim=keepdim)
        return of(torch.full((), 1 / count(z.shape), dtype=z.dtype, device=z.device)) * out if mean else out

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        for place in sorted([] if keepdim else inner(over, len(shape) + 1), reverse=True):
            a = a.unsqueeze(place)
        return (a / count((1, *shape)) if mean else a).expand(*a.shape[:2], *shape)

    return Affine(
        apply, transpose, _no_offset, lambda shape: (count((1, *shape)) + 2, 1) if mean else (count((1, *shape)), 0)
    )


def dims(dim: int | Sequence[int]) -> tuple[int, ...]:
    """One dimension or several, as a tuple."""
    return (dim,) if isinstance(dim, int) else tuple(dim)


def vectors(t: Tensor, kept: int = 1) -> Tensor:
    """The entries of all dimensions but the first ones ``kept`` as one dimension; of none: one entry."""
    return t.reshape(*t.shape[:kept], t.shape[kept:].numel())


def flatten(width: int | None = None) -> Affine:
    """One vector per sample; ``width``: the length that the network's code gives."""

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        flat = vectors(z)
        if width is not None and flat.shape[1] != width:
            raise ValueError(f"the network reshapes {flat.shape[1]} values per sample into rows of {width}")
        return flat

    return Affine(apply, lambda a, shape: a.reshape(*a.shape[:2], *shape), _no_offset, _copied, mixes=False)


def batch_norm(m: Any) -> Affine:
    """``nn.BatchNorm1d`` or 2d in eval mode: running statistics. ValueError for one without them."""
    if m.running_mean is None or m.running_var is None:
        raise ValueError("batch statistics in eval mode: use track_running_stats=True")

    def scale(dtype: torch.dtype) -> Tensor:
        root = torch.sqrt(m.running_var.to(dtype) + m.eps)
        return 1 / root if m.weight is None else m.weight.to(dtype) / root

    def shift(dtype: torch.dtype, of: Entrywise) -> Tensor:
        moved = of(-m.running_mean.to(dtype) * scale(dtype))
        return moved if m.bias is None else of(m.bias.to(dtype)) + moved

    return Affine(
        lambda z, of: z * of(_fitting(_channels(scale(z.dtype), z.dim() - 1), z)),
        lambda a, shape: a * _channels(scale(a.dtype), len(shape)),
        lambda dims, dtype, of: _channels(shift(dtype, of), dims),
        # The sum with eps, the root, the quotient, and a product and a sum each for the mean and the offset; two spare.
        lambda shape: (9, 6),
        mixes=False,
        windows=Windows(lambda a: a * _channels(scale(a.dtype), 3)),
    )


def _channels(v: Tensor, dims: int) -> Tensor:
    """Numbers of the channels, the first of the ``dims`` dimensions of a sample, as they multiply its values."""
    return v.view(-1, *[1] * (dims - 1))


def scaled(constant: Callable[[], Tensor], *, divided: bool = False, channels: bool = False) -> Affine:
    """z times a constant of the network, or ``divided`` by it, entry by entry.

    ``channels``: the constant has one number for each channel, or one for all.
    """

    def factor(dtype: torch.dtype, dims: int) -> Tensor:
        value = constant().to(dtype)
        value = _channels(value, dims) if channels else value
        return 1 / value if divided else value

    def window(a: Tensor) -> Tensor | None:
        each = _one_sample(factor(a.dtype, 3), 3)
        return a * each if everywhere(each) else None

    return Affine(
        lambda z, of: z * of(_fitting(factor(z.dtype, z.dim() - 1), z)),
        lambda a, shape: a * _one_sample(factor(a.dtype, len(shape)), len(shape)),
        _no_offset,
        # The network's dtype may round the constant.
        lambda shape: (3, 3),
        mixes=False,
        windows=Windows(window),
    )


def shifted(constant: Callable[[], Tensor]) -> Affine:
    """z plus a constant of the network."""

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        _fitting(constant(), z)
        return z

    def offset(dims: int, dtype: torch.dtype, of: Entrywise) -> Tensor:
        return of(_one_sample(constant(), dims).to(dtype))

    return Affine(apply, lambda a, shape: a, offset, lambda shape: (2, 0), mixes=False, windows=Windows(plain))


def everywhere(constant: Tensor) -> bool:
    """Whether a constant for images (channels, rows, columns) is the same at all positions."""
    return all(side == 1 for side in constant.shape[-2:])


def _no_offset(dims: int, dtype: torch.dtype, of: Entrywise) -> None:
    return None


def _copied(shape: torch.Size) -> tuple[int, int]:
    return 0, 0


def _fitting(constant: Tensor, z: Tensor) -> Tensor:
    """The constant for one sample; ValueError where it would broadcast z (n, ...) or differ between samples."""
    constant = _one_sample(constant, z.dim() - 1)
    if torch.broadcast_shapes(constant.shape, z.shape[1:]) != z.shape[1:]:
        raise ValueError(
            f"constants of shape {tuple(constant.shape)} do not fit values of shape {tuple(z.shape[1:])}: expand the"
            " values first"
        )
    return constant


def _one_sample(constant: Tensor, dims: int) -> Tensor:
    """The constant without leading dimensions of 1, which broadcast over the batch."""
    while constant.dim() > dims and constant.shape[0] == 1:
        constant = constant[0]
    if constant.dim() > dims:
        raise ValueError(
            f"a constant of shape {tuple(constant.shape)} differs between samples: bounds treat each separately"
        )
    return constant


def _two(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def both_ends(m: Any) -> list[tuple[int, int]]:
    """The padding of a convolution at both ends of each side."""
    if not isinstance(m.padding, str):
        return [(side, side) for side in m.padding]
    totals = [0 if m.padding == "valid" else d * (k - 1) for d, k in zip(m.dilation, m.kernel_size)]
    return [(total // 2, total - total // 2) for total in totals]


def _rest(
    shape: Sequence[int],
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The rows and columns at the end outside all windows: the output padding of the transpose."""
    sides = zip(shape[-2:], a.shape[-2:], kernel, stride, padding, dilation)
    return [side - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for side, out, k, s, p, d in sides]
