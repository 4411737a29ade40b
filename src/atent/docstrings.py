"""The docstrings below the fields of a dataclass, which Python does not store, and the section that they make."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from typing import Any, cast

_SECTION = re.compile(r"^[A-Z]\w+(?: \w+)*\n-{3,}$", re.MULTILINE)
_OWN = type.__dict__["__doc__"]


class Documented(type):
    """Metaclass of dataclasses whose ``__doc__`` has a Parameters section from the docstrings of their fields.

    The section is made when the docstring is read, since that needs the source code.
    """

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        _describe(cls)


class _Doc:
    """The docstring of a class of `Documented`, and that of the metaclass itself."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def __get__(self, cls: type | None, meta: type) -> str | None:
        if cls is None:
            return self.text
        # The decorator of a dataclass reads the docstring, and sets this attribute afterwards.
        return with_parameters(cls) if "__match_args__" in vars(cls) else written(cls)

    def __set__(self, cls: type, text: str | None) -> None:
        _OWN.__set__(cls, text)


def _describe(meta: type) -> None:
    """Make a metaclass give the docstrings of its classes, beside its own."""
    meta.__doc__ = cast(Any, _Doc(meta.__doc__))


_describe(Documented)


def written(cls: type) -> str | None:
    """The docstring of a class as its source has it."""
    found: str | None = _OWN.__get__(cls, type(cls))
    return found


def with_parameters(cls: type) -> str | None:
    """The docstring of a dataclass with a Parameters section before its other sections, unless it has one."""
    text, parameters = written(cls), _parameters(cls)
    if text is None or not parameters:
        return text
    text = inspect.cleandoc(text)
    headings = list(_SECTION.finditer(text))
    if any(found[0].startswith("Parameters\n") for found in headings):
        return text
    place = headings[0].start() if headings else len(text)
    return "\n\n".join(part.strip("\n") for part in (text[:place], parameters, text[place:]) if part)


def _parameters(cls: type) -> str:
    """The section of the fields that are arguments; "" without any."""
    docs, lines = field_docs(cls), ["Parameters", "----------"]
    for field in dataclasses.fields(cls):
        if field.init:
            kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
            lines.append(f"{field.name} : {kind}{_default(field)}")
            lines += textwrap.wrap(
                docs.get(field.name, ""), 112, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING and field.default is not None:
        return f", default: {field.default!r}"
    # The docstring of the field says what None stands for.
    return ", optional" if field.default is None or field.default_factory is not dataclasses.MISSING else ""


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, as one line; those of its bases first.

    A class without source code, such as one defined in a terminal, has none.
    """
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            out |= _own(base)
    return out


@functools.cache
def _own(cls: type) -> dict[str, str]:
    """Those in the body of a class itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: " ".join(below.value.value.split())  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below)
    }


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
