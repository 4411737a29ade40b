"""Standard training."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atent.guard import ask
from atent.losses import check_smoothing, cross_entropy
from atent.methods.base import Method, Metrics, State, correct, method


@method
@dataclass(frozen=True)
class Standard(Method):
    """Mean cross-entropy of the clean batch: the baseline without an adversary.

    References
    ----------
    Goodfellow, Bengio and Courville 2016, "Deep learning", MIT Press.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import Standard
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = Standard().backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'loss']
    """

    shardable = True

    label_smoothing: float = 0.0
    """Label smoothing in the loss, in [0, 1)."""

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def settings_at(self, progress: float) -> Hashable:
        """All settings: they are constant."""
        return self

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = ask(model, x)
        return cross_entropy(logits, y, self.label_smoothing).mean(), {"clean": correct(logits, y)}
