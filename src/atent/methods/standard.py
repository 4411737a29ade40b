"""Plain training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atent.losses import cross_entropy
from atent.methods.base import Method, Metrics, State, correct


@dataclass(frozen=True)
class Standard(Method):
    """Mean cross-entropy of the clean batch: the baseline without an adversary."""

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = model(x)
        return cross_entropy(logits, y).mean(), {"natural": correct(logits, y)}
