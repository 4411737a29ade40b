"""Bisection along segments for an entire batch, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bisect(crossed: Callable[[Tensor], Tensor], first: Tensor, high: Tensor, steps: int) -> Tensor:
    """Per sample a length t in [0, high] at which ``crossed(t)`` changes from False to True, shape (n,).

    ``crossed`` maps lengths (n,) to bool (n,); it is evaluated ``steps`` times, first at ``first`` (n,). If it changes
    once, the result is within ``high / 2**steps`` of the change; if it is never True, the result is as close to
    ``high``, and if it is always True, as close to 0. The last midpoint is returned without an evaluation.
    """
    low, t = torch.zeros_like(first), first
    for _ in range(steps):
        beyond = crossed(t)
        low, high = torch.where(beyond, low, t), torch.where(beyond, t, high)
        t = (low + high) / 2
    return t
