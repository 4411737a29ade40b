"""Batch-norm statistics when one forward pass replaces two, or none should count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


def tracked(model: nn.Module) -> list[_NormBase]:
    """The batch- and instance-norm layers whose running statistics a train-mode forward would move."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]


@contextmanager
def two_updates(layers: list[_NormBase]) -> Iterator[None]:
    """Inside, one forward moves the running statistics as two forwards of the same batch would.

    With momentum m two updates are one with 1 - (1 - m)^2; with ``momentum=None`` (the cumulative average) after n
    batches they are one with 2 / (n + 2). ``num_batches_tracked`` counts one more. Exact for layers that a forward
    uses once; one that it uses twice sees its two updates in another order.
    """
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            if layer.momentum is None and isinstance(layer, _BatchNorm):
                layer.momentum = 2.0 / (int(layer.num_batches_tracked or 0) + 2)
            elif layer.momentum is not None:
                layer.momentum = 1.0 - (1.0 - layer.momentum) ** 2
        yield
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, _BatchNorm) and layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.add_(1)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes may move buffers, such as batch-norm statistics; after, these are as before."""
    # Through .data: a graph that is still alive would see a new version.
    before = [(b.data, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        if before:
            torch._foreach_copy_([b for b, _ in before], [value for _, value in before])
