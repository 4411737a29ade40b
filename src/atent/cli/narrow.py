"""Printed tables that are wider than the terminal: a figure and its interval stay whole."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_INTERVAL = re.compile(r"\[[^\[\]\n]*\]")
# A figure before its interval, such as "98.2 %" or "0.97 +/- 0.01".
_FIGURE = 16
# The width to which words of names and headings may fold a column.
_LEAST = 12


def natural_width(table: Table) -> int:
    """Columns of a table in which no cell is folded."""
    console = Console(width=10**6, markup=False, emoji=False)
    return Measurement.get(console, console.options, table).maximum


def fitted(table: Table, width: int) -> list[Table]:
    """The tables to print in ``width`` columns: the table itself if it fits, or if it has no intervals.

    Otherwise intervals are moved below their figures. Columns for which there is no room then go to further tables,
    beside the first column. A table exceeds ``width`` only where two columns do not fit.
    """
    columns = [_Cells(column, [_plain(cell) for cell in column.cells]) for column in table.columns]
    if natural_width(table) <= width or not any(column.has_intervals for column in columns):
        return [table]
    edges = 1 if table.show_edge else -1
    every = list(range(len(columns)))
    for broken in (False, True):
        if sum(columns[i].needed(broken) + 3 for i in every) + edges <= width:
            return [_part(table, columns, every, width - edges, broken)]
    room = width - edges - columns[0].needed(True) - 3
    parts: list[list[int]] = [[]]
    for i in every[1:]:
        if parts[-1] and sum(columns[k].needed(True) + 3 for k in (*parts[-1], i)) > room:
            parts.append([])
        parts[-1].append(i)
    found = [_part(table, columns, [0, *part], width - edges, True) for part in parts]
    for part in found[1:]:
        part.title = None
    return found


@dataclass(frozen=True)
class _Cells:
    """A column, with its cells as text."""

    column: Column
    texts: list[str]

    @property
    def has_intervals(self) -> bool:
        return any(map(_INTERVAL.search, self.texts))

    @property
    def is_figures(self) -> bool:
        """Whether every cell is a number, or a figure and its interval: neither is folded."""
        return self.column.justify == "right" and all(
            len(_INTERVAL.sub("", line).strip()) <= _FIGURE for text in self.texts for line in text.split("\n")
        )

    def lines(self, broken: bool) -> list[str]:
        return [line for text in self.texts for line in (_broken(text) if broken else text).split("\n")]

    def needed(self, broken: bool) -> int:
        """The least width; ``broken``: with intervals below their figures."""
        words = [word for word in _plain(self.column.header).split() if len(word) <= _LEAST]
        if self.is_figures:
            return max(map(len, (*words, *self.lines(broken), "")))
        parts = [part for line in self.lines(broken) for part in _glued(line).split()]
        wide = [len(part) for part in parts if len(part) <= _LEAST or _INTERVAL.search(part)]
        return max([*wide, *map(len, words), min(_LEAST, max(map(len, (*parts, ""))))])

    @property
    def natural(self) -> int:
        return max(map(len, (*self.lines(False), *_plain(self.column.header).split("\n"))))


def _part(table: Table, columns: Sequence[_Cells], chosen: Sequence[int], width: int, broken: bool) -> Table:
    """A table of some columns; those of text share the room that figures leave."""
    widths = {i: columns[i].needed(broken) for i in chosen}
    room = width - sum(each + 3 for each in widths.values())
    text = sorted((i for i in chosen if not columns[i].is_figures), key=lambda i: columns[i].natural - widths[i])
    for place, i in enumerate(text):
        more = max(0, min(columns[i].natural - widths[i], room // (len(text) - place)))
        widths[i], room = widths[i] + more, room - more
    part = Table(
        title=table.title, title_justify=table.title_justify, show_edge=table.show_edge, pad_edge=table.pad_edge
    )
    for i in chosen:
        column = columns[i].column
        part.add_column(column.header, justify=column.justify, width=widths[i], overflow="fold", style=column.style)
    cells = [list(columns[i].column.cells) for i in chosen]
    for number, row in enumerate(table.rows):
        shown = [_shown(each[number], widths[i], broken and columns[i].is_figures) for i, each in zip(chosen, cells)]
        part.add_row(*shown, style=row.style, end_section=row.end_section)
    return part


def _shown(cell: Any, width: int, broken: bool) -> Any:
    """A cell in lines of that width, with the style that it has."""
    lines = (_broken(_plain(cell)) if broken else _plain(cell)).split("\n")
    folded = [
        part.replace("\0", " ")
        for line in lines
        for part in textwrap.wrap(_glued(line), width, break_on_hyphens=False) or [""]
    ]
    text = "\n".join(folded)
    return Text(text, style=cell.style) if isinstance(cell, Text) else text


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _broken(text: str) -> str:
    """The text with each interval on a line of its own."""
    return re.sub(rf" +(?={_INTERVAL.pattern})", "\n", text)


def _glued(line: str) -> str:
    """The line with intervals as single words."""
    return _INTERVAL.sub(lambda found: found[0].replace(" ", "\0"), line)
