"""The arrays of an .npz file: what their headers promise is compared with what is there before memory is taken."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atent.data.files import check_size, read

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
}  # fmt: skip


def arrays(path: Path, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of these names, and the sha256 of the file. Nothing in it is unpickled.

    Raises ValueError, in one line, for a file that is damaged, holds other arrays or more than `largest` bytes, and for
    a header that promises other than there is.
    """
    content, digest = read(path)
    if not content.startswith(b"PK"):
        raise ValueError(f"{path}: not an .npz file (it does not begin like a zip archive)")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            lacking = [key for key in keys if key not in names]
            if lacking:
                raise ValueError(f"{', '.join(lacking)} not in the file, which holds {', '.join(names[:20])}")
            entries = {
                key: archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key) for key in keys
            }
            check_size(f"{path}, unpacked", sum(entry.file_size for entry in entries.values()))
            return {key: _array(archive, entry, key) for key, entry in entries.items()}, digest
    # zipfile and numpy report damage by exceptions of many kinds, whatever their parsers run into.
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
            raise ValueError(f"{key} holds Python objects, which are not loaded: save numbers")
        promised = math.prod(shape) * dtype.itemsize
        # An archive gives at most the bytes that its directory says.
        there = entry.file_size - file.tell()
        if promised != there or min(shape, default=0) < 0:
            raise ValueError(f"{key}: {there} bytes; its header promises {shape} of {dtype}, that is {promised}")
    with archive.open(entry) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return found
