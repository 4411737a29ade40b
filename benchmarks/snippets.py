"""Counts the lines of the snippets of docs/ecosystem.md, and writes the table at its head.

    python benchmarks/snippets.py

A section with the parts "In PACKAGE" and "In atent" has a snippet in each. Blank lines and comments are not counted. A
line of more than 120 characters is an error. Both snippets are formatted by `ruff format`, so that the counts compare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "ecosystem.md"
_LONGEST = 120
_TABLE = re.compile(r"<!-- lines -->\n.*?<!-- /lines -->", re.DOTALL)
_SECTION = re.compile(r"^## (?P<name>[^\n]+)\n(?P<body>.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_PART = re.compile(r"^### In ([^\n]+)\n\n```(python|console)\n(.*?)```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """The code for one task in another package and in atent."""

    package: str
    task: str
    there: str
    here: str
    language: str
    """Of ``here``: python or console."""


def pairs(text: str) -> list[Pair]:
    """The tasks of the page, in its order; ValueError for a section with only one of the two parts."""
    found = []
    for section in _SECTION.finditer(text):
        parts = {name: (language, code) for name, language, code in _PART.findall(section["body"])}
        if not parts:
            continue
        package = section["name"]
        if set(parts) != {package, "atent"}:
            raise ValueError(f"section {package} has snippets of {' and '.join(parts)}: give {package} and atent")
        task = re.split(r"[.:](?:\s|$)|, such as", section["body"].strip(), maxsplit=1)[0]
        found.append(Pair(package, task, parts[package][1], parts["atent"][1], parts["atent"][0]))
    return found


def lines(code: str) -> int:
    """The number of code lines of a snippet; ValueError for a line that is too long."""
    kept = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    for line in kept:
        if len(line) > _LONGEST:
            raise ValueError(f"a line has {len(line)} characters, and {_LONGEST} are allowed: {line.strip()}")
    return len(kept)


def table(text: str) -> str:
    """The table of the page, between its markers."""
    rows = ["| package | task | lines in the package | lines in atent |", "|---|---|---:|---:|"]
    for pair in pairs(text):
        name = pair.task.split()[0][1:] != pair.task.split()[0][1:].lower()
        task = pair.task if name else pair.task[0].lower() + pair.task[1:]
        rows.append(f"| {pair.package} | {task} | {lines(pair.there)} | {lines(pair.here)} |")
    return "\n".join(["<!-- lines -->", *rows, "<!-- /lines -->"])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    made = table(text)
    PAGE.write_text(_TABLE.sub(lambda _: made, text), encoding="utf-8")
    print(made)
