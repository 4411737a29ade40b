"""Files that are written whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atent.runs.stale import temporary
from atent.signals import Unwritten

# torch and safetensors report a full disk as errors that are not OSError, and torch without the reason
_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter|\(os error \d+\)")


class Damaged(ValueError):
    """A file of a run folder is not what was written.

    Examples
    --------
    >>> from atent.runs import Damaged
    >>> issubclass(Damaged, ValueError)
    True
    """


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, which is renamed to ``path`` if the block succeeds.

    For libraries that write files themselves; the suffix is that of ``path``. If the block raises, the temporary file
    is removed and an earlier ``path`` is unchanged. OSError, in one line and with ``errno`` where it is known, if the
    file cannot be written, also for the write errors of torch and safetensors; any other exception of the block passes
    through.

    Parameters
    ----------
    path
        The file to write.

    Returns
    -------
    context manager
        Its value is the temporary path.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import atomic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "a.txt") as half:
    ...         _ = half.write_text("all of it")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    with written(path) as half:
        yield half
        sync([half])
    with _removed_on_failure(path, half):
        os.replace(half, path)


def check_file(path: Path) -> None:
    """OSError, in one line, for what exists and is not a regular file: a folder, a device or a pipe, whose reading may
    never end, and for a path that cannot be one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, None, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OSError(f"{path} is {kind}, a regular file is required: give the path of a file, which may be new")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """As `atomic`, without the rename and without `sync`, which the caller does."""
    check_file(path)
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
    """Write all of a file, or nothing; OSError as for `atomic`.

    Parameters
    ----------
    path
        The file to write.
    data
        Its content; a string is written as UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import write_atomic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "a.txt", "content")
    ...     (Path(folder) / "a.txt").read_text()
    'content'
    """
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
        with _removed_on_failure(name, name):
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


def remedy(number: int | None) -> str:
    """What helps against an error of the system while a file is written."""
    full = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space, or give another place" if number in full else "give another place"


def write_error(path: Path, temporary: Path | None, error: BaseException) -> Unwritten:
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
    result = Unwritten(f"cannot write {path}: {reason}; {kept}: {remedy(number)}")
    result.errno = number
    return result
