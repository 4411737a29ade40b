"""Draw the figures under results/ again from the result files beside them, as after a change of the plots.

    python benchmarks/figures.py [FOLDER ...]

A folder is one of `atent compare` (comparison.png, and pareto.png where there is one), of `atent reproduce` (tables and
training curves), of the tables of `atent certify --table`, or a run (curves.png). Without a folder: all of them. The
rows of a table of certificates are the radii that it reports; the curves of `--plot` need the radius of every image.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atent import plots
from atent.experiments import migrate
from atent.experiments.comparison import PARETO, draw, draw_pareto
from atent.experiments.pipeline import draw_curves
from atent.experiments.recipe_files import RENAMED
from atent.experiments.results import CertifiedEntry, CertifiedTable, ComparisonFile
from atent.paper import reproduce, training_curves
from atent.paper.result import read_result
from atent.paper.tables import TABLES
from atent.runs import plain, read_json, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        elif picture.is_file() and _is_certified(read_json(path)):
            plots.save(_certified(migrate.read(path, CertifiedTable)), picture)
            yield picture


def _is_certified(content: Any) -> bool:
    return isinstance(content, dict) and all("certified" in row for row in content.get("rows", [{}]))


def _certified(table: CertifiedTable) -> Figure:
    """The certified accuracies of each run, which has the present name of its recipe."""

    def radius(entry: CertifiedEntry) -> str:
        return f"linf {255 * entry.radius:.3g}/255" if entry.norm == "linf" else f"l2 {entry.radius:.3g}"

    return plots.dots({
        f"{RENAMED.get(row.run, row.run)}, {row.how.partition(',')[0]}": {
            radius(entry): plain(entry.share) for entry in row.certified
        }
        for row in table.rows
    })  # fmt: skip


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
