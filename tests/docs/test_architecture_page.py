"""The page on the layout of the code names every module and package, in the order of `tests/test_rooms.py`, and only
what exists."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest
from test_rooms import LEVEL, SOURCE

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
ROWS = re.findall(r"^\| (`\S+`(?: `\S+`)*) \| (.*) \|$", PAGE, re.M)


def rooms(cell):
    return [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`(\S+)`", cell)]


def test_every_module_and_package_has_a_row_in_the_order_of_dependency():
    named = [room for cell, _ in ROWS for room in rooms(cell)]
    assert sorted(named) == sorted(LEVEL)
    levels = [LEVEL[room] for room in named]
    assert levels == sorted(levels)


@pytest.mark.parametrize(("cell", "content"), ROWS)
def test_what_a_row_names_exists(cell, content):
    places = [SOURCE / room for room in rooms(cell) if (SOURCE / room).is_dir()]
    assert all((SOURCE / name.strip("`")).exists() for name in cell.split())
    for name in re.findall(r"`([a-z_0-9]+)`", content):
        found = any((p / f"{name}.py").is_file() or (p / name).is_dir() for p in places)
        assert found or any(hasattr(importlib.import_module(f"atent.{p.name}"), name) for p in places), name


def test_the_dotted_names_are_in_the_code():
    names = re.findall(r"`((?:\w+\.)+\w+)`", PAGE[PAGE.index("## One batch") :])
    known = [name for name in names if name.split(".")[0] in LEVEL and not name.endswith((".json", ".py"))]
    assert len(known) > 8
    for name in known:
        module, *rest = name.split(".")
        while rest and (SOURCE / module.replace(".", "/") / f"{rest[0]}.py").is_file():
            module = f"{module}.{rest.pop(0)}"
        reduce(getattr, rest, importlib.import_module(f"atent.{module}"))
