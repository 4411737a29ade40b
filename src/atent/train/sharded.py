"""`train.shard`: a training with a sharded network, and the full network for its files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atent.distributed import current
from atent.distributed.sharding import full, gather, like, shard
from atent.methods import Method
from atent.optim import Optimizer, build
from atent.train.settings import TrainSettings

OPTIMIZERS = ("SGD", "Adam")
"""Optimizers with an elementwise rule, which torch supports for sharded parameters."""


def check(settings: TrainSettings, optimizer: Optimizer, method: Method, *, watched: bool) -> None:
    """ValueError, in one line, for a training that does not support sharding."""
    if settings.shard == "none":
        return
    if current().size == 1:
        raise ValueError(
            "train.shard full needs several processes, and this is a single one: start them by torchrun, or"
            " set train.shard none, which also resumes a run that was sharded"
        )
    if optimizer.name not in OPTIMIZERS:
        raise ValueError(f"train.shard full works with {' and '.join(OPTIMIZERS)}, got optimizer {optimizer.name}")
    if not method.shardable:
        raise ValueError(
            f"train.shard full does not support {type(method).__name__}, which is not known to compute its gradient by"
            " backward() alone (Method.shardable): set train.shard none"
        )
    plain = TrainSettings()
    for name in ("precision", "inner_precision", "compile", "cuda_graphs", "average", "awp", "embedding",
                 "on_nonfinite"):  # fmt: skip
        if getattr(settings, name) != getattr(plain, name):
            raise ValueError(f"train.shard full needs the default of train.{name}: omit it")
    if watched:
        raise ValueError(
            "train.shard full does not support the watch for catastrophic overfitting: set train.watch off"
        )


class Sharded:
    """A sharded copy of the network, with its optimizer; the network itself moves to the CPU.

    There it has the values of the last `collect`, for the files of rank 0 and for callbacks.

    Parameters
    ----------
    whole
        The network, the same on all ranks.
    optimizer
        Its optimizer, with the initial state.
    settings, seed
        The settings and the seed of the optimizer.
    """

    def __init__(self, whole: nn.Module, optimizer: torch.optim.Optimizer, settings: Optimizer, seed: int) -> None:
        self.world, self.whole = current(), whole
        self.device = next(whole.parameters()).device
        self.model = copy.deepcopy(whole)
        whole.cpu()
        shard(self.model, self.world)
        self.optimizer = build(settings, self.model, seed=seed)
        saved = optimizer.state_dict()
        for number, p in enumerate(self.optimizer.param_groups[0]["params"]):
            entries = saved["state"].get(number, {})
            saved["state"] |= {number: _mapped(entries, partial(like, parameter=p))} if entries else {}
        self.optimizer.load_state_dict(saved)

    def collect(self) -> dict[str, Any]:
        """Update the full network on rank 0, and return the optimizer's state there, as in a single process. All ranks
        call it; one tensor at a time is gathered on the device."""
        first = self.world.first
        gather(self.model, self.whole, keep=first)

        def kept(t: Tensor) -> Tensor:
            value = full(t)
            return value.cpu() if first else value.new_empty(0)

        found = self.optimizer.state_dict()
        return {**found, "state": {key: _mapped(values, kept) for key, values in found["state"].items()}}

    def end(self) -> nn.Module:
        """The full network, on its original device."""
        return self.whole.to(self.device)


def _mapped(entries: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {key: change(value) if isinstance(value, Tensor) else value for key, value in entries.items()}
