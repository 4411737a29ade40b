"""A call of an attack and a step of a method pass few files and functions of the package."""

import re
from pathlib import Path

import pytest
import torch
import walk

from atent.threat import Threat

# Upper bounds, to be lowered with the counts: what one more function adds should be worth it.
MOST = [("PGD, training", 8, 25, 7), ("PGD, evaluation", 10, 40, 9), ("ATENT step", 10, 30, 8)]


@pytest.mark.parametrize(("name", "files", "functions", "depth"), MOST)
def test_a_call_passes_few_files_and_functions(name, files, functions, depth):
    call = walk.calls()[name]
    call()
    found = walk.walk(call)
    assert len(found.files) <= files, sorted(found.files)
    assert len(found.functions) <= functions, sorted(found.functions)
    assert found.depth <= depth


def test_the_page_names_the_limits():
    page = " ".join((Path(__file__).parents[2] / "docs" / "attacks.md").read_text("utf-8").split())
    (section,) = (part for part in page.split(" ## ") if part.startswith("Depth of a call"))
    given = [int(figure) for pair in re.findall(r"\b(\d+) (?:files )?and (\d+)\b", section) for figure in pair]
    assert given == [count for _, files, functions, _ in MOST for count in (files, functions)]


def test_the_walk_counts_what_is_called_and_not_comprehensions():
    threat, x = Threat("linf", 0.1), torch.rand(4, 3)

    def call():
        sum([threat.eps for _ in range(3)])
        threat.project(x, x)
        threat.clamp(x)

    names = ["threat.py Threat.clamp", "threat.py Threat.project", "threat.py Threat.project_ball"]
    found = walk.walk(call)
    assert found.functions == dict(zip(names, (2, 1, 1)))
    assert (found.files, found.depth) == ({"threat.py"}, 2)
