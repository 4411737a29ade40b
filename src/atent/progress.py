"""One progress bar for everything that takes longer than a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""advance(amount, text): move the bar and set the text behind it."""


def _silent(amount: int, text: str = "") -> None:
    return None


@contextmanager
def bar(total: int, title: str, *, enabled: bool = True) -> Iterator[Advance]:
    """A bar on stderr with the time left; silent where stderr is not a terminal, rich is absent, or not enabled."""
    if not enabled or not sys.stderr.isatty():
        yield _silent
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
