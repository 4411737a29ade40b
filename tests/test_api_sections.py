"""Every public name documents itself: sections in NumPy style, and examples that run.

`tests/data/api_missing.txt` lists the sections that are still missing. It has to match exactly: a new public name
comes with its sections, and a section that is written leaves the list.
"""

import dataclasses
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atent.attacks import ATTACKS
from atent.methods import METHODS

ROOMS = ["", "attacks", "certify", "data", "evaluate", "methods", "models", "optim", "testing", "threat", "train"]
MISSING = Path(__file__).parent / "data" / "api_missing.txt"


def public() -> Iterator[tuple[str, Any]]:
    """Each class and function that a room exports, once, with the name that imports it."""
    seen = set()
    for room in ROOMS:
        module = importlib.import_module(f"atent.{room}".rstrip("."))
        for name in getattr(module, "__all__", None) or dir(module):
            value = getattr(module, name)
            own = getattr(value, "__module__", "").startswith("atent")
            if name.startswith("_") or not own or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if value not in seen:
                seen.add(value)
                yield f"{module.__name__}.{name}", value


def wanted(value: Any) -> set[str]:
    """The sections that apply; a dataclass describes its fields, which are its parameters, one by one."""
    sections = {"Examples"}
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        if signature.parameters:
            sections.add("Parameters")
        if signature.return_annotation not in (None, "None"):
            sections.add("Returns")
        if re.search(r"^\s+raise ", inspect.getsource(value), re.M):
            sections.add("Raises")
    elif not dataclasses.is_dataclass(value) and value.__init__ is not object.__init__:
        sections.add("Parameters")
    if value in [ATTACKS.find(name) for name in ATTACKS] + [METHODS.find(name) for name in METHODS]:
        sections.add("References")
    return sections


def test_every_public_name_has_its_sections() -> None:
    found = {}
    for name, value in public():
        text = inspect.getdoc(value) or ""
        written = set(re.findall(r"^(\w+)\n-{3,}$", text, re.M))
        if wanted(value) - written:
            found[name] = ", ".join(sorted(wanted(value) - written))
    lines = [line.split(": ") for line in MISSING.read_text().splitlines()]
    assert found == {name: sections for name, sections in lines}


def examples() -> list[Any]:
    finder = doctest.DocTestFinder(recurse=False)
    cases = []
    for name, value in public():
        module = sys.modules[value.__module__]
        for test in finder.find(value, name, module, globs={**vars(module), "torch": torch, value.__name__: value}):
            # Those of `atent.testing` run in test_testing.py.
            if test.examples and not value.__module__.startswith("atent.testing"):
                cases.append(pytest.param(test, id=name))
    return cases


@pytest.mark.parametrize("test", examples())
def test_examples_run(test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    text: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=text.append).failed
    assert not failed, "".join(text)
