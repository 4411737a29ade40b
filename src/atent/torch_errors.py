"""What torch's messages about a failed forward or backward pass mean, in one line with a remedy."""

from __future__ import annotations

import torch
from torch import Tensor

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


def cause_of(text: str, dtype: torch.dtype | None, own: Tensor | None, x: Tensor, y: Tensor | None = None) -> str:
    """The cause of a failed forward or backward pass, and the remedy; "" if it is not known.

    ``text`` is torch's message, ``dtype`` that of the weights, ``own`` the first parameter, ``y`` the labels of a loss.
    """
    for part, cause in _CAUSES.items():
        if part in text:
            return cause
    if dtype not in (None, x.dtype) and any(word in text for word in ("dtype", "scalar type", "should be the same")):
        inputs = f"its inputs {x.dtype}: use model.to({x.dtype}), or inputs of {dtype}"
        return f"the model's weights are {dtype} and {inputs}"
    if not any(part in text for part in _DEVICES):
        return ""
    if own is not None and own.device != x.device:
        return f"inputs are on {x.device} and the model is on {own.device}: use x.to({str(own.device)!r})"
    if y is not None and y.device != x.device:
        return f"labels are on {y.device} and inputs on {x.device}: use y.to({str(x.device)!r})"
    return (
        f"a layer combines its input, which is on {x.device}, with a tensor on another device: make constants buffers"
        " by register_buffer, which model.to() moves with the weights"
    )


def misfit(text: str, x: Tensor) -> str:
    """The cause of a forward pass that failed because of the sizes of its input; "" if it failed for another one."""
    first = text.strip().partition("\n")[0]
    if not any(part in first for part in _SIZES):
        return ""
    fix = "give inputs of the shape that it was built for"
    return f"the model cannot take a batch of shape {tuple(x.shape)}: {first}; {fix}"
