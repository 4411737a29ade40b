"""docs/checkpoints.md: its Python runs, its commands take the file that it makes, its figures are the results'."""

import json
import re
import shlex
from pathlib import Path

import pytest

from atent.cli import main
from atent.models import MODELS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "checkpoints.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S):
        if language == "python":
            exec(compile(block, "docs/checkpoints.md", "exec"), names)
        for line in re.findall(r"^\$ atent (.*)", block, re.M):
            assert main([*shlex.split(line), "--quiet"]) == 0
    first, second = (
        json.loads(Path(name).read_text()) for name in ("weights-evaluation.json", "weights-evaluation-2.json")
    )
    assert "input" not in first
    assert second["input"]["std"] == pytest.approx([0.4])
    assert names["model"].normalize.mean.item() == pytest.approx(0.3)


def test_the_networks_of_the_table_exist():
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`[^|]+`) \|$", TEXT, re.M)
    found = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(found) > 20
    assert found <= set(MODELS)


def test_the_figures_are_those_of_the_results():
    rows = re.findall(r"^\| \[(\S+)\]\S* \| .* \| ([\d.]+) % \| ([\d.]+) % \|$", TEXT, re.M)
    files = {path.stem: json.loads(path.read_text()) for path in (ROOT / "results" / "published").glob("*.json")}
    assert {name for name, _, _ in rows} == set(files)
    for name, clean, robust in rows:
        found = files[name]
        assert float(clean) == pytest.approx(100 * found["clean"]["value"], abs=0.005)
        assert float(robust) == pytest.approx(100 * found["worst"]["value"], abs=0.005)
