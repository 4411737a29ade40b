"""The printed table of a comparison at widths of the terminal, and the names of its rows."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from atent.cli.compare import tables
from atent.experiments.comparison import Entry, paired_lines
from atent.experiments.finished import _grouped, _Made
from atent.experiments.results import Difference, PairResult

HEADINGS = ["clean (%)", "FGSM (%)", "PGD-20 (%)", "PGD-100 x 5 margin (%)", "worst of these (%)", "s / epoch"]


def rows(count, sd=""):
    def cells(i):
        shares = [
            Entry(f"{90 - 10 * i - k}.0{sd}", f"[{85 - 10 * i - k}.0, {95 - 10 * i - k}.0]", i == 0) for k in range(5)
        ]
        return [*shares, Entry(f"{i}.25")]

    return [(f"digits-linf-atent-{i} (ATENT)", cells(i)) for i in range(count)]


def printed(given, width):
    console = Console(width=width)
    with console.capture() as held:
        for table in tables(HEADINGS, given, width):
            console.print(table)
    return held.get()


@pytest.mark.parametrize("sd", ["", " \u00b1 0.25"])
@pytest.mark.parametrize("width", [60, 80, 100, 160, 400])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_figure_is_lost_at_any_width(count, width, sd):
    given = rows(count, sd)
    text = printed(given, width)
    assert max(map(len, text.splitlines())) <= width
    for name, entries in given:
        assert all(word in text for word in name.split())
        for entry in entries:
            assert entry.text in text
            assert entry.interval in text
    assert all(heading in text for heading in HEADINGS)


def test_a_recipe_is_a_row_where_that_fits_and_else_a_column():
    line = next(line for line in printed(rows(2), 400).splitlines() if "atent-0" in line)
    assert "90.0" in line
    assert "86.0" in line
    line = next(line for line in printed(rows(2), 80).splitlines() if "FGSM" in line)
    assert re.findall(r"[\d.]+ \[[\d., ]+\]", line) == ["89.0 [84.0, 94.0]", "79.0 [74.0, 84.0]"]


def made(method, seed=0, awp=None, **more):
    """A run of the recipe `one`."""
    config = {
        "recipe": "one",
        "method": {"name": method, **more},
        "train": {"seed": seed, "awp": {"gamma": awp}},
        "about": {"data": {"counts": {"train": 10}}},
    }
    return _Made(Path(f"{method}-{seed}"), config, SimpleNamespace(), None)


def test_rows_of_one_recipe_are_named_by_their_methods():
    assert list(_grouped([made("ATENT", eps=None), made("Standard", eps=0.15)])) == ["one (ATENT)", "one (Standard)"]
    assert list(_grouped([made("ATENT"), made("ATENT", awp=0.01)])) == ["one (ATENT)", "one (ATENT-AWP)"]
    # The same method twice: by the settings.
    assert list(_grouped([made("ATENT", steps=1), made("ATENT", steps=2)])) == ["one (steps 1)", "one (steps 2)"]
    assert list(_grouped([made("ATENT", 0), made("ATENT", 1)])) == ["one"]


def test_no_run_of_a_comparison_is_lost_to_another_of_the_same_name():
    # `atent train` writes a baseline under the same recipe.
    runs = [made("ATENT", steps=8), made("ATENT", steps=3), made("Standard", eps=0.15)]
    assert list(_grouped(runs)) == ["one (steps 8) (ATENT)", "one (steps 3) (ATENT)", "one (Standard)"]
    # More settings than a name shows.
    runs = [replace(made("ATENT", a=1, b=1, c=1, d=d), path=Path(f"runs/{d}")) for d in (1, 2)]
    runs.append(replace(made("ATENT", a=2, b=2, c=2, d=1), path=Path("runs/3")))
    assert [row[0].path.name for row in _grouped(runs).values()] == ["1", "2", "3"]


def test_a_difference_that_rounds_to_zero_has_no_minus():
    same = Difference(-1e-17, -0.0004, 0.01, 1.0)
    found = SimpleNamespace(
        rows=[SimpleNamespace(recipe=name, worst=SimpleNamespace(mean=0.5)) for name in "ab"],
        pairs=[PairResult("a", "b", same, same, "over 2 seeds")],
    )
    assert paired_lines(found)[0] == "a less b: clean +0.0 [+0.0, +1.0], p 1, robust +0.0 [+0.0, +1.0], p 1"
