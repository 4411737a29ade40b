"""In which precision a model is seen: half for a search, full for a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

SearchDtype = Literal["bfloat16", "float16"]
SEARCH_DTYPES: tuple[str, ...] = ("bfloat16", "float16")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, a model computes in its own type: no autocast, and no TF32 in the products and convolutions of a GPU."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        kinds, name, exact = _tf32_switches()
        before = [getattr(kind, name) for kind in kinds]
        try:
            for kind in kinds:
                setattr(kind, name, exact)
            yield
        finally:
            for kind, value in zip(kinds, before):
                setattr(kind, name, value)


def _tf32_switches() -> tuple[list[Any], str, Any]:
    """Where TF32 is set, the attribute, and its value for none: torch allows one of its two interfaces per process."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    old: list[Any] = [cuda.matmul, cudnn]
    try:
        _ = [kind.allow_tf32 for kind in old]
    except RuntimeError:  # the new interface is in use
        new: Any = cudnn
        return [cuda.matmul, new.conv, new.rnn], "fp32_precision", "ieee"
    return old, "allow_tf32", False


class Lowered(nn.Module):
    """A float32 model under autocast, for searching: float32 inputs in, float32 logits and input gradients out.

    Gradients are scaled on their way through the network so that each sample's largest is 1 at the logits, and scaled
    back at the input: otherwise the small ones of a confident sample would be lost in float16. ValueError for a model
    of another type than float32, and for an unknown type.
    """

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        if dtype not in SEARCH_DTYPES:
            raise ValueError(f"search_dtype {dtype!r} is not known: use one of {', '.join(SEARCH_DTYPES)}, or none")
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if own != torch.float32:
            raise ValueError(f"search_dtype {dtype} is for a float32 model, this one is {own}: leave it out")
        self.model, self.dtype = model, getattr(torch, dtype)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.view_as(x)
        with torch.autocast(x.device.type, dtype=self.dtype):
            logits = self.model(inner)
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
