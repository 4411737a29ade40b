"""The Markdown tables: committed ones are made again, line for line, from the results beside them."""

import json
import re
from pathlib import Path

import pytest

from atent.experiments import certificate_table, comparison, migrate
from atent.experiments.results import CertifiedTable, ComparisonFile
from atent.markdown import table
from atent.paper import claims


def cells(text):
    """The lines of the tables; the captions of older files are worded otherwise."""
    return [line for line in text.splitlines() if line.startswith("|")]


RESULTS = Path(__file__).parents[2] / "results"


def test_columns_are_aligned_and_a_short_row_is_refused():
    assert table(["a", "b"], [["x", "1"]]) == ["| a | b |", "|---|---:|", "| x | 1 |"]
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        table(["a", "b"], [["x"]])


def test_a_name_with_a_bar_is_one_cell():
    lines = table(["run", "robust (%)"], [["a|b\nc", "50.0"], ["|", ""]])
    assert lines[2:] == [r"| a\|b c | 50.0 |", r"| \| |  |"]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("comparison.json")), ids=lambda p: p.parent.name)
def test_comparisons_are_made_again(path):
    found = migrate.read(path, ComparisonFile)
    assert cells(comparison.markdown(found)) == cells(path.with_suffix(".md").read_text())


@pytest.mark.parametrize("path", sorted((RESULTS / "certified").glob("*.json")), ids=lambda p: p.stem)
def test_certificates_are_made_again(path):
    made = certificate_table.markdown(migrate.read(path, CertifiedTable).rows)
    assert cells(made) == cells(path.with_suffix(".md").read_text())


def test_claims_are_made_again():
    path = RESULTS / "laptop/claims.json"
    assert claims.tables(json.loads(path.read_text())) in path.with_suffix(".md").read_text()
