"""Sums of gradients over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atent.distributed.batch_shard import shared
from atent.distributed.world import World


def densify(parameters: Iterable[Tensor]) -> None:
    """Replace sparse gradients, as of an embedding, by dense ones."""
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            p.grad = p.grad.to_dense()


def add_gradients(parameters: Iterable[Tensor], world: World, more: Sequence[Tensor] = ()) -> None:
    """Replace each ``.grad`` by its sum over the ranks, and so each tensor of ``more``, in one message.

    A parameter without a gradient on this rank gets one if another rank has one, and none otherwise.
    """
    leaves = [p for p in parameters if p.requires_grad]
    if world.size == 1 or not leaves:
        world.add(more)
        return
    densify(leaves)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    known = grads[0].new_tensor([p.grad is not None for p in leaves])
    world.add([*grads, known, *more])
    missing = [p.grad is None for p in leaves]
    if any(missing):  # only then does this synchronise with the device
        for p, grad, ranks in zip(leaves, grads, known.tolist(), strict=True):
            if p.grad is None and ranks:
                p.grad = grad


def summed(parameters: Iterable[Tensor]) -> None:
    """`add_gradients` inside a step, for methods that use a gradient themselves, such as `AWP`; no effect if one
    process has the full batch. Each rank's gradient is that of its own rows times their share of the batch."""
    shard = shared()
    if shard is not None:
        add_gradients(parameters, shard.world)
