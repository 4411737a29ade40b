"""Progress display of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""advance(amount, text): advance the bar and set the text after it."""

MINUTE = 60.0
"""Seconds between lines without a terminal, and shortest remaining time for which an estimate is printed."""
_MEASURED = 5.0
"""Seconds of work on which an estimate is based."""


def _silent(amount: int, text: str = "") -> None:
    return None


@contextmanager
def bar(total: int, title: str, *, enabled: bool = True, estimate: bool = True) -> Iterator[Advance]:
    """Progress on stderr: on a terminal a bar with the remaining time (needs rich), otherwise one line per minute.

    ``estimate``: without a terminal, one line with the estimated time from the first batches. Silent if not enabled,
    and on all ranks but the first.
    """
    if not enabled or os.environ.get("RANK", "0") not in ("", "0"):
        yield _silent
        return
    if not sys.stderr.isatty():
        with plain(total, title, estimate=estimate) as advance:
            yield advance
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ImportError:
        yield _silent
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=28),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[text]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=total, text="")

        def advance(amount: int, text: str = "") -> None:
            display.update(task, advance=amount, text=text)

        yield advance


@contextmanager
def plain(total: int, title: str, *, estimate: bool = True) -> Iterator[Advance]:
    """Progress as plain lines on stderr, one per minute, also while a batch takes longer than that."""
    work, over = _Work(total, title), threading.Event()

    def beat() -> None:
        while not over.wait(MINUTE):
            say(work.line())

    beating = threading.Thread(target=beat, name=f"progress of {title}", daemon=True)
    beating.start()

    def advance(amount: int, text: str = "") -> None:
        nonlocal estimate
        work.add(amount, text)
        left = work.left() if estimate else None
        if left is not None:
            estimate = False
            if left >= MINUTE:
                say(f"{title}: about {roughly(left)} on this machine, estimated from the first batches")

    try:
        yield advance
    finally:
        over.set()
        beating.join()


class _Work:
    """The amount of finished work, and its start time."""

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done, self.text = total, title, 0, ""
        # The first report includes earlier results or the initialisation of kernels, and is not measured.
        self.begun: tuple[int, float] | None = None

    def add(self, amount: int, text: str) -> None:
        self.done, self.text = self.done + amount, text
        if self.begun is None:
            self.begun = self.done, time.perf_counter()

    def left(self) -> float | None:
        """Estimated remaining seconds; None before an estimate is possible."""
        if self.begun is None:
            return None
        done, seconds = self.done - self.begun[0], time.perf_counter() - self.begun[1]
        return seconds / done * max(self.total - self.done, 0) if done > 0 and seconds >= _MEASURED else None

    def line(self) -> str:
        left = self.left()
        share = f"{min(self.done / self.total, 1):.0%}" if self.total else "begun"
        parts = [share, self.text, "" if left is None else f"about {roughly(left)} left"]
        return f"{self.title}: {', '.join(filter(None, parts))}"


def in_rounds(advance: Advance, n: int, costs: Sequence[int]) -> Advance:
    """An ``advance`` in samples, ``n`` per round, for a bar in units of cost: samples of round i cost ``costs[i]``."""
    done = 0

    def weighted(amount: int, text: str = "") -> None:
        nonlocal done
        cost = costs[min(done // n, len(costs) - 1)] if costs and n else 1
        done += amount
        advance(amount * cost, text)

    return weighted


def roughly(seconds: float) -> str:
    """A duration for display: "50 s", "40 min", "2.5 h"."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """Print a line on stderr, flushed."""
    print(line, file=sys.stderr, flush=True)
