"""Progress of a training by steps, or by time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from atent.distributed import current


class Clock:
    """Measures the time of the steps, and determines the end of the training.

    Without ``minutes`` a training has ``epochs`` epochs, and all values are functions of the step. With ``minutes`` it
    ends when its steps have taken that time: progress is the elapsed share of the time, and a learning-rate schedule
    for ``epochs`` epochs is rescaled to it. The time of validation and checkpoints is not counted. Since the time of
    steps varies, progress and weights vary too: two such runs are similar, not equal.
    """

    def __init__(self, epochs: int, steps: int, minutes: float | None, elapsed: float = 0.0) -> None:
        self.epochs, self.steps = epochs, steps
        self.limit = None if minutes is None else 60.0 * minutes
        self.elapsed = elapsed
        self.before = elapsed
        self._since: float | None = None
        self._agreed: float | None = None

    def start(self, *, fresh: bool = False) -> None:
        """Start counting; with ``fresh``, at a new epoch, ``before`` is set to the time of the previous ones."""
        if fresh:
            self.before = self.elapsed
        self._since = time.perf_counter()
        self._agreed = self.elapsed if current().size > 1 else None

    def stop(self) -> None:
        """Stop counting until the next `start`."""
        self.elapsed, self._since, self._agreed = current().shared(self.measured()), None, None

    def agree(self, seconds: float) -> None:
        """Set the time measured by rank 0, which is used by all ranks until the next call."""
        self._agreed = seconds

    def seconds(self) -> float:
        """Time of the steps so far; with several ranks that of rank 0 at the last `agree`."""
        return self.measured() if self._agreed is None else self._agreed

    def measured(self) -> float:
        """Time of the steps so far on this rank."""
        return self.elapsed + (0.0 if self._since is None else time.perf_counter() - self._since)

    def state(self) -> dict[str, float]:
        """The state for `restore`."""
        return {"elapsed": self.seconds(), "before": self.before}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore a `state`, also of an earlier version, which had no ``before``."""
        self.elapsed = saved.get("elapsed", 0.0)
        self.before = saved.get("before", self.elapsed)

    def progress(self, now: int) -> float:
        """The share of the training before step ``now``, in [0, 1]."""
        if self.limit is None:
            return now / (self.epochs * self.steps)
        return min(1.0, self.seconds() / self.limit)

    def position(self, now: int, progress: float) -> int:
        """The step at which to evaluate a schedule for ``epochs`` epochs."""
        total = self.epochs * self.steps
        return now if self.limit is None else min(int(progress * total), total - 1)

    def spent(self) -> bool:
        """Whether the time in ``minutes`` has elapsed."""
        return self.limit is not None and self.seconds() >= self.limit

    def over(self, epoch: int) -> bool:
        """Whether the training ends before ``epoch`` (from 0)."""
        return self.spent() if self.limit is not None else epoch >= self.epochs

    def due(self, epoch: int, every: int, times: int, before: float) -> bool:
        """Whether to measure after ``epoch`` (from 1): every ``every`` epochs, or with ``minutes`` ``times`` times in
        total, ``before`` being the seconds at the last measurement. The last epoch is always measured."""
        if self.limit is None:
            return epoch % every == 0 or self.over(epoch)
        return self.spent() or math.floor(self.elapsed / self.limit * times) > math.floor(before / self.limit * times)
