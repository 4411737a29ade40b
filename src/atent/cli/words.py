"""Splits a command line into words and reads options, flags and durations."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from types import UnionType
from typing import Any

import tyro

from atent.experiments.recipe_files import UsageError
from atent.fields import as_norm

SECTION_NAMES = ("method", "model", "data", "optimizer")
"""Sections of a recipe whose bare name as an option means their `name`."""

SAME = {"--data.name": "--data", "--data.root": "--root", "--model.name": "--model"}
"""Options of other commands, and the recipe fields that have the same meaning."""

# None as a limit means all; as the value of an option it would mean the default.
_LIMIT = re.compile(r"--([a-z_-]+[.])?([a-z]+[_-])?limit")
# The field cannot share its name with the function that it requests.
_FIELDS = {"--method.calibrate": "--method.calibrated"}
_PLAIN = {"true": "True", "false": "False", "none": "None", "null": "None"}
_ALL = {"none": "all", "null": "all", "None": "all"}


def seconds(text: str, option: str) -> float:
    """Convert a duration such as 10m, 90s or 1h30m (a bare number is in seconds) to seconds, above 0; UsageError if
    invalid."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    total = sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
    if total < 1:
        raise UsageError(f"{option} {text!r} is not a valid duration: write it as 10m, 90s or 1h30m")
    return float(total)


# ---- what a command takes ----------------------------------------------------------------------------------


def options_of(command: Callable[..., Any] | type, prefix: str = "--") -> dict[str, Any]:
    """The options of a command or of a settings dataclass, with the type of each; positional arguments are excluded."""
    hints = typing.get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    names = [f.name for f in dataclasses.fields(command)] if isinstance(command, type) else list(hints)
    out: dict[str, Any] = {}
    for name in names:
        kind, marks = _unwrapped(hints[name])
        if tyro.conf.Positional in marks or tyro.conf.Suppress in marks:
            continue
        if dataclasses.is_dataclass(kind):
            inside = prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{hyphened(name)}."
            out |= options_of(typing.cast(type, kind), inside)
        else:
            out[prefix + hyphened(name)] = kind
    return out


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """Split an annotated type into the type and its annotations."""
    marks: list[Any] = []
    while typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        marks += more
    return hint, marks


def _optional(kind: Any) -> Any:
    """The type of an option without None."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    is_union = typing.get_origin(kind) in (typing.Union, UnionType)
    return parts[0] if is_union and len(parts) == 1 else kind


def is_hidden(hint: Any) -> bool:
    """Whether a parameter is not set from the command line."""
    return tyro.conf.Suppress in _unwrapped(hint)[1]


def hyphened(name: str) -> str:
    """A name in the spelling of an option, with hyphens."""
    return name.replace("_", "-")


def _is_tristate(kind: Any) -> bool:
    """Whether the type is a boolean or something else: none, or a word such as auto."""
    is_union = typing.get_origin(kind) in (typing.Union, UnionType)
    others = [part for part in typing.get_args(kind) if part not in (bool, type(None))]
    words = all(typing.get_origin(part) is typing.Literal for part in others)
    return is_union and bool in typing.get_args(kind) and words


def _names_none(kind: Any) -> bool:
    """Whether the word none is a value of the type: a string that is never None, or one of the choices."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)
    named = any("none" in typing.get_args(part) for part in parts if typing.get_origin(part) is typing.Literal)
    return kind is str or named


# ---- user input ------------------------------------------------------------------------------------


