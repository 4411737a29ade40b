"""The inner chain of a training method in bfloat16, the gradient of the weights in the network's own precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from atent.guard import dtype_of
from atent.methods.awp import AWP, may_perturb
from atent.methods.base import Method, Metrics, State
from atent.precision import Lowered
from atent.threat import Threat

if TYPE_CHECKING:
    from atent.data import Data

InnerPrecision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True)
class LowInner(Method):
    """``method`` with an adversary that sees the network under bfloat16 autocast.

    Low are the forward passes of the inner chain and their gradients with respect to the input, up to the logits. In
    the network's own precision stay the iterates, the noise, the losses of the logits, the step, the projection, and
    all that follows the chain: the loss that the weights descend, its gradient, and batch-norm's running statistics.

    For methods whose attack and loss are passes of their own, that changes the precision alone. ATENT's accumulating
    pass serves both gradients at once, which one precision cannot: here the chain comes first, and a second pass over
    its iterates gives the gradient, as in data-entropy. That is 2K passes in place of K + 1, of which K are low;
    batch-norm statistics take one update from each iterate, and dropout draws new masks in the second pass. It is
    slower wherever bfloat16 does not halve the time of a pass.

    ``adversary`` is asked in bfloat16; everything else is that of ``method``.
    """

    method: Method
    """The method: any that leaves `Method.backward` as it is, and whose adversary asks the network."""

    def __post_init__(self) -> None:
        name, reason = type(self.method).__name__, None
        if isinstance(self.method, AWP):
            reason = "a low inner chain goes inside AWP"
        elif not may_perturb(type(self.method)):
            reason = f"{name} has a backward of its own"
        elif not self.method.labelled:
            reason = f"{name} asks more of the network than logits"
        elif getattr(self.method, "objective", None) == "data-entropy":
            reason = "data-entropy divides the chain's losses by the temperature, which magnifies their rounding"
        if reason:
            raise ValueError(f"inner_precision bfloat16 is not for this method, {reason}: use inner_precision float32")
        for fact in ("single_step", "divisible", "replays", "gathers", "alike"):
            object.__setattr__(self, fact, getattr(self.method, fact))

    @property
    def threat(self) -> Threat | None:
        """That of ``method``, where it has one."""
        return getattr(self.method, "threat", None)

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        return self.method.init(n_train, shape, device)

    def prepare(self, data: Data) -> State:
        return self.method.prepare(data)

    def rows(self, state: State, x: Tensor, part: slice) -> State:
        return self.method.rows(state, x, part)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        own = dtype_of(model)
        if own not in (None, torch.float32):
            raise ValueError(f"inner_precision bfloat16 is for a float32 network, this one is {own}: leave it out")
        low = Lowered(model, "bfloat16")
        return self.method.adversary(low, x, y, rng=rng, ids=ids, progress=progress, state=state)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        return self.method.loss(model, x, y, aux, progress=progress, state=state)

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        return self.method.descend(model, x, y, aux, progress=progress, weight=weight, state=state)

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        return self.method.points(x, aux)

    def diverged(self, state: State | None) -> str | None:
        return self.method.diverged(state)


def lowered(method: Method, precision: InnerPrecision) -> Method:
    """The method with its inner chain in that precision; itself for float32, and for auto, which is chosen later."""
    return LowInner(method) if precision == "bfloat16" else method


def exact(method: Method) -> Method:
    """The method without `ATENT.drop_below`, whose gradient is that of all iterates; itself for any other."""
    changes: dict[str, Any] = {"drop_below": 0.0}
    return replace(method, **changes) if getattr(method, "drop_below", 0.0) else method
