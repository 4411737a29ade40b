"""How far a training is: by its steps, or by the time that it was given."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from atent.distributed import current


class Clock:
    """Counts the time of the steps, and says when the training is over.

    Without ``minutes`` a training is ``epochs`` long, and everything here follows from the step's number. With them it
    ends when its steps have taken that long: progress is the share of the time that is gone, and a schedule of the
    learning rate, written for ``epochs``, is stretched to fit. Validation and checkpoints are not counted. Where
    batches take their time by chance, so do the progress and the weights: two such runs are alike, not equal.
    """

    def __init__(self, epochs: int, steps: int, minutes: float | None, elapsed: float = 0.0) -> None:
        self.epochs, self.steps = epochs, steps
        self.limit = None if minutes is None else 60.0 * minutes
        self.elapsed = elapsed
        self.before = elapsed
        self._since: float | None = None
        self._agreed: float | None = None

    def start(self, *, fresh: bool = False) -> None:
        """From now on time counts; a fresh epoch keeps in ``before`` how long those before it have taken."""
        if fresh:
            self.before = self.elapsed
        self._since = time.perf_counter()
        self._agreed = self.elapsed if current().size > 1 else None

    def stop(self) -> None:
        """Time counts no more, until the next start."""
        self.elapsed, self._since, self._agreed = current().shared(self.measured()), None, None

    def agree(self, seconds: float) -> None:
        """Take over what rank 0 measured, which decides for all until the next time."""
        self._agreed = seconds

    def seconds(self) -> float:
        """How long the steps have taken so far: of several ranks, on rank 0, when they last agreed."""
        return self.measured() if self._agreed is None else self._agreed

    def measured(self) -> float:
        """How long the steps have taken so far, on this rank."""
        return self.elapsed + (0.0 if self._since is None else time.perf_counter() - self._since)

    def state(self) -> dict[str, float]:
        """What `restore` takes back."""
        return {"elapsed": self.seconds(), "before": self.before}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state` gave, or an earlier version, which kept no ``before``."""
        self.elapsed = saved.get("elapsed", 0.0)
        self.before = saved.get("before", self.elapsed)

    def progress(self, now: int) -> float:
        """The share of the training that lies before step ``now``, in [0, 1]."""
        if self.limit is None:
            return now / (self.epochs * self.steps)
        return min(1.0, self.seconds() / self.limit)

    def position(self, now: int, progress: float) -> int:
        """The step at which a schedule of ``epochs`` epochs is looked up."""
        total = self.epochs * self.steps
        return now if self.limit is None else min(int(progress * total), total - 1)

    def spent(self) -> bool:
        """Whether a given time is over."""
        return self.limit is not None and self.seconds() >= self.limit

    def over(self, epoch: int) -> bool:
        """Whether no epoch ``epoch`` (from 0) is to be begun."""
        return self.spent() if self.limit is not None else epoch >= self.epochs

    def due(self, epoch: int, every: int, times: int, before: float) -> bool:
        """Whether to measure after ``epoch`` (from 1): every few epochs, or so many times in the given time, ``before``
        being the seconds at the last measurement. The last epoch is always measured."""
        if self.limit is None:
            return epoch % every == 0 or self.over(epoch)
        return self.spent() or math.floor(self.elapsed / self.limit * times) > math.floor(before / self.limit * times)
