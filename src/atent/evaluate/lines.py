"""A file of lines from which a killed measurement resumes: its first line says what is measured."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atent.distributed.shards import Shard
from atent.runs import append_jsonl, dumps, plain, write_atomic
from atent.runs.files import report_dropped
from atent.runs.locks import held, lock_of

SUM = "sum"
"""The key of a row's own checksum."""

_SUMS = "sums"
"""The key of the first line that says that every row has one, which rows of earlier versions have not."""


class Foreign(ValueError):
    """The file is not of this measurement."""


class Lines:
    """The rows of an unfinished measurement, in a file that survives a kill; without a path they are not kept.

    Each row has a checksum over its values and the first line, so that a flipped bit is found, as is a row of another
    measurement. Damaged rows are dropped, with one line on stderr; a torn last one, as a kill leaves it, without. While
    this exists no other process takes the file.

    Parameters
    ----------
    path
        JSON-lines file; it is written with the first row, so that what is refused leaves none.
    kind
        What is measured, such as "evaluation".
    fingerprint
        What the result depends on.
    valid
        Whether a row, without its checksum, can be one of this measurement; default: every one can.
    rank
        The process among those that measure together: each writes a file of its own beside ``path``, which is that of
        the first, and reads all that it finds there.

    Raises
    ------
    Foreign
        In one line, for a file of another kind or with another fingerprint.
    InUse
        In one line, while another process measures into the file.
    """

    def __init__(
        self, path: str | Path | None, kind: str, fingerprint: Mapping[str, Any] | None = None, *,
        valid: Callable[[dict[str, Any]], bool] = lambda row: True, rank: int = 0,
    ) -> None:  # fmt: skip
        self.path = path if path is None else of_rank(Path(path), rank)
        self._head: dict[str, Any] = plain({"kind": f"atent {kind}, unfinished", **(fingerprint or {})})
        self._salt = dumps(self._head)
        self._begun = False
        self.rows: list[dict[str, Any]] = []
        """What the files held."""
        if path is None or self.path is None:
            return
        lock = ExitStack()
        lock.enter_context(held(lock_of(self.path), kind))
        weakref.finalize(self, lock.close)
        if self.path.is_file():
            self._read(self.path, kind, valid)
        for other in of_ranks(Path(path)):
            if other != self.path:
                self.rows += self._parsed(other, valid)[1]

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one more row."""
        if self.path is None:
            return
        if not self._begun:
            append_jsonl(self.path, self._first())
            self._begun = True
        append_jsonl(self.path, self._summed(row))

    def _first(self) -> dict[str, Any]:
        return {**self._head, _SUMS: True}

    def _summed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, SUM: self._sum(row)}

    def _sum(self, row: Mapping[str, Any]) -> str:
        return hashlib.sha256(f"{self._salt}\n{dumps(row)}".encode()).hexdigest()[:16]

    def _read(self, path: Path, kind: str, valid: Callable[[dict[str, Any]], bool]) -> None:
        head, self.rows, summed, dropped = self._parsed(path, valid)
        if head is None:
            return
        intact = self._is_of(head)
        # A row with the sum of this measurement shows that the first line is damaged, not of another.
        if not intact and not self.rows:
            raise _foreign(path, kind, head, self._head)
        self._begun = True
        if dropped:
            report_dropped(path, dropped)
            again = [self._first() if summed else head, *(self._summed(row) if summed else row for row in self.rows)]
            write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in again))

    def _parsed(
        self, path: Path, valid: Callable[[dict[str, Any]], bool]
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]], bool, int]:
        """Of a file: the first line, if any, the rows, whether they have checksums, and how many lines are damaged."""
        try:
            *lines, tail = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None, [], True, 0
        # A whole object without its newline is a row; anything else there was torn by a kill.
        if _object(tail) is not None:
            lines.append(tail)
        lines = [line for line in lines if line.strip()]
        if not lines:
            return None, [], True, 0
        head = _object(lines[0]) or {}
        intact = self._is_of(head)
        summed = not intact or _SUMS in head
        found = [self._row(line, summed, valid) for line in lines[1:]]
        rows = [row for row in found if row is not None]
        return head, rows, summed, len(found) - len(rows) + (not intact)

    def _is_of(self, head: Mapping[str, Any]) -> bool:
        return all(head.get(key) == value for key, value in self._head.items())

    def _row(self, line: bytes, summed: bool, valid: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        row = _object(line)
        if row is None:
            return None
        found = row.pop(SUM, None)
        if found is None and summed:
            return None
        return row if (found is None or found == self._sum(row)) and valid(row) else None


def of_rank(path: Path, rank: int) -> Path:
    """The file of one of the processes that measure together, the first of which writes ``path``."""
    return path.with_suffix(f".rank-{rank}{path.suffix}") if rank else path


def of_ranks(path: Path) -> list[Path]:
    """The files that such processes left, however many there were."""
    return [path, *sorted(path.parent.glob(f"{glob.escape(path.stem)}.rank-*{path.suffix}"))]


def belongs(path: Path, kind: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a file's first line is that of such a measurement."""
    try:
        with open(path, "rb") as file:
            head = _object(file.readline(1 << 24)) or {}
    except OSError:
        return False
    return head.get("kind") == f"atent {kind}, unfinished" and all(
        head.get(k) == v for k, v in plain(fingerprint).items()
    )


