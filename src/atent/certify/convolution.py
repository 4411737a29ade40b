"""One-dimensional and transposed convolutions as affine maps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atent.certify.affine import Affine, Entrywise

_FORWARD: dict[int, Any] = {1: F.conv1d, 2: F.conv2d}
_BACKWARD: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


def conv1d(m: nn.Conv1d, padding: tuple[int, ...]) -> Affine:
    """A convolution of (n, channels, length) with ``padding`` zeros at both ends."""
    stride, dilation, groups = m.stride, m.dilation, m.groups

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        return F.conv1d(z, of(m.weight.to(z.dtype)), None, stride, padding, dilation, groups)

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        rest = shape[-1] - ((a.shape[-1] - 1) * stride[0] - 2 * padding[0] + dilation[0] * (m.kernel_size[0] - 1) + 1)
        rows = F.conv_transpose1d(
            a.flatten(0, 1), m.weight.to(a.dtype), None, stride, padding, (rest,), groups, dilation
        )
        back: Tensor = rows.unflatten(0, a.shape[:2])
        return back

    def roundings(shape: torch.Size) -> tuple[int, int]:
        outputs, *window = m.weight.shape
        return math.prod(window) + 1, outputs // groups * math.prod(window[1:])

    return Affine(apply, transpose, _offset(m, 1), roundings)


def transposed(m: nn.ConvTranspose1d | nn.ConvTranspose2d) -> Affine:
    """A transposed convolution of one or two dimensions: its own transpose is a convolution."""
    dims = len(m.kernel_size)
    stride, padding, rest, dilation = m.stride, m.padding, m.output_padding, m.dilation

    def apply(z: Tensor, of: Entrywise) -> Tensor:
        out: Tensor = _BACKWARD[dims](z, of(m.weight.to(z.dtype)), None, stride, padding, rest, m.groups, dilation)
        return out

    def transpose(a: Tensor, shape: torch.Size) -> Tensor:
        rows = _FORWARD[dims](a.flatten(0, 1), m.weight.to(a.dtype), None, stride, padding, dilation, m.groups)
        # Rows and columns that the output padding added are outside all other windows.
        rows = rows[(slice(None), slice(None), *(slice(side) for side in shape[1:]))]
        back: Tensor = rows.unflatten(0, a.shape[:2])
        return back

    def roundings(shape: torch.Size) -> tuple[int, int]:
        inputs, *window = m.weight.shape
        return inputs // m.groups * math.prod(window[1:]) + 1, math.prod(window)

    return Affine(apply, transpose, _offset(m, dims), roundings)


def _offset(m: Any, dims: int) -> Any:
    def offset(_: int, dtype: torch.dtype, of: Entrywise) -> Tensor | None:
        return None if m.bias is None else of(m.bias.to(dtype)).view(-1, *[1] * dims)

    return offset
