"""One gradient from those of all ranks: a flat sum for each that is consumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atent.distributed.batch_shard import shared
from atent.distributed.world import World


def add_gradients(parameters: Iterable[Tensor], world: World, more: Sequence[Tensor] = ()) -> None:
    """Replace each ``.grad`` by its sum over the ranks, and so each tensor of ``more``, in one message.

    A parameter without a gradient here has one after it where another rank has one, and none where no rank has one.
    """
    leaves = [p for p in parameters if p.requires_grad]
    if world.size == 1 or not leaves:
        world.add(more)
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    known = grads[0].new_tensor([p.grad is not None for p in leaves])
    world.add([*grads, known, *more])
    missing = [p.grad is None for p in leaves]
    if any(missing):  # only then does this wait for the device
        for p, grad, ranks in zip(leaves, grads, known.tolist(), strict=True):
            if p.grad is None and ranks:
                p.grad = grad


def summed(parameters: Iterable[Tensor]) -> None:
    """`add_gradients` inside a step, for a method that itself uses a gradient, as `AWP` does; nothing where one process
    has the whole batch. Each rank has added its share of the batch times the gradient of its own rows."""
    shard = shared()
    if shard is not None:
        add_gradients(parameters, shard.world)
