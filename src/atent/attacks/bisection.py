"""Where a segment crosses a boundary: bisection for a whole batch at once, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bisect(crossed: Callable[[Tensor], Tensor], first: Tensor, high: Tensor, steps: int) -> Tensor:
    """Per sample a length t in [0, high] next to which ``crossed(t)`` turns from False to True, shape (n,).

    ``crossed`` takes lengths (n,) and says (n,) bool; it is asked ``steps`` times, first at ``first`` (n,). Where it
    changes once, the result is within ``high / 2**steps`` of the change; where it never holds, it comes as near to
    ``high``, and where it always holds, as near to 0. The last middle is returned unasked: its answer is not needed.
    """
    low, t = torch.zeros_like(first), first
    for _ in range(steps):
        beyond = crossed(t)
        low, high = torch.where(beyond, low, t), torch.where(beyond, t, high)
        t = (low + high) / 2
    return t
