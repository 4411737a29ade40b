"""Precision and memory format of a model's passes: reduced for a search, its own for a verdict."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atent.fields import shown
from atent.guard import ask, dtype_of, guard

SearchDtype = Literal["bfloat16", "float16", "tf32"]
SEARCH_DTYPES: tuple[str, ...] = get_args(SearchDtype)


_mkldnn: Any = torch.backends.mkldnn
_MKLDNN = (_mkldnn.matmul, _mkldnn.conv, _mkldnn.rnn)
"""What has a precision of float32 on a CPU."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context without autocast, and without TF32 or bfloat16 in the matrix products and convolutions of float32."""
    # On a CPU set_float32_matmul_precision("medium") takes bfloat16, where the processor has it.
    lowered = [(kind, kind.fp32_precision) for kind in _MKLDNN if kind.fp32_precision not in ("none", "ieee")]
    with torch.autocast(device.type, enabled=False):
        if device.type == "cuda":
            with tf32(False):
                yield
            return
        try:
            for kind, _ in lowered:
                kind.fp32_precision = "ieee"
            yield
        finally:
            for kind, value in lowered:
                kind.fp32_precision = value


@contextmanager
def without_callers_modes() -> Iterator[None]:
    """Context without the caller's inference mode, ``no_grad`` and autocast, whose contexts enclose the call.

    Autocast keeps its cast weights until the outermost context ends, also one with ``enabled=False``: within one, the
    cache is off, since inner contexts would use the weights of an earlier step.
    """
    nested = torch.autocast_increment_nesting() > 1
    torch.autocast_decrement_nesting()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if nested:
            stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
            torch.set_autocast_cache_enabled(False)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class tf32(AbstractContextManager[None]):
    """Re-entrant context in which matrix products and convolutions of a GPU are, or are not, computed in TF32."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._before: list[list[Any]] = []

    def __enter__(self) -> None:
        self._before.append(_set_tf32(self._allowed))

    def __exit__(self, *error: object) -> None:
        _restore_tf32(self._before.pop())


def _set_tf32(allowed: bool) -> list[Any]:
    """Set TF32 for matrix products and convolutions; returns the former values for `_restore_tf32`."""
    kinds, name, values = _tf32_switches()
    before = [getattr(kind, name) for kind in kinds]
    for kind in kinds:
        setattr(kind, name, values[allowed])
    return before


def _restore_tf32(before: list[Any]) -> None:
    kinds, name, _ = _tf32_switches()
    for kind, value in zip(kinds, before):
        setattr(kind, name, value)


def under(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which a float32 network computes in ``precision``: float32 (process settings), bfloat16 or tf32."""
    if precision == "tf32":
        return tf32(True)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def check_tf32(device: torch.device) -> None:
    """ValueError, in one line, for a device without TF32."""
    if device.type != "cuda":
        raise ValueError(f"precision tf32 is for CUDA, this device is {device.type}: use float32, bfloat16 or auto")


def _tf32_switches() -> tuple[list[Any], str, tuple[Any, Any]]:
    """The objects with a TF32 setting, its attribute, and the values for off and on: torch allows only one of its two
    interfaces per process."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    old: list[Any] = [cuda.matmul, cudnn]
    try:
        _ = [kind.allow_tf32 for kind in old]
    except RuntimeError:  # the new interface is in use
        new: Any = cudnn
        return [cuda.matmul, new.conv, new.rnn], "fp32_precision", ("ieee", "tf32")
    return old, "allow_tf32", (False, True)


def twin(model: nn.Module, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    """A float64 copy of the model, or the model itself if it cannot be copied or requires another dtype."""
    try:
        with torch.no_grad():  # the weights of a script would record the cast
            double = copy.deepcopy(model).double()
        with guard(double, mode="eval", seed=0), full_precision(x.device), torch.no_grad():
            if ask(double, x.double()).dtype == torch.float64:
                return double, torch.float64
    except Exception:  # whatever a user's copy or forward raises
        pass
    return model, x.dtype


def images_last(model: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` supports images in the channels-last memory format; otherwise a warning is issued."""
    refused = refuses_channels_last(model, x)
    if refused is not None:
        warnings.warn(refused, stacklevel=2)
    return refused is None and x.dim() == 4


