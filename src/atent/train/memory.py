"""Gradient accumulation over parts of a batch, and over smaller parts if memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from atent.distributed import BatchShard, World
from atent.guard import Buffers
from atent.memory import OutOfMemory, halved, release
from atent.methods import Method
from atent.methods.base import Metrics
from atent.methods.contract import checked_backward
from atent.train.parallel import Parallel
from atent.train.settings import TrainSettings

Part = Callable[[slice, float], Metrics]
"""Adds the gradient of some rows of a batch, times a weight, to ``.grad``; returns their metrics."""


class MicroBatches:
    """Full batches until memory runs out, then micro-batches of half as many samples, and so on.

    The failed step is repeated from its start: the weights are unchanged, the buffers and the method's state are
    restored, and its random numbers are a function of the step. Each micro-batch is weighted by its share of the batch
    and has the random numbers of its samples in the full batch, so that the gradient is that of the batch, up to
    rounding. Batch-norm normalises each micro-batch by its own statistics, and each updates the running statistics.

    The size is recorded in the run's position, and a resumed run continues with it. `train.accumulate` sets
    micro-batches from the start. Several ranks share each of them (`Parallel`); if memory runs out on one rank, the
    training ends, since the others are within the step.
    """

    def __init__(
        self, model: nn.Module, method: Method, say: Callable[[str], None], settings: TrainSettings | None = None,
        world: World | None = None,
    ) -> None:  # fmt: skip
        """``world``: the ranks that share the batches; default: all ranks of this job."""
        self.model, self.method, self.say = model, method, say
        self.parallel = Parallel(model, method, settings or TrainSettings(), say, world)
        self.begun: Begun | None = None
        self.shards: list[BatchShard] = []

    def undo(self) -> None:
        """Restore the buffers and the method's state from before the last batch, whose step is skipped."""
        assert self.begun is not None, "a batch has passed"
        self.begun.restore()

    def agree(self, state: dict[str, Any]) -> None:
        """Synchronise the buffers and the method's state over all ranks after the last batch."""
        assert self.begun is not None, "a batch has passed"
        self.parallel.agree(self.shards, self.begun, state)

    def accumulate(
        self, n: int, position: dict[str, Any], state: dict[str, Any], clear: Callable[[], None], part: Part
    ) -> list[tuple[Metrics, int]]:
        """Accumulate the gradient of a batch of ``n`` samples, after ``clear``; returns the metrics and the number of
        samples of each part, with several ranks those of the batch. ``position["micro_batch"]`` is the maximum number
        of samples of a part, if memory has run out.

        OutOfMemory, in one line, if a single sample does not fit, if the method needs the full batch, and if other
        ranks have rows of it.
        """
        while True:
            self.begun = Begun(self.model, state)
            clear()
            most = min(n, position.get("micro_batch", n), -(-n // self.parallel.count(n)))
            self.shards = self.parallel.shards(n, most)
            found = self._tried(most, position, part)
            if found is not None:
                return self.parallel.joined(found, n)
            self.undo()
            clear()
            release()
            smaller = position["micro_batch"]
            self.say(f"out of memory at {most} samples: the steps continue in micro-batches of {smaller}")

    def _tried(self, most: int, position: dict[str, Any], part: Part) -> list[tuple[Metrics, BatchShard]] | None:
        """The results of all parts; None if memory ran out and ``position`` has a smaller size."""
        found = []
        try:
            for shard in self.shards:
                with self.parallel.passing(shard):
                    metrics = part(shard.rows, self.parallel.weight(shard))
                    found.append((checked_backward(self.method, metrics, most), shard))
        except (RuntimeError, MemoryError) as error:
            smaller = halved(most, error, "a training step")
            self._check_divisible(most, error)
            position["micro_batch"] = smaller
            return None
        return found

    def _check_divisible(self, most: int, error: Exception) -> None:
        """OutOfMemory if the step cannot continue in smaller parts."""
        size = self.parallel.world.size
        if size > 1:
            raise OutOfMemory(
                f"out of memory at {most} samples on one of {size} processes, during a step of all: raise"
                " train.accumulate, or lower train.batch_size"
            ) from error
        if not self.method.divisible:
            name = type(self.method).__name__
            raise OutOfMemory(
                f"out of memory at {most} samples: {name} needs the full batch, so lower train.batch_size"
            ) from error


class Begun:
    """The buffers and the method's state before a step."""

    def __init__(self, model: nn.Module, state: dict[str, Any]) -> None:
        buffers = list(model.buffers())
        self.buffers = Buffers(model.modules(), buffers)
        self.state, self.kept = state, {key: _copied(value) for key, value in state.items()}
        # Inference tensors have no version, and are not written to by a step.
        self.versions = {(id(t), t._version) for t in buffers if not t.is_inference()}
        self.marks = {key: (id(t), t._version) for key, t in state.items() if isinstance(t, Tensor)}

    def moved(self, key: str, value: Tensor) -> bool:
        """Whether the step has written to an entry of the state, or replaced it."""
        return self.marks.get(key) != (id(value), value._version)

    def restore(self) -> None:
        """Restore them."""
        self.buffers.restore()
        self.state.clear()
        self.state.update(self.kept)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
