"""Every public name documents itself: sections in NumPy style that agree with the code, and examples that run."""

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atent.attacks import ATTACKS
from atent.docstrings import field_docs
from atent.methods import METHODS

ROOMS = [
    "", "attacks", "certify", "data", "evaluate", "export", "integrations", "losses", "methods", "models", "optim",
    "registry", "runs", "testing", "threat", "train", "trust",
]  # fmt: skip


# Packages that the examples of a module import, where they are installed.
NEEDED = {
    "atent.integrations.art": "art", "atent.integrations.foolbox": "foolbox", "atent.integrations.peers": "foolbox",
    "atent.integrations.torchattacks": "torchattacks",
}  # fmt: skip


def pages() -> Iterator[str]:
    """The names on the API's pages, which also document single names of other modules."""
    file = Path(__file__).parents[2] / "docs" / "_ext" / "api.py"
    spec = importlib.util.spec_from_file_location("api_pages", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for names in module.listed().values():
        yield from names


def public() -> Iterator[tuple[str, Any]]:
    """Each class and function that a room exports or a page of the API documents, once, with a name that imports it."""
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
    for name in pages():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        if value not in seen:
            seen.add(value)
            yield name, value


def wanted(value: Any) -> set[str]:
    """The sections that apply; the Parameters of a dataclass are its fields."""
    sections = {"Examples"}
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        if signature.parameters:
            sections.add("Parameters")
        if signature.return_annotation not in (None, "None"):
            sections.add("Returns")
        if re.search(r"^\s+raise ", inspect.getsource(value), re.M):
            sections.add("Raises")
    elif dataclasses.is_dataclass(value):
        sections |= {"Parameters"} if any(field.init for field in dataclasses.fields(value)) else set()
    elif inspect.isfunction(value.__init__):
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
    assert found == {}


def parameters(text: str) -> list[str] | None:
    """The names in the Parameters section of a docstring; None without one."""
    section = re.search(r"^Parameters\n-{3,}\n(.*?)(?=^\w+\n-{3,}$|\Z)", text, re.M | re.S)
    if section is None:
        return None
    heads = [line.partition(" : ")[0] for line in re.findall(r"^\S.*$", section[1], re.M)]
    return [name.strip(" *") for head in heads for name in head.split(",")]


def agrees(value: Any) -> bool:
    """Whether a Parameters section has the names of the signature, and each field of a dataclass a docstring."""
    given = parameters(inspect.getdoc(value) or "")
    if dataclasses.is_dataclass(value):
        fields = {field.name for field in dataclasses.fields(value) if field.init}
        if not fields <= field_docs(value).keys():
            return False
    if given is not None:
        # Parameters of one description stand together, in any order.
        return sorted(given) == sorted(inspect.signature(value).parameters)
    return True


def test_parameters_and_fields_agree_with_the_code() -> None:
    assert {name for name, value in public() if not agrees(value)} == set()


def test_a_parameters_section_is_compared_by_name() -> None:
    def found(first: int, second: int = 0, *rest: int) -> None:
        """Nothing.

        Parameters
        ----------
        first, second
            Two numbers:
            of any sign.
        *rest : int
            More of them.

        Raises
        ------
        ValueError
            Never.
        """

    text = inspect.getdoc(found) or ""
    assert parameters(text) == ["first", "second", "rest"]
    assert agrees(found)
    for other in ("first", "first, second, third", "first, first"):
        found.__doc__ = text.replace("first, second", other)
        assert not agrees(found)


def examples() -> list[Any]:
    finder = doctest.DocTestFinder(recurse=False)
    cases = []
    for name, value in public():
        module = sys.modules[value.__module__]
        for test in finder.find(value, name, module, globs={**vars(module), "torch": torch, value.__name__: value}):
            # Those of `atent.testing` run in test_testing.py.
            if test.examples and not value.__module__.startswith("atent.testing"):
                package = NEEDED.get(value.__module__)
                absent = package is not None and importlib.util.find_spec(package) is None
                marks = [pytest.mark.skip(f"{package} is not installed")] if absent else []
                cases.append(pytest.param(test, id=name, marks=marks))
    return cases


@pytest.mark.parametrize("test", examples())
def test_examples_run(test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    text: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=text.append).failed
    assert not failed, "".join(text)
