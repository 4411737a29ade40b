"""Which references to code may be imported.

A reference such as "module:function" is imported if the user gives it: on the command line, in a recipe, as an argument
in Python. In a run folder it was written by the creator of the folder. Inside a fence only granted references are
imported: those of the user, and those of runs whose configuration is signed by the key in the user's home. Every
reference passes through `atent.registry.load_object`, which calls `check`.

A fence belongs to its context: a thread that is started inside has none, and each function that opens a folder creates
its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Untrusted", "check", "fenced", "grant", "granted", "references"]

# A reference inside a longer text, such as that of an attack; parts of paths are excluded.
_INSIDE = re.compile(r"(?<![\w./\\:-])([^\W\d][\w.]*:[^\W\d][\w.]*)(?![\w/\\:-])")
_WHOLE = re.compile(r"[\w.-]+:[^\W\d][\w.]*")
_KEY_BYTES = 32


class Untrusted(ValueError):
    """A reference from an untrusted source would run code.

    Examples
    --------
    >>> from atent.trust import Untrusted, check, fenced
    >>> with fenced():
    ...     try:
    ...         check("theirs:net")
    ...     except Untrusted as error:
    ...         print(str(error).partition(",")[0])
    theirs:net would run code
    """


@dataclass(frozen=True)
class _Fence:
    """The permitted references."""

    names: set[str]
    """Granted references."""
    code: bool = False
    """Whether every reference is granted."""
    plugins: tuple[str, ...] = ()
    """Modules that the command line imported first."""
    read: dict[str, list[str]] = field(default_factory=dict)
    """References in each folder without a valid signature, for the error."""


_FENCE: ContextVar[_Fence | None] = ContextVar("atent.trust", default=None)


@contextlib.contextmanager
def fenced(*given: Any, trust_code: bool = False, plugins: tuple[str, ...] = ()) -> Iterator[None]:
    """Context in which only granted references are imported; inside another fence, the outer one applies.

    Parameters
    ----------
    given
        Strings, and lists and dictionaries of them, whose references are granted.
    trust_code
        Grant every reference, from any folder. Default: False.
    plugins
        Modules that are imported first, which `options` repeats.

    Returns
    -------
    context manager
        Without a value.

    Examples
    --------
    >>> from atent.trust import fenced, granted
    >>> with fenced(["--model", "mine:net"]):
    ...     granted("mine:net"), granted("theirs:net")
    (True, False)
    """
    outer = _FENCE.get()
    made = _Fence(set(references(given)), trust_code, plugins) if outer is None else outer
    token = _FENCE.set(replace(made, code=made.code or trust_code))
    try:
        yield
    finally:
        _FENCE.reset(token)


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """Context in which trusted code runs, without restrictions on the references that it uses."""
    fence = _FENCE.get()
    token = _FENCE.set(fence if fence is not None and fence.code else None)
    try:
        yield
    finally:
        _FENCE.reset(token)


def grant(*values: Any) -> None:
    """Grant the references in some values in the current fence; without one there is no effect.

    Parameters
    ----------
    values
        Strings, and lists and dictionaries of them.

    Examples
    --------
    >>> from atent.trust import fenced, grant, granted
    >>> with fenced():
    ...     grant({"name": "mine:net"})
    ...     granted("mine:net")
    True
    """
    fence = _FENCE.get()
    if fence is not None:
        fence.names.update(references(values))


def note(folder: str | Path, values: Any) -> None:
    """Record the references of an untrusted folder, for the error of `check`."""
    fence = _FENCE.get()
    if fence is not None:
        fence.read[str(folder)] = references(values)


def granted(reference: str) -> bool:
    """Whether a reference may be imported.

    Parameters
    ----------
    reference
        Name of code, "module:object".

    Returns
    -------
    bool
        True also where there is no fence.

    Examples
    --------
    >>> from atent.trust import granted
    >>> granted("mine:net")
    True
    """
    fence = _FENCE.get()
    return fence is None or fence.code or reference in fence.names


def check(reference: str) -> None:
    """Check that a reference may be imported.

    Parameters
    ----------
    reference
        Name of code, "module:object".

    Raises
    ------
    Untrusted
        In one line, with all references of the folder that contains it.

    Examples
    --------
    >>> from atent.trust import check, fenced
    >>> with fenced("mine:net"):
    ...     check("mine:net")
    """
    fence = _FENCE.get()
    if fence is None or granted(reference):
        return
    for folder, names in fence.read.items():
        if reference in names:
            listed = ", ".join(name for name in names if name not in fence.names)
            raise Untrusted(
                f"{folder} was not made by you on this machine, and would run {listed}: look at that code, then add"
                " --trust-code (in Python trust_code=True)"
            )
    raise Untrusted(
        f"{reference} would run code, and you have not named it: name it on the command line or in a recipe, or add"
        " --trust-code (in Python trust_code=True)"
    )


def options() -> list[str]:
    """The command-line options with which a child process has the same trust."""
    fence = _FENCE.get()
    if fence is None:
        return []
    return [*(["--trust-code"] if fence.code else []), *(word for name in fence.plugins for word in ("--plugin", name))]


def references(value: Any) -> list[str]:
    """All references in a value, without repetition, in their order.

    Parameters
    ----------
    value
        A string, or lists and dictionaries of strings; other values have none.

    Returns
    -------
    list of str
        Each "module:object".

    Examples
    --------
    >>> from atent.trust import references
    >>> references({"attacks": ["FGSM", "mine:Shift(steps=3)"], "model": {"name": "mine:net"}})
    ['mine:Shift', 'mine:net']
    """
    return list(dict.fromkeys(_references(value)))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _references([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _references(each)
    elif isinstance(value, str):
        # An option may contain its value: --model=module:function.
        whole = value.rpartition("=")[2] if value.startswith("--") else value
        found = [whole.strip()] if _WHOLE.fullmatch(whole.strip()) else _INSIDE.findall(value)
        # The name of an existing folder, which another person may have chosen, is not a reference.
        yield from (each for each in found if not os.path.lexists(each))


# ---- the key -----------------------------------------------------------------------------------------------


def key_file() -> Path:
    """The path of the user's key; OSError without a home folder."""
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if given.is_absolute():
        return given / "atent" / "key"
    try:
        return Path.home() / ".config" / "atent" / "key"
    except RuntimeError as error:
        raise OSError("there is no home folder") from error


