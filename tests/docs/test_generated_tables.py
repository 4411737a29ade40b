"""The tables between markers in README and docs are those that benchmarks/tables.py makes of the committed results."""

from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {path.name: text for path in PAGES if tables.MARKED.search(text := path.read_text("utf-8"))}


@pytest.mark.parametrize("name", MADE)
def test_a_page_shows_the_committed_results(name):
    assert tables.refreshed(MADE[name], ROOT / "results") == MADE[name]


@pytest.mark.parametrize("name", ["evaluation.md", "large-data.md"])
def test_a_block_that_differs_is_made_anew(name):
    wrong = tables.MARKED.sub(r"\1of another measurement\n\5", MADE[name])
    assert wrong != MADE[name]
    assert tables.refreshed(wrong, ROOT / "results") == MADE[name]
