"""Where data files are looked for, and how their bytes are read, unpacked and identified."""

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = "ATENT_DATA_ROOT"
FIX = f"set --data.root or {ROOT}"


def data_root(root: str | None) -> Path:
    """The root given, else $ATENT_DATA_ROOT, else ./data."""
    return Path(root or os.environ.get(ROOT) or "data").expanduser()


def find(what: str, folders: Sequence[Path], names: Iterable[Sequence[str]]) -> list[Path]:
    """One path per entry of `names`, each entry listing the spellings allowed for one file.

    All come from the first folder that holds any of them, so that two copies are never mixed.
    Raises FileNotFoundError, in one line, with the first file that is absent and where it was looked for.
    """
    wanted = [tuple(spellings) for spellings in names]
    places = [f for f in folders if any((f / name).is_file() for spellings in wanted for name in spellings)]
    paths = []
    for spellings in wanted:
        here = [places[0] / name for name in spellings if (places[0] / name).is_file()] if places else []
        if not here:
            looked = ", ".join(str(folder) for folder in places[:1] or folders)
            raise FileNotFoundError(f"{what}: {' or '.join(spellings)} not found in {looked}; {FIX}")
        paths.append(here[0])
    return paths


def read(path: Path) -> tuple[bytes, str]:
    """Content of a plain, .gz or .xz file, unpacked, and the sha256 of the file as it lies on disk.

    Raises ValueError, in one line, where the packed stream is cut short or damaged.
    """
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    try:
        return unpack(raw), digest
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path}: damaged or cut short after {len(raw)} bytes ({reason})") from error


def record(digest: str, known: str | None) -> dict[str, str | bool]:
    """A file's entry in `about`: its sha256, and whether that is the one known for this file."""
    return {"sha256": digest, "verified": digest == known}
