"""The API's pages have an entry for every public name, and a line in the table of its room."""

import importlib.util
import re
from pathlib import Path

import pytest
from test_api_sections import public

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("api", DOCS / "_ext" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_its_entry(api):
    entries = {id(api.value_of(name)) for names in api.listed().values() for name in names}
    assert [name for name, value in public() if id(value) not in entries] == []


def test_every_name_says_in_one_line_what_it_is(api):
    for names in api.listed().values():
        for name in names:
            line = api.about(api.value_of(name))
            # A dataclass without a docstring has its signature for one.
            assert line, name
            assert not line.startswith(name.rpartition(".")[2] + "("), name


def test_each_page_is_in_the_list_of_pages(api):
    (listed,) = re.findall(r"```\{toctree\}(.*?)```", (DOCS / "api.md").read_text(), re.S)
    assert re.findall(r"^api/(\w+)$", listed, re.M) == list(api.ROOMS)


def test_a_docstring_is_shown_as_it_is_written(api):
    lines = ["Of |d| and x*: `a|b` is code, *this* not.", "   what hangs is dedented", "", ">>> 2*3", "6"]
    api._as_text(None, "class", "", None, None, lines)
    assert lines == [
        r"Of \|d\| and x\*: `a|b` is code, *this* not.",
        "what hangs is dedented",
        "",
        ">>> 2*3",
        "6",
    ]
    field = ["mu: share of the gradient."]
    api._as_text(None, "attribute", "", None, None, field)
    assert ":" not in field[0]
    api._as_written(None, "attribute", "", None, None, field)
    assert field == ["mu: share of the gradient."]


def test_the_entry_of_a_dataclass_shows_its_fields(api):
    from atent.attacks import PGD

    shown, _ = api._fields(None, "class", "PGD", PGD, None, "(*args)", None)
    assert shown.startswith("(threat, steps=20, ")
    assert api._fields(None, "class", "Path", Path, None, "()", None) is None
