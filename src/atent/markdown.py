"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table; the first ``left`` columns are aligned to the left, all others to the right.

    A bar or a line break in a cell, as names of files may have them, does not end it. ValueError for a row that has not
    a cell for each heading.
    """
    lines = [_row(headings), "|" + "---|" * left + "---:|" * (len(headings) - left)]
    for cells in rows:
        if len(cells) != len(headings):
            raise ValueError(f"a row of {len(cells)} cells under {len(headings)} headings: give one cell per heading")
        lines.append(_row(cells))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")
