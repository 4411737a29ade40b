"""JSON files that are always valid, and JSON-lines files that survive a killed process."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from atent.messages import deprecated
from atent.runs.files import check_file, write_atomic, write_error
from atent.runs.values import as_json, jsonable


def write_json(path: str | Path, obj: Any) -> None:
    """Write a value as JSON, indented by 2, with keys in their own order, by `write_atomic`.

    Dataclasses become objects, tuples and arrays lists, and paths and fractions ("8/255") strings; float32 values are
    written with their own shortest digits. ValueError, with the path of the key, for NaN, infinity and a value that
    JSON does not have; OSError as for `atomic`.

    Parameters
    ----------
    path
        The file to write.
    obj
        The value.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import write_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder) / "a.json", {"eps": 0.5})
    ...     (Path(folder) / "a.json").read_text().split()
    ['{', '"eps":', '0.5', '}']
    """
    write_atomic(path, as_json(obj, Path(path).name))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Parameters
    ----------
    path
        The file; ValueError, in one line, if it is damaged, and FileNotFoundError if it is absent.

    Returns
    -------
    object
        Dictionaries, lists, strings, numbers, booleans and None.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import read_json, write_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder) / "a.json", {"eps": 0.5})
    ...     read_json(Path(folder) / "a.json")
    {'eps': 0.5}
    """
    return _parse(Path(path).read_bytes(), str(path))


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one row, as one line; an incomplete last line, as a killed process leaves it, is removed first.

    One process may write at a time.

    Parameters
    ----------
    path
        The file, which is created if it is absent.
    row
        The row, with the values that `write_json` accepts.

    Raises
    ------
    ValueError
        For a value that JSON does not have.
    OSError
        If the row cannot be written; the earlier rows remain.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import append_jsonl, read_jsonl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in (1, 2):
    ...         append_jsonl(Path(folder) / "metrics.jsonl", {"epoch": epoch})
    ...     read_jsonl(Path(folder) / "metrics.jsonl")
    [{'epoch': 1}, {'epoch': 2}]
    """
    path = Path(path)
    check_file(path)
    line = json.dumps(jsonable(row, path.name), allow_nan=False).encode() + b"\n"
    try:
        # unbuffered, or closing the file would write the row a second time after it was cut off
        with open(path, "ab+", buffering=0) as file:
            end, gap = _whole_rows(file)
            file.truncate(end)
            try:
                written = file.write(gap + line)
                if written != len(gap + line):
                    file.write((gap + line)[written:])
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
    except OSError as error:
        raise write_error(path, None, error) from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    r"""The rows of a JSON-lines file without an incomplete last line, as a killed process leaves it.

    Parameters
    ----------
    path
        The file; FileNotFoundError if it is absent.

    Returns
    -------
    list of dict
        One dictionary for each line.

    Raises
    ------
    ValueError
        In one line with its number, for any other damaged line.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import read_jsonl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     _ = path.write_text('{"epoch": 1}\n{"epo')
    ...     read_jsonl(path)
    [{'epoch': 1}]
    """
    *lines, tail = Path(path).read_bytes().split(b"\n")
    if _is_row(tail):
        lines.append(tail)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def keep_jsonl(path: str | Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Deprecated: rewrite a JSON-lines file with some of its rows, atomically; errors as for `read_jsonl` and
    `write_atomic`.

    Parameters
    ----------
    path
        The file.
    keep
        Function of a row: whether the row remains.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import append_jsonl, keep_jsonl, read_jsonl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     for epoch in (1, 2, 3):
    ...         append_jsonl(path, {"epoch": epoch})
    ...     keep_jsonl(path, lambda row: row["epoch"] < 3)
    ...     len(read_jsonl(path))
    2
    """
    deprecated("atent.runs.keep_jsonl", "the rows of atent.runs.read_jsonl to a new file")
    rows = [row for row in read_jsonl(path) if keep(row)]
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _whole_rows(file: io.FileIO) -> tuple[int, bytes]:
    """The end of the complete rows of an open file, and a missing newline there, if any."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return start, b""
    return (len(content), b"\n") if _is_row(content[start:]) else (start, b"")


def _is_row(line: bytes) -> bool:
    # no proper prefix of an object is an object, so a line that parses to one is complete
    try:
        return isinstance(_parse(line, ""), dict)
    except ValueError:
        return False


def _parse(data: bytes, where: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"holds {name}, which is not JSON")

    try:
        return json.loads(data.decode(), parse_constant=refuse)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{where}: not valid JSON at {place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {' '.join(str(error).split())}") from None
