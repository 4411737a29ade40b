"""The files of a smoothing certificate: rows that grow one by one, and beside them how they are made."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atent.runs import as_json, dumps, manifest, write_atomic
from atent.runs.files import report_dropped, write_new


class Row(NamedTuple):
    """One sample; the first six columns are those of Cohen et al.'s files."""

    idx: int
    """Sample number."""
    label: int
    """True class."""
    predict: int
    """Class that CERTIFY certifies, -1 where it abstains."""
    radius: float
    """l2 radius around the sample within which that class cannot change; 0 where it abstains."""
    correct: int
    """1 where predict is the label."""
    time: float
    """Seconds, an equal share where samples were certified together."""
    clean: int
    """Class of the base model without noise."""
    smoothed: int
    """Class of the smoothed model by PREDICT from the n samples of the estimate, -1 where it abstains; after a
    sequential test that of predict."""
    samples: int = 0
    """Noise samples that a sequential test took, those of the selection included; 0, and no column, where n0 + n were
    taken."""


# Files of the two kinds.
_FIXED, _SEQUENTIAL = list(Row._fields[:-1]), list(Row._fields)


def sidecar(path: Path) -> Path:
    """Where the settings of a file of rows, and in the end its summary, lie."""
    return path.with_suffix(".json")


def made_alike(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the certificate at ``path`` is absent, or was made with these samples and about these things."""
    return not sidecar(path).exists() or dumps(made(path)) == dumps(wanted)


def claimed_as(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the certificate at ``path`` is begun, and made with these samples and about these things."""
    return sidecar(path).exists() and made_alike(path, wanted)


def claim(path: Path, wanted: dict[str, Any]) -> None:
    """Say how the rows of ``path`` are made; ValueError where they were made otherwise."""
    if not sidecar(path).exists():
        if path.exists():
            raise ValueError(f"{path} has no {sidecar(path).name} that says how it was made: choose another file")
        # Another process may be as far: one of the two is first.
        with contextlib.suppress(FileExistsError):
            text = as_json({"made": wanted, "complete": False}, sidecar(path).name)
            write_new(sidecar(path), text, numbered=False)
    if not made_alike(path, wanted):
        old, new = _flat(made(path)), _flat(wanted)
        key = next(k for k in (*old, *new) if old.get(k) != new.get(k))
        if key == "noise":
            raise ValueError(
                f"{path} was made with the noise of another version ({old.get(key, 'before it was recorded')}), not"
                f" {new.get(key)}: choose another file, rows of the two do not mix"
            )
        raise ValueError(
            f"{path} was made with {key} {old.get(key)}, not {new.get(key)}: choose another file, or the old value"
        )


def free(path: Path, wanted: dict[str, Any]) -> Path:
    """``path``, or the first numbered one, that is absent or was made alike: earlier results stay as they are."""
    stem, dot, tail = path.name.partition(".")
    number, found = 1, path
    while not made_alike(found, wanted):
        number += 1
        found = path.with_name(f"{stem}-{number}{dot}{tail}")
    return found


def claimed(path: Path, wanted: dict[str, Any]) -> Path:
    """`free`, claimed."""
    while True:
        found = free(path, wanted)
        try:
            claim(found, wanted)
            return found
        except ValueError:
            # Another process may have claimed it for something else meanwhile.
            if made_alike(found, wanted):
                raise


def made(path: Path) -> dict[str, Any]:
    """How the rows of a file are made; FileNotFoundError where it does not say."""
    if not sidecar(path).is_file():
        raise FileNotFoundError(
            f"{path} has no {sidecar(path).name} that says how it was made: give a certificate's .csv"
        )
    found: dict[str, Any] = manifest.read_json(sidecar(path))["made"]
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file; an absent one has none, and a torn last line, left by a kill, is none.

    ValueError, with the line number, for a broken line elsewhere.
    """
    path = Path(path)
    if not path.exists():
        return []
    manifest.check_file(path)
    *lines, _ = path.read_text(errors="replace").split("\n")
    if lines and not _is_header(lines[0]):
        raise ValueError(f"{path}, line 1: expected the columns {' '.join(_FIXED)}, found {lines[0]!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        row = _parsed(line)
        if row is None:
            raise ValueError(f"{path}, line {number}: not a row of a certificate: {line!r}")
        rows.append(row)
    return rows


def _is_header(line: str) -> bool:
    # Earlier versions called the clean class natural.
    return line.replace("natural", "clean").split("\t") in (_FIXED, _SEQUENTIAL)


def _header(rows: Sequence[Row]) -> str:
    return "\t".join(_SEQUENTIAL if rows and rows[0].samples else _FIXED) + "\n"


def _parsed(line: str) -> Row | None:
    cells = line.split("\t")
    kinds = (int, int, int, float, int, float, int, int, int)
    try:
        values: list[Any] = [kind(cell) for kind, cell in zip(kinds[: max(len(cells), 8)], cells, strict=True)]
        return Row(*values)
    except ValueError:
        return None


# ---- a file that grows


def sums(path: Path) -> Path:
    """Where the checksums of the rows lie until the file is whole."""
    return path.with_name(f".{path.name}.sums")


def resumed(path: Path, labels: Mapping[int, int], most: float) -> dict[int, Row]:
    """The rows of a file that grows, by sample number; damaged ones are dropped, with one line on stderr.

    Parameters
    ----------
    path
        The file; an absent one has none.
    labels
        True classes by sample number.
    most
        The largest radius.

    Raises
    ------
    ValueError
        In one line, for a file without a row of a certificate.
    """
    if not path.exists():
        return {}
    manifest.check_file(path)
    known = set(sums(path).read_text(errors="replace").split()) if sums(path).is_file() else None
    *lines, _ = path.read_text(errors="replace").split("\n")
    rows = [_parsed(line) for line in lines[1:]]
    salt = dumps(made(path))
    good = [
        row for row in rows
        if row is not None and _possible(row, labels, most) and (known is None or _sum(row, salt) in known)
    ]  # fmt: skip
    headed = bool(lines) and _is_header(lines[0])
    if lines and not good and not headed:
        raise ValueError(f"{path}, line 1: expected the columns {' '.join(_FIXED)}, found {lines[0][:200]!r}")
    dropped = len(rows) - len(good) + (bool(lines) and not headed)
    if dropped:
        report_dropped(path, dropped)
    # A torn last line goes too.
    write_atomic(path, (_header(good) if lines else "") + "".join(map(_line, good)))
    write_atomic(sums(path), "".join(f"{_sum(row, salt)}\n" for row in good))
    return {row.idx: row for row in good}


def append(path: Path, rows: list[Row]) -> None:
    """Add rows, whose checksums are written first."""
    salt = dumps(made(path))
    _write(sums(path), "".join(f"{_sum(row, salt)}\n" for row in rows), "")
    _write(path, "".join(map(_line, rows)), _header(rows))


def _possible(row: Row, labels: Mapping[int, int], most: float) -> bool:
    """Whether a row can be of a certificate of these samples."""
    return (
        row.label == labels.get(row.idx, row.label)
        and row.idx >= 0
        and min(row.label, row.clean, row.predict + 1, row.smoothed + 1) >= 0
        and row.correct == int(row.predict == row.label)
        and 0 <= row.radius <= (most * (1 + 1e-9) if row.predict >= 0 else 0)
        and 0 <= row.time < math.inf
        and row.samples >= 0
    )


def _sum(row: Row, salt: str) -> str:
    return hashlib.sha256(f"{salt}\n{_line(row)}".encode()).hexdigest()[:16]


def of_rank(path: Path, rank: int) -> Path:
    """The file of one of the processes that certify together, the first of which writes ``path``."""
    return path.with_name(f".{path.stem}.rank-{rank}{path.suffix}") if rank else path


def absorb(path: Path) -> None:
    """Take over the rows of the files that other ranks left, however many there were, and remove them."""
    files = sorted(path.parent.glob(f".{glob.escape(path.stem)}.rank-*{path.suffix}"))
    known = resumed(path, {}, math.inf) if files else {}
    for file in files:
        if made_alike(file, made(path)):
            rows = [row for number, row in resumed(file, {}, math.inf).items() if number not in known]
            if rows:
                manifest.forget_file(path)  # it grows
                append(path, rows)
            known |= {row.idx: row for row in rows}
        removed(file)


def removed(path: Path) -> None:
    """Remove a file of rows and what lies beside it."""
    for each in (path, sidecar(path), sums(path)):
        each.unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A whole file of rows, atomically."""
    with manifest.seal(path) as temporary:
        temporary.write_text(_header(rows) + "".join(map(_line, rows)))


def _line(row: Row) -> str:
    return "\t".join(repr(cell) for cell in (row if row.samples else row[:-1])) + "\n"


def _write(path: Path, text: str, head: str) -> None:
    with open(path, "a") as file:
        file.write(("" if file.tell() else head) + text)
        file.flush()
        os.fsync(file.fileno())
