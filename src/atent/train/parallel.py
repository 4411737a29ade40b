"""Division of a step's batch into micro-batches and among the ranks of a job, and the sum of their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from atent.distributed import BatchShard, World, current
from atent.distributed.batch_rng import caught
from atent.distributed.batch_shard import under_way
from atent.distributed.coupling import Synchronised
from atent.distributed.gradients import add_gradients
from atent.distributed.sharding import is_sharded
from atent.methods import Method
from atent.methods.base import Metrics
from atent.train.begun import Begun
from atent.train.reduction import Changes, Packed
from atent.train.settings import TrainSettings

# Interval of steps that detect random numbers sampled outside `atent.rng.Batch`.
_DETECT_EVERY = 100


class Parallel:
    """The division of a step's batch, and the combination of the gradients of its parts.

    Each part is a `BatchShard`: of `train.accumulate` micro-batches, the rows of this rank. A shard has the random
    numbers of its rows in the full batch. The gradients of all parts and ranks are summed once, together with the
    metrics, in one message; buffers and the method's state are synchronised over all ranks after the step.

    A method whose loss of a batch is not the mean over its samples, and that does not gather what couples them, gets
    the full batch on every rank.
    """

    def __init__(
        self, model: nn.Module, method: Method, settings: TrainSettings, say: Callable[[str], None],
        world: World | None = None,
    ) -> None:  # fmt: skip
        self.model, self.parts, self.world = model, settings.accumulate, current() if world is None else world
        # The last batch may be shorter; batch-norm cannot normalise a single sample.
        self.least = 2 if settings.batch_size >= 2 * self.parts else 1
        self.synchronised = settings.batch_norm == "sync" and self.world.size > 1
        self.alike, name = method.alike, type(method).__name__
        if self.parts > 1 and not method.divisible:
            raise ValueError(f"train.accumulate {self.parts} divides a batch, but {name} needs the full batch: omit it")
        self.replicated = self.world.size > 1 and not (method.divisible or method.gathers)
        if self.replicated:
            say(
                f"warning: {name} needs the full batch, so each of the {self.world.size} processes computes all of"
                " it: steps are not faster (see Method.gathers)"
            )
        # The backward passes of a sharded network sum the gradients of all ranks.
        self.sharded = is_sharded(model.parameters())
        self.steps, self.catches = 0, False

    def count(self, n: int) -> int:
        """The number of micro-batches of a batch of ``n``."""
        return max(1, min(self.parts, n // self.least))

    def shards(self, n: int, most: int) -> list[BatchShard]:
        """The parts of a batch of ``n`` that this process passes through the network, each of at most ``most`` rows."""
        # Parts of equal length: none has a single sample, which batch-norm cannot normalise.
        count = max(-(-n // most), self.count(n))
        cuts = [0, n] if count == 1 else torch.linspace(0, n, count + 1).round().long().tolist()
        world = World() if self.replicated else self.world
        return [BatchShard(n, slice(begin, end), world) for begin, end in itertools.pairwise(cuts)]

    def weight(self, shard: BatchShard) -> float:
        """The factor of a shard's gradient, such that those of all parts and ranks sum to the batch's."""
        return shard.weight / self.world.size if self.replicated else shard.weight

    @contextmanager
    def passing(self, shard: BatchShard) -> Iterator[None]:
        """Inside, the passes and the random numbers are those of the shard; no effect for a full batch."""
        if shard.whole:
            yield
            return
        # Interception of operations takes time: if a network and a method use only `atent.rng.Batch`, most steps omit
        # it.
        detects = self.catches or self.steps % _DETECT_EVERY == 0
        with under_way(shard) as now, Synchronised(shard) if self.synchronised else nullcontext():
            if detects:
                with caught(self.model, now) as catching:
                    yield
                self.catches = self.catches or catching.caught > 0
            else:
                yield

    def joined(self, found: Sequence[tuple[Metrics, BatchShard]], n: int) -> list[tuple[Metrics, int]]:
        """Sum the gradients of all ranks in ``.grad``; returns the metrics of each part, with several ranks those of
        the batch, with their number of samples."""
        self.steps += 1
        if self.world.size == 1:
            return [(metrics, shard.length) for metrics, shard in found]
        if self.replicated:
            add_gradients(self._leaves(), self.world)
            return [(metrics, shard.length) for metrics, shard in found]
        double = any(p.dtype is torch.float64 for p in self.model.parameters())
        packed = Packed(found, n, self.world, torch.float64 if double else torch.float32)
        add_gradients(self._leaves(), self.world, [packed.numbers])
        return [(packed.metrics(), n)]

    def _leaves(self) -> Iterable[Tensor]:
        """The parameters whose gradients are summed after the step."""
        return () if self.sharded else self.model.parameters()

    def agree(self, shards: Sequence[BatchShard], begun: Begun, state: dict[str, Any]) -> None:
        """Synchronise buffers and the method's state over all ranks.

        Statistics of synchronised batch-norm are equal already. Others, and buffers that forward passes have written,
        become the mean over the ranks, weighted by their rows. An entry of the state that one rank has changed gets the
        value of that rank; one that several have changed, the mean.
        """
        if self.world.size == 1 or self.replicated:
            return
        weight = sum(shard.weight for shard in shards)
        with torch.no_grad():
            buffers = self._written(begun)
            means = [buffer * weight for buffer in buffers]
            tables = [
                (value, Changes(value, begun.kept.get(key), weight))
                for key, value in state.items()
                if isinstance(value, Tensor) and begun.moved(key, value) and not key.startswith(self.alike)
            ]
            self.world.add([*means, *[numbers for _, table in tables for numbers in table.sums]])
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean)
            for value, table in tables:
                value.copy_(table.agreed(shards[0].ranks))

    def _written(self, begun: Begun) -> list[Tensor]:
        """The buffers that may differ between ranks."""
        own: dict[int, bool] = {}
        for module in self.model.modules():
            if isinstance(module, _NormBase):
                moves = module.training and module.track_running_stats
                moves = moves and not (self.synchronised and isinstance(module, _BatchNorm))
                own |= {id(b): moves for b in module.buffers(recurse=False)}
        floats = [b for b in self.model.buffers() if b.is_floating_point() and not b.is_inference()]
        return [b for b in floats if own.get(id(b), (id(b), b._version) not in begun.versions)]
