"""A step whose batch does not fit into memory: smaller parts of it, whose gradients add up."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atent.guard import Values
from atent.memory import OutOfMemory, halved, release
from atent.methods import Method
from atent.methods.base import Metrics

Part = Callable[[slice, float], Metrics]
"""The gradient of some rows of a batch, times a weight, added to ``.grad``; what was measured on them."""


class MicroBatches:
    """Batches as a whole until memory runs out, then in micro-batches of half as many samples, and half again.

    The step that failed is repeated from its start: the weights are untouched, the buffers and the method's state are
    put back, and its random numbers are a function of the step. Each micro-batch weighs its share of the batch, so
    that the gradient is that of the batch, up to rounding and to what is drawn: a micro-batch has random numbers of its
    own. Batch-norm normalises each micro-batch by its own statistics, and its running ones take one update from each.

    The size is recorded in the run's position, and a resumed run continues with it.
    """

    def __init__(self, model: nn.Module, method: Method, say: Callable[[str], None]) -> None:
        self.model, self.method, self.say = model, method, say
        self.begun: Begun | None = None

    def undo(self) -> None:
        """Put the buffers and the method's state back to before the last batch, whose step is not taken."""
        assert self.begun is not None, "a batch has passed"
        self.begun.restore()

    def accumulate(
        self, n: int, position: dict[str, Any], state: dict[str, Any], clear: Callable[[], None], part: Part
    ) -> list[tuple[Metrics, int]]:
        """The gradient of a batch of ``n`` samples, after ``clear``; the metrics and the number of samples of each
        part. ``position["micro_batch"]`` is the most samples of a part, where memory has run out.

        OutOfMemory, in one line, where a single sample does not fit, or where the method needs the batch as a whole.
        """
        while True:
            self.begun = Begun(self.model, state)
            clear()
            most = min(n, position.get("micro_batch", n))
            found = self._tried(n, most, position, part)
            if found is not None:
                return found
            self.undo()
            clear()
            release()
            smaller = position["micro_batch"]
            self.say(f"out of memory at {most} samples: the steps continue in micro-batches of {smaller}")

    def _tried(self, n: int, most: int, position: dict[str, Any], part: Part) -> list[tuple[Metrics, int]] | None:
        """Every part; None where memory ran out and ``position`` has a smaller size."""
        # Parts of equal length: none is left with a single sample, which batch-norm could not normalise.
        cuts = [0, n] if most >= n else torch.linspace(0, n, -(-n // most) + 1).round().long().tolist()
        found = []
        try:
            for begin, end in itertools.pairwise(cuts):
                found.append((part(slice(begin, end), (end - begin) / n), end - begin))
        except (RuntimeError, MemoryError) as error:
            smaller = halved(most, error, "a training step")
            if not self.method.divisible:
                name = type(self.method).__name__
                raise OutOfMemory(
                    f"out of memory at {most} samples: {name} needs a batch as a whole, so lower train.batch_size"
                ) from error
            position["micro_batch"] = smaller
            return None
        return found


class Begun:
    """The buffers and the method's state before a step."""

    def __init__(self, model: nn.Module, state: dict[str, Any]) -> None:
        self.buffers = Values(list(model.buffers()))
        self.state, self.kept = state, {key: _copied(value) for key, value in state.items()}

    def restore(self) -> None:
        """Put them back."""
        self.buffers.restore()
        self.state.clear()
        self.state.update(self.kept)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
