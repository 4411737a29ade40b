"""One progress display for everything that takes longer than a second: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""advance(amount, text): move the bar and set the text behind it."""

MINUTE = 60.0
"""Seconds after which long work prints a line where there is no terminal, and from which it gives an estimate."""
_MEASURED = 5.0
"""Seconds of work from which an estimate is made."""


def _silent(amount: int, text: str = "") -> None:
    return None


@contextmanager
def bar(total: int, title: str, *, enabled: bool = True, estimate: bool = True) -> Iterator[Advance]:
    """Progress on stderr: on a terminal a bar with the time left (none without rich), elsewhere a line a minute.

    ``estimate``: where there is no terminal, one line says how long it takes, from the first measured batches. Silent
    where not enabled, and on every rank but the first.
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
    """Progress as plain lines on stderr, one a minute, also while one batch takes longer than that."""
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
    """How much of something is done, and since when."""

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done, self.text = total, title, 0, ""
        # The first report is of what was known before, or prepared kernels: it measures nothing.
        self.begun: tuple[int, float] | None = None

    def add(self, amount: int, text: str) -> None:
        self.done, self.text = self.done + amount, text
        if self.begun is None:
            self.begun = self.done, time.perf_counter()

    def left(self) -> float | None:
        """Seconds left at the pace so far; None before it can be known."""
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
    """An ``advance`` by samples, ``n`` in each round, for a bar by cost: a sample of round i counts ``costs[i]``."""
    done = 0

    def weighted(amount: int, text: str = "") -> None:
        nonlocal done
        cost = costs[min(done // n, len(costs) - 1)] if costs and n else 1
        done += amount
        advance(amount * cost, text)

    return weighted


def roughly(seconds: float) -> str:
    """A duration for people: "50 s", "40 min", "2.5 h"."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """A line on stderr, which a log file has at once."""
    print(line, file=sys.stderr, flush=True)
