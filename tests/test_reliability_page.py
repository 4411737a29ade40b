"""The tables of docs/reliability.md and docs/how-long.md are those of the results, and no bad input went wrong."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@pytest.mark.parametrize(("page", "mark"), [("reliability", "inputs: reliability"), ("how-long", "times: race-epochs")])
def test_the_tables_are_those_of_the_results(page, mark):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert f"<!-- {mark} -->" in text
    assert tables.refreshed(text, ROOT / "results") == text


def test_ten_thousand_bad_inputs_and_none_of_them_wrong():
    found = json.loads((ROOT / "results" / "reliability" / "bad_inputs.json").read_text())
    assert found["total"]["tried"] >= 10_000
    assert found["total"]["wrong"] == 0
    assert found["total"] == {key: sum(room[key] for room in found["by"].values()) for key in found["total"]}
