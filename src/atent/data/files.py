"""Where data files are searched for, and how their bytes are read, unpacked and identified."""

import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from atent.fields import shown

ROOT = "ATENT_DATA_ROOT"
LIMIT = "ATENT_DATA_LIMIT"
# Memory that unpacking may need; the strongest setting of xz needs 65 MiB.
_DICTIONARY = 2**28
_PART = 2**20
FIX = f"set --data.root (in Python root=) or {ROOT}"


def data_root(root: str | None) -> Path:
    """The given root, else $ATENT_DATA_ROOT, else ./data."""
    return Path(root or os.environ.get(ROOT) or "data").expanduser()


def find(what: str, folders: Sequence[Path], names: Iterable[Sequence[str]], published: str = "") -> list[Path]:
    """One path per entry of `names`, each entry listing the spellings allowed for one file.

    All come from the first folder that contains any of them, so that two copies are never mixed.
    Raises FileNotFoundError, in one line, with the first file that is absent, the folders searched, and where it is
    ``published``.
    """
    wanted = [tuple(spellings) for spellings in names]
    places = [f for f in folders if any((f / name).is_file() for spellings in wanted for name in spellings)]
    paths = []
    for spellings in wanted:
        here = [places[0] / name for name in spellings if (places[0] / name).is_file()] if places else []
        if not here:
            searched = ", ".join(str(folder) for folder in places[:1] or folders)
            raise FileNotFoundError(
                f"{what}: {' or '.join(spellings)} not found in {searched}; {source(published)}{FIX}"
            )
        paths.append(here[0])
    return paths


def source(published: str) -> str:
    """The part of a message with the address of absent files."""
    return f"it is published at {published}; " if published else ""


def largest() -> int:
    """The largest size in bytes of a data file, on disk and unpacked: 8 GiB, or $ATENT_DATA_LIMIT in GiB.

    A packed file of a few megabytes can unpack to any size. Raises ValueError for a limit that is not a number.
    """
    text = os.environ.get(LIMIT, "8")
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 2**20:
        raise ValueError(f"{LIMIT} must be a number of GiB above 0, got {shown(text)}")
    return int(number * 2**30)


def check_size(what: object, size: int) -> None:
    """ValueError, in one line, for more bytes than `largest`."""
    if size > largest():
        raise ValueError(
            f"{what}: {size:,} bytes, and {largest() / 2**30:g} GiB are allowed: give a smaller file, or set {LIMIT} to"
            " more GiB"
        )


def read(path: Path, promised: Callable[[bytes], int] | None = None) -> tuple[bytes, str]:
    """Content of a plain, .gz or .xz file, unpacked, and the sha256 of the file on disk.

    At most `largest` bytes are unpacked; if ``promised`` computes the size from the first 64 bytes, at most one byte
    more than that. Raises ValueError, in one line, for more than `largest` bytes, and for a packed stream that is
    truncated or damaged.
    """
    check_size(path, path.stat().st_size)
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    unpack = {".gz": _gunzip, ".xz": _unxz}.get(path.suffix)
    if unpack is None:
        return raw, digest
    most = largest()
    try:
        if promised is not None:
            check_size(f"{path}, by its header", wanted := promised(unpack(raw, 64)))
            most = min(most, wanted)
        content = unpack(raw, most + 1)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path}: damaged or truncated after {len(raw)} bytes ({reason})") from error
    check_size(f"{path}, unpacked", len(content))
    return content, digest


def _gunzip(raw: bytes, most: int) -> bytes:
    """The first ``most`` bytes."""
    parts, left = [], most
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        # A buffered reader allocates the full size of the request.
        while left and (part := file.read(min(left, _PART))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _unxz(raw: bytes, most: int) -> bytes:
    """The first ``most`` bytes; as `lzma.decompress`, streams may follow each other, and what follows is ignored."""
    out = b""
    while raw and len(out) < most:
        stream = lzma.LZMADecompressor(memlimit=_DICTIONARY)
        try:
            out += stream.decompress(raw, most - len(out))
        except lzma.LZMAError:
            if out:
                break
            raise
        if not stream.eof and len(out) < most:
            raise EOFError("the stream has no end")
        raw = stream.unused_data if stream.eof else b""
    return out


def record(digest: str, known: str | None) -> dict[str, str | bool]:
    """A file's entry in `about`: its sha256, and whether that is the one known for this file."""
    return {"sha256": digest, "verified": digest == known}
