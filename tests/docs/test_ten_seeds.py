"""The tables of scale laptop with ten seeds: what the guide says of them has the figures of their files."""

import itertools
import json
from pathlib import Path

import pytest

from atent.paper.evidence import difference
from atent.paper.render import rendered

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "results" / "cifar"
GUIDE = " ".join((ROOT / "docs" / "choosing.md").read_text("utf-8").split())


def cells(name, of):
    """{row: {column: measured cell}} of a table; each has the ten seeds."""
    content = json.loads((PLACE / f"laptop-{name}-ten-seeds" / f"{of}.json").read_text("utf-8"))
    found = {
        row["key"]: {k: c["ours"] for k, c in row["cells"].items()} for b in content["blocks"] for row in b["rows"]
    }
    for cell in (cell for row in found.values() for cell in row.values() if cell):
        assert (cell["seeds"], len(cell["each"])) == (list(range(10)), 10)
    return found


def percent(cell):
    return f"{100 * cell['value']:.1f}"


def test_fine_tuning():
    found = {row: each["robust"] for row, each in cells("finetune", "finetune").items()}
    before, pgdat, atent, scratch = (percent(found[row]) for row in ("benign", "pgdat", "atent", "scratch"))
    assert f"from {before} to {pgdat} % (`PGDAT`) and {atent} % (`ATENT`), over ten seeds and 1,000 images" in GUIDE
    assert {cell["n"] for cell in found.values()} == {1000}
    assert f"the difference, {difference(found['atent'], found['pgdat'])} points, is undecided" in GUIDE
    assert difference(found["atent"], found["pgdat"]).inside(0) is None
    loss = difference(found["scratch"], found["atent"])
    assert f"reach {scratch} %, {loss} points more" in GUIDE
    asked = json.loads((PLACE / "laptop-finetune-ten-seeds" / "job.json").read_text("utf-8"))["of"]
    assert asked["own"]["mnist5k-linf-atent"]["method"] == {"eps_warmup": 0.6}
    assert "with a radius that grows over 60 % of them" in GUIDE


def test_the_three_methods_of_table_s1():
    found = cells("table-s1", "table-s1")
    rows = [found[row] for row in ("pgdat", "mma", "atent")]
    half, full, strong = (
        [each[column] for each in rows] for column in ("half-published", "full-published", "full-autoattack")
    )
    assert f"{percent(half[0])}, {percent(half[1])} and {percent(half[2])} %, on 1,000 images." in GUIDE
    assert f"At radius 2 they have {percent(full[0])}, {percent(full[1])} and {percent(full[2])} %" in GUIDE
    leads = [difference(full[2], other) for other in full[:2]]
    assert [lead.inside(0) for lead in leads] == [None, True]
    assert f"ATENT less PGD-AT {leads[0]} points, ATENT less MMA {leads[1]}." in GUIDE
    assert f"{percent(strong[0])}, {percent(strong[1])} and {percent(strong[2])} %, and nothing is decided" in GUIDE
    assert [{cell["n"] for cell in each} for each in (half, full, strong)] == [{1000}, {1000}, {50}]
    gaps = [difference(one, other) for one, other in itertools.combinations(half, 2)]
    assert all(gap.inside(-0.02, 0.02) is True for gap in gaps)
    gaps = [difference(one, other) for one, other in itertools.combinations(strong, 2)]
    assert all(gap.inside(0) is None for gap in gaps)


@pytest.mark.parametrize("path", sorted(PLACE.glob("laptop-*/*.md")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_markdown_is_that_of_the_result_file(path):
    assert path.read_text("utf-8") == rendered(path.with_suffix(".json"))
