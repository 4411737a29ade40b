"""Atomic files, and JSON that is always valid."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from atent.runs.stale import temporary

# torch and safetensors report a full disk as errors that are not OSError, and torch without the reason
_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter|\(os error \d+\)")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` when the block ends well.

    For libraries that write files themselves; the suffix is that of `path`. When the block raises, whatever
    it raises, the temporary file is removed and an earlier `path` stays as it was.

    Raises OSError of one line, with `errno` where known, when the file cannot be written; the write errors of
    torch and safetensors are turned into it. Any other exception of the block passes through.
    """
    path = Path(path)
    with written(path) as half:
        yield half
        sync([half])
    with _removed_on_failure(path, half):
        os.replace(half, path)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """As `atomic`, without the rename and without `sync`, which the caller does."""
    half = temporary(path)
    with _removed_on_failure(path, half):
        yield half
        # safetensors writes for the owner alone; every other file of a run is readable as the umask says
        os.chmod(half, 0o666 & ~_umask())


def sync(paths: Sequence[Path]) -> None:
    """Wait until files are on the disk: all at once, as a file system commits them together."""

    def wait(path: Path) -> None:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    if len(paths) < 2:
        list(map(wait, paths))
        return
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(wait, paths))


@contextlib.contextmanager
def _removed_on_failure(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not _is_write_failure(error):
            raise
        raise write_error(path, temporary, error) from error


def _umask() -> int:
    """The process's umask, which Python only shows by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`: all of it, or nothing. Raises OSError as `atomic` does."""
    with atomic(path) as half, open(half, "xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_new(path: str | Path, data: bytes | str, *, numbered: bool = True) -> Path:
    """Writes `data` to a file that was not there: `path`, or where that is taken path-2, path-3 ...; which one.

    No other process gets the same name. Raises OSError as `atomic` does, FileExistsError if the name is taken and
    not `numbered`.
    """
    path = Path(path)
    with written(path) as temporary, open(temporary, "xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    try:
        return _named(temporary, path, numbered)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def report_dropped(path: Path | None, rows: int) -> None:
    """Says on stderr that rows of a file were damaged."""
    what = "1 damaged row is" if rows == 1 else f"{rows:,} damaged rows are"
    print(f"atent: {path}: {what} dropped, and measured again", file=sys.stderr)


def reserved(path: Path, *, numbered: bool = True) -> Path:
    """Makes an empty file that was not there, to be replaced by `atomic`: `path`, or where that is taken path-2 ...

    Raises as `write_new`.
    """
    try:
        return _first(path, numbered, lambda name: os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)))
    except FileExistsError:
        raise
    except OSError as error:
        raise write_error(path, None, error) from error


def _named(half: Path, path: Path, numbered: bool) -> Path:
    try:
        # The complete file gets a second name, or none.
        return _first(path, numbered, lambda name: os.link(half, name))
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        name = reserved(path, numbered=numbered)
        os.replace(half, name)
        return name


def _first(path: Path, numbered: bool, make: Callable[[Path], None]) -> Path:
    name, number = path, 1
    while True:
        try:
            make(name)
            return name
        except FileExistsError:
            if not numbered:
                raise FileExistsError(
                    f"{path} exists: choose another name, an earlier result is never overwritten"
                ) from None
            number += 1
            name = path.with_stem(f"{path.stem}-{number}")


def _is_write_failure(error: BaseException) -> bool:
    return isinstance(error, OSError) or (isinstance(error, Exception) and bool(_WRITER.search(str(error))))


def write_error(path: Path, temporary: Path | None, error: BaseException) -> OSError:
    """The failure to write `path`, by way of a temporary file, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        # safetensors reports the reason, torch the place in its own code.
        known = re.search(r"[\w ]+\(os error \d+\)", str(error))
        reason = f"{known[0].strip() if known else 'it could not be written'} (is the disk full, or a quota reached?)"
        number = None
    else:
        reason = cause.strerror or " ".join(str(cause).split())
        number = cause.errno
        other = cause.filename
        if isinstance(other, str | Path) and Path(other) not in (path, temporary):
            reason += f" ({other})"
    kept = "the earlier file is intact" if os.path.lexists(path) else "nothing was written"
    # one argument only, since OSError puts "[Errno n]" before the text when it is given two
    result = OSError(f"cannot write {path}: {reason}; {kept}")
    result.errno = number
    return result


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON, indented by 2, keys in their own order, by `write_atomic`.

    Dataclasses become objects, tuples and arrays lists, paths and fractions ("8/255") strings; float32
    values are written with their own shortest digits. Raises ValueError, naming the key path, for NaN,
    infinity, or a value that JSON does not have; OSError as `write_atomic`.
    """
    write_atomic(path, as_json(obj, Path(path).name))


def as_json(obj: Any, name: str) -> str:
    """The text that `write_json` writes; ``name`` is the file's, for errors."""
    return json.dumps(_plain(obj, "", name), indent=2, allow_nan=False) + "\n"


def plain(obj: Any) -> Any:
    """`obj` in JSON's own types, as `write_json` writes it. Raises ValueError as `write_json`."""
    return _plain(obj, "", "value")


def dumps(obj: Any) -> str:
    """`obj` as one line of JSON with sorted keys: equal settings give equal text. Raises as `write_json`."""
    return json.dumps(_plain(obj, "", "value"), sort_keys=True, allow_nan=False)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises ValueError of one line if it is broken, FileNotFoundError."""
    return _parse(Path(path).read_bytes(), str(path))


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one row, as one line; a torn last line, left by a kill, is cut off first.

    Raises ValueError as `write_json`, and OSError of one line if the row cannot be written: the rows before
    it stay. One process writes at a time.
    """
    path = Path(path)
    line = json.dumps(_plain(row, "", path.name), allow_nan=False).encode() + b"\n"
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
    """The rows of a JSON-lines file, without a torn last line (a kill during a write leaves one).

    Raises ValueError of one line, with the line number, for a broken line elsewhere; FileNotFoundError.
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
    """Rewrites a JSON-lines file with the rows for which `keep(row)` holds, atomically.

    Raises as `read_jsonl` and `write_atomic`.
    """
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


def _plain(obj: Any, where: str, name: str) -> Any:
    if obj is None or isinstance(obj, bool | str):
        return str(obj) if isinstance(obj, str) else obj
    if isinstance(obj, int):
        return int(obj)
    # numpy's float64 is a float, and is exact as it is
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{name}: {where or 'the value'} is {float(obj)}, which JSON cannot hold")
        return float(obj)
    if isinstance(obj, os.PathLike | Fraction):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return _plain_dict(obj, where, name)
    if isinstance(obj, list | tuple):
        return [_plain(item, f"{where}[{i}]", name) for i, item in enumerate(obj)]
    if hasattr(obj, "tolist"):
        return _plain(_shortest(obj), where, name)
    raise ValueError(f"{name}: {where or 'the value'} is a {type(obj).__name__}, which JSON cannot hold")


def _plain_dict(obj: dict[Any, Any], where: str, name: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in obj.items():
        # an int key is common (a class, an epoch); any other would come back as something else
        if not isinstance(key, str) and (not isinstance(key, int) or isinstance(key, bool)):
            raise ValueError(f"{name}: {where or 'the value'} has the key {key!r}, not a string or integer")
        text = str(key)
        if text in result:
            raise ValueError(f"{name}: {where or 'the value'} has the key {text!r} twice")
        result[text] = _plain(value, f"{where}.{text}" if where else text, name)
    return result


def _shortest(array: Any) -> Any:
    """Numbers of an array or scalar as Python's; float32 0.1 as 0.1, not as 0.10000000149011612."""
    values = array.tolist()
    if not str(array.dtype).endswith("float32"):
        return values
    import numpy

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(str(numpy.float32(value)))

    return short(values)
