"""The method of a training's steps, with the terms and perturbations of the settings, and their learning rates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from atent.distributed.gradients import densify
from atent.methods import Method, awp, embedding
from atent.methods.inner import InnerPrecision, lowered
from atent.optim import Optimizer
from atent.train.settings import TrainSettings


def around(method: Method, settings: TrainSettings, inner: InnerPrecision | None = None) -> Method:
    """The method with the terms and perturbations of the settings; unchanged without any.

    ``inner`` is the chosen precision of its inner chain if the settings have auto; default: that of the settings.

    ValueError, in one line, for a method that they do not support.
    """
    method = lowered(method, inner or settings.inner_precision)
    return awp.perturbed(embedding.regularised(method, settings.embedding), settings.awp)


def apart(method: Method, settings: TrainSettings) -> tuple[Method, TrainSettings]:
    """The method inside an `AWP` and an `EmbeddingRegularised`, and equivalent settings; method and settings are
    unchanged without these. ValueError if both have one."""
    method, perturbation = awp.apart(method, settings.awp)
    method, term = embedding.apart(method, settings.embedding)
    return method, replace(settings, awp=perturbation, embedding=term)


def title(method: Method, settings: TrainSettings) -> str:
    """The name of the method with its additions, for tables: TRADES, TRADES-ER, TRADES-AWP, TRADES-ER-AWP."""
    er, perturbed = "-ER" if settings.embedding.weight else "", "-AWP" if settings.awp.gamma else ""
    return f"{type(method).__name__}{er}{perturbed}"


def finish_gradient(model: nn.Module, optimizer: Optimizer) -> None:
    """Clip the gradient of a step if so set; sparse gradients that the optimizer or the clipping does not support
    become dense."""
    sparse = [p for p in model.parameters() if p.grad is not None and p.grad.layout != torch.strided]
    if sparse and (optimizer.clip_norm is not None or not optimizer.takes_sparse):
        densify(sparse)
    if optimizer.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)


def rates(optimizer: torch.optim.Optimizer, lr: float) -> list[float]:
    """The rate of each parameter group of a new optimizer, which the schedule multiplies: those of a custom one may
    differ from each other and from ``lr``, which is that of a group without a rate."""
    return [float(group.get("lr", lr)) for group in optimizer.param_groups]
