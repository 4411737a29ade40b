"""comparison.csv has the figures of comparison.json."""

import csv
import io
from pathlib import Path

import pytest

from atent.experiments import migrate
from atent.experiments.comparison_csv import as_csv
from atent.experiments.results import ComparisonFile

FILES = sorted((Path(__file__).parents[2] / "results").glob("*/comparison.json"))


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.parent.name)
def test_the_figures_are_those_of_the_json(path):
    found = migrate.read(path, ComparisonFile)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["recipe"] for row in rows] == [row.recipe for row in found.rows]
    for row, made in zip(rows, found.rows):
        assert row["seeds"].split() == [str(seed.seed) for seed in made.seeds]
        assert int(row["n"]) == made.seeds[0].clean.n
        plain = ("clean", "worst", "last", "seconds_per_epoch", "memory_mb", "best_epoch", "passes", "minutes")
        for name, cell in {**made.attacks, **{name: getattr(made, name) for name in plain}}.items():
            for end, value in (("", "mean"), ("_sd", "sd"), ("_low", "low"), ("_high", "high")):
                wanted = None if cell is None else getattr(cell, value)
                assert row.get(name + end, "") == ("" if wanted is None else str(wanted))
