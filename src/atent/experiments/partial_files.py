"""Files of interruptible measurements: one per request, named by its content, and locked by one process."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.evaluate.lines import belongs
from atent.messages import note
from atent.runs.locks import InUse, held, lock_of
from atent.signals import resumed_by

_SUFFIX = ".partial.jsonl"
_CHANGES = {"model": "weights", "others": "weights", "version": "version of atent", "definitions": "definitions"}
"""What a command that is repeated may find changed, and how it is named."""
_ADDED = ("network", "networks", "definitions")
"""What the names of earlier versions did not depend on."""


@contextmanager
def unfinished(place: Path, kind: str, fingerprint: Mapping[str, Any], **request: Any) -> Iterator[Path]:
    """The file beside the result ``place`` from which the measurement resumes; removed when the block ends well.

    Different requests have separate files, so that they can run concurrently. A file of an earlier version is reused if
    it belongs to this measurement. That of the same request to a network that has changed since, or to another version,
    is of no measurement any more: it is removed, and one line says so.

    Parameters
    ----------
    place
        The file of the result.
    kind, fingerprint
        What is measured, as `Lines` records it.
    request
        Further inputs that the result depends on, and the network that is meant, whatever its weights are.

    Raises
    ------
    InUse
        While another process measures the same.
    """
    asked = {key: value for key, value in {**fingerprint, **request}.items() if key not in _CHANGES}
    # Of an attack the first two values are its name and its text; code may follow.
    asked["attacks"] = [each[:2] for each in fingerprint.get("attacks", [])]
    wish, digest = _digest([kind, asked], 8), _digest([kind, fingerprint, request], 12)
    path = place.with_suffix(f".{wish}-{digest}{_SUFFIX}")
    with held(lock_of(path), kind), resumed_by("repeating the command resumes"):
        former, superseded = _former(place, kind, fingerprint, request), _superseded(place, wish, path)
        # It has no version of the definitions, and so their first.
        _drop([*superseded, former] if "definitions" in {**fingerprint, **request} else superseded, kind, fingerprint)
        if not path.exists():
            _take_up(place, path, former, kind, fingerprint)
        yield path
        for each in family(path):
            with suppress(FileNotFoundError):
                each.unlink()


def _digest(values: Any, digits: int) -> str:
    return hashlib.sha256(folder.dumps(values).encode()).hexdigest()[:digits]


def _former(place: Path, kind: str, fingerprint: Mapping[str, Any], request: Mapping[str, Any]) -> Path:
    """The file of this measurement under the name that an earlier version gave it."""
    known, asked = ({k: v for k, v in each.items() if k not in _ADDED} for each in (fingerprint, request))
    return place.with_suffix(f".{_digest([kind, known, asked], 12)}{_SUFFIX}")


def _superseded(place: Path, wish: str, path: Path) -> list[Path]:
    """The files of the same request at ``place`` that the measurement of ``path`` does not resume."""
    form = re.compile(rf"({re.escape(place.stem)}\.{wish}-[0-9a-f]{{12}}\.partial)(\..*)?\.jsonl")
    found = (form.fullmatch(each.name) for each in place.parent.glob(f"{glob.escape(place.stem)}.{wish}-*.jsonl"))
    return sorted({place.with_name(f"{match[1]}.jsonl") for match in found if match} - {path})


def _drop(superseded: list[Path], kind: str, fingerprint: Mapping[str, Any]) -> None:
    """Remove these files and their parts; one line for each."""
    for old in filter(family, superseded):
        # Another process, of this host or another, may be measuring the network as it was. What cannot be removed, such
        # as the file of another user, is no obstacle to this measurement.
        with suppress(InUse, OSError), held(lock_of(old), kind, steal=False):
            article, differs = "an" if kind[0] in "aeiou" else "a", _changed(old, fingerprint)
            files = family(old)
            for each in files:
                each.unlink()
            if files:
                note(
                    f"{old.name} is of {article} {kind} that was interrupted with other {differs}: removed, this one"
                    " starts anew"
                )


def _changed(old: Path, fingerprint: Mapping[str, Any]) -> str:
    """What differs between a file's measurement and this one."""
    try:
        with old.open(encoding="utf-8") as file:
            head = json.loads(file.readline(1 << 24))
        differs = [key for key, value in folder.plain(dict(fingerprint)).items() if head.get(key) != value]
    except (OSError, ValueError, AttributeError):
        differs = []
    words = dict.fromkeys(_CHANGES.get(key, "code" if key == "attacks" else key) for key in differs)
    return " and ".join(words) or "weights, code or definitions"


def family(path: Path) -> list[Path]:
    """The existing files of a measurement and of its parts."""
    found = [path, *path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}")]
    return [file for file in found if file.is_file()]


def seen_from(place: Path, path: Path) -> str:
    """``path`` relative to the folder of the result ``place``; a full path where that is impossible (another drive)."""
    try:
        return Path(os.path.relpath(path, place.parent.resolve())).as_posix()
    except ValueError:
        return str(path)


def beside(path: Path, part: str) -> Path:
    """The file of that part of a measurement; "" is the measurement itself."""
    return path.with_suffix(f".{part}{path.suffix}") if part else path


def _take_up(place: Path, path: Path, hashed: Path, kind: str, fingerprint: Mapping[str, Any]) -> None:
    """Give the files of an earlier version their present names: it numbered them as results are, or ``hashed`` them."""
    numbered = re.compile(rf"{re.escape(place.stem)}(-\d+)?{re.escape(_SUFFIX)}")
    for each in sorted(place.parent.glob(f"*{_SUFFIX}")):
        if (each == hashed or numbered.fullmatch(each.name)) and belongs(each, kind, fingerprint):
            for one in family(each):
                one.rename(path.with_name(path.stem + one.name.removeprefix(each.stem)))
            return
