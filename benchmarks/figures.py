"""Draw the figures under results/ again from the result files beside them, as after a change of the plots.

    python benchmarks/figures.py [FOLDER ...]

A folder is one of `atent compare` (comparison.png, and pareto.png where there is one), of `atent reproduce` (tables and
training curves), or a run (curves.png). Without a folder: all of them.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from atent import plots
from atent.experiments import migrate
from atent.experiments.comparison import PARETO, draw, draw_pareto
from atent.experiments.pipeline import draw_curves
from atent.experiments.results import ComparisonFile
from atent.paper import reproduce, training_curves
from atent.paper.result import read_result
from atent.paper.tables import TABLES
from atent.runs import read_rows

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    """Draw and print the path of each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    for folder in parser.parse_args().folders or sorted(path for path in RESULTS.rglob("*") if path.is_dir()):
        for path in redrawn(folder):
            print(path)


def redrawn(folder: Path) -> Iterator[Path]:
    """Draw those figures of a folder that are there and that its files determine."""
    if (folder / "comparison.json").is_file():
        found = migrate.read(folder / "comparison.json", ComparisonFile)
        draw(folder, found)
        yield folder / "comparison.png"
        if (folder / PARETO).is_file():
            draw_pareto(folder, [*_beside(folder, found), found])
            yield folder / PARETO
    if (folder / "metrics.jsonl").is_file() and (folder / "curves.png").is_file():
        draw_curves(folder, {folder.name: read_rows(folder / "metrics.jsonl")})
        yield folder / "curves.png"
    for path in sorted(folder.glob("*.json")):
        picture = path.with_suffix(".png")
        if picture.is_file() and path.stem == training_curves.NAME:
            plots.save(training_curves.figure(read_result(path)), picture)
            yield picture
        elif picture.is_file() and path.stem in TABLES:
            plots.save(reproduce.figure(read_result(path)), picture)
            yield picture


def _beside(folder: Path, found: ComparisonFile) -> list[ComparisonFile]:
    """The comparison that the command of this one names by --beside."""
    words = shlex.split(found.command)
    if "--beside" not in words:
        return []
    return [
        migrate.read(folder.parent / Path(words[words.index("--beside") + 1]).name / "comparison.json", ComparisonFile)
    ]


if __name__ == "__main__":
    main()
