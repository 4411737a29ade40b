"""The optimizer of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from atent.run import unknown


@dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer; ValueError for values out of range."""

    name: str = "SGD"
    """SGD or Adam."""
    lr: float = 0.1
    """Learning rate at the start, before the schedule."""
    momentum: float = 0.9
    """Momentum of SGD (Adam has its own averages)."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", self.name, OPTIMIZERS))
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


def _sgd(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _adam(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


OPTIMIZERS: dict[str, Callable[[Optimizer, Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "Adam": _adam,
}


def build(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters; ValueError where there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameters: set requires_grad on some of them")
    return OPTIMIZERS[settings.name](settings, parameters)
