"""Locks on runs and files: kernel locks whose file names the holder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atent.runs.files import remedy
from atent.runs.folder import check_free, check_name, free_name, is_free
from atent.runs.names import LOCK
from atent.runs.stale import alive, boot, sweep
from atent.signals import postponed

_POLL = 0.1  # polling interval for a lock, in seconds
_GRACE = 5.0  # seconds until what a dead holder leaves must be free

# A lock may be taken several calls below the option that asks for it.
_STEAL: ContextVar[bool] = ContextVar("steal", default=False)


class InUse(ValueError):
    """The lock is held by another process, or by another thread of this one."""


@dataclass
class _Own:
    """A lock that this process holds."""

    thread: int
    note: dict[str, Any]
    release: Callable[[], None]
    depth: int = 1


# A kernel lock belongs to the process: what it holds is known per process as well.
_OWN: dict[str, _Own] = {}
_INHERITED: list[_Own] = []
# The garbage collector may end a block of this thread while another begins.
_GUARD = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forget())


def _forget() -> None:
    """In a forked child: the locks are the parent's. Their objects stay, as filelock closes their files after this."""
    _INHERITED.extend(_OWN.values())
    _OWN.clear()


def steal(wanted: bool) -> None:
    """Whether locks that name another host are taken over, from here on in this context."""
    _STEAL.set(wanted)


def stealing() -> bool:
    """The value set by `steal`."""
    return _STEAL.get()


def lock_of(path: Path) -> Path:
    """The lock of one file, beside it."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def held(
    path: str | Path, what: str, *, steal: bool | None = None, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the kernel lock on the file ``path``; temporary files of dead processes beside it are removed.

    The file holds one line of JSON, {host, pid, what, since}, and is removed in the end, with the folders that were
    made for it where nothing else lies in them. The thread that holds a lock may take it again. The kernel ends the
    lock of a process that dies, and no child inherits it.

    Parameters
    ----------
    path
        The lock; that of a run is `LOCK` in its folder, that of a file `lock_of` it.
    what
        What is done under it, for others to read, such as "train".
    steal
        Whether to take over a lock that names another host, which this kernel cannot verify. Default: as `steal` says.
    wait
        Called with the line of `InUse` while waiting for a lock of another process; it may raise.

    Raises
    ------
    InUse
        Where the lock is held, or was left by another host.
    """
    place, own = os.path.realpath(path), None
    try:
        while own is None:
            try:
                with postponed():
                    own = _entered(place, what, stealing() if steal is None else steal)
            except InUse as error:
                if wait is None:
                    raise
                wait(str(error))
                time.sleep(_POLL)
        yield
    finally:
        if own is not None:
            with postponed():
                _leave(place, own)


@contextlib.contextmanager
def claimed(root: str | Path, name: str, what: str, *, numbered: bool = True) -> Iterator[Path]:
    """Hold the lock of a new run folder root/name; ``numbered``: of root/name-2 and so on where that is taken.

    Raises InUse and FileExistsError for the one name, ValueError as `free_name`.
    """
    check_name(name)
    if not numbered:
        path = Path(root) / name
        if not path.is_dir():
            check_free(path)
        with held(path / LOCK, what):
            check_free(path)
            yield path
        return
    busy: set[Path] = set()
    while True:
        path = free_name(root, name, aside=busy)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(path / LOCK, what))
            except InUse:
                busy.add(path)
                continue
            # Between the choice and the lock another process may have come and gone.
            if is_free(path):
                yield path
                return


def _entered(place: str, what: str, steal: bool) -> _Own:
    """Take the lock, or take it once more."""
    with _GUARD:
        while (own := _OWN.get(place)) is not None:
            if own.thread != threading.get_ident():
                raise InUse(_line(place, own.note))
            own.depth += 1
            if _OWN.get(place) is own:
                return own
        own = _Own(threading.get_ident(), _note(what), _taken(place, what, steal))
        _OWN[place] = own
        return own


def _leave(place: str, own: _Own) -> None:
    with _GUARD:
        own.depth -= 1
        # A forked child leaves the block too, but holds nothing.
        if not own.depth and _OWN.get(place) is own:
            del _OWN[place]
            own.release()


