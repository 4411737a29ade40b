"""One-line messages: what was given, what is allowed, and what was probably meant."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable

# No name is longer; the comparison of a long text with all names would take minutes.
_LONGEST = 100
# More names than these do not go into one line.
_FEW, _NEAR = 16, 6


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None; case does not count.

    One that begins with it comes before one that looks alike, and of dotted names one with the same last part.
    """
    if len(name) > _LONGEST:
        return None
    lower, given = {known.lower(): known for known in names}, name.lower()
    longer = [known for known in lower if len(given) > 2 and known.startswith(given)]
    last = given.rpartition(".")[2]
    alike = [known for known in lower if "." in given and known.rpartition(".")[2] == last]
    found = difflib.get_close_matches(given, longer or alike or lower, n=1, cutoff=0.0 if longer or alike else 0.6)
    return lower[found[0]] if found else None


def unknown(kind: str, name: str, names: Iterable[str], listed: str | None = None) -> str:
    """One line for a bad name: "unknown model 'resnt20': did you mean 'resnet20'? (known: ...)".

    Of more than sixteen names none is listed where one of them is near, else the six that are nearest; ``listed`` is
    the command that lists them all.
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
    """Report on stderr what a command or call does otherwise than asked."""
    print(f"atent: {line}", file=sys.stderr)


@functools.cache
def once(line: str) -> None:
    """`note` a line, once."""
    note(line)


@functools.cache
def deprecated(old: str, new: str) -> None:
    """Report a former spelling on stderr, once."""
    note(f"{old} is deprecated: write {new}")


def first_only(say: Callable[[str], None]) -> Callable[[str], None]:
    """Says the first line that it is given, and no other: for what is waited for and asked again and again."""
    lines: list[str] = []

    def told(line: str) -> None:
        if not lines:
            say(line)
        lines.append(line)

    return told
