"""SVHN, the street view house numbers, in its format 2: cropped digits in two MATLAB files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from atent.data import checks
from atent.data.files import check_size, data_root, find, read, record
from atent.data.sources import dataset
from atent.data.split import Source, split

PUBLISHED = "http://ufldl.stanford.edu/housenumbers/ (format 2)"


@dataset
def svhn(root: str | None = None) -> Source:
    """Ten digits, x (n, 3, 32, 32) uint8 RGB, scale 255; officially 73,257 training and 26,032 test images.

    Reads train_32x32.mat and test_32x32.mat from <root>/svhn or the root itself; the extra set is not used. The files
    label the digit 0 as 10: here it is class 0, so that each class is its digit. ids are positions in the files.
    Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning (2011).
    Raises FileNotFoundError, or ValueError if a file is damaged.
    """
    folders = [data_root(root) / name for name in ("svhn", ".")]
    paths = find("svhn", folders, [(f"{part}_32x32.mat",) for part in ("train", "test")], PUBLISHED)
    (x, y, first), (x_test, y_test, second) = map(_digits, paths)
    checks.every_class(paths[0], y, 10)
    return Source(
        classes=10,
        train=split(x, y, 255.0),
        test=split(x_test, y_test, 255.0),
        validation=min(1000, len(y) // 10),
        about={
            "source": "Netzer et al., SVHN (2011), format 2",
            "files": {path.name: record(digest, None) for path, digest in zip(paths, (first, second), strict=True)},
            "test": "official",
            "class_names": [str(digit) for digit in range(10)],
        },
    )


def _digits(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """uint8 (n, 3, 32, 32) images, (n,) labels from 0, and the sha256 of the file; ValueError for other contents."""
    import scipy.io

    content, digest = read(path)
    try:
        listed = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(content))}
        # Only the headers: a small file can declare any number of values.
        wanted = {name: listed[name] for name in ("X", "y")}
        for shape in wanted.values():
            check_size(f"{path}, unpacked", math.prod(shape))
        arrays = scipy.io.loadmat(io.BytesIO(content), variable_names=list(wanted))
        x, y = arrays["X"], arrays["y"]
    # The reader reports damage by exceptions of many types.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a MATLAB file with X and y ({type(error).__name__}: {reason})") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X is {x.dtype} {x.shape}; wanted uint8 (32, 32, 3, n)")
    if y.dtype.kind not in "iu" or y.shape != (x.shape[3], 1):
        raise ValueError(f"{path}: y is {y.dtype} {y.shape}; wanted integers of shape ({x.shape[3]}, 1)")
    y = y[:, 0]
    if not len(y) or y.min() < 1 or y.max() > 10:
        raise ValueError(f"{path}: labels are not 1 to 10, where 10 stands for the digit 0")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10, digest
