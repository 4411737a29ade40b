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


def checked(advance: Advance, check: Callable[[], object] | None) -> Advance:
    """``advance``, which also calls ``check`` each time; it may raise to end the work."""
    if check is None:
        return advance

    def both(amount: int, text: str = "") -> None:
        advance(amount, text)
        check()

    return both


@contextmanager
def bar(
    total: int, title: str, *, enabled: bool = True, estimate: bool = True, costs: Sequence[int] = (1,),
    group: int = 0,
) -> Iterator[Advance]:  # fmt: skip
    """Progress on stderr: on a terminal a bar with the remaining time (needs rich), otherwise one line per minute.

    ``total`` samples pass once for each of the ``costs``, such as the passes of an attack. The remaining time is that
    of the measured batches, by cost; there is none before a batch is measured. ``estimate``: without a terminal, one
    line with the estimated time from the first batches. ``group``: work that may end early reports what it leaves out
    after each group of this many samples; before the first such report the time is an upper limit, and said to be one.
    Silent if not enabled, and on all ranks but the first.
    """
    if not enabled or os.environ.get("RANK", "0") not in ("", "0"):
        yield _silent
        return
    if not sys.stderr.isatty():
        with plain(total, title, estimate=estimate, costs=costs, group=group) as advance:
            yield advance
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        yield _silent
        return
    work = Work(total, title, costs, group)

    class Left(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            return Text(work.left_text())

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=28),
        rich_progress.MofNCompleteColumn(),
        Left(),
        rich_progress.TextColumn("{task.fields[text]}", markup=False),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=work.total, text="")

        def advance(amount: int, text: str = "") -> None:
            display.update(task, advance=work.add(amount, text), text=text)

        yield advance


@contextmanager
def plain(
    total: int, title: str, *, estimate: bool = True, costs: Sequence[int] = (1,), group: int = 0
) -> Iterator[Advance]:
    """Progress as plain lines on stderr, one per minute, also while a batch takes longer than that."""
    work, over = Work(total, title, costs, group), threading.Event()

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
                say(f"{title}: {work.word} {roughly(left)} on this machine, estimated from the first batches")

    try:
        yield advance
    finally:
        over.set()
        beating.join()


class Work:
    """The finished share of some work, and the estimated time of the rest.

    ``samples`` pass once for each of the ``costs``. The first report of a pass counts those that need no work, such as
    earlier results or, in a cascade, samples that are misclassified already; later passes skip at least as many. Each
    further report is a measured batch.
    """

    def __init__(self, samples: int, title: str, costs: Sequence[int] = (1,), group: int = 0) -> None:
        self.samples, self.title, self.costs, self.text = samples, title, costs or (1,), ""
        self.group = group
        self.total, self.done = samples * sum(self.costs), 0
        self.number, self.inside, self.begun, self.skipped = 0, 0, False, 0
        """The current pass, the samples that have passed, whether it has begun, and those without work."""
        self.worked, self.seconds, self.last = 0, 0.0, 0.0
        """Cost and time of the measured batches, and the time of the last report."""

    @property
    def word(self) -> str:
        """What the estimated time is said to be."""
        # The first batch is not measured, so that a whole group is a little more than what is.
        return "at most" if self.worked < 0.9 * self.group else "about"

    @property
    def cost(self) -> int:
        """The cost of a sample in the current pass."""
        return self.costs[min(self.number, len(self.costs) - 1)]

    def add(self, amount: int, text: str = "") -> int:
        """Count some samples; returns their cost."""
        now, spent = time.perf_counter(), amount * self.cost
        if self.begun:
            self.worked, self.seconds = self.worked + spent, self.seconds + now - self.last
        elif amount < self.samples:
            self.skipped = amount
        self.begun, self.last, self.text = True, now, text
        self.done, self.inside = self.done + spent, self.inside + amount
        if self.samples and self.inside >= self.samples:
            self.number, self.inside, self.begun = self.number + 1, self.inside - self.samples, False
        return spent

    def left(self) -> float | None:
        """Estimated remaining seconds; None before a batch is measured, and where one takes longer than estimated."""
        if not self.worked or self.seconds < _MEASURED:
            return None
        passed = self.inside if self.begun else self.skipped
        current = (self.samples - passed) * self.cost if self.number < len(self.costs) else 0
        later = (self.samples - self.skipped) * sum(self.costs[self.number + 1 :])
        since = time.perf_counter() - self.last if current or later else 0.0
        left = self.seconds / self.worked * (current + later) - since
        return left if left > 0 or not (current or later) else None

    def left_text(self) -> str:
        """The remaining time for display, or ""."""
        left = self.left()
        return "" if left is None else f"{self.word} {roughly(left)} left"

    def line(self) -> str:
        """The progress as one line."""
        share = f"{min(self.done / self.total, 1):.0%}" if self.total else "begun"
        return f"{self.title}: {', '.join(filter(None, [share, self.text, self.left_text()]))}"


def roughly(seconds: float) -> str:
    """A duration for display: "50 s", "40 min", "2.5 h"."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """Print a line on stderr, flushed."""
    print(line, file=sys.stderr, flush=True)