def spelled(
    words: list[str], known: dict[str, Any], *, renamed: dict[str, str] | None = None, sections: bool = False
) -> list[str]:
    """Normalise the words for the parser: options with hyphens, flags without values, values in Python's spelling.

    ``known``: as `options_of`. ``renamed``: former spellings of options, which print a deprecation warning once.
    ``sections``: a bare `--method`, `--model`, `--data` or `--optimizer` means the section's name.
    """
    out: list[str] = []
    given: list[tuple[str, str]] = []
    for i, word in enumerate(words):
        if not word.startswith("--"):
            _add_value(out, word, known)
            continue
        head, equals, tail = word.partition("=")
        option = _option(head, renamed or {}, sections)
        if option not in known and SAME.get(option) in known:
            option = SAME[option]
        given.append(("--" + hyphened(head[2:]), option))
        following = words[i + 1] if not equals and i + 1 < len(words) else None
        out.append(option)
        wants_values = typing.get_origin(_optional(known.get(option))) is tuple
        if wants_values and not equals and (following is None or following.startswith("--")):
            raise UsageError(f"{option} needs a value")
        if equals:
            _add_value(out, tail, known)
        elif _is_tristate(known.get(option)) and (following is None or following.startswith("-")):
            out.append("True")
        elif option not in known and (yes := next((o for o in known if negated(o) == option), None)):
            out[-1:] = [yes, "False"] if _is_tristate(known[yes]) else [option]
    _check_repeated(given, known)
    return out


def _check_repeated(given: list[tuple[str, str]], known: dict[str, Any]) -> None:
    """UsageError for options (the word, the option that it means) of which the parser would ignore one: a flag and its
    negation, two names of one option, and values. A flag that is given twice is one."""
    flags = {negated(option): option for option in known}
    seen: dict[str, list[tuple[str, str]]] = {}
    for word, option in given:
        seen.setdefault(flags.get(option, option), []).append((word, option))
    for option, found in seen.items():
        words, options = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
        if len(options) > 1:
            raise UsageError(f"{options[0]} and {options[1]} contradict each other: omit one")
        if len(words) > 1:
            raise UsageError(f"{words[0]} and {words[1]} are the same option: omit one")
        if len(found) > 1 and known.get(option, bool) is not bool:
            several = typing.get_origin(_optional(known[option])) is tuple
            fix = "write it once, followed by all its values" if several else "omit one"
            raise UsageError(f"{option} is given {len(found)} times: {fix}")


def _option(head: str, renamed: dict[str, str], sections: bool) -> str:
    option = "--" + hyphened(head[2:])
    if option in renamed:
        print(f"atent: {option} is deprecated: use {renamed[option]}", file=sys.stderr)
        return renamed[option]
    if sections and option[2:] in SECTION_NAMES:
        return f"{option}.name"
    return _FIELDS.get(option, option)


def negated(option: str) -> str:
    """The negated flag."""
    prefix, _, last = option.rpartition(".")
    return f"{prefix}.no-{last}" if prefix else f"--no-{option[2:]}"


def _add_value(out: list[str], word: str, known: dict[str, Any]) -> None:
    """Append the value of the previous option; a flag still accepts its former explicit value."""
    option = out[-1] if out else ""
    word = as_norm(word, known.get(option))
    if known.get(option) is bool and word.lower() in ("true", "false"):
        out[-1] = option if word.lower() == "true" else negated(option)
        print(f"atent: {option} {word} is deprecated: write {out[-1]}", file=sys.stderr)
    elif _names_none(known.get(option)):
        out.append(word)
    elif _LIMIT.fullmatch(option):
        out.append(_ALL.get(word, word))
    elif "." in option or word in ("true", "false"):
        out.append(_PLAIN.get(word, word))
    else:
        # The word none is not special for a command's own options.
        out.append(word)


def split_sections(words: list[str]) -> tuple[list[str], list[str]]:
    """Split the words into those of the command and those that set a recipe's fields, `--section.field value ...`."""
    own: list[str] = []
    fields: list[str] = []
    into = own
    for word in words:
        if word.startswith("--") or word == "-h":
            option = word.partition("=")[0]
            into = fields if "." in option or option[2:] in SECTION_NAMES else own
        into.append(word)
    return own, fields


def help_wanted(words: list[str]) -> bool:
    """Whether the words ask for help."""
    return any(word in ("-h", "--help") for word in words)
