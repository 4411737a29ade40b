"""Callbacks of attacks: they receive a copy of every point whose loss is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atent.fields import shown
from atent.guard import guard

Callback = Callable[[int, Tensor, Tensor], object]
"""``callback(k, x_adv, loss)``, see `Watch`."""


class Watch:
    """Calls ``callback(k, x_adv, loss)`` with copies, for k = 0, 1, 2, ... over all restarts and parts of an attack.

    One call each time that the attack computes losses, before its next step. ``x_adv`` (n, ...) contains the latest
    evaluated point of every sample of the batch, and ``loss`` (n,) the loss that the attack optimises there; x and NaN
    for a sample that was not evaluated yet. Of several parallel runs of a sample the one with the highest loss is
    reported. The callback may call the model, use random numbers and modify its arguments.
    """

    def __init__(self, callback: Callback, x: Tensor) -> None:
        if not callable(callback):
            raise ValueError(f"callback must be a function of (k, x_adv, loss), got {shown(callback)}")
        self.callback, self.k = callback, 0
        self.x, self.loss = x.detach().clone(), torch.full(x.shape[:1], torch.nan, device=x.device)

    @torch.no_grad()
    def see(self, model: nn.Module, rows: Tensor | None, x: Tensor, values: Tensor) -> None:
        """Report the losses ``values`` (m,) at ``x`` (m, ...), the points of the samples ``rows``."""
        self.loss = self.loss.to(values.dtype)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        highest = torch.full_like(self.loss, -torch.inf).scatter_reduce(0, rows, values.detach(), "amax")
        # A tie goes to the first run.
        top = (values.detach() == highest[rows]).nonzero().squeeze(1)
        first = torch.full(self.loss.shape, len(x), device=x.device)
        first = first.scatter_reduce(0, rows[top], top, "amin")
        met = (first < len(x)).nonzero().squeeze(1)
        self.x[met], self.loss[met] = x.detach()[first[met]], values.detach()[first[met]]
        with guard(model, mode="as-is"), torch.enable_grad():
            self.callback(self.k, self.x.clone(), self.loss.clone())
        self.k += 1
