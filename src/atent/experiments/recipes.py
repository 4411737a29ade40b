"""Builds the job of a recipe, with its values validated by pydantic against the dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import typing
from pathlib import Path
from typing import Any

from atent.experiments.recipe_files import SECTIONS, UsageError, moved, read_recipe, recipe_names
from atent.fields import mistyped, shown, with_norms
from atent.messages import unknown
from atent.runs.folder import BUILDER_KEYS

if typing.TYPE_CHECKING:
    from atent.experiments.job import Job


def job(tables: dict[str, Any], recipe: str | None) -> Job:
    """The job that a recipe's tables describe; UsageError with a line for every value that is wrong, by its path."""
    from atent.data import DataSettings
    from atent.experiments.job import Job
    from atent.experiments.target import EvaluateSettings
    from atent.methods import METHODS
    from atent.models import ModelSettings
    from atent.optim import Optimizer, Schedule
    from atent.train.settings import TrainSettings

    types: dict[str, type] = {
        "data": DataSettings, "model": ModelSettings, "optimizer": Optimizer, "schedule": Schedule,
        "train": TrainSettings, "evaluate": EvaluateSettings,
    }  # fmt: skip
    for section in SECTIONS:
        if not isinstance(tables.get(section, {}), dict):
            raise UsageError(f"{section} must be a table, got {shown(tables[section])}: write [{section}]")
    tables = moved(tables)
    method = dict(tables.get("method", {}))
    name = method.pop("name", None)
    if name is None:
        raise UsageError(f"method.name is missing: use one of {', '.join(METHODS)}")
    if not isinstance(name, str):
        raise UsageError(f"method.name must be a string, got {shown(name)}: use one of {', '.join(METHODS)}")
    try:
        types["method"] = METHODS.find(name)
    except ValueError as error:
        raise UsageError(f"method.name: {error}") from None
    built, errors = {}, []
    for section, cls in types.items():
        values = method if section == "method" else tables.get(section, {})
        found = _unknown_fields(cls, values, section)
        if found:
            errors += found
            continue
        try:
            built[section], wrong = _validated(cls, values, section)
        except ValueError as error:
            wrong = [f"{section}: {error}"]
        errors += wrong
    if errors:
        raise UsageError("\n".join(errors))
    try:
        return Job(recipe=recipe, **built)
    except ValueError as error:
        raise UsageError(f"train.{'embedding' if built['train'].embedding.weight else 'awp'}: {error}") from None


def resumed_job(
    saved: dict[str, Any], run: Path, *, model: str | None = None, data: str | None = None, root: str | None = None
) -> Job:
    """The job of a recipe's run, from its configuration; UsageError for names of what it brings itself."""
    for option, value in (("model", model), ("data", data)):
        if value is not None:
            raise UsageError(f"--{option} has no effect on {run}, which has its own: omit it")
    made = job({section: saved[section] for section in SECTIONS}, saved["recipe"])
    return dataclasses.replace(made, data=dataclasses.replace(made.data, root=root or made.data.root))


def python_job(saved: dict[str, Any], run: Path, *, baseline: bool = False) -> Job:
    """The job of a run that was trained from Python, from its configuration, but for its network and data, which
    `saved_run` makes. UsageError for settings that a recipe cannot express, such as a method of the user's own."""
    if baseline:
        raise UsageError(f"--baseline needs a recipe: {run} was trained from Python")
    sections = {section: saved[section] for section in SECTIONS if section in saved and section != "model"}
    sections["data"] = {k: v for k, v in saved["data"].items() if k not in BUILDER_KEYS}
    try:
        made = job(sections, None)
    except UsageError as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"{line}; resume {run} with atent.train.fit(..., resume=True)") from None
    if getattr(made.method, "threat", None) is None and made.evaluate.norm is None:
        # No attack is defined: only the clean accuracy.
        return dataclasses.replace(made, evaluate=dataclasses.replace(made.evaluate, attacks=()))
    return made


def _unknown_fields(cls: type, values: Any, path: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{path} must be a table, got {shown(values)}"]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    errors = []
    for key, value in values.items():
        if key not in names:
            errors.append(f"{path}{f'.{key}' if key.isidentifier() else ''}: {unknown('field', key, names)}")
        elif dataclasses.is_dataclass(hints[key]):
            errors += _unknown_fields(hints[key], value, f"{path}.{key}")
    return errors


@functools.cache
def _adapter(cls: type) -> Any:
    """pydantic's adapter of a dataclass, cached because construction is more expensive than use."""
    import pydantic

    return pydantic.TypeAdapter(cls)


def _validated(cls: type, values: dict[str, Any], path: str) -> tuple[Any, list[str]]:
    """The dataclass, or a line for each value of the wrong type or out of range."""
    import pydantic

    values = with_norms(cls, values)
    if "threat" in values and hasattr(cls, "norms"):
        from atent.checks import check_norm
        from atent.threat import NORMS

        norm = values["threat"].get("norm")
        # pydantic builds dataclasses without calling their class; its own message for an invalid norm is more specific.
        if isinstance(norm, str) and norm in NORMS:
            check_norm(cls, norm)
    try:
        # As JSON, strictly: "5" is not a number and true is not 1, but a list may be a tuple.
        made: Any = _adapter(cls).validate_json(json.dumps(values), strict=True)
        wrong = _out_of_range(made)
        return made, [f"{path}.{wrong}"] if wrong else []
    except pydantic.ValidationError as error:
        return None, _lines(error.errors(), path)


def _lines(errors: list[Any], path: str) -> list[str]:
    """The errors of pydantic, a line for each value: by its path, with all that it may be."""
    found: dict[str, list[Any]] = {}
    for e in errors:
        # The branches of a union each report; the path without their names is the field's.
        where = ".".join(str(p) for p in e["loc"] if not re.search(r"[\[\]-]|^(bool|float|str|int|none)$", str(p)))
        found.setdefault(where, []).append(e)
    lines = []
    for where, branches in found.items():
        if any(other.startswith(f"{where}.") for other in found if where):
            continue  # a branch that names an element of the value is more specific
        texts = [" ".join(e["msg"].removeprefix("Value error, ").removeprefix("Input ").split()) for e in branches]
        kinds = [text.removeprefix("should be ") for text in dict.fromkeys(texts) if text.startswith("should be ")]
        message = texts[0]
        if message.startswith("should be "):
            message = f"should be {' or '.join(kinds)}".replace(" or a valid ", " or ")
        got = "" if branches[0]["type"] in ("value_error", "missing") else f", got {shown(branches[0]['input'])}"
        lines.append(f"{path}{'.' + where if where else ''}: {message}{got}")
    return lines


def _out_of_range(made: Any) -> str | None:
    """The error of a value of the dataclass or of a nested one, by its path: pydantic checks only types."""
    wrong = mistyped(type(made), {f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    for field in () if wrong else dataclasses.fields(made):
        inside = getattr(made, field.name)
        wrong = _out_of_range(inside) if dataclasses.is_dataclass(inside) else None
        if wrong:
            return f"{field.name}.{wrong}"
    return wrong


def chains() -> dict[str, tuple[Any, bool]]:
    """{recipe: (resolved Langevin chain, whether the network is smooth)} of the package's recipes for ATENT."""
    found = {}
    for name in recipe_names():
        tables = read_recipe(name)
        if tables.get("method", {}).get("name") == "ATENT":
            made = job(tables, name)
            smooth = made.model.activation in ("softplus", "tanh")
            method: Any = made.method
            found[name] = (method.chain(), smooth)
    return found