def refuses_channels_last(model: nn.Module, x: Tensor) -> str | None:
    """One line if ``model``, in eval mode, does not support ``x`` (n, c, h, w) in the channels-last memory format.

    Tested on the first two images, forward and backward; a network that flattens by ``view`` fails. None if it works,
    if ``x`` contains no images, and if the network fails in the default format too.
    """
    if x.dim() != 4 or not len(x):
        return None
    some = x[:2].detach()
    try:
        # Not contiguous(), which does not copy images with one channel, as both formats apply to them.
        _forward_and_backward(model, some.clone(memory_format=torch.channels_last))
        return None
    except Exception as error:  # whatever a user's forward raises
        reason = str(error).partition("\n")[0].partition(" (at least")[0]
    try:
        _forward_and_backward(model, some.contiguous())
    except Exception:
        return None
    return f"the model does not support channels-last images ({reason}): the default memory format is used"


def _forward_and_backward(model: nn.Module, x: Tensor) -> None:
    with guard(model, mode="eval"), torch.enable_grad():
        x = x.requires_grad_()
        logits = ask(model, x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x)


class Lowered(nn.Module):
    """A float32 model under autocast, for searches: float32 inputs, float32 logits and input gradients.

    With "tf32" matrix products and convolutions of a GPU use TF32, in both passes. Otherwise gradients are scaled so
    that the largest of each sample is 1 at the logits, and scaled back at the input: small gradients of a confident
    sample would underflow in float16. ValueError for a model of another dtype than float32, for an unknown dtype, and
    for "tf32" on a device without it.
    """

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        if not isinstance(dtype, str) or dtype not in SEARCH_DTYPES:
            raise ValueError(
                f"search_dtype {shown(dtype)} is not known: use one of {', '.join(SEARCH_DTYPES)}, or none"
            )
        own = dtype_of(model)
        if own not in (None, torch.float32):
            raise ValueError(f"search_dtype {dtype} is for a float32 model, this one is {own}: omit it")
        if dtype == "tf32":
            check_tf32(next((p.device for p in model.parameters()), torch.device("cpu")))
        self.model, self.search_dtype = model, dtype
        self.dtype = None if dtype == "tf32" else getattr(torch, dtype)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.view_as(x)
        if self.dtype is None:
            return _in_tf32(self.model, inner)
        with torch.autocast(x.device.type, dtype=self.dtype):
            logits: Tensor = self.model(inner)
        if not isinstance(logits, Tensor):
            return logits
        logits = logits.float()
        if logits.requires_grad and inner.requires_grad and logits.dim() == 2:
            largest = torch.ones(len(x), device=x.device)

            def shrink(grad: Tensor) -> Tensor:
                nonlocal largest
                top = grad.abs().amax(1)
                largest = torch.where(top > 0, top, torch.ones_like(top))
                return grad / largest[:, None]

            logits.register_hook(shrink)
            inner.register_hook(lambda grad: grad * largest.reshape(-1, *[1] * (grad.dim() - 1)))
        return logits


def _in_tf32(model: nn.Module, x: Tensor) -> Tensor:
    """The logits in TF32; the backward pass enables it at the logits and restores it at the input."""
    with tf32(True):
        logits: Tensor = model(x)
    if isinstance(logits, Tensor) and logits.requires_grad and x.requires_grad:
        before: list[list[Any]] = []
        logits.register_hook(lambda grad: before.append(_set_tf32(True)))
        x.register_hook(lambda grad: _restore_tf32(before.pop()))
    return logits
