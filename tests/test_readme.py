"""The README says what is so: its recipes are all there, its example runs, its figures and files exist."""

import re
from pathlib import Path

import pytest

from atent.config import read_recipe, recipe_names

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_recipe_is_in_the_table_with_its_own_words():
    for name in recipe_names():
        assert f"| `{name}` | {read_recipe(name)['about']} |" in TEXT


def test_links_and_figures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["fitted"].best["validation_robust"] > 0.3


def test_the_commands_parse():
    """Every `atent train` line of the README builds a job; options and names cannot rot."""
    from atent.config import parse_train

    lines = [line.split("#")[0].split() for line in TEXT.splitlines() if line.startswith("atent train ")]
    assert lines
    for _, _, *args in lines:
        job, options = parse_train(args)
        assert (job is None) == (options.resume is not None)
