"""Failures of a network's forward or backward pass that torch describes at length, as one line with a remedy."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

# Parts of torch's messages, and their meaning.
NO_GRADIENT = (
    "the model has no gradient with respect to its input: a layer detaches or rounds it; use an attack that needs no"
    " gradients"
)
_CAUSES = {
    "appears to not have been used in the graph": NO_GRADIENT,
    "use_reentrant=True": "a re-entrant checkpoint gives no gradients with respect to the"
    " input: use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
    "modified by an inplace operation": "a layer changes in place what the gradient of its network needs: use"
    " inplace=False, or x = x + ... for x += ...",
    "change requires_grad flags of leaf variables": "the model turns requires_grad of its input off, which cuts its"
    " gradient: remove that from its forward pass",
    "nference tensor": "the model, or the data, was made under torch.inference_mode: make or load it outside (for no"
    " gradients use torch.no_grad)",
}


# Parts of torch's messages about two devices.
_DEVICES = (
    "Expected all tensors to be on the same device", "weight type", "indices should be either on", "device type",
)  # fmt: skip

# Parts of torch's messages about sizes that do not fit.
_SIZES = (
    "shapes cannot be multiplied", "expected input[", "is invalid for input of size", "must match the size of tensor",
    "Given normalized_shape", "Calculated padded input size", "size mismatch", "running_mean should contain",
    "Expected 3D (unbatched) or 4D", "but got 2D input", "Kernel size can't be greater",
)  # fmt: skip


def explain(model: nn.Module, x: Tensor, error: RuntimeError, y: Tensor | None = None) -> None:
    """Raise a one-line ValueError for a failed forward or backward pass with a known cause.

    ``y`` are the labels of a loss.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return
    text = str(error)
    for part, cause in _CAUSES.items():
        if part in text:
            raise ValueError(cause) from error
    own = dtype_of(model)
    if own not in (None, x.dtype) and any(word in text for word in ("dtype", "scalar type", "should be the same")):
        raise ValueError(
            f"the model's weights are {own} and its inputs {x.dtype}: use model.to({x.dtype}), or inputs of {own}"
        ) from error
    if any(part in text for part in _DEVICES):
        raise ValueError(_devices(model, x, y)) from error


def _devices(model: nn.Module, x: Tensor, y: Tensor | None) -> str:
    """What is on another device than the inputs, and the remedy."""
    own = device_of(model)
    if own not in (None, x.device):
        return f"inputs are on {x.device} and the model is on {own}: use x.to({str(own)!r})"
    if y is not None and y.device != x.device:
        return f"labels are on {y.device} and inputs on {x.device}: use y.to({str(x.device)!r})"
    return (
        f"a layer combines its input, which is on {x.device}, with a tensor on another device: make constants buffers"
        " by register_buffer, which model.to() moves with the weights"
    )


def check_sizes(x: Tensor, error: RuntimeError) -> None:
    """Raise a one-line ValueError for a forward pass that failed because of the sizes of its input."""
    first = str(error).strip().partition("\n")[0]
    if not isinstance(error, torch.OutOfMemoryError) and any(part in first for part in _SIZES):
        raise ValueError(
            f"the model cannot take a batch of shape {tuple(x.shape)}: {first}; give inputs of the shape that it was"
            " built for"
        ) from error


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of the model's first floating-point parameter; None without one."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the model's first parameter or buffer, which is that of the first layer in a network on several;
    None without one."""
    held = next(chain(model.parameters(), model.buffers()), None)
    return None if held is None else held.device
