"""Temporary files: their names contain the writing process, so that files of dead processes can be removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from functools import cache
from pathlib import Path

# Names of earlier versions contain no process; files of another machine are identified only by age.
_NAME = re.compile(r"\..+\.(?:(?P<where>[0-9a-f]{6})-(?P<pid>\d+)-)?[0-9a-f]{8}\.tmp(?:\.\w+)?")
_OLD = 24 * 3600.0


def temporary(path: Path) -> Path:
    """A temporary name in the folder of ``path``, with the suffix of ``path``."""
    who = f"{_where()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem}.{who}.tmp{path.suffix}")


def sweep(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove the temporary files of dead processes in a folder, and with ``below`` in those that it holds.

    A file of a process of this machine goes once that process is gone, any other when it is a day old.
    """
    folders = [folder]
    if below:
        with contextlib.suppress(OSError):
            folders += [each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()]
    gone = []
    for each in folders:
        with contextlib.suppress(OSError):
            for path in each.iterdir():
                if _is_stale(path):
                    path.unlink()
                    gone.append(path)
    return gone


def _is_stale(path: Path) -> bool:
    found = _NAME.fullmatch(path.name)
    if found is None:
        return False
    if found["where"] == _where():
        return not alive(int(found["pid"]))
    return time.time() - path.lstat().st_mtime > _OLD


def alive(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    if os.name == "nt":  # there os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def boot() -> str:
    """An identifier of the running kernel; "" if the system provides none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _where() -> str:
    """An identifier of the process namespace: the kernel and, in a container, its namespace."""
    import socket

    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{boot() or socket.gethostname()} {space}".encode()).hexdigest()[:6]
