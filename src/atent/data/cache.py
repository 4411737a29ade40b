"""Decoded images on disk: written once from the files of a folder, then read row by row."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atent.data.images import Form, Listing, blocks, decoded, digest, form_of
from atent.data.stored import Rows
from atent.distributed.world import current
from atent.messages import first_only, note
from atent.progress import Advance, bar
from atent.runs.json_files import append_jsonl, read_jsonl, write_json
from atent.runs.locks import held, lock_of

FOLDER = ".atent-cache"
"""Default folder of the caches, in the data folder; names of class folders do not begin with a dot."""
INDEX = "index.json"
_VERSION = 1
# Free space that a file system may not be able to use.
_MARGIN = 2**24
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Cached:
    """A part of a data set in a cache."""

    rows: Rows
    sha256: str
    """Over the names and contents of the image files, as of data in memory."""


def cached(parts: Mapping[str, Listing], size: int | None, folder: Path, workers: int) -> dict[str, Cached]:
    """The parts in the cache in ``folder``, which is created if it does not exist, while other processes wait.

    A cache belongs to the names, sizes and times of the image files and to ``size``: if one of them changes, another
    cache is created in the same folder. An interrupted one continues with its next block.
    Raises ValueError, in one line, for images as `form_of` and `decode`, and if the cache is damaged, the folder cannot
    be written, or the disk is full.
    """
    place = folder / key_of(parts, size)
    found = _found(place, parts, workers)
    if found is None:
        with _alone(place):
            found = _found(place, parts, workers)
            if found is None:
                _make(place, parts, size, workers)
                found = _found(place, parts, workers)
    assert found is not None, "the cache exists after it was written"
    return found


def key_of(parts: Mapping[str, Listing], size: int | None) -> str:
    """The name of a cache: 16 hex digits of a hash over the file names, sizes, times and the resizing."""
    total = hashlib.sha256(json.dumps([_VERSION, size, *parts]).encode())
    for part in parts.values():
        total.update(str(len(part)).encode())
        for name in part.names:
            total.update(os.fsencode(name) + b"\0")
        total.update(part.stamps.astype("<i8").tobytes())
    return total.hexdigest()[:16]


def _found(place: Path, parts: Mapping[str, Listing], workers: int) -> dict[str, Cached] | None:
    """The complete cache at ``place``; None if there is none."""
    if not place.is_dir():
        return None
    try:
        index = json.loads((place / INDEX).read_bytes())
        out = {}
        for name, part in parts.items():
            rows = Rows.of(place / file_of(name), workers)
            if (len(rows), list(rows.shape)) != (len(part), index["shape"]):
                raise ValueError(f"{rows.path}: {len(rows)} rows of {rows.shape}, its index says otherwise")
            out[name] = Cached(rows, str(index["sha256"][name]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the cache {place} is damaged ({reason}): remove that folder to make it again") from error
    return out


def file_of(part: str) -> str:
    """The file of a part."""
    return "images.npy" if part == "." else f"{part}.npy"


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Inside, no other process writes this cache."""
    report = first_only(lambda line: note(f"waiting for the cache of the images: {line}") if current().first else None)
    with contextlib.ExitStack() as stack:
        with _writing(place):
            stack.enter_context(held(lock_of(place), "cache images", wait=report))
        yield


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """A failure to write is a ValueError of one line; an incomplete cache is removed if the disk is full."""
    fix = "give another folder by data.cache (--data.cache), or --data.cache off to decode at each use"
    try:
        yield
    except OSError as error:
        number = error.errno or getattr(error.__cause__, "errno", None)
        if number in _FULL:
            shutil.rmtree(_partial(place), ignore_errors=True)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise ValueError(f"cannot write the cache in {place.parent}: {reason}: {fix}") from error


def _partial(place: Path) -> Path:
    """The folder of a cache that is being written."""
    return place.with_name(f"{place.name}.part")


def _make(place: Path, parts: Mapping[str, Listing], size: int | None, workers: int) -> None:
    form = form_of(list(parts.values()), size, workers)
    half, total = _partial(place), sum(map(len, parts.values()))
    with _writing(place):
        half.mkdir(parents=True, exist_ok=True)
        _check_room(place, total * int(np.prod(form.shape)))
        shape = " x ".join(map(str, form.shape))
        need = _bytes(total * int(np.prod(form.shape)))
        note(f"caching {total:,} images of {shape} once, {need}, in {place}")
        # The partial cache of other files has another name.
        try:
            hashes = {}
            with bar(total, "cache", enabled=True) as advance:
                for name, part in parts.items():
                    hashes[name] = _fill(half, name, part, form, workers, advance)
        except ValueError:
            # Replacing a broken image changes the name of the cache, so this partial one would never be used again.
            shutil.rmtree(half, ignore_errors=True)
            raise
        about = {"schema_version": _VERSION, "shape": list(form.shape), "form": asdict(form)}
        write_json(half / INDEX, about | {"sha256": hashes, "images": {k: len(v) for k, v in parts.items()}})
        for name in parts:
            _log(half, name).unlink()
        os.replace(half, place)


def _check_room(place: Path, need: int) -> None:
    have = sum(p.stat().st_blocks * 512 for p in _partial(place).glob("*.npy")) if os.name != "nt" else 0
    free = shutil.disk_usage(place.parent).free + have
    if free < need + _MARGIN:
        with suppress(OSError):
            _partial(place).rmdir()
        raise ValueError(
            f"the cache of the images needs {_bytes(need)}, and {place.parent} has {_bytes(free)} free: give a folder"
            " with more room by data.cache (--data.cache), a smaller data.size, or --data.cache off"
        )


def _fill(half: Path, name: str, part: Listing, form: Form, workers: int, advance: Advance) -> str:
    """Write the missing rows of a part; returns the hash over its files."""
    path, log = half / file_of(name), _log(half, name)
    done = _done(path, log, part, form)
    offset = _begin(path, (len(part), *form.shape)) if done is None else Rows.of(path).offset
    hashes = done or []
    advance(len(hashes), "")
    with open(path, "r+b") as file:
        for block in blocks(part, form):
            if block.stop <= len(hashes):
                continue
            pixels, new = decoded(part, block, form, workers)
            file.seek(offset + block.start * int(np.prod(form.shape)))
            file.write(pixels.data)
            file.flush()
            # The log must not be ahead of the disk.
            os.fsync(file.fileno())
            append_jsonl(log, {"begin": block.start, "sha256": new})
            hashes += new
            advance(len(new), "")
    return digest(part, hashes)


def _log(half: Path, name: str) -> Path:
    """The log of a part: the rows on disk, and the hashes of their files."""
    return half / f"{file_of(name)}.jsonl"


def _done(path: Path, log: Path, part: Listing, form: Form) -> list[str] | None:
    """The hashes of the files whose rows are on disk; None if the file does not exist or does not fit."""
    try:
        rows, lines = Rows.of(path), read_jsonl(log)
        if (len(rows), rows.shape) != (len(part), form.shape):
            return None
        hashes: list[str] = []
        for line in lines:
            if line["begin"] != len(hashes):
                return None
            hashes += line["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashes


def _begin(path: Path, shape: tuple[int, ...]) -> int:
    """Allocate a file of that many rows of zeros; returns the position of the first row."""
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}.jsonl").unlink()
    with open(path, "wb") as file:
        about: Any = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        file.flush()
        offset = file.tell()
        total = offset + int(np.prod(shape))
        file.truncate(total)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, total)
    return offset


def _bytes(n: int) -> str:
    """A number of bytes with its unit."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} bytes"
