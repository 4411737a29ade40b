"""manifest.json: the SHA-256 sums of a run folder's files, by which damage is found when they are read.

A file and its sum change together: the sum of the coming content is written beside that of the present one before the
file is replaced, so a kill at any point leaves a file that has one of the two. A folder without a manifest, as earlier
versions made, is read unchecked; so is a file that the manifest does not name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atent.messages import once, quoted
from atent.runs import files as plain_files
from atent.runs import json_files, stale
from atent.runs.files import Damaged as Damaged
from atent.runs.files import atomic, sync, write_error, written
from atent.runs.names import BEST, CONFIG, LAST, MANIFEST, METRICS
from atent.runs.values import as_json
from atent.signals import Unwritten

SCHEMA = 1

Sum = dict[str, Any]
"""``sha256`` and ``bytes`` of a file; in the manifest, while it is replaced, also the ``next`` ones."""


# ---- reading


def check(run: str | Path, *names: str) -> None:
    """Check files of a run folder against its manifest.

    Parameters
    ----------
    run
        The run folder. One without a manifest passes, with one line on stderr.
    names
        Paths within it. One that is absent, or that the manifest does not cover, passes.

    Raises
    ------
    Damaged
        Which file differs, and what to do.
    """
    run = Path(run)
    known = sums(run)
    if known is None:
        if is_run(run):
            once(f"{run} has no {MANIFEST}: damage in its files is not detected")
        return
    for name in names:
        if name in known and (run / name).is_file() and not _is_whole(run, name):
            what = "was changed" if name == CONFIG else "is damaged"
            raise Damaged(f"{run / name} {what} (its SHA-256 is not that of {MANIFEST}): {_fix(run, name)}")


def check_file(path: str | Path) -> None:
    """`check` for one file by its path, where that lies in a run folder."""
    place = home(Path(path))
    if place:
        check(*place)


def is_whole(path: Path) -> bool:
    """Whether `check_file` accepts a file."""
    try:
        check_file(path)
    except Damaged:
        return False
    return True


def read_json(path: str | Path) -> Any:
    """The content of a JSON file that `check_file` accepts. Raises as that and `atent.runs.json_files.read_json`."""
    check_file(path)
    return json_files.read_json(path)


def states(run: str | Path) -> dict[str, str]:
    """Each file of a run folder by its name within it: whole, damaged, missing, or not covered by the manifest."""
    run = Path(run)
    known = sums(run) or {}
    there = [p for p in (*run.iterdir(), *(run / LAST).glob("*")) if p.is_file() and not p.name.startswith(".")]
    names = {str(p.relative_to(run)) for p in there} - {MANIFEST}
    found = {name: "whole" if _is_whole(run, name) else "damaged" for name in sorted(names & known.keys())}
    found |= {name: "missing" for name in sorted(known.keys() - names)}
    return found | {name: "not covered" for name in sorted(names - known.keys())}


def sums(run: Path) -> dict[str, Sum] | None:
    """The sums of a run folder by file name; None without a manifest. Damaged if it cannot be read."""
    content = _read(run)
    return None if content is None else content["files"]


def home(path: Path) -> tuple[Path, str] | None:
    """The run folder that holds the file at ``path``, and the file's name in it; None for any other file."""
    folders = [path.parent, *([path.absolute().parent.parent] if path.absolute().parent.name == LAST else [])]
    for run in folders:
        if (run / MANIFEST).is_file() or is_run(run):
            return run, str(path.relative_to(run)) if path.is_relative_to(run) else f"{LAST}/{path.name}"
    return None


def is_run(path: Path) -> bool:
    """Whether a folder has the config.json of a run; other libraries use the name too."""
    content = _config(path)
    return isinstance(content, dict) and "method" in content and "about" in content


