"""The tables of docs/reliability.md are those of the results, and nothing in them is wrong."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent

spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_the_tables_are_those_of_the_results():
    text = (ROOT / "docs" / "reliability.md").read_text()
    assert "<!-- inputs: reliability -->" in text
    assert tables.refreshed(text, ROOT / "results") == text


def test_ten_thousand_bad_inputs_and_none_of_them_wrong():
    found = json.loads((ROOT / "results" / "reliability" / "bad_inputs.json").read_text())
    assert found["total"]["tried"] >= 10_000
    assert found["total"]["wrong"] == 0
    assert found["total"] == {key: sum(room[key] for room in found["by"].values()) for key in found["total"]}
