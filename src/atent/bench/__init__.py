"""Benchmarks of this library on the present machine: `atent bench`."""

from atent.bench.kept import PART, folder_of
from atent.bench.plan import SECTIONS, Plan
from atent.bench.suite import run
from atent.bench.tables import as_markdown, head, roof_at, tables
from atent.bench.write import JSON, NAME, PAGE, PICTURE, write

__all__ = [
    "JSON",
    "NAME",
    "PAGE",
    "PART",
    "PICTURE",
    "SECTIONS",
    "Plan",
    "as_markdown",
    "folder_of",
    "head",
    "roof_at",
    "run",
    "tables",
    "write",
]