def run_id(run: Path) -> str | None:
    """The id of a run, as its config.json has it; None for one made before runs had ids."""
    content = _config(run)
    found = content.get("id") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def sum_of(path: Path) -> Sum:
    """The sum of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": file.tell()}


def _config(run: Path) -> Any:
    try:
        return json_files.read_json(run / CONFIG)
    except (OSError, ValueError):
        return None


def _is_whole(run: Path, name: str) -> bool:
    """Whether a file has a sum that the manifest allows; a training run may replace both in the meantime."""
    for _ in range(5):
        before = (sums(run) or {}).get(name)
        if before is None or not (run / name).is_file() or _allows(before, sum_of(run / name)):
            return True
        time.sleep(0.02)
        if (sums(run) or {}).get(name) == before:
            return False
    return False


def _allows(entry: Sum, found: Sum) -> bool:
    return found in (_present(entry), entry.get("next"))


def _present(entry: Sum) -> Sum:
    return {"sha256": entry["sha256"], "bytes": entry["bytes"]}


def _fix(run: Path, name: str) -> str:
    """The remedy for a damaged file."""
    if name in (METRICS, BEST) or name.startswith(f"{LAST}/"):
        return f"`atent train --resume {quoted(run)}` restores what its checkpoint holds, else copy it from a backup"
    if name == CONFIG:
        return f"undo that, or accept the present file by `atent show {quoted(run)} --accept {name}`"
    return "copy it from a backup, or remove it and make it again"


def _read(run: Path) -> dict[str, Any] | None:
    path = run / MANIFEST
    try:
        content = json_files.read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise ValueError(f"{path} was written by a later version of atent (schema {schema}): update atent")
    if isinstance(content, dict) and content.pop("sum", None) == _own_sum(content):
        return content
    raise Damaged(f"{path} is damaged: copy it from a backup, or remove it to read the folder unchecked")


def _own_sum(content: dict[str, Any]) -> str:
    """The sum of the manifest itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---- writing


class Sealed:
    """Files of a run folder that are replaced together, each with its sum; made by `sealed`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._kept: list[tuple[str, str]] = []
        self._added: dict[str, tuple[Path, Sum]] = {}

    @contextlib.contextmanager
    def add(self, name: str) -> Iterator[Path]:
        """A temporary path for the coming content of the file ``name``. Raises as `atent.runs.files.atomic`."""
        with written(self.run / name) as temporary:
            yield temporary
        self._added[name] = temporary, sum_of(temporary)

    def write(self, name: str, data: bytes | str) -> None:
        """Give a file its coming content; text as UTF-8."""
        with self.add(name) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)

    def keep(self, name: str, under: str) -> None:
        """Keep the present file ``name`` under another name, in place of what lies there; an absent one is left out."""
        if (self.run / name).is_file():
            self._kept.append((name, under))

    def replace(self, run_id: str | None, known: dict[str, Sum] | None) -> None:
        """Put the files into their places; ``run_id`` and ``known`` as `sealed` takes them."""
        if not (self._kept or self._added):
            return
        coming = {name: found for name, (_, found) in self._added.items()}
        try:
            sync([temporary for temporary, _ in self._added.values()])
        except OSError as error:
            raise write_error(self.run, None, error) from error

        def announce(entries: dict[str, Sum]) -> None:
            entries.update(known or {})
            for name, under in self._kept:
                coming[under] = settled(self.run, name, entries) or sum_of(self.run / name)
            for name, found in coming.items():
                present = settled(self.run, name, entries)
                entries[name] = {**present, "next": found} if present else found

        _update(self.run, announce, run_id)
        for name, under in self._kept:
            _link(self.run / name, self.run / under)
        for name, (temporary, _) in self._added.items():
            os.replace(temporary, self.run / name)
        if known is None:
            settle(self.run, coming)
        else:
            known.update(coming)

    def discard(self) -> None:
        """Remove what was not put into its place."""
        for temporary, _ in self._added.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def sealed(run: Path, run_id: str | None = None, known: dict[str, Sum] | None = None) -> Iterator[Sealed]:
    """Replace files of a run folder together with their sums, in the order in which the block adds them.

    When the block raises, all of them stay as they were.

    Parameters
    ----------
    run
        The run folder.
    run_id
        The id of a run that has no config.json yet.
    known
        For repeated writes: the sums of the files written so far, updated here. The manifest is then
        written once each time, with both sums of each file, and `settle` ends the series.
    """
    files = Sealed(run)
    try:
        yield files
        files.replace(run_id, known)
    except OSError as error:
        # such as a folder that has vanished; other lines name their file
        if isinstance(error, Unwritten) or error.strerror is None:
            raise
        raise write_error(run, None, error) from error
    finally:
        files.discard()


def settle(run: Path, known: dict[str, Sum]) -> None:
    """Leave in the manifest only the present sums of files that were replaced."""
    if known:
        _update(run, lambda entries: entries.update(known))


@contextlib.contextmanager
def seal(path: str | Path) -> Iterator[Path]:
    """As `atent.runs.files.atomic`; in a run folder the manifest has the file's sum from then on."""
    path = Path(path)
    place = home(path)
    if place is None:
        with atomic(path) as temporary:
            yield temporary
        return
    with sealed(place[0]) as files, files.add(place[1]) as temporary:
        yield temporary


