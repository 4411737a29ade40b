"""A file of lines from which an interrupted measurement resumes: its first line identifies the measurement."""

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
from atent.runs.files import check_file, report_dropped
from atent.runs.locks import held, lock_of

SUM = "sum"
"""The key of a row's own checksum."""

_SUMS = "sums"
"""The key in the first line of files whose rows have checksums, which those of earlier versions lack."""

_START = b'{"'
"""The start of every line."""


class Foreign(ValueError):
    """The file belongs to another measurement."""


class Lines:
    """The rows of an unfinished measurement, in a file that survives an interruption; without a path, not stored.

    Each row has a checksum over its values and the first line, which detects a flipped bit and a row of another
    measurement. Damaged rows are dropped, with one line on stderr; an incomplete last row, as an interruption leaves
    it, is dropped silently. While this object exists the file is locked.

    Parameters
    ----------
    path
        JSON-lines file; it is created with the first row, so that a refused call leaves no file.
    kind
        Kind of measurement, such as "evaluation".
    fingerprint
        Values on which the result depends.
    valid
        Whether a row, without its checksum, is possible in this measurement; default: every row is.
    rank
        Number of the process among those that share the measurement: each writes a file of its own beside ``path``,
        the file of the first, and reads all of them.

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
        """Rows that the files contained."""
        if path is None or self.path is None:
            return
        check_file(self.path)
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
            if not _cut_off(path):
                raise _foreign(path, kind, {}, self._head)
            return
        intact = self._is_of(head)
        # A row with a checksum of this measurement shows that the first line is damaged.
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
        # A complete object without its newline is a row; anything else is an incomplete row.
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


def _cut_off(path: Path) -> bool:
    """Whether a file without a complete line consists of one that was cut off; others are not overwritten."""
    with path.open("rb") as file:
        # After a loss of power the end of a file may be zeros.
        content = file.read(len(_START) + 1).strip(b"\0\n\r ")
    return content.startswith(_START) or _START.startswith(content)


def of_rank(path: Path, rank: int) -> Path:
    """The file of one of the processes that share a measurement; the first one's is ``path``."""
    return path.with_suffix(f".rank-{rank}{path.suffix}") if rank else path


def of_ranks(path: Path) -> list[Path]:
    """The files of all such processes."""
    return [path, *sorted(path.parent.glob(f"{glob.escape(path.stem)}.rank-*{path.suffix}"))]


def belongs(path: Path, kind: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a file belongs to the measurement of that kind and fingerprint, by its first line."""
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
        return Foreign(f"{path} is not the file of an unfinished {kind}: move it, or give another file to resume from")
    differs = ", ".join(key for key, value in wanted.items() if head.get(key) != value)
    article = "an" if kind[0] in "aeiou" else "a"
    return Foreign(
        f"{path} belongs to {article} {kind} with other {differs}: give another file to resume from, or the same"
        " settings"
    )


def _object(line: bytes) -> dict[str, Any] | None:
    """The object of a line of standard JSON, without NaN and infinity; None for anything else."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        found = json.loads(line.decode(), parse_constant=refuse)
        # 1e999 is read as infinity, which dumps refuses.
        dumps(found)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# ---- results by key


@dataclass(frozen=True)
class Values:
    """The type of a value of a row: nested lists of these sizes, with entries of that kind."""

    kind: Literal["bit", "count", "real"]
    """bit: 0 or 1; count: an integer >= 0; real: a finite number >= 0."""
    sizes: tuple[int, ...] = ()
    """Lengths of the nested lists; empty for a number."""
    most: float = math.inf
    """Largest value of a count or a real."""

    def fit(self, value: Any) -> bool:
        """Whether ``value`` is of this type."""
        return self._fit(value, self.sizes)

    def zeros(self) -> Any:
        """Zeros of this type."""
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
"""The types of the values of a row, by name."""


def fits(row: Any, shape: Shape) -> bool:
    """Whether ``row`` has the keys and types of ``shape``."""
    if not isinstance(row, dict) or row.keys() != shape.keys():
        return False
    return all(s.fit(row[k]) if isinstance(s, Values) else fits(row[k], s) for k, s in shape.items())


def blank(shape: Shape) -> dict[str, Any]:
    """A row of zeros of that shape."""
    return {k: s.zeros() if isinstance(s, Values) else blank(s) for k, s in shape.items()}


@dataclass(frozen=True)
class ShardFile:
    """The file of one of several processes that share a measurement, each of which measures one shard."""

    path: Path
    """File of the first process, as of `Lines`."""
    shard: Shard
    """The part that is measured."""
    rank: int = 0
    """As of `Lines`."""


"""The former name of `ShardFile`."""

Resume = str | Path | ShardFile | None
"""The file from which a measurement resumes, if any."""


class Notes:
    """Results by key, computed once and stored in `Lines`; with a ``shard`` only its own, zeros for the others."""

    def __init__(self, lines: Lines, shard: Shard | None = None) -> None:
        self._lines, self._shard, self._asked = lines, shard, 0
        self._known = {row["key"]: row for row in lines.rows}

    def of(self, key: str, make: Callable[[], dict[str, Any]], shape: Shape) -> dict[str, Any]:
        """The result of that ``key``, plain values: as stored, where it has the ``shape``, else from ``make``."""
        piece, self._asked = self._asked, self._asked + 1
        known = self._known.get(key)
        if known is not None:
            result = {name: value for name, value in known.items() if name != "key"}
            if fits(result, shape):
                return result
            report_dropped(self._lines.path, 1)
        if self._shard is not None and not self._shard.has(piece):
            return blank(shape)
        # Each key occurs once in a measurement, so that the result is only written.
        result = make()
        self._lines.add({"key": key, **result})
        return result
