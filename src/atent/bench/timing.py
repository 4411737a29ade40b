"""Interleaved timing: the works run in rounds, so that a slow period of the machine affects all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from atent import stats
from atent.experiments.results.bench import BenchRow, Quartiles, RatioOf
from atent.progress import Advance

Work = Callable[[], object]
Clock = Literal["cpu", "wall"]
# Rounds from which an interval of ratios is believed, and at which medians alone are known well enough.
_FEW = 7
_PLENTY = 31


@dataclass(frozen=True)
class Effort:
    """The budget of a measurement: until the ratios are precise, or the time is spent."""

    seconds: float
    """Seconds by the clock after which no new round begins that would not end in time."""
    clock: Clock = "cpu"
    """The clock of ratios."""
    device: str = "cpu"
    least: int = 2
    """Rounds that are measured however long they take; an interval needs two."""
    most: int = 201
    width: float = 0.03
    """Half width of the ratios' 95 % intervals, relative, at which the rounds end."""


@dataclass
class Rounds:
    """Seconds of each piece of work in each round."""

    clock: Clock
    cpu: dict[str, list[float]]
    wall: dict[str, list[float]]
    pairs: Mapping[str, str] = field(default_factory=dict)
    """Row -> the row that its ratio is taken to."""

    @property
    def counted(self) -> dict[str, list[float]]:
        """Seconds by the clock that ratios are of."""
        return self.cpu if self.clock == "cpu" else self.wall

    def ratio(self, name: str) -> RatioOf | None:
        """Seconds of a row over those of its base, within the rounds."""
        base = self.pairs.get(name)
        if base is None:
            return None
        one, other = self.counted[name], self.counted[base]
        found = stats.ratio(one, other)
        each = [a / b for a, b in zip(one, other, strict=True)]
        return RatioOf(base, quartiles(each), found.value, found.low, found.high)

    def row(self, name: str, **more: object) -> BenchRow:
        """The row of a piece of work; ``more``: other fields of `BenchRow`."""
        return BenchRow(name, quartiles(self.cpu[name]), quartiles(self.wall[name]), self.ratio(name), **more)  # type: ignore[arg-type]

    def per_second(self, name: str, amount: float) -> float:
        """The median rate of work of which a round does ``amount``."""
        return amount / statistics.median(self.counted[name])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles; of one value all three are that value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, low, high, len(values))


def interleaved(
    works: Mapping[str, Work], effort: Effort, *, pairs: Mapping[str, str] | None = None, warm: bool = True,
    advance: Advance | None = None,
) -> Rounds:  # fmt: skip
    """Time the works in rounds, each beginning with another one, until every ratio of ``pairs`` is known to
    ``effort.width`` or the time is spent.

    Parameters
    ----------
    works
        What is timed, by name; on another device than the CPU it is waited for.
    effort
        How long, and by which clock.
    pairs
        Row -> the row that its ratio is taken to; without any, 31 rounds are made in the time that there is.
    warm
        Run all once before timing: the first round fills caches and selects kernels.
    advance
        Called with the name of the running work.
    """
    ends = time.monotonic() + effort.seconds
    found = Rounds(effort.clock, {name: [] for name in works}, {name: [] for name in works}, pairs or {})
    order = list(works)
    longest = 0.0
    if warm:
        for name in order:
            _once(works[name], effort.device)
    for number in range(effort.most):
        begun = time.monotonic()
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if advance is not None:
                advance(0, name)
            cpu, wall = _once(works[name], effort.device)
            found.cpu[name].append(cpu)
            found.wall[name].append(wall)
        longest = max(longest, time.monotonic() - begun)
        done = number + 1
        if done >= effort.least and (time.monotonic() + longest > ends or _is_narrow(found, done, effort.width)):
            break
    return found


def _once(work: Work, device: str) -> tuple[float, float]:
    """CPU and wall seconds of one run."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    # A clock may have ticked neither time; a ratio needs positive values.
    return max(time.process_time() - cpu, 1e-9), max(time.perf_counter() - wall, 1e-9)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _is_narrow(found: Rounds, done: int, width: float) -> bool:
    if not found.pairs:
        return done >= _PLENTY
    # A few rounds that agree by chance give a narrow interval too.
    if done < _FEW:
        return False
    ratios = [ratio for name in found.pairs if (ratio := found.ratio(name)) is not None]
    return all(math.log(ratio.high / ratio.low) / 2 <= math.log1p(width) for ratio in ratios)
