"""The user's own arrays: one .npz file."""

from dataclasses import replace

import numpy as np
import torch

from atent.data import checks
from atent.data.arrays import arrays, on_disk
from atent.data.files import FIX, data_root, record
from atent.data.reading import MEMORY, Reading
from atent.data.sources import dataset
from atent.data.split import Source, split
from atent.data.stored import Rows, Stored

_AT_ONCE = 64
KEYS = ("x_train", "y_train", "x_test", "y_test")


def _images(name: str, x: np.ndarray) -> np.ndarray:
    """x as (n, c, h, w), uint8 or float32. Raises ValueError for other shapes and types."""
    if x.ndim not in (3, 4) or 0 in x.shape:
        hint = "; rows of numbers are read by data.name table" if x.ndim == 2 else ""
        raise ValueError(f"{name}: shape {x.shape}; allowed are (n, h, w) and (n, c, h, w){hint}")
    checks.channels_first(name, x.shape[1:], n=len(x), narrow=True)
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{name}: {x.dtype}; allowed are uint8 (0 to 255) and floats in [0, 1]")
    if x.dtype != np.uint8:
        checks.floats(name, x, (0.0, 1.0))
        x = x.astype(np.float32)
    return x[:, None] if x.ndim == 3 else x


def _check_levels(name: str, rows: Rows) -> None:
    """As `checks.levels`; the first rows suffice for images of more than two levels."""
    top = 0
    for begin in range(0, len(rows), _AT_ONCE):
        top = max(top, int(rows.read(np.arange(begin, min(begin + _AT_ONCE, len(rows)))).max()))
        if top > 1:
            return
    checks.levels(name, np.array([top], np.uint8))


def _on_disk(name: str, rows: Rows, reading: Reading) -> Stored:
    """The images of rows of the shape (h, w) or (c, h, w)."""
    if len(rows.shape) not in (2, 3):
        raise ValueError(f"{name}: shape {(len(rows), *rows.shape)}; allowed are (n, h, w) and (n, c, h, w)")
    shape = rows.shape if len(rows.shape) == 3 else (1, *rows.shape)
    checks.channels_first(name, rows.shape, n=len(rows), narrow=True)
    return Stored(replace(rows, shape=shape, workers=reading.threads()), torch.arange(len(rows)))


@dataset
def npz(root: str | None = None, reading: Reading = MEMORY) -> Source:
    """Images from a file with x_train, y_train, x_test and y_test; `root` is the path of the file.

    x: (n, c, h, w) or (n, h, w), channels first only; uint8, divided by 255, or floats in [0, 1].
    y: (n,) integers from 0; the number of classes is the largest training label plus one, each present.
    ids are positions in x_train or x_test. Nothing in the file is unpickled. With ``reading.resident`` False, images of
    uint8 that are not compressed stay on disk.
    Raises FileNotFoundError, or ValueError if an array is absent or not as described.
    """
    path = data_root(root)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"npz: wanted an .npz file, {path} {kind}; {FIX} to the file's path")
    x: np.ndarray | Stored
    x_test: np.ndarray | Stored
    if reading.resident is False:
        found, rows, digest = on_disk(path, KEYS[1::2], KEYS[::2])
        x, x_test = (_on_disk(f"{path}: {key}", rows[key], reading) for key in ("x_train", "x_test"))
        _check_levels(f"{path}: x_train", rows["x_train"])
    else:
        found, digest = arrays(path, KEYS)
        x, x_test = (_images(f"{path}: {key}", found[key]) for key in ("x_train", "x_test"))
        checks.levels(f"{path}: x_train", x)
    y, y_test = found["y_train"], found["y_test"]
    if x.shape[1:] != x_test.shape[1:] or x.dtype != x_test.dtype:
        raise ValueError(f"{path}: x_test is {x_test.dtype} {x_test.shape[1:]}; x_train is {x.dtype} {x.shape[1:]}")
    checks.labels(f"{path}: y_train", y, len(x))
    classes = int(y.max()) + 1
    checks.every_class(f"{path}: y_train", y, classes)
    checks.labels(f"{path}: y_test", y_test, len(x_test), classes)
    scale = None if x.dtype == np.float32 else 255.0
    return Source(
        classes=classes,
        train=split(x, y, scale),
        test=split(x_test, y_test, scale),
        validation=min(1000, max(1, len(x) // 10)),
        about={"source": path.name, "files": {path.name: record(digest, None)}, "test": "x_test"},
    )
