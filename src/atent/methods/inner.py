"""The inner chain of a training method in bfloat16, the gradient of the weights in the network's own precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atent.guard import dtype_of
from atent.methods.awp import may_perturb
from atent.methods.base import Method, State
from atent.methods.wrapper import Wrapper
from atent.precision import Lowered

InnerPrecision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True)
class LowInner(Wrapper):
    """``method`` with an adversary that evaluates the network under bfloat16 autocast.

    The forward passes of the inner chain up to the logits, and their gradients with respect to the input, are in
    bfloat16. The iterates, the noise, the losses of the logits, the step, the projection, and everything after the
    chain (the loss of the weights, its gradient, and batch-norm's running statistics) are in the network's own
    precision. For methods with separate passes for attack and loss, only the precision changes. ATENT's accumulating
    pass computes both gradients at once, in one precision: here the chain runs first, and a second pass over its
    iterates computes the gradient, as in data-entropy. That is 2K passes instead of K + 1, K of them in bfloat16; each
    iterate updates batch-norm statistics once, and dropout samples new masks in the second pass. It is slower unless
    bfloat16 halves the time of a pass.

    ``adversary`` runs in bfloat16; everything else is that of ``method``.
    """

    method: Method
    """The method: any that does not override `Method.backward`, and whose adversary evaluates the network."""

    def __post_init__(self) -> None:
        name, reason = type(self.method).__name__, None
        if isinstance(self.method, Wrapper):
            reason = f"a bfloat16 inner chain must be inside {name}"
        elif not may_perturb(type(self.method)):
            reason = f"{name} overrides backward"
        elif not self.method.labelled:
            reason = f"{name} uses more of the network than its logits"
        elif getattr(self.method, "objective", None) == "data-entropy":
            reason = "data-entropy divides the chain's losses by the temperature, which amplifies their rounding"
        if reason:
            raise ValueError(
                f"inner_precision bfloat16 does not support this method, {reason}: use inner_precision float32"
            )
        super().__post_init__()

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        own = dtype_of(model)
        if own not in (None, torch.float32):
            raise ValueError(f"inner_precision bfloat16 needs a float32 network, this one is {own}: omit it")
        low = Lowered(model, "bfloat16")
        return self.method.adversary(low, x, y, rng=rng, ids=ids, progress=progress, state=state)


def lowered(method: Method, precision: InnerPrecision) -> Method:
    """The method with its inner chain in ``precision``; unchanged for float32, and for auto, resolved later."""
    return LowInner(method) if precision == "bfloat16" else method


def exact(method: Method) -> Method:
    """The method without `ATENT.drop_below`, whose gradient is that of all iterates; any other unchanged."""
    changes: dict[str, Any] = {"drop_below": 0.0}
    return replace(method, **changes) if getattr(method, "drop_below", 0.0) else method
