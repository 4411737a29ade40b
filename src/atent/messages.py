"""One-line messages: the given value, the allowed ones, and the most similar one."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Longer texts are not compared, which would take minutes.
_LONGEST = 100
# Up to this many names are listed in one line.
_FEW, _NEAR = 16, 6


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` most similar to ``name``, ignoring case, or None.

    Names that begin with it take precedence over similar ones, as do dotted names with the same last part.
    """
    if len(name) > _LONGEST:
        return None
    lower, given = {known.lower(): known for known in names}, name.lower()
    longer = [known for known in lower if len(given) > 2 and known.startswith(given)]
    last = given.rpartition(".")[2]
    alike = [known for known in lower if "." in given and known.rpartition(".")[2] == last]
    found = difflib.get_close_matches(given, longer or alike or lower, n=1, cutoff=0.0 if longer or alike else 0.6)
    return lower[found[0]] if found else None


def quoted(path: object) -> str:
    """A path in a command that a message suggests, as a shell takes it."""
    return shlex.quote(str(path))


def unknown(kind: str, name: str, names: Iterable[str], listed: str | None = None) -> str:
    """One line for an unknown name: "unknown model 'resnt20': did you mean 'resnet20'? (known: ...)".

    Of more than sixteen names none is listed if one of them is similar, otherwise the six most similar ones; ``listed``
    is the command that lists all.
    """
    names = list(names)
    meant = nearest(name, names)
    hint = f": did you mean {meant!r}?" if meant else ""
    known = f" (known: {', '.join(names) or 'none'})"
    if len(names) > _FEW:
        near = difflib.get_close_matches(name[:_LONGEST], names, n=_NEAR, cutoff=0.0)
        where = f": `{listed}`" if listed else ""
        known = "" if meant else f" (known: {', '.join(near)} ..., {len(names)} in all{where})"
    given = repr(name) if len(name) <= _LONGEST else f"{name[:_LONGEST]!r}..."
    return f"unknown {kind} {given}{hint}{known}"


def note(line: str) -> None:
    """Print a line on stderr, about a deviation from what was requested."""
    print(f"atent: {line}", file=sys.stderr)


@functools.cache
def once(line: str) -> None:
    """`note` a line, once per process."""
    note(line)


_SHARED = ContextVar("shared", default=False)


@contextmanager
def shared_settings() -> Iterator[None]:
    """Inside, `report_setting` is silent: for settings that several trainings share, not all of which use each, and for
    those of stored results, which are read."""
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)


def report_idle(settings: Any, where: str, cases: Iterable[tuple[str, str, bool]]) -> None:
    """Report, once, each of some fields whose value is not the default although nothing uses it.

    ``cases``: the field, what to do for it to have an effect, and whether it has one. ``where`` precedes the field's
    name, such as "train.".
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name, remedy, used in cases:
        value, field = getattr(settings, name), fields[name]
        # A subclass may give a field a default_factory, or require it: the attribute of the class is then its base's.
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not used and usual is not dataclasses.MISSING and value != usual:
            report_setting(f"{where}{name} {value} has no effect here: {remedy}, or omit it")


def report_setting(line: str) -> None:
    """Report a line on settings, once, unless several trainings share them (`shared_settings`)."""
    if not _SHARED.get():
        once(line)


@functools.cache
def deprecated(old: str, new: str) -> None:
    """Report a deprecated name on stderr, once per process."""
    note(f"{old} is deprecated: write {new}")


def first_only(say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that passes its first line to ``say`` and ignores all later ones: for repeated polling."""
    lines: list[str] = []

    def report(line: str) -> None:
        if not lines:
            say(line)
        lines.append(line)

    return report
