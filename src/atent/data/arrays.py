"""The arrays of an .npz file: their headers are compared with the sizes in the file before memory is allocated."""

import contextlib
import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atent.data.files import check_size, read
from atent.data.stored import Rows

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
}  # fmt: skip


def arrays(path: Path, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of these names, and the sha256 of the file. Nothing in it is unpickled.

    Raises ValueError, in one line, for a file that is damaged, lacks an array or has more than `largest` bytes, and for
    a header that does not match the content.
    """
    content, digest = read(path)
    if not content.startswith(b"PK"):
        raise ValueError(f"{path}: not an .npz file (it does not begin like a zip archive)")
    with _reading(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        lacking = [key for key in keys if key not in names]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} not in the file, which contains {', '.join(names[:20])}")
        entries = {key: archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key) for key in keys}
        check_size(f"{path}, unpacked", sum(entry.file_size for entry in entries.values()))
        return {key: _array(archive, entry, key) for key, entry in entries.items()}, digest


def on_disk(
    path: Path, in_memory: Sequence[str], stored: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Rows], str]:
    """The arrays ``in_memory``, the uint8 arrays ``stored`` on disk, and the sha256 of the file, which is read once.

    Raises ValueError, in one line, as `arrays`, and for arrays that are compressed, which cannot be read row by row.
    """
    with _reading(path), zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
        lacking = [key for key in (*in_memory, *stored) if key not in entries]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} not in the file, which contains {', '.join([*entries][:20])}")
        rows = {}
        for key in stored:
            entry = entries[key]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{key} is compressed: write the file by numpy.savez, or set data.resident true")
            # The content follows a header of 30 bytes, the name, and a field of its own length.
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            rows[key] = Rows.of(path, part=(entry.header_offset + 30 + name + extra, entry.file_size))
        check_size(f"{path}, without {', '.join(stored)}", sum(entries[key].file_size for key in in_memory))
        return {key: _array(archive, entries[key], key) for key in in_memory}, rows, digest


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, every error is a ValueError, in one line that names the file."""
    try:
        yield
    # zipfile and numpy report damage by exceptions of many types.
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, key: str) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{key} is in version {version} of the format: write it by numpy.savez")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{key} contains Python objects, which are not loaded: save numbers")
        expected = math.prod(shape) * dtype.itemsize
        # Reading an entry of an archive returns at most the size in its directory.
        found_size = entry.file_size - file.tell()
        if expected != found_size or min(shape, default=0) < 0:
            raise ValueError(f"{key}: {found_size} bytes; its header says {shape} of {dtype}, that is {expected}")
    with archive.open(entry) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return found
