"""Files of interruptible measurements: one per request, named by its content, and locked by one process."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.evaluate.lines import belongs
from atent.runs.locks import held, lock_of
from atent.signals import resumed_by

_SUFFIX = ".partial.jsonl"


@contextmanager
def unfinished(place: Path, kind: str, fingerprint: Mapping[str, Any], **request: Any) -> Iterator[Path]:
    """The file beside the result ``place`` from which the measurement resumes; removed when the block ends well.

    Different requests have separate files, so that they can run concurrently. A file of an earlier version is reused if
    it belongs to this measurement.

    Parameters
    ----------
    place
        The file of the result.
    kind, fingerprint
        What is measured, as `Lines` records it.
    request
        Further inputs that the result depends on.

    Raises
    ------
    InUse
        While another process measures the same.
    """
    digest = hashlib.sha256(folder.dumps([kind, fingerprint, request]).encode()).hexdigest()[:12]
    path = place.with_suffix(f".{digest}{_SUFFIX}")
    with held(lock_of(path), kind), resumed_by("repeating the command resumes"):
        if not path.exists():
            _take_up(place, path, kind, fingerprint)
        yield path
        for each in family(path):
            with suppress(FileNotFoundError):
                each.unlink()


def family(path: Path) -> list[Path]:
    """The existing files of a measurement and of its parts."""
    found = [path, *path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}")]
    return [file for file in found if file.exists()]


def beside(path: Path, part: str) -> Path:
    """The file of that part of a measurement; "" is the measurement itself."""
    return path.with_suffix(f".{part}{path.suffix}") if part else path


def _take_up(place: Path, path: Path, kind: str, fingerprint: Mapping[str, Any]) -> None:
    """Give the files of an earlier version, which were numbered as results are, their present names."""
    former = re.compile(rf"{re.escape(place.stem)}(-\d+)?{re.escape(_SUFFIX)}")
    for each in sorted(place.parent.glob(f"*{_SUFFIX}")):
        if former.fullmatch(each.name) and belongs(each, kind, fingerprint):
            for one in family(each):
                one.rename(path.with_name(path.stem + one.name.removeprefix(each.stem)))
            return
