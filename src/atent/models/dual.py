"""Dual batch-norm: separate batch-norms for clean and for adversarial inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Branch = Literal["n", "a"]
"""Which batch-norms are used: those of clean ("n") or of adversarial inputs ("a")."""


class DualBatchNorm(nn.Module):
    """A batch-norm and its copy; ``branch`` selects the one in use (Xie et al. 2020).

    Weights, biases and running statistics are separate; in train mode a forward pass updates only those of the selected
    one. Both start as copies of ``norm``.
    """

    def __init__(self, norm: _BatchNorm, branch: Branch = "a") -> None:
        super().__init__()
        self.branch_n, self.branch_a = norm, copy.deepcopy(norm)
        self.branch: Branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.branch_a(x) if self.branch == "a" else self.branch_n(x))


def doubled(network: nn.Module, branch: Branch = "a") -> nn.Module:
    """The network with every batch-norm replaced by a `DualBatchNorm`, in place; without any it is unchanged."""
    if isinstance(network, _BatchNorm):
        return DualBatchNorm(network, branch)
    for name, child in network.named_children():
        if not isinstance(child, DualBatchNorm):
            network.add_module(name, doubled(child, branch))
    return network


@contextmanager
def branch(model: nn.Module, which: Branch) -> Iterator[None]:
    """Inside the context, the batch-norms of that branch are in use; the previous branch is restored afterwards."""
    layers = [m for m in model.modules() if isinstance(m, DualBatchNorm)]
    before = [layer.branch for layer in layers]
    try:
        for layer in layers:
            layer.branch = which
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.branch = old


def of_branch(name: str, which: Branch) -> str | None:
    """The name that an entry of a doubled network's state has in the ordinary network; None for the other branch's."""
    parts = name.split(".")
    kept = [part for part in parts if part not in ("branch_n", "branch_a")]
    return ".".join(kept) if len(kept) == len(parts) or f"branch_{which}" in parts else None