def write_json(path: str | Path, obj: Any) -> None:
    """`atent.runs.json_files.write_json`, by `seal`."""
    with seal(path) as temporary:
        temporary.write_text(as_json(obj, Path(path).name), encoding="utf-8")


def write_new(path: str | Path, obj: Any, *, numbered: bool = True) -> Path:
    """`obj` as JSON by `atent.runs.files.write_new`, recorded where that lies in a run folder; which file."""
    made = plain_files.write_new(path, as_json(obj, Path(path).name), numbered=numbered)
    record_file(made)
    return made


def record(run: str | Path, *names: str) -> None:
    """Take the present content of files of a run folder as what was written; one that is absent is forgotten."""
    run = Path(run)

    def taken(entries: dict[str, Sum]) -> None:
        for name in names:
            entries.pop(name, None)
            if (run / name).is_file():
                entries[name] = sum_of(run / name)

    _update(run, taken)


def forget(run: str | Path, *names: str) -> None:
    """No longer cover files of a run folder: those that are about to grow, until `record` takes them again."""
    if any(name in (sums(Path(run)) or {}) for name in names):
        _update(Path(run), lambda entries: [entries.pop(name, None) for name in names])


def record_file(path: Path) -> None:
    """`record` for one file by its path, where that lies in a run folder."""
    place = home(path)
    if place:
        record(*place)


def forget_file(path: Path) -> None:
    """`forget` for one file by its path, where that lies in a run folder."""
    place = home(path)
    if place:
        forget(*place)


def _update(run: Path, change: Callable[[dict[str, Sum]], Any], own_id: str | None = None) -> None:
    """Change the sums of a run folder, one process at a time."""
    with _alone(run):
        content = _read(run) or {"schema": SCHEMA, "run": own_id or run_id(run), "files": {}}
        change(content["files"])
        content["files"] = dict(sorted(content["files"].items()))
        json_files.write_json(run / MANIFEST, {**content, "sum": _own_sum(content)})


def settled(run: Path, name: str, entries: dict[str, Sum]) -> Sum | None:
    """The sum of a present file; while it is replaced, and after a kill then, that is the recorded or the next one."""
    entry, path = entries.get(name), run / name
    if not path.is_file():
        return None
    if entry is None:
        return sum_of(path)
    if "next" not in entry:
        return entry
    following: Sum = entry["next"]
    return following if sum_of(path) == following else _present(entry)


def _link(path: Path, under: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links."""
    temporary = stale.temporary(under)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
            sync([temporary])
        os.replace(temporary, under)
    finally:
        # A rename onto another name of the same file does nothing, and leaves the first.
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Inside, no other process changes the manifest; the lock is on the folder itself, and leaves no file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(run, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
