"""The files of a result."""

from __future__ import annotations

from pathlib import Path

from atent import plots
from atent.bench.tables import as_markdown
from atent.experiments.results.bench import BenchFile
from atent.runs import write_atomic, write_json

NAME = "bench"
JSON, PAGE, PICTURE = "bench.json", "bench.md", "bench.png"


def write(folder: Path, found: BenchFile) -> list[Path]:
    """Write bench.json, bench.md and, where the roofline was measured, bench.png; what was written."""
    write_json(folder / JSON, found.to_json())
    write_atomic(folder / PAGE, as_markdown(found))
    written = [folder / JSON, folder / PAGE]
    if found.roof is not None:
        plots.save(plots.roofline(found.to_json()), folder / PICTURE)
        written.append(folder / PICTURE)
    return written
