"""Output width of the commands; imports only cheap modules."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap


def terminal_width() -> int:
    """Columns of the terminal, also if standard output is piped; 80 without a terminal."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(40, int(os.environ["COLUMNS"]))
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            if stream is not None:
                return max(40, os.get_terminal_size(stream.fileno()).columns)
    return 80


def screen() -> int:
    """Width of printed tables: $COLUMNS, the terminal's width, or 80 if output is piped."""
    if os.environ.get("COLUMNS", "").isdigit():
        return terminal_width()
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def wrapped(text: str, indent: int) -> str:
    """Wrap a line to the terminal's width; continuation lines are indented by ``indent`` columns."""
    return textwrap.fill(
        text, terminal_width(), subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )
