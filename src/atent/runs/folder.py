"""A run folder: the names of its files, where it may be made, and its configuration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from atent.fields import shown
from atent.messages import nearest
from atent.runs import manifest
from atent.runs.names import CONFIG, LAST, LOCK, MANIFEST, STATE

# File systems allow 255 bytes, and a number may be appended to the name.
_LONGEST = 200

BUILDER_KEYS = ("builder", "builder_args")
"""Where the sections model and data of a run from Python say what builds them again."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a run, `completed`; errors as for `read_json`, and `Damaged` for a changed file.

    Parameters
    ----------
    path
        The file config.json of the run folder.

    Returns
    -------
    dict
        The sections of the recipe, and about, provenance, id and signature.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import read_config, write_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder) / "config.json", {"data": {"name": "digits", "subset": "stratified"}})
    ...     read_config(Path(folder) / "config.json")["data"]["name"]
    'digits'
    """
    return completed(manifest.read_json(path))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with the settings that earlier versions did not record: runs from before data.subset used
    the first samples. Settings that have moved are returned in their present place.

    Parameters
    ----------
    config
        The configuration as it is stored.

    Returns
    -------
    dict
        The configuration; ``config`` is unchanged.

    Examples
    --------
    >>> from atent.runs import completed
    >>> completed({"data": {"name": "digits"}})
    {'data': {'name': 'digits', 'subset': 'first'}}
    """
    config = _chain(relocated(config)) if isinstance(config, dict) else config
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "subset" in data:
        return config
    return {**config, "data": {**data, "subset": "first"}}


def relocated(tables: dict[str, Any]) -> dict[str, Any]:
    """Tables of settings with the names of earlier versions replaced: ``method.awp`` is ``train.awp``, ``pull`` of
    ATENT is ``anchor``, and natural in ``train.select`` is clean.

    Parameters
    ----------
    tables
        Sections of a recipe or a configuration.

    Returns
    -------
    dict
        The sections; ``tables`` is unchanged.

    Raises
    ------
    ValueError
        If both the former and the present name are given.

    Examples
    --------
    >>> from atent.runs import relocated
    >>> relocated({"method": {"name": "ATENT", "pull": "free"}})
    {'method': {'name': 'ATENT', 'anchor': 'free'}}
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
    """Make a run folder, with its parents; a folder that `is_free` is used as it is. Errors as for `check_free`.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import create
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     create(Path(folder) / "runs" / "mine").is_dir()
    True
    """
    path = Path(path)
    check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, f"{LAST}/{STATE}"):
        (path / name).unlink(missing_ok=True)
    return path


def check_free(path: Path) -> None:
    """Check that a run may be made at a path, see `is_free`.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    FileExistsError
        In one line, if something is there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import check_free
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_free(Path(folder) / "mine")
    """
    if not is_free(path):
        raise FileExistsError(
            f"{path} exists and is not empty: choose another name (--name, in Python run=), or resume it (--resume,"
            " resume=True)"
        )


def clear(path: Path) -> None:
    """Remove the content of a folder, except its lock.

    Parameters
    ----------
    path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import clear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "config.json").write_text("{}")
    ...     clear(Path(folder))
    ...     list(Path(folder).iterdir())
    []
    """
    for each in path.iterdir():
        if each.name == LOCK:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def check_name(name: str) -> None:
    """Check that a name is that of one folder, so that a run is inside the folder of runs.

    Parameters
    ----------
    name
        Name of the run.

    Raises
    ------
    ValueError
        In one line, for an empty name, one with slashes, NUL or line breaks, and one of more than 200 bytes.

    Examples
    --------
    >>> from atent.runs import check_name
    >>> check_name("mine")
    """
    if name in ("", ".", "..") or any(part in name for part in "/\\\0\n\r") or len(name.encode()) > _LONGEST:
        raise ValueError(
            f"a run name must be a folder name without slashes, of at most {_LONGEST} bytes, got {shown(name)}:"
            " use --runs for another place"
        )


def free_name(root: str | Path, name: str, *, aside: Collection[Path] = ()) -> Path:
    """The first of root/name, root/name-2, root/name-3 ... at which a run may be made; nothing is made.

    ValueError as for `check_name`.

    Parameters
    ----------
    root
        The folder of runs.
    name
        Name of the run.
    aside
        Folders that are not used. Default: none.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import free_name
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "mine").mkdir()
    ...     _ = (Path(folder) / "mine" / "config.json").write_text("{}")
    ...     free_name(folder, "mine").name
    'mine-2'
    """
    check_name(name)
    path, number = Path(root) / name, 1
    while path in aside or not is_free(path):
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


def is_free(path: Path) -> bool:
    """Whether a run may be made at a path: it is absent, or a folder with only hidden files and what a training leaves
    if it is killed before it writes config.json.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    bool
        True if a run may be made there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import is_free
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     is_free(Path(folder)), is_free(Path(folder) / "mine")
    (True, True)
    """
    if not os.path.lexists(path):
        return True
    if not path.is_dir():
        return False
    found = {p.name for p in (*path.iterdir(), *(path / LAST).glob("*")) if not p.name.startswith(".")}
    return CONFIG not in found and found <= {LAST, MANIFEST, STATE}


def no_run(path: Path) -> str:
    """The beginning of an error: the path is not a run folder, and the one beside it or in runs/ that may be meant.

    Parameters
    ----------
    path
        The path that was given.

    Returns
    -------
    str
        A clause without a remedy.

    Examples
    --------
    >>> from pathlib import Path
    >>> from atent.runs import no_run
    >>> no_run(Path("runs/nothing-of-this-name"))
    'runs/nothing-of-this-name is not a run folder (no config.json)'
    """
    meant = None
    for place in (path.parent, Path("runs")):
        with suppress(OSError):
            found = {each.name: each for each in place.iterdir() if (each / CONFIG).is_file()}
            meant = meant or found.get(nearest(path.name, found) or "")
    return f"{path} is not a run folder (no {CONFIG}{f'; did you mean {meant}?' if meant else ''})"