def _taken(place: str, what: str, steal: bool) -> Callable[[], None]:
    path, before = Path(place), _read(Path(place))
    if before and _elsewhere(before) and not steal:
        raise InUse(_line(place, before, elsewhere=True))
    try:
        made = _folders(path.parent)
        handle, lock = _locked_soon(path)
    except TimeoutError:
        raise InUse(_line(place, _read(path) or before)) from None
    except OSError as error:
        reason = f"cannot write in {_shown(path.parent)}: {error.strerror}: {remedy(error.errno)} (--out, --runs)"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(f"{reason}, or use a copy of the folder") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            reason = f"cannot make the folder {_shown(path.parent)}: a file is in its path: give another place"
        result = OSError(reason)
        result.errno = error.errno
        raise result from error
    with contextlib.suppress(OSError):  # Windows lets nothing else into a locked file
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(_note(what)).encode() + b"\n")
    sweep(path.parent, below=path.name == LOCK)
    _sweep_locks(path)
    return lambda: _released(path, handle, lock, made)


def _sweep_locks(own: Path) -> None:
    """Remove the locks beside ``own`` that processes of this kernel left when they were killed."""
    for path in own.parent.glob(".*.lock"):
        if path != own and _dead(_read(path)):
            with contextlib.suppress(OSError):
                _released(path, *_locked(path), [])


def _locked_soon(path: Path) -> tuple[int, Any]:
    """`_locked`, tried again for a moment where the holder is dead.

    A child that it started just before has its file of the lock too, until it first runs and closes it.
    """
    end = time.monotonic() + _GRACE
    while True:
        try:
            return _locked(path)
        except TimeoutError:
            if not _dead(_read(path)) or time.monotonic() > end:
                raise
        time.sleep(_POLL / 10)


def _dead(note: dict[str, Any]) -> bool:
    """Whether the holder ran under this kernel and is gone."""
    pid = note.get("pid")
    return type(pid) is int and note.get("boot") == boot() != "" and not alive(pid)


def _locked(path: Path) -> tuple[int, Any]:
    """The file of a lock, open, and its kernel lock; TimeoutError where another holds it."""
    from filelock import FileLock, Timeout

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the holder before may have removed its folder
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            os.close(handle)
            raise TimeoutError from None
        except BaseException:
            os.close(handle)
            raise
        # The holder before may have removed the file after it was opened here.
        if _is_there(handle, path):
            return handle, lock
        lock.release()
        os.close(handle)


def _released(path: Path, handle: int, lock: Any, made: list[Path]) -> None:
    with contextlib.suppress(OSError):
        # Removed while it is locked: a process that waits finds another file there, or none, and begins again.
        if _is_there(handle, path):
            path.unlink()
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
    lock.release()
    os.close(handle)
    with contextlib.suppress(OSError):
        for each in made:
            each.rmdir()


def _folders(path: Path) -> list[Path]:
    """Make a folder; those that were missing, the innermost first."""
    missing = []
    for each in (path, *path.parents):
        if each.exists():
            break
        missing.append(each)
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _is_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _note(what: str) -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "what": what, "since": since, "boot": boot()}


def _read(path: Path) -> dict[str, Any]:
    """The note of a lock; {} if there is none or it is incomplete."""
    try:
        found = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _elsewhere(note: dict[str, Any]) -> bool:
    """Whether the holder ran under another kernel, whose locks this one may not know."""
    # A container has its own host name, and the kernel of its host.
    same = note.get("host") == socket.gethostname() or note.get("boot") == boot() != ""
    return not same


def _line(place: str, note: dict[str, Any], *, elsewhere: bool = False) -> str:
    path = Path(place)
    subject = path.parent if path.name == LOCK else path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
    who = "another process"
    if note:
        what, since = (str(note.get(key, "?"))[:60] for key in ("what", "since"))
        who = f"process {note.get('pid')} on {note.get('host')} ({what}, since {since})"
    if elsewhere:
        shown = os.path.relpath(path)
        return (
            f"{_shown(subject)} was locked by {who}: wait for it, or if that process has ended, give --steal-lock (from"
            f" Python: remove {shown})"
        )
    return f"{_shown(subject)} is in use by {who}: wait until it ends, or stop it"


def _shown(path: Path) -> str:
    """A path as it is given: from the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):
        return str(path)
