"""comparison.csv: the figures of a comparison, one row per recipe."""

from __future__ import annotations

import csv
import io

from atent.experiments.results import ComparisonFile, RecipeResult, Spread

TABLE_CSV = "comparison.csv"


def as_csv(found: ComparisonFile) -> str:
    """The rows of a comparison as CSV: recipe, method, the number of test images n and the seeds, then for each figure
    its mean, with _sd, _low and _high for the standard deviation and the interval; accuracies are shares, and empty
    cells are absent in comparison.json too."""
    rows = [{**_named(row), **_numbers(row)} for row in found.rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _named(row: RecipeResult) -> dict[str, str | int]:
    return {
        "recipe": row.recipe,
        "method": row.method,
        "n": min(seed.clean.n for seed in row.seeds),
        "seeds": " ".join(str(seed.seed) for seed in row.seeds),
    }


def _numbers(row: RecipeResult) -> dict[str, float | None]:
    figures: dict[str, Spread | None] = {
        "clean": row.clean, **row.attacks, "worst": row.worst, "last": row.last,
        "seconds_per_epoch": row.seconds_per_epoch, "memory_mb": row.memory_mb, "best_epoch": row.best_epoch,
        "passes": row.passes, "minutes": row.minutes,
    }  # fmt: skip
    made: dict[str, float | None] = {}
    for name, cell in figures.items():
        if cell is not None:
            made |= {name: cell.mean, f"{name}_sd": cell.sd, f"{name}_low": cell.low, f"{name}_high": cell.high}
    return made
