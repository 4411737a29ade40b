"""A network whose weights, gradients and optimizer state the ranks share: FSDP2 of torch (``fully_shard``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atent.distributed.world import World

Stack = nn.Sequential | nn.ModuleList
_MOST = 0.5
"""Maximum share of all parameters in a block."""


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether the first parameter, and therefore each, is sharded. Does not import FSDP2."""
    return hasattr(next(iter(parameters), None), "full_tensor")


def local(t: Tensor) -> Tensor:
    """The part of this rank; ``t`` itself if it is not sharded."""
    part: Tensor = t.to_local() if hasattr(t, "to_local") else t
    return part


def full(t: Tensor) -> Tensor:
    """The full tensor, called on all ranks; ``t`` itself if it is not sharded."""
    whole: Tensor = t.full_tensor() if hasattr(t, "full_tensor") else t
    return whole.detach()


def like(t: Tensor, parameter: Tensor) -> Tensor:
    """Shard a full tensor, equal on every rank, in the same way as ``parameter``; ``t`` itself if shapes differ."""
    if t.shape != parameter.shape or not is_sharded([parameter]):
        return t
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    whole = t.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: children of the outermost ``Sequential`` and ``ModuleList``.

    A child with more than half of all parameters is replaced by its own children. Only such children are certain to be
    called as modules, which gathers their weights: attention reads the weights of its output layer without calling it.
    """
    most = _MOST * _size(model)

    def found(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            block = isinstance(module, Stack) and not isinstance(child, Stack) and _size(child) <= most
            if block and _size(child):
                yield child
            elif not block:
                yield from found(child)

    return list(dict.fromkeys(found(model)))


def shard(model: nn.Module, world: World) -> None:
    """Shard each parameter over the ranks, in place; the values must be equal on every rank before.

    A block's weights are gathered for its forward pass and again for its backward pass, which adds the sum of the
    ranks' gradients to the parts. The sum is computed in every backward pass: unsharded gradients would take the memory
    that sharding saves.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(model.parameters()).device.type
    mesh: Any = init_device_mesh(device, (world.size,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Each rank weights its rows by their share of the batch: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def gather(model: nn.Module, whole: nn.Module, *, keep: bool) -> None:
    """Copy the values of a sharded network to one of the same class, one tensor at a time; all ranks call it, those
    with ``keep`` copy."""
    for own, target in zip(model.parameters(), whole.parameters(), strict=True):
        value = full(own)
        if keep:
            target.copy_(value)
    for buffer, place in zip(model.buffers(), whole.buffers(), strict=True):
        place.copy_(buffer)
