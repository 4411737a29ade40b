"""Layer-wise adaptive rate scaling, for training with large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from atent.checks import check_number
from atent.optim.settings import OPTIMIZERS, Optimizer, Parameters
from atent.optim.sgld import Closure


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate, for each parameter tensor w, is proportional to its norm (You et al. 2017).

    With the gradient g of the loss, the local rate and the step are

        r = trust ||w|| / (||g|| + weight_decay ||w||),  v <- momentum v + lr r (g + weight_decay w),  w <- w - v

    so a step has the length lr trust ||w|| for any scale of the gradient. If ||w|| or ||g|| is 0, r is 1, as for a bias
    initialised at 0. Every parameter is adapted, including biases and the scales of batch-norm, as in the code of Jiang
    et al. 2020; other implementations exclude these. Momentum accumulates steps that include the rate: a schedule does
    not rescale past steps. ``trust=0`` is not allowed; without adaptation use SGD.

    Parameters
    ----------
    params
        Tensors or groups, as for any torch optimizer.
    lr
        Rate before the schedule, above 0; 5.0 in Jiang et al. 2020.
    momentum
        In [0, 1).
    weight_decay
        At least 0.
    trust
        Length of a step at lr = 1 as a share of a layer's norm, above 0.

    References
    ----------
    You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", arXiv 1708.03888.

    Examples
    --------
    >>> import torch
    >>> from atent.optim import LARS
    >>> layer = torch.nn.Linear(4, 2, bias=False)
    >>> before = layer.weight.detach().clone()
    >>> optimizer = LARS(layer.parameters(), lr=1.0, momentum=0.0, trust=0.01)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> length = (layer.weight.detach() - before).norm() / before.norm()  # lr trust, for any gradient
    >>> round(float(length), 4)
    0.01
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        given = self.defaults | param_group
        check_number("lr", given["lr"], 0, above=True)
        check_number("weight_decay", given["weight_decay"], 0)
        check_number("trust", given["trust"], 0, above=True)
        check_number("momentum", given["momentum"], 0, 1, below=True)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step with the gradients of the closure, or the current ones; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            decay, lr = group["weight_decay"], group["lr"]
            rates = [
                torch.where((size > 0) & (slope > 0), group["trust"] * size / (slope + decay * size), 1.0) * lr
                for size, slope in zip(torch._foreach_norm(weights), torch._foreach_norm(gradients), strict=True)
            ]
            moves = torch._foreach_add(gradients, weights, alpha=decay)
            torch._foreach_mul_(moves, rates)
            past = [self.state[p].get("momentum") for p in weights]
            for p, move, old in zip(weights, moves, past, strict=True):
                self.state[p]["momentum"] = move if old is None else old.mul_(group["momentum"]).add_(move)
            torch._foreach_sub_(weights, [self.state[p]["momentum"] for p in weights])
        return loss


@OPTIMIZERS.register("LARS")
def _lars(settings: Optimizer, parameters: Parameters, seed: int, trust: float = 1e-3) -> torch.optim.Optimizer:
    """Layer-wise adaptive rate scaling (You et al. 2017): SGD with steps proportional to the weights' norm."""
    return LARS(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, trust=trust)
