"""Where code comes from: the installed package of a module, and the source of the user's own classes and functions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_LIBRARIES = ("atent", "torch")
"""Packages whose version a measurement records."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def without_addresses(text: str) -> str:
    """The text of an object as another process writes it, which has the same object at another address."""
    return _ADDRESS.sub("", text)


def version_of(module: str) -> str | None:
    """Name and version of the installed package that contains a module.

    Parameters
    ----------
    module
        Name of the module.

    Returns
    -------
    str or None
        The name and the version; None if the module was not installed.

    Examples
    --------
    >>> from atent.origins import version_of
    >>> version_of("torch.nn").split()[0], version_of("no_such_module")
    ('torch', None)
    """
    return _version(module.partition(".")[0], tuple(sys.path))


@functools.cache
def _version(top: str, places: tuple[str, ...]) -> str | None:
    """`version_of` a top-level module that is looked for in these folders."""
    for name in _packages(places).get(top, []):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


@functools.cache
def _home(top: str, places: tuple[str, ...]) -> Path | None:
    """The folder in which the package with a top-level module is installed; None if there is none."""
    for name in _packages(places).get(top, []):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Path(str(importlib.metadata.distribution(name).locate_file(""))).resolve()
    return None


@functools.lru_cache(maxsize=1)
def _packages(places: tuple[str, ...]) -> Mapping[str, list[str]]:
    """The packages that are installed in these folders, by top-level module: read once for all modules, since the files
    of an environment take 0.1 s and more, and a command asks for each object of the user several times."""
    return importlib.metadata.packages_distributions()


def announced(group: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of a group by name; several of a name where packages announce different objects by it."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=group):
        known = found.setdefault(point.name, [])
        if all(target(point) != target(other) for other in known):
            known.append(point)
    return found


def target(point: importlib.metadata.EntryPoint) -> str:
    """The reference module:Thing of an entry point."""
    return f"{point.module}:{point.attr}"


def announcers(points: Iterable[importlib.metadata.EntryPoint]) -> str:
    """The packages of some entry points with what they refer to, for errors."""
    return " and ".join(
        f"{point.dist.name} {point.dist.version} ({target(point)})" if point.dist else target(point) for point in points
    )


def leads_to(point: importlib.metadata.EntryPoint, thing: Any) -> bool:
    """Whether an entry point refers to a class or function, also by a module that imports it from its own; nothing is
    imported."""
    if target(point) == f"{thing.__module__}:{thing.__qualname__}":
        return True
    with contextlib.suppress(Exception):  # of a package that imports its parts when they are used
        return point.attr != "" and operator.attrgetter(point.attr)(sys.modules[point.module]) is thing
    return False


def code_of(entries: Iterable[Any]) -> list[str]:
    """Hashes of the source of classes and functions that are neither of this package, of torch, nor installed; those of
    an editable installation count, since their files may change.

    A measurement that resumes after an edit of such code would mix the results of both versions. See `sources_of`.
    """
    return sorted(set(sources_of(entries).values()))


def sources_of(entries: Iterable[Any]) -> dict[str, str]:
    """The hashes of `code_of` by module; the bases of a class count too.

    Of the main module each definition counts by itself, of other modules the entire file.
    """
    found: dict[str, str] = {}
    for entry in _definitions(entries):
        name = entry.__module__ or ""
        if name in found or not _is_of_user(name):
            continue
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        with contextlib.suppress(OSError, TypeError):  # made without a file, as in a notebook
            if name == "__main__":
                found[f"{name}.{entry.__qualname__}"] = _hash(inspect.getsource(entry).encode())
            else:
                found[name] = _hash(path.read_bytes())
    return dict(sorted(found.items()))


def sources_in(modules: Iterable[str]) -> dict[str, str]:
    """The hashes of the files of some imported modules, by module, as `sources_of` those of classes and functions: an
    object such as a network or a partial does not show where it was made."""
    found = {}
    for name in modules:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path and _is_of_user(name):
            with contextlib.suppress(OSError):
                found[name] = _hash(Path(path).read_bytes())
    return found


def source_of(function: Any) -> str | None:
    """The source of one function or method of the user, and its place in the line, which tells two lambdas apart;
    None for another object and for code without a file."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or not _is_of_user(function.__module__ or ""):
        return None
    with contextlib.suppress(OSError, TypeError):
        # The first instruction has no width.
        columns = [first for _, _, first, last in code.co_positions() if first is not None and last]
        return f"{min(columns, default=0)} {inspect.getsource(function)}"
    return None


def _is_of_user(module: str) -> bool:
    """Whether a module is neither of this package, of torch, of Python nor installed."""
    top = module.partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names - {"__main__"}:
        return False
    home, file = _home(top, tuple(sys.path)), getattr(sys.modules.get(module), "__file__", None)
    # The package may be installed in editable form, or have the name of a file of the user, which is found first.
    return home is None or (file is not None and not Path(file).resolve().is_relative_to(home))


def called_by(thing: Any) -> Any:
    """The class or the function that a `functools.partial` calls; any other object itself."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing


def _definitions(entries: Iterable[Any]) -> Iterator[Any]:
    """The classes and functions that define some objects: of a class also its bases, of a partial its function, and of
    an instance its class."""
    for entry in entries:
        entry = called_by(entry)
        known = entry if hasattr(entry, "__qualname__") else type(entry)
        yield from known.__mro__ if isinstance(known, type) else (known,)


def _hash(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]


# Larger folders and files are not searched for a name.
_MOST_FILES, _MOST_BYTES = 200, 1_000_000


def defined_here(name: str) -> str | None:
    """The reference module:name of a class or function of that name at the top level of a file in the current
    directory, which is read and not imported. A file that is named like it comes first. For
    module.name it is module:name if there is a file module.py, which is not read."""
    *before, last = name.split(".")
    if not all(part.isidentifier() for part in (*before, last)):
        return None
    if before:
        return f"{'.'.join(before)}:{last}" if Path(*before).with_suffix(".py").is_file() and last != "py" else None
    definition = re.compile(rf"^(?:class|def)\s+{re.escape(name)}\b", re.MULTILINE)

    def order(file: Path) -> tuple[bool, str]:
        return file.stem.lower().replace("_", "") not in name.lower(), file.name

    with contextlib.suppress(OSError):
        for file in sorted(itertools.islice(Path.cwd().glob("*.py"), _MOST_FILES), key=order):
            with contextlib.suppress(OSError):
                small = file.stem.isidentifier() and file.stat().st_size <= _MOST_BYTES
                if small and definition.search(file.read_text(encoding="utf-8", errors="replace")):
                    return f"{file.stem}:{name}"
    return None
