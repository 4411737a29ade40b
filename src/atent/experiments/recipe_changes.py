"""The recipe file of a training: what it contained at the start, and how it differs now."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.experiments.recipe_files import SECTIONS, flat, read_recipe
from atent.experiments.recipes import job

# The differences that the line names.
_NAMED = 3


def file_of(recipe: str, tables: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a recipe's file with all that it extends, as plain values; None for a recipe of the package."""
    if not recipe.endswith(".toml"):
        return None
    return {"path": os.path.realpath(recipe), "settings": _settings(tables)}


def in_run(file: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The record of `file_of` for the config.json of ``run``: its path from there, which the working folder of a later
    command does not change."""
    try:
        path = os.path.relpath(file["path"], os.path.realpath(run))
    except ValueError:  # on Windows, another drive
        path = file["path"]
    return {"from_run": Path(path).as_posix(), "settings": file["settings"]}


def _found(known: Mapping[str, Any], run: Path) -> Path | None:
    """The recipe's file, as the user would write it; None if it is absent."""
    # Earlier versions recorded the path from the working folder of the training.
    path = known.get("path") or os.path.normpath(Path(os.path.realpath(run)) / known["from_run"])
    beside = Path(path).is_relative_to(Path.cwd())
    return (Path(path).relative_to(Path.cwd()) if beside else Path(path)) if Path(path).is_file() else None


def changed(config: Mapping[str, Any], run: Path) -> str | None:
    """One line if the recipe file has other settings than the run that resumes; None if it has none.

    Settings that the command line changed at the start are compared only where the file itself has changed, and a file
    that is absent is not compared.

    Parameters
    ----------
    config
        The configuration of the run.
    run
        The run folder.
    """
    known = (config.get("about") or {}).get("recipe_file")
    path = _found(known, run) if known else None
    if known is None or path is None:
        return None
    begin = f"{path} has changed since this training began: it continues with the settings of"
    begin = f"{begin} {run / folder.CONFIG}"
    try:
        tables = read_recipe(str(path))
        settings = _settings(tables)
        if settings == known["settings"]:
            return None
        own = flat(_plain(job(tables, None).sections()))
    except (ValueError, OSError):
        return f"{begin} (the file is not a valid recipe now)"
    before, after = flat(known["settings"]), flat(settings)
    kept = flat(_plain({section: config[section] for section in SECTIONS}))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    differs = [key for key in keys if key in kept and own.get(key) != kept[key]]
    if not differs:
        return None
    shown = [f"{key} {kept[key]}, the file now has {own.get(key)}" for key in differs[:_NAMED]]
    more = f"; and {len(differs) - _NAMED} more" if len(differs) > _NAMED else ""
    return f"{begin} ({'; '.join(shown)}{more})"


def _settings(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe, as plain values."""
    return {key: _finite(tables[key]) for key in SECTIONS if key in tables}


def _finite(value: Any) -> Any:
    """A copy of values of TOML, with inf and nan, which JSON cannot hold, as text."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.dumps(value))
    return found