def signature(content: bytes) -> str:
    """The signature of ``content`` by the user's key, which is created at its first use; OSError without a key."""
    path = key_file()
    try:
        key = _read(path)
    except FileNotFoundError:
        key = _make(path)
    return _signed(key, content)


def genuine(content: bytes, text: Any) -> bool:
    """Whether ``text`` is the `signature` of ``content``."""
    try:
        key = _read(key_file())
    except OSError:
        return False
    return isinstance(text, str) and hmac.compare_digest(_signed(key, content).encode(), text.encode())


def _signed(key: bytes, content: bytes) -> str:
    return hmac.new(key, b"atent run configuration\n" + content, hashlib.sha256).hexdigest()


def _read(path: Path) -> bytes:
    """The key; OSError for a file that another user may have written or read, and for one that is not a key."""
    # Opening a pipe must not block.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size != _KEY_BYTES:
            raise OSError(f"{path} is not a key of {_KEY_BYTES} bytes: remove it, and a new one is made")
        if hasattr(os, "geteuid") and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
            raise OSError(f"{path} may be read by others: remove it, and a new one is made")
        return file.read(_KEY_BYTES)


def _make(path: Path) -> bytes:
    """A new key; if several processes create one at once, all use the first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".key.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link appears atomically, and never replaces an existing file.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return _read(path)
