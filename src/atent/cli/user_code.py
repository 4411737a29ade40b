"""Where an error passed through the user's own code."""

from __future__ import annotations

import site
import sysconfig
import traceback
from pathlib import Path

import atent

_PACKAGE = Path(atent.__file__).resolve().parent
# A virtual environment may also see the packages of its system, and those that the user installed by pip.
_FOLDERS = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), site.getusersitepackages())
_LIBRARIES = tuple({Path(each).resolve() for each in _FOLDERS})
_INSTALLED = {"site-packages", "dist-packages"}


def place_of_error(error: BaseException) -> str | None:
    """The last line of the user's code before an error, "mine.py, line 12, in search"; None if none was running.

    The program that called this package does not count, nor do installed packages.
    """
    return _search(error)[0]


def raised_by_user(error: BaseException) -> str | None:
    """`place_of_error` for an error that the user's code, or a library that it called, raised; None for an error of
    this package."""
    place, last = _search(error)
    return None if last else place


def _search(error: BaseException) -> tuple[str | None, bool]:
    """The place in the user's code, and whether this package was called after it."""
    place, inside, last = None, False, False
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<"):
            continue
        path = Path(frame.filename).resolve()
        if path.is_relative_to(_PACKAGE):
            inside = last = True
        elif inside and not _is_library(path):
            place, last = f"{path.name}, line {frame.lineno}, in {frame.name}", False
    return place, last


def _is_library(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _LIBRARIES)
