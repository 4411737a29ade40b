"""The common loss of the methods that train on bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atent.certify.graph import Graph, read
from atent.guard import ask
from atent.losses import cross_entropy
from atent.methods.base import Metrics, correct


def mixed_loss(
    model: nn.Module, x: Tensor, y: Tensor, kappa: float, bound: Callable[[Graph], Tensor] | None
) -> tuple[Tensor, Metrics]:
    """kappa CE(f(x), y) + (1 - kappa) CE(-margins, y), means over the batch, and metrics.

    ``bound`` gives the margins' lower bounds (n, classes) of the network as a graph; None, if eps is 0, is standard
    cross-entropy. Metrics: accuracy at the clean inputs (``clean``), and the share of the samples whose bounds are all
    above 0 (``verified``). ValueError for a network with batch-norm or dropout in train mode.
    """
    graph = read(model, training=True)
    with torch.set_grad_enabled(kappa > 0 or bound is None):
        logits = ask(model, x)
    clean = correct(logits, y)
    if bound is None:
        return cross_entropy(logits, y).mean(), {"clean": clean, "verified": clean}
    with torch.set_grad_enabled(kappa < 1):
        below = bound(graph)
    # The entry of the true class is exactly 0.
    verified = ((below.detach() > 0).sum(1) == below.shape[1] - 1).double().mean()
    # 0 times a bound that overflowed would be NaN: parts with weight 0 are omitted.
    parts = [weight * cross_entropy(z, y).mean() for weight, z in ((kappa, logits), (1 - kappa, -below)) if weight > 0]
    return sum(parts[1:], parts[0]), {"clean": clean, "verified": verified}
