"""Recipes as files: their names, what they extend, and how they are written.

A recipe states what differs from the one that it ``extends``: a name of the package's recipes or of its bases, such as
"base/digits-linf", the path of a .toml file relative to its own, or a list of them, the later ones winning. Tables
merge key by key; an inline table is one value. ``drop = ["train.minutes"]`` removes inherited values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from atent.fields import shown
from atent.messages import deprecated, unknown
from atent.runs.folder import relocated

SECTIONS = ("data", "model", "method", "optimizer", "schedule", "train", "evaluate")
_HEAD = ("about", "aims", "baseline", "extends", "drop")
BASE = "base/"
"""Where the parents lie that are not recipes themselves."""

# Where and how fast a run is made, not what it is.
_ASIDE = (
    "recipe", "data.root", "train.threads", "train.save_minutes", "train.precision", "train.channels_last",
    "train.compile", "evaluate.batch", "evaluate.channels_last", "evaluate.folding",
)  # fmt: skip

# Former paths of settings.
_MOVED = {"method.awp": "train.awp"}

RENAMED = {
    f"{data}-l2-atent-smoothing-mended": f"{data}-l2-atent-smoothing-corrected"
    for data in ("cifar10", "digits", "mnist5k")
}
"""Former names of recipes: read for one minor version, with a deprecation line."""

# Far above any real recipe; rejects gigabytes and a thousand nested brackets.
_LARGEST = 2**20
_DEEPEST = 8
_LONGEST = 50
_QUOTES = "'\""

Tables = dict[str, Any]


class UsageError(ValueError):
    """A recipe or a command line that cannot be used; each line of the message is one error."""


def _package() -> Traversable:
    return resources.files("atent.recipes")


@functools.cache
def _names(folder: str) -> tuple[str, ...]:
    """The names of the package's files in a folder, which every recipe that is read asks for."""
    files = (_package() / folder if folder else _package()).iterdir()
    return tuple(sorted(folder + f.name[:-5] for f in files if f.name.endswith(".toml")))


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return list(_names(""))


def base_names() -> list[str]:
    """The names of what the package's recipes extend."""
    return list(_names(BASE))


def heads() -> dict[str, Tables]:
    """For each built-in recipe, its own `about` and `aims`, which are not inherited."""
    return {name: {k: v for k, v in _tables(name, recipe_file(name)).items() if k in _HEAD} for name in recipe_names()}


def recipe_file(name: str, *, beside: Path | None = None, bases: bool = False) -> Traversable:
    """The file of a recipe, by its name, a former name, or the path of a .toml file.

    ``beside``: the folder that a path is relative to. ``bases``: whether a base may be named. UsageError in one line.
    """
    if name.endswith(".toml"):
        path = Path(name) if beside is None else beside / name
        if not path.is_file():
            raise UsageError(f"no recipe file {path}: give a path that exists, or one of the names of `atent recipes`")
        return path
    if name in RENAMED:
        _report_renamed(name)
        name = RENAMED[name]
    if name in recipe_names() or (bases and name in base_names()):
        return _package().joinpath(*f"{name}.toml".split("/"))
    if name in base_names():
        raise UsageError(f"{name} is a base, not a recipe: `atent recipes` lists the recipes")
    raise UsageError(unknown("recipe", name, [*recipe_names(), *(base_names() if bases else [])], "atent list recipes"))


@functools.cache
def _report_renamed(name: str) -> None:
    """The deprecation line of a former name, once per process."""
    print(f"atent: recipe {name} is deprecated: use {RENAMED[name]}", file=sys.stderr)


def read_recipe(name: str) -> Tables:
    """The tables of a recipe, by name or by the path of a .toml file, with all that it extends; UsageError in one
    line."""
    tables = _resolved(name, recipe_file(name), (), {})
    return {key: tables[key] for key in (*_HEAD, *SECTIONS) if key in tables}


def _resolved(name: str, file: Traversable, children: tuple[str, ...], known: dict[str, Tables]) -> Tables:
    """``known``: what was resolved before, as files that extend each other twice over would be read without end."""
    if str(file) in known:
        return known[str(file)]
    if str(file) in children:
        raise UsageError(f"recipe {name} extends itself: {' -> '.join(Path(c).stem for c in (*children, str(file)))}")
    if len(children) > _LONGEST:
        raise UsageError(f"recipe {name} is in a chain of {len(children)} recipes: at most {_LONGEST} are allowed")
    own = _tables(name, file)
    parents = own.pop("extends", [])
    dropped = own.pop("drop", [])
    if isinstance(parents, str):
        parents = [parents]
    if not _are_texts(parents) or not _are_texts(dropped):
        raise UsageError(f"recipe {name}: extends and drop must be names or lists of names")
    made: Tables = {}
    beside = file.parent if isinstance(file, Path) else None
    for parent in parents:
        try:
            above = recipe_file(parent, beside=beside, bases=True)
        except UsageError as error:
            raise UsageError(f"recipe {name} extends {parent!r}: {error}") from None
        inherited = _resolved(parent, above, (*children, str(file)), known)
        # What a recipe is about is its own.
        made = _merged(made, {k: v for k, v in inherited.items() if k in SECTIONS})
    for path in dropped:
        section, _, key = _MOVED.get(path, path).partition(".")
        if key not in made.get(section, {}):
            raise UsageError(f"recipe {name}: drop names {path!r}, which it does not inherit")
        made[section] = {k: v for k, v in made[section].items() if k != key}
    name_above, name_own = (part.get("method", {}).get("name") for part in (made, own))
    if name_above and isinstance(name_own, str) and name_own and name_own != name_above:
        made["method"] = with_method(made["method"], name_own)
    known[str(file)] = _merged(made, own)
    return known[str(file)]


