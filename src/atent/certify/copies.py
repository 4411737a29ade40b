"""Operations that copy entries or insert zeros, as affine maps: slices, padding, reshaping; and `torch.cat`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify.affine import SAMPLES, Affine, Entrywise, inner


def copied(move: Callable[[Tensor], Tensor], *, often: bool = False) -> Affine:
    """The map ``move`` of (n, ...), whose matrix has at most one 1 in each row and column, and zeros elsewhere.

    |W| and the squared entries of W are W, and nothing is rounded in either direction. ``often``: an entry may be
    copied several times, so that columns have several ones, and entries of W^T a are sums.
    """

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        return move(z)

    def adjoint(rows: Tensor, shape: Sequence[int]) -> Tensor:
        # The adjoint of a linear map is its vector-Jacobian product at any point.
        back: Tensor = torch.func.vjp(move, rows.new_zeros(len(rows), *shape))[1](rows)[0]
        return back

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        back: Tensor = adjoint(a.flatten(0, 1), shape).unflatten(0, a.shape[:2])
        return back

    @functools.cache
    def roundings(shape: torch.Size) -> tuple[int, int]:
        if not often:
            return 0, 0
        one = torch.zeros(1, *shape, dtype=torch.float64, device="cpu")
        copies = adjoint(torch.ones_like(move(one)), shape)
        # One rounding forwards, of which there is none, lets the way back be counted.
        return 1, int(copies.max()) if copies.numel() else 0

    return Affine(apply, transpose, lambda dims, dtype, of: None, roundings, mixes=False, repeats=often)


def nearest(resize: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The map ``resize`` of images (n, channels, sides ...) to others, whose entries are copies, by their places.

    torch rounds the places in the dtype of the values, each kernel in its own way, and those of its derivative yet
    otherwise. ValueError where they are not the same in float32 and in float64.
    """

    # What is cached is for later calls too, which may need gradients.
    @functools.cache
    @torch.inference_mode(False)
    def places(sides: torch.Size, device: torch.device) -> tuple[Tensor, torch.Size]:
        # One channel for each dimension: a side is small enough for float32.
        grid = torch.stack(torch.meshgrid([torch.arange(side, device=device) for side in sides], indexing="ij"))[None]
        layouts = [grid.float(), grid.double()]
        if len(sides) == 2:
            layouts += [each.to(memory_format=torch.channels_last) for each in layouts]
        found, *others = (resize(each).long() for each in layouts)
        if not all(torch.equal(found, other) for other in others):
            raise ValueError(
                f"sides {tuple(sides)} resized to {tuple(found.shape[2:])}, at which the nearest values depend on the"
                " rounding of a dtype: use a whole scale factor"
            )
        steps = torch.tensor([sides[i + 1 :].numel() for i in range(len(sides))], device=device)
        return (found[0] * steps.view(-1, *[1] * len(sides))).sum(0).flatten(), found.shape[2:]

    def move(z: Tensor) -> Tensor:
        if z.dim() < 3:
            raise ValueError(f"values of shape {tuple(z.shape[1:])} resized: use (channels, length) or images")
        index, sides = places(z.shape[2:], z.device)
        resized: Tensor = z.flatten(2).index_select(2, index).unflatten(2, sides)
        return resized

    return move


def within(move: Callable[[Tensor], Tensor], dims: Sequence[int], *, more: int = 0, often: bool = False) -> Affine:
    """The map ``move`` of (n, ...), which acts on the dimensions ``dims`` alone, of values with ``more`` dimensions.

    ValueError, also of the map, where one of them is that of the samples. ``often``: see `copied`.
    """
    if 0 in dims:
        raise ValueError(SAMPLES)

    def checked(z: Tensor) -> Tensor:
        inner(dims, z.dim() + more)
        return move(z)

    return copied(checked, often=often)


def sliced(index: Any) -> Affine:
    """z[index] for slices, numbers and Ellipsis that keep all samples. ValueError for any other index."""
    parts = index if isinstance(index, tuple) else (index,)
    fixed = all(
        part is Ellipsis
        or part is None
        or (isinstance(part, int) and not isinstance(part, bool))
        or (isinstance(part, slice) and all(side is None or isinstance(side, int) for side in _sides(part)))
        for part in parts
    )
    if not fixed or not parts or parts[0] not in (slice(None), Ellipsis):
        raise ValueError("an index that bounds cannot read: use fixed slices and numbers after [:, ...]")

    def move(z: Tensor) -> Tensor:
        taken: Tensor = z[index]
        if parts[0] is Ellipsis and sum(part is not None for part in parts) > z.dim():
            raise ValueError("an index of the samples: begin with [:, ...]")
        return taken

    return copied(move)


def _sides(part: slice) -> tuple[Any, Any, Any]:
    return part.start, part.stop, part.step


COPYING = ("reflect", "replicate", "circular")
"""The modes of padding that copy values."""


def padded(widths: Sequence[Any], mode: str = "constant", value: Any = None) -> Affine:
    """`torch.nn.functional.pad` with zeros, or by another mode with copies. ValueError for another value."""
    if mode not in ("constant", *COPYING):
        raise ValueError(f"padding by mode {mode!r}: use zeros, or one of {', '.join(COPYING)}")
    if value not in (None, 0, 0.0):
        raise ValueError(f"padding by value {value}: use zeros")
    sides = [w for w in widths if isinstance(w, int)]
    if len(sides) != len(widths):
        raise ValueError("padding whose width depends on the input: use fixed numbers")

    def move(z: Tensor) -> Tensor:
        if len(sides) > 2 * (z.dim() - 1):
            raise ValueError(f"padding of {len(sides) // 2} dimensions includes the samples: pad the others only")
        return F.pad(z, sides, mode)

    return copied(move, often=mode in COPYING)


def reshaped(sides: Sequence[int | Callable[[Tensor], int]]) -> Affine:
    """Each sample in another shape; one of the ``sides`` may be -1, and others may be computed from the input."""

    def move(z: Tensor) -> Tensor:
        given = [side(z) if callable(side) else side for side in sides]
        known, values = math.prod(side for side in given if side != -1), z.shape[1:].numel()
        if given.count(-1) > 1 or (values % max(known, 1) if -1 in given else values != known):
            raise ValueError(f"the network reshapes {values} values per sample into {tuple(given)}")
        return z.reshape(len(z), *given)

    return copied(move)


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The values (n, ...) of several nodes concatenated along ``dim``. ValueError for the dimension of the samples."""
    if dim % tensors[0].dim() == 0:
        raise ValueError("cat along the samples: bounds treat each sample separately")
    return torch.cat(list(tensors), dim)


def parted(a: Tensor, dim: int, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The coefficients (n, s, ...) of concatenated values, split into those of each part, of the given shapes."""
    # Counted from the last dimension, as coefficients have one more in front.
    place = dim % (len(shapes[0]) + 1) - (len(shapes[0]) + 1)
    return list(a.split([shape[place] for shape in shapes], place))
