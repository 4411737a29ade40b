"""Where code comes from: the installed package of a module, and the source of the user's own classes and functions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LIBRARIES = ("atent", "torch")
"""Packages whose version a measurement records."""


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
    top = module.partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, []):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


def code_of(entries: Iterable[Any]) -> list[str]:
    """Hashes of the source of classes and functions that are neither of this package, of torch, nor installed.

    A measurement that resumes after an edit of such code would mix the results of both versions. See `sources_of`.
    """
    return sorted(set(sources_of(entries).values()))


def sources_of(entries: Iterable[Any]) -> dict[str, str]:
    """The hashes of `code_of` by module; the bases of a class count too.

    Of the main module each definition counts by itself, of other modules the entire file.
    """
    found: dict[str, str] = {}
    for entry in (part for each in entries for part in (each.__mro__ if isinstance(each, type) else (each,))):
        name = getattr(entry, "__module__", None) or type(entry).__module__
        top = name.partition(".")[0]
        if top in _LIBRARIES or top in sys.stdlib_module_names - {"__main__"} or name in found or version_of(name):
            continue
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        with contextlib.suppress(OSError, TypeError):  # made without a file, as in a notebook
            if name == "__main__":
                found[f"{name}.{entry.__qualname__}"] = _hash(inspect.getsource(entry).encode())
            else:
                found[name] = _hash(path.read_bytes())
    return dict(sorted(found.items()))


def _hash(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]