def with_method(section: Tables, name: str) -> Tables:
    """A recipe's method replaced by another: the fields stay that the other has too, and the rest are reported."""
    # The one question about a recipe that needs the methods themselves.
    from atent.methods import METHODS

    try:
        known = {field.name for field in dataclasses.fields(METHODS.find(name))}
    except ValueError:  # an unknown method is reported where the job is made
        return section
    dropped = [key for key in section if key not in known and key != "name"]
    if dropped:
        print(f"atent: {name} has no {', '.join(dropped)}: removed from the recipe's method", file=sys.stderr)
    return {"name": name, **{key: value for key, value in section.items() if key in known}}


def read_toml(what: str, file: Traversable) -> Tables:
    """The tables of a TOML file of settings, which an error calls ``what``; UsageError in one line."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        # Editors of Windows begin a file with a byte order mark.
        tables = tomllib.loads(content.decode("utf-8-sig"))
        _check_plain(tables, "", 0)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{what} is not valid TOML: {shown(str(error), 200).strip(_QUOTES)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except RecursionError:
        raise UsageError(f"{what} is nested too deep: {_DEEPEST} levels at most") from None
    except ValueError as error:
        raise UsageError(f"{what} cannot be read: {error}") from None
    return tables


def _tables(name: str, file: Traversable) -> Tables:
    """The content of the file itself."""
    tables = read_toml(f"recipe {name}", file)
    for key in tables:
        if key not in (*_HEAD, *SECTIONS):
            raise UsageError(f"recipe {name}: {unknown('table', key, (*SECTIONS, *_HEAD))}")
        if key in SECTIONS and not isinstance(tables[key], dict):
            raise UsageError(f"recipe {name}: {key} must be a table, got {shown(tables[key])}: write [{key}]")
    for key, kind, words in (("about", str, "a string"), ("baseline", bool, "true or false")):
        if not isinstance(tables.get(key, kind()), kind):
            raise UsageError(f"recipe {name}: {key} must be {words}, got {shown(tables[key])}")
    try:
        return moved(tables)
    except UsageError as error:
        raise UsageError(f"recipe {name}: {error}") from None


def _check_plain(value: Any, where: str, depth: int) -> None:
    """ValueError, with the place, for what no setting takes: dates, and tables nested too deep."""
    if depth > _DEEPEST:
        raise ValueError(f"{where} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}.{key}" if where else shown(key).strip(_QUOTES), depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]", depth + 1)
    elif not isinstance(value, str | int | float):
        raise ValueError(f"{where} is a {type(value).__name__}, {value}: use text, numbers, true or false")


def moved(tables: Tables) -> Tables:
    """The tables with settings of former places where they are now, which is reported once."""
    try:
        found = relocated(tables)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for old, new in (("awp", "train.awp"), ("pull", "method.anchor")):
        if found is not tables and old in tables.get("method", {}) and old not in found["method"]:
            deprecated(f"method.{old}", new)
    if found.get("train", {}).get("select") != tables.get("train", {}).get("select"):
        deprecated("train.select natural", "clean")
    return found


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def flat(tables: Tables) -> dict[str, Any]:
    """The settings of a recipe's tables by their paths, such as train.epochs, without those that only say where and how
    fast it runs."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else key)
        elif path not in _ASIDE:
            yield path, value

    # The method's name comes first: if it differs, its fields differ too.
    return {"method.name": tables["method"]["name"], **dict(walk(tables, ""))}


def _merged(above: Tables, below: Tables) -> Tables:
    """``above`` with the sections of ``below``, key by key."""
    out = dict(above)
    for key, value in below.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = {**out[key], **value} if both else value
    return out


def as_toml(tables: Tables) -> str:
    """Tables of plain values as TOML; a table inside a section is written inline."""
    head = [f"{key} = {_value(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    parts = ["\n".join(head)] if head else []
    for section, values in tables.items():
        if isinstance(values, dict):
            parts.append("\n".join([f"[{section}]", *(f"{k} = {_value(v)}" for k, v in values.items())]))
    return "\n\n".join(parts) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