def _foreign(path: Path, kind: str, head: Mapping[str, Any], wanted: Mapping[str, Any]) -> Foreign:
    if head.get("kind") != wanted["kind"]:
        return Foreign(f"{path} holds no unfinished {kind}: move it away, or give another file to resume from")
    differs = ", ".join(key for key, value in wanted.items() if head.get(key) != value)
    article = "an" if kind[0] in "aeiou" else "a"
    return Foreign(
        f"{path} belongs to {article} {kind} with other {differs}: give another file to resume from, or the same"
        " settings"
    )


def _object(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, in JSON's own numbers; None for anything else."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        found = json.loads(line.decode(), parse_constant=refuse)
        # 1e999 is read as infinity, which no row may hold.
        dumps(found)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# ---- answers by key


@dataclass(frozen=True)
class Values:
    """What a value of a row must be: nested lists of these sizes, whose entries are of that kind."""

    kind: Literal["bit", "count", "real"]
    """0 or 1; a whole number of 0 or more; a finite one of 0 or more."""
    sizes: tuple[int, ...] = ()
    most: float = math.inf

    def fit(self, value: Any) -> bool:
        """Whether ``value`` is that."""
        return self._fit(value, self.sizes)

    def zeros(self) -> Any:
        """Zeros of that kind."""
        found: Any = 0
        for size in reversed(self.sizes):
            found = [found] * size
        return found

    def _fit(self, value: Any, sizes: tuple[int, ...]) -> bool:
        if sizes:
            return isinstance(value, list) and len(value) == sizes[0] and all(self._fit(v, sizes[1:]) for v in value)
        kinds = (int, float) if self.kind == "real" else (int,)
        most = 1 if self.kind == "bit" else self.most
        return type(value) in kinds and 0 <= value <= most and math.isfinite(value)


Shape = Mapping[str, "Values | Mapping[str, Values]"]
"""What the values of a row must be, by their names."""


def fits(row: Any, shape: Shape) -> bool:
    """Whether ``row`` has the values of ``shape``, and no others."""
    if not isinstance(row, dict) or row.keys() != shape.keys():
        return False
    return all(s.fit(row[k]) if isinstance(s, Values) else fits(row[k], s) for k, s in shape.items())


def blank(shape: Shape) -> dict[str, Any]:
    """Zeros of that shape."""
    return {k: s.zeros() if isinstance(s, Values) else blank(s) for k, s in shape.items()}


@dataclass(frozen=True)
class Portion:
    """The file of one of several processes that share a measurement, each of which does the pieces of its shard."""

    path: Path
    shard: Shard
    rank: int = 0
    """That of `Lines`."""


Resume = str | Path | Portion | None
"""The file from which a measurement resumes, if any."""


class Notes:
    """Answers by key, each computed once and kept in `Lines`; with a ``shard`` its own alone, zeros for the others."""

    def __init__(self, lines: Lines, shard: Shard | None = None) -> None:
        self._lines, self._shard, self._asked = lines, shard, 0
        self._known = {row["key"]: row for row in lines.rows}

    def of(self, key: str, make: Callable[[], dict[str, Any]], shape: Shape) -> dict[str, Any]:
        """The answer of that ``key``: as it was noted, where it has the ``shape``, or as ``make`` gives it now; plain
        values."""
        piece, self._asked = self._asked, self._asked + 1
        known = self._known.get(key)
        if known is not None:
            answer = {name: value for name, value in known.items() if name != "key"}
            if fits(answer, shape):
                return answer
            report_dropped(self._lines.path, 1)
        if self._shard is not None and not self._shard.has(piece):
            return blank(shape)
        # Nothing is asked for twice in one measurement.
        answer = make()
        self._lines.add({"key": key, **answer})
        return answer
