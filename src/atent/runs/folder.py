"""A run folder: the names of its files, where it may be made, and its configuration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from atent.fields import shown
from atent.runs import manifest
from atent.runs.names import CONFIG, LAST, LOCK, MANIFEST, STATE

# File systems allow 255 bytes, and a number may be appended to the name.
_LONGEST = 200

BUILDER_KEYS = ("builder", "builder_args")
"""Where the sections model and data of a run from Python say what builds them again."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json at ``path``, `completed`. Raises as `atent.runs.manifest.read_json`."""
    return completed(manifest.read_json(path))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with what the absence of a setting means: runs made before data.subset took the first
    samples. Settings that have moved are returned in their current place."""
    config = _chain(relocated(config)) if isinstance(config, dict) else config
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "subset" in data:
        return config
    return {**config, "data": {**data, "subset": "first"}}


def relocated(tables: dict[str, Any]) -> dict[str, Any]:
    """Tables of settings with what earlier versions called otherwise: ``method.awp`` as ``train.awp``, ``pull`` of
    ATENT as ``anchor``, and ``train.select`` natural as clean.

    ValueError if both are there.
    """
    tables = _renamed(tables)
    method, train = tables.get("method"), tables.get("train", {})
    if not isinstance(method, dict) or "awp" not in method or not isinstance(train, dict):
        return tables
    if "awp" in train:
        raise ValueError("method.awp and train.awp set the same field: use train.awp")
    kept = {key: value for key, value in method.items() if key != "awp"}
    return {**tables, "method": kept, "train": {**train, "awp": method["awp"]}}


def _chain(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the weight of the chain's anchor term, which was called pull, by its present name."""
    about = config.get("about")
    chain = about.get("chain") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not chain or "pull" not in chain:
        return config
    found = {"anchor_weight" if key == "pull" else key: value for key, value in chain.items()}
    return {**config, "about": {**about, "chain": found}}


def _renamed(tables: dict[str, Any]) -> dict[str, Any]:
    train = tables.get("train")
    if isinstance(train, dict) and train.get("select") == "natural":
        tables = {**tables, "train": {**train, "select": "clean"}}
    method = tables.get("method")
    if not isinstance(method, dict) or method.get("name") != "ATENT" or "pull" not in method:
        return tables
    if "anchor" in method:
        raise ValueError("method.pull and method.anchor set the same field: use method.anchor")
    return {**tables, "method": {"anchor" if key == "pull" else key: value for key, value in method.items()}}


def create(path: str | Path) -> Path:
    """Makes a run folder, with its parents; one that `is_free` is taken as it is.

    Raises FileExistsError of one line if something is there already, OSError if it cannot be made.
    """
    path = Path(path)
    check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, f"{LAST}/{STATE}"):
        (path / name).unlink(missing_ok=True)
    return path


def check_free(path: Path) -> None:
    """FileExistsError unless `is_free`."""
    if not is_free(path):
        raise FileExistsError(
            f"{path} exists and is not empty: choose another name (--name, in Python run=), or resume it (--resume,"
            " resume=True)"
        )


def clear(path: Path) -> None:
    """Remove what lies in a folder, but for its lock."""
    for each in path.iterdir():
        if each.name == LOCK:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def check_name(name: str) -> None:
    """ValueError, in one line, if `name` is not the name of one folder: a run stays inside the folder of runs."""
    if name in ("", ".", "..") or any(part in name for part in "/\\\0\n\r") or len(name.encode()) > _LONGEST:
        raise ValueError(
            f"a run name must be a folder name without slashes, of at most {_LONGEST} bytes, got {shown(name)}:"
            " use --runs for another place"
        )


def free_name(root: str | Path, name: str, *, aside: Collection[Path] = ()) -> Path:
    """The first of root/name, root/name-2, root/name-3 ... that `create` would take and that is not one of ``aside``;
    makes nothing.

    Raises ValueError if `name` is not the name of one folder.
    """
    check_name(name)
    path, number = Path(root) / name, 1
    while path in aside or not is_free(path):
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


def is_free(path: Path) -> bool:
    """Whether a run may be made at ``path``: it is absent, or a folder without anything but hidden files and what a
    training leaves if it is killed before it writes config.json."""
    if not os.path.lexists(path):
        return True
    if not path.is_dir():
        return False
    found = {p.name for p in (*path.iterdir(), *(path / LAST).glob("*")) if not p.name.startswith(".")}
    return CONFIG not in found and found <= {LAST, MANIFEST, STATE}
