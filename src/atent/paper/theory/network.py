"""The network for the checks of the theory: a frozen float64 copy in eval mode."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from atent.guard import check_weights

_ENTRIES = 2**21


def prepared(model: nn.Module) -> nn.Module:
    """A float64 copy in eval mode whose parameters need no gradient, on the CPU; ValueError for a network without."""
    check_weights(model)
    try:
        with torch.no_grad():  # a script's weights would remember the cast
            out = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().double().eval()
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be copied in float64 ({str(error).splitlines()[0]}): give one without layers that"
            " hooks compute (torch.nn.utils.parametrizations.weight_norm for torch.nn.utils.weight_norm)"
        ) from error
    for p in out.parameters():
        p.requires_grad_(False)
    return out


def dense(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The same function with small convolutions written as matrices, which float64 on a CPU does much faster.

    For plain chains (nested ``nn.Sequential``); another network, and a convolution of more than two million entries,
    is kept. The matrices are linear in the kernels, so that a direction of the weights is converted like weights.
    """
    flat: list[nn.Module] = []
    _unfold(model, flat)
    size: tuple[int, ...] = tuple(shape)
    out: list[nn.Module] = []
    for layer in flat:
        if _hooked(layer):
            return model
        if isinstance(layer, nn.Conv2d) and len(size) == 3:
            try:
                after = tuple(layer(torch.zeros(1, *size, dtype=layer.weight.dtype)).shape[1:])
            except RuntimeError:
                return model
            if math.prod(size) * math.prod(after) <= _ENTRIES:
                out.append(_matrix(layer, size, after))
            else:
                out.append(layer)
            size = after
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            size = tuple(layer(torch.zeros(1, *size, dtype=torch.float64)).shape[1:])
            out.append(layer)
        elif isinstance(layer, nn.Flatten):
            size = (math.prod(size),)
            out.append(layer)
        elif isinstance(layer, nn.Linear):
            size = (layer.out_features,)
            out.append(layer)
        elif isinstance(layer, _SAME) or not list(layer.parameters()):
            out.append(layer)
        else:
            return model
    return nn.Sequential(*out).eval()


_SAME = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity, nn.Dropout)


def _hooked(module: nn.Module) -> bool:
    """Whether hooks may change what goes in or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _unfold(module: nn.Module, into: list[nn.Module]) -> None:
    if type(module) is nn.Sequential and not _hooked(module):
        for child in module:
            _unfold(child, into)
    else:
        into.append(module)


class _Matrix(nn.Module):
    """A convolution as a matrix."""

    def __init__(self, weight: Tensor, bias: Tensor, after: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        self.after = after

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z.flatten(1), self.weight, self.bias).view(len(z), *self.after)


@torch.no_grad()
def _matrix(layer: nn.Conv2d, size: tuple[int, ...], after: tuple[int, ...]) -> _Matrix:
    like = layer.weight
    eye = torch.eye(math.prod(size), dtype=like.dtype).view(-1, *size)
    offset = torch.zeros(math.prod(after), dtype=like.dtype)
    if layer.bias is not None:
        offset = layer.bias.detach().repeat_interleave(math.prod(after[1:]))
    columns = layer(eye).flatten(1) - offset
    return _Matrix(columns.T.contiguous(), offset, after)
