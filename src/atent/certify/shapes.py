"""The functions of torch that copy, order or reshape the entries of a sample, and the nodes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from atent.certify import affine, copies
from atent.certify.affine import dims
from atent.certify.arguments import Like, Parts, Size
from atent.certify.operators import Cast, Known, flattened, pixels, resized, unflattened


def integers(numbers: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(number) is int for number in numbers):
        raise TypeError
    return tuple(numbers)


def _within(move: Callable[[Tensor], Tensor], places: Any, others: Sequence[Any] = (), *, more: int = 0) -> Known:
    """A copy that acts on the dimensions ``places`` and has ``others`` as further arguments; see `copies.within`."""
    integers(others)
    return [("affine", copies.within(move, integers(dims(places)), more=more))]


def _flatten(z: int, start_dim: Any = 0, end_dim: Any = -1) -> Known:
    if start_dim == 0:
        raise TypeError
    return flattened(*integers((start_dim, end_dim)))


def _unflatten(z: int, dim: Any, sizes: Any) -> Known:
    integers((dim,))
    return unflattened(dim, integers(sizes))


def _listed(given: Sequence[Any]) -> Sequence[Any]:
    """Numbers that a method takes one by one or as one sequence."""
    return given[0] if len(given) == 1 and isinstance(given[0], tuple) else given


def _permute(z: int, *order: Any, dims: Any = None) -> Known:
    order = tuple(_listed(order if dims is None else (dims,)))
    # The dimension that is left for the first place is that of the samples.
    return _within(lambda t: t.permute(order), order[1:], order[:1])


def _parted(slices: Callable[[Tensor, Any, int], Sequence[Tensor]]) -> Callable[..., Parts]:
    """A function that cuts its input into parts; how is its first argument."""

    def parts(z: int, *given: Any, dim: Any = 0, **named: Any) -> Parts:
        how, dim, *_ = (*given, *named.values(), dim)
        integers((*dims(how), dim))
        if dim == 0:
            raise ValueError(affine.SAMPLES)
        return Parts(z, dim, lambda t: slices(t, how, dim))

    return parts


def _unbind(z: int, dim: Any = 0) -> Parts:
    return _parted(lambda t, _, dim: t.unbind(dim))(z, (), dim)


def _reshape(z: int, *sizes: Any) -> Known:
    first, *rest = _listed(sizes) or (None,)
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


def _repeat(z: int, *sizes: Any, repeats: Any = None) -> Known:
    times = integers(_listed(sizes if repeats is None else (repeats,)))
    if times[:1] != (1,):
        raise ValueError("repeats of the samples, which bounds treat separately: use 1 for the first dimension")

    def move(t: Tensor) -> Tensor:
        if len(times) > t.dim():  # the first would be that of a new dimension
            raise ValueError(f"{len(times)} repeats of values with {t.dim()} dimensions: use one for each dimension")
        return t.repeat(times)

    return [("affine", copies.copied(move, often=True))]


def _repeat_each(z: int, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Known:
    if type(repeats) is not int or dim is None or output_size is not None:
        raise TypeError
    return [("affine", copies.within(lambda t: t.repeat_interleave(repeats, dim), integers((dim,)), often=True))]


def _expand(z: int, *sizes: Any) -> Known:
    first, *rest = _listed(sizes)
    if not (first == -1 or (isinstance(first, Size) and first.samples)):
        raise ValueError("sizes that change the number of samples: use -1 for the first dimension")
    if not all(type(side) is int or (isinstance(side, Size) and side.of == z and side.number) for side in rest):
        raise TypeError

    def move(t: Tensor) -> Tensor:
        if len(rest) + 1 > t.dim():
            raise ValueError(f"{len(rest) + 1} sizes of values with {t.dim()} dimensions: use one for each dimension")
        return t.expand(-1, *(side.side(t) if isinstance(side, Size) else side for side in rest))

    return [("affine", copies.copied(move, often=True))]


def _flip(z: int, *turned: Any, dims: Any = None) -> Known:
    places = integers(_listed(turned if dims is None else (dims,)))
    return _within(lambda t: t.flip(places), places)


def _roll(z: int, shifts: Any, dims: Any = None) -> Known:
    if dims in (None, ()):
        raise ValueError("entries that move from one sample to another: use dims")
    integers(affine.dims(shifts))
    return _within(lambda t: t.roll(shifts, dims), dims)


def _interpolate(z: int, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
                 recompute_scale_factor: Any = None, antialias: Any = False) -> Known:  # fmt: skip
    given = [*_listed((size,)), *_listed((scale_factor,))]
    if any(type(each) not in (int, float, type(None)) for each in given) or align_corners is not None or antialias:
        raise TypeError
    return resized(size, scale_factor, mode, recompute_scale_factor)


def _shuffle(move: Callable[[Tensor, int], Tensor]) -> Callable[..., Known]:
    def known(z: int, *number: Any, **named: Any) -> Known:
        return pixels(move, *integers((*number, *named.values())))

    return known


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


SHAPES: dict[str, Callable[..., Known | Parts]] = {
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
    "expand": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_each,
    "flip": _flip,
    "fliplr": lambda z: _flip(z, 1),
    "roll": _roll,
    "interpolate": _interpolate,
    "pixel_shuffle": _shuffle(F.pixel_shuffle),
    "pixel_unshuffle": _shuffle(F.pixel_unshuffle),
    "channel_shuffle": _shuffle(F.channel_shuffle),
}
