"""Types of settings: validation of values against the type of their field, and their display in errors.

The annotation of a field defines the values that it accepts: calls from Python, recipes, attacks written as text and
the command line read it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

LARGEST = 3.4028234663852886e38
"""The largest float32, in which networks and attacks compute; no setting may be larger."""
_WHOLE = (-(2**63), 2**64)
# Largest number of characters of a displayed value.
_SHOWN = 60


def shown(value: Any, most: int = _SHOWN) -> str:
    """A value for an error message: one line of about ``most`` characters, for any length, nesting or digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**24:
        return f"an integer of {value.bit_length()} bits"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, str | bytes):
        return _cut(repr(value[: most + 1]), most)
    if isinstance(value, list | tuple | dict | set | frozenset) and _size(value, 3) > 40:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return _cut(" ".join(text.split()), most)


def check_complete(cls: type, given: dict[str, Any]) -> None:
    """ValueError for a missing required field."""
    for field in dataclasses.fields(cls):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.init and field.name not in given:
            raise ValueError(f"{cls.__name__} needs {field.name}: give it")


def brief(value: Any) -> str:
    """A value in a call, for errors: a number, a text, or its type."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value) if isinstance(value, str | int | None) else f"a {type(value).__name__}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most + 2 else f"{text[:most]}..."


def _size(value: Any, depth: int) -> int:
    """Number of elements of a container; 1000 if it is nested deeper than ``depth`` or has a number of many digits."""
    if isinstance(value, int) and abs(value) >= 10**24:
        return 1000
    if not isinstance(value, list | tuple | dict | set | frozenset):
        return 1
    if depth == 0 or len(value) > 40:
        return 1000
    return sum(_size(item, depth - 1) for item in (*value, *(value.values() if isinstance(value, dict) else ())))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields; {} if an annotation cannot be evaluated at run time."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception:
        return {}
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name in hints}


@functools.cache
def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass in their order, with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(cls)}


def mistyped(cls: type, values: Mapping[str, Any]) -> str | None:
    """An error for the first of ``values`` that is not of the type of its field in the dataclass ``cls``; None if all
    are valid.

    Types other than numbers, strings, flags, choices, tables, tuples of them and settings are not checked, nor is a
    field's default. Numbers must be finite, integers of at most 64 bits and floats within float32; the fields in
    ``INFINITE`` of the class may be infinite. Texts must be encodable in files.
    """
    hints, usual = _hints(cls), defaults(cls)
    for name, value in values.items():
        # Attacks are constructed for every batch of training: the common case is fast.
        hint = hints.get(name)
        if hint is None or (type(value) is int and hint in (int, float) and -(2**62) < value < 2**62):
            continue
        if value is usual.get(name) or _is_of(value, hint):
            continue
        if type(value) is float and value == math.inf and name in getattr(cls, "INFINITE", ()):
            continue
        choices = _choices(hint)
        if isinstance(value, str) and choices:
            return f"{name} {shown(value)} is not known: use one of {', '.join(choices)}"
        return f"{name} must be {_wanted(hint, value)}, got {shown(value)}"
    return None


def _wanted(hint: Any, value: Any) -> str:
    """The values that a field accepts, with the limit that the value exceeds."""
    words = _in_words(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return words.replace("a number", "a finite number")
    return words + _limit(value)


def _choices(hint: Any) -> list[str]:
    """The strings that a type allows; [] if it allows other values than these and None."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return list(map(str, parts))
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return []
    several = [_choices(part) for part in parts if part is not type(None)]
    return [choice for some in several for choice in some] if all(several) else []


def as_norm(value: Any, hint: Any) -> Any:
    """A norm in lower case, such as RobustBench's Linf, if the type ``hint`` takes norms; other values unchanged."""
    if isinstance(value, str) and "linf" in (choices := _choices(hint)) and value.lower() in choices:
        return value.lower()
    return value


def with_norms(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass with their norms in lower case, those of nested dataclasses too."""
    hints = _hints(cls)

    def made(name: str, value: Any) -> Any:
        hint = hints.get(name)
        inside = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        if isinstance(value, Mapping) and inside is not None:
            return with_norms(typing.cast(type, inside), value)
        return as_norm(value, hint)

    return {name: made(name, value) for name, value in values.items()}


def fitting(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with lists and arrays converted to tuples where the field takes one, integers too large for tensors
    to floats where it takes those, and norms in lower case."""
    hints = _hints(cls)

    def made(name: str, value: Any) -> Any:
        if isinstance(value, str):
            return as_norm(value, hints.get(name))
        if type(value) is int and abs(value) >= 2**53 and _takes_float(hints.get(name)) and abs(value) < LARGEST:
            return float(value)
        if not (isinstance(value, list) or hasattr(value, "tolist")) or not _takes_tuple(hints.get(name)):
            return value
        found = value.tolist() if hasattr(value, "tolist") else value
        return tuple(found) if isinstance(found, list) else found

    return {name: made(name, value) for name, value in values.items()}


def _takes_float(hint: Any) -> bool:
    return hint is float or (float in typing.get_args(hint) and int not in typing.get_args(hint))


def _takes_tuple(hint: Any) -> bool:
    return any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint)))


_TYPES: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)), int: ("an integer", (int,)), float: ("a number", (int, float)),
    str: ("a string", (str, os.PathLike)), type(None): ("none", (type(None),)),
}  # fmt: skip


def check_flag(name: str, value: Any) -> None:
    """ValueError unless ``value`` is True or False: a text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")


_PLURAL: dict[Any, str] = {int: "integers", float: "numbers", str: "strings"}


def _is_of(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        kinds = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple | list) else parts
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(k, parts[0]) and _is_of(v, parts[1]) for k, v in value.items())
    if hint not in _TYPES:
        return not dataclasses.is_dataclass(hint) or isinstance(value, typing.cast(type, hint))
    if not isinstance(value, _TYPES[hint][1]) or (isinstance(value, bool) and hint is not bool):
        return False
    return not _limit(value)


def _limit(value: Any) -> str:
    """The limit that a number or a string exceeds, in words; "" for a valid value."""
    if isinstance(value, str):
        if "\0" in value:
            return " without NUL bytes"
        return "" if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value) else " of whole characters"
    if isinstance(value, int):
        return "" if _WHOLE[0] <= value < _WHOLE[1] else " of at most 64 bits"
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return f" of at most {LARGEST:.2g}, the largest of float32"
    return ""


def _in_words(hint: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is typing.Literal:
        return repr(parts[0]) if len(parts) == 1 else f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        kinds = dict.fromkeys(_PLURAL.get(part) or _in_words(part) for part in parts if part is not ...)
        return f"a tuple of {' and '.join(kinds)}"
    if origin is dict:
        return f"a table of {_in_words(parts[1])}"
    name = str(getattr(hint, "__name__", hint))
    return _TYPES[hint][0] if hint in _TYPES else f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"
