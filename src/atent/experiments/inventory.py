"""The files of a run folder and their integrity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.data import SOURCES
from atent.data import load as load_data
from atent.experiments.recorded import recorded_data
from atent.runs import manifest
from atent.runs.checkpoint import check_best
from atent.runs.places import is_named, place_of

BAD = ("damaged", "missing", "changed", "of another run")
"""States of a file that is not what was written."""


@dataclass(frozen=True)
class Entry:
    """A file of the run, or one of its data."""

    name: str
    state: str
    """whole, damaged, missing or not covered; of the best weights also of another run, of data changed or not found."""
    sha256: str | None
    """The sum that was recorded; of data without files the first digits of that of the training samples."""


@dataclass(frozen=True)
class Inventory:
    """The files of a run folder and of its data."""

    run: str
    id: str | None
    """None for a run made before runs had ids."""
    files: tuple[Entry, ...]
    data: tuple[Entry, ...]

    @property
    def whole(self) -> bool:
        """Whether every file that is covered is there and as it was written."""
        return not any(entry.state in BAD for entry in (*self.files, *self.data))


def inventory(run: str | Path, root: str | None = None) -> Inventory:
    """Compare the files of a run folder, and the data that it names, with the sums that were recorded.

    Parameters
    ----------
    run
        The run folder, or zoo:name or hub:user/name; its files are read, and nothing in it is imported.
    root
        The folder of the data, as ``data.root``. Default: the run's.

    Raises
    ------
    FileNotFoundError, ValueError
        No run folder, or a damaged manifest.
    """
    name, run = str(run), _folder(run)
    known = manifest.sums(run) or {}
    files = tuple(
        Entry(name, state, (manifest.settled(run, name, known) or known[name])["sha256"] if name in known else None)
        for name, state in manifest.states(run).items()
    )
    try:
        check_best(run)
    except folder.Damaged:
        pass  # its state among the files says so
    except ValueError:
        files = tuple(replace(e, state="of another run") if e.name == folder.BEST else e for e in files)
    intact = manifest.is_whole(run / folder.CONFIG) and manifest.is_run(run)
    data = _data(folder.read_config(run / folder.CONFIG), root) if intact else ()
    return Inventory(name, manifest.run_id(run), files, data)


def _folder(run: str | Path) -> Path:
    path = place_of(run)
    if not (path / folder.CONFIG).is_file() and not (path / folder.MANIFEST).is_file():
        raise FileNotFoundError(f"{folder.no_run(path)}: give the path that training printed")
    return path


def _data(config: dict[str, Any], root: str | None) -> tuple[Entry, ...]:
    about = config["about"].get("data") or {}
    recorded = {name: entry["sha256"] for name, entry in (about.get("files") or {}).items()}
    if not recorded:
        return (Entry("training samples", "not covered", about["digest"]),) if about.get("digest") else ()
    now = _sums(config, root)
    states = {name: "not found" if now.get(name) is None else "changed" for name in recorded}
    states |= {name: "whole" for name, found in recorded.items() if now.get(name) == found}
    return tuple(Entry(name, states[name], found) for name, found in recorded.items())


def _sums(config: dict[str, Any], root: str | None) -> dict[str, str]:
    """The sums of the data's files as they are now; none where they cannot be loaded, or by code that is not ours."""
    settings = recorded_data(config)
    if settings is None or not SOURCES.is_built_in(settings.name):
        return {}
    try:
        about = load_data(replace(settings, root=root) if root else settings).about
    except (OSError, ValueError):
        return {}
    return {name: entry["sha256"] for name, entry in (about.get("files") or {}).items()}


def accept_files(run: str | Path, names: Sequence[str]) -> None:
    """Record the current state of files of a run as correct; a missing file is forgotten.

    Raises
    ------
    FileNotFoundError, ValueError
        No run folder, or a file that the run neither has nor knows.
    """
    if names and is_named(run):
        raise ValueError(f"--accept has no effect on {run}: its folder belongs to the package or to the Hub's cache")
    known = manifest.states(_folder(run))
    for name in names:
        if name not in known:
            raise ValueError(f"{run} has no file {name}: give one of {', '.join(known)}")
    if names:
        manifest.record(run, *names)
