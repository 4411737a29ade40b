"""Folders as parts of a limited size, to be carried to a machine that nothing else can reach, and back.

A set of parts NAME-HASH.KofN.part is one tar archive, cut: HASH begins its SHA-256, so that sets do not mix and a
damaged one is not unpacked. Names have letters, digits, '.' and '-' alone.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

MIB = 2**20
_PART = re.compile(r"(?P<name>\w+)-(?P<hash>[0-9a-f]{12})\.(?P<number>\d+)of(?P<of>\d+)\.part")


def pack(name: str, folder: Path, files: Iterable[Path], to: Path, size: float) -> list[Path]:
    """Files below ``folder`` as parts of at most ``size`` MiB in ``to``, under their relative paths."""
    to.mkdir(parents=True, exist_ok=True)
    whole = to / f".{name}.tar"
    with tarfile.open(whole, "w") as tar:
        for path in sorted(files):
            tar.add(path, arcname=str(path.relative_to(folder)), filter=_anonymous)
    most, total = max(1, int(size * MIB)), whole.stat().st_size
    with whole.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        file.seek(0)
        count, made = -(-total // most), []
        for number in range(1, count + 1):
            path = to / f"{name}-{digest}.{number}of{count}.part"
            path.write_bytes(file.read(most))
            made.append(path)
    whole.unlink()
    return made


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def size_of(files: Iterable[Path]) -> float:
    """MiB of the archive of these files, but for its end."""
    return sum(-(-path.stat().st_size // 512) * 512 + 1024 for path in files) / MIB


def keep(given: Iterable[Path], place: Path) -> None:
    """Copy parts, or those in given folders, to ``place``, where the parts of earlier calls are.

    ValueError for a file that is no part, OSError for one that is not there.
    """
    place.mkdir(parents=True, exist_ok=True)
    for path in given:
        found = sorted(path.glob("*.part")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} has no parts: give a folder with files that `pack` wrote")
        for part in found:
            if not _PART.fullmatch(part.name):
                raise ValueError(f"{part} is not a part: give files that `pack` wrote, under their names")
            if not (place / part.name).is_file() and not (place / f"{_set(part)}.done").is_file():
                shutil.copy(part, place / f".{part.name}")
                (place / f".{part.name}").replace(place / part.name)


def unpack(place: Path, into: dict[str, Path]) -> list[str]:
    """Unpack each set in ``place`` that is complete into its folder, by name; a line for each set, also for those that
    wait for parts. ValueError for a set that is damaged."""
    sets: dict[str, list[Path]] = {}
    for part in sorted(place.glob("*.part")):
        sets.setdefault(_set(part), []).append(part)
    lines = []
    for key, parts in sets.items():
        found = [_PART.fullmatch(part.name) for part in parts]
        name, of = (str(found[0]["name"]), int(found[0]["of"])) if found[0] else ("", 0)
        if name not in into:
            lines.append(f"{key}: known are {', '.join(into)}, so it stays packed")
        elif len(parts) < of:
            missing = sorted(set(range(1, of + 1)) - {int(m["number"]) for m in found if m})
            lines.append(f"{key}: waits for part {', '.join(map(str, missing))} of {of}")
        else:
            _join(place, key, parts, into[name])
            lines.append(f"{key}: unpacked into {into[name]}")
    return lines


def _set(part: Path) -> str:
    return part.name.partition(".")[0]


def _join(place: Path, key: str, parts: list[Path], into: Path) -> None:
    whole = place / f".{key}.tar"
    with whole.open("wb") as file:
        for part in sorted(parts, key=lambda p: int(_PART.fullmatch(p.name)["number"])):  # type: ignore[index]
            file.write(part.read_bytes())
    with whole.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    if not key.endswith(digest):
        whole.unlink()
        for part in parts:
            part.unlink()
        raise ValueError(f"the parts of {key} are damaged: carry them again")
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(whole) as tar:
        tar.extractall(into, filter="data")
    whole.unlink()
    for part in parts:
        part.unlink()
    (place / f"{key}.done").touch()
