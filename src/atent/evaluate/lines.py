"""A file of lines from which a killed measurement resumes: its first line says what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atent.runs import append_jsonl, read_jsonl


class Foreign(ValueError):
    """The file is not of this measurement."""


class Lines:
    """The rows of an unfinished measurement, in a file that survives a kill; without a path they are not kept.

    Parameters
    ----------
    path
        JSON-lines file; it is written with the first row, so that what is refused leaves none.
    kind
        What is measured, such as "evaluation".
    fingerprint
        What the result depends on.

    Raises
    ------
    Foreign
        In one line, for a file of another kind or with another fingerprint.
    """

    def __init__(self, path: str | Path | None, kind: str, fingerprint: Mapping[str, Any] | None = None) -> None:
        self.path = path if path is None else Path(path)
        self._head: dict[str, Any] | None = {"kind": f"atent {kind}, unfinished", **(fingerprint or {})}
        self.rows: list[dict[str, Any]] = []
        """What the file held."""
        if self.path is None or not self.path.is_file():
            return
        found = read_jsonl(self.path)
        if not found:
            return
        head, *self.rows = found
        wanted, self._head = self._head, None
        if head.get("kind") != wanted["kind"]:
            raise Foreign(f"{self.path} holds no unfinished {kind}: give another file to resume from")
        differs = [key for key, value in wanted.items() if head.get(key) != value]
        if differs:
            article = "an" if kind[0] in "aeiou" else "a"
            raise Foreign(
                f"{self.path} belongs to {article} {kind} with other {', '.join(differs)}: remove it, or give"
                " another file to resume from"
            )

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one more row."""
        if self.path is None:
            return
        if self._head is not None:
            append_jsonl(self.path, self._head)
            self._head = None
        append_jsonl(self.path, row)


class Notes:
    """Answers by key, each computed once and kept in `Lines`."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._known = {row["key"]: row for row in lines.rows}

    def of(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer of that ``key``: as it was noted, or as ``make`` gives it now; plain values."""
        if key not in self._known:
            row = {"key": key, **make()}
            self._lines.add(row)
            # Nothing is asked for twice in one measurement.
            return row
        return self._known[key]
