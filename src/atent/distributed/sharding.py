"""A network whose weights, gradients and optimizer state the ranks share: FSDP2 of torch (``fully_shard``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atent.distributed.world import World

Stack = nn.Sequential | nn.ModuleList
_MOST = 0.5
"""The share of all parameters that a block may have."""


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether the first parameter, and so each, has a part on each rank. Imports nothing."""
    return hasattr(next(iter(parameters), None), "full_tensor")


def local(t: Tensor) -> Tensor:
    """The part that this rank has; ``t`` itself where that is not sharded."""
    part: Tensor = t.to_local() if hasattr(t, "to_local") else t
    return part


def full(t: Tensor) -> Tensor:
    """The whole of it, which all ranks ask for; ``t`` itself where that is not sharded."""
    whole: Tensor = t.full_tensor() if hasattr(t, "full_tensor") else t
    return whole.detach()


def like(t: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which every rank has, in parts as ``parameter`` is; ``t`` itself where shapes differ."""
    if t.shape != parameter.shape or not is_sharded([parameter]):
        return t
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    whole = t.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: children of the outermost ``Sequential`` and ``ModuleList``.

    A child with more than half of all parameters is looked into instead. Only such children are sure to be called as
    modules, which gathers their weights: attention reads the weights of its output layer without calling it.
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
    """Give each rank a part of each parameter, in place; every rank has the same values before.

    A block's weights are gathered for its forward pass and again for its backward pass, which adds the sum of the
    ranks' gradients to the parts. The sum is formed in every backward pass: gradients kept whole until the last one
    would take the memory that sharding saves.
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
            # Each rank weighs its rows by their share of the batch: the gradients add up, they are no mean.
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
