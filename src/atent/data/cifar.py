"""CIFAR-10 in the records of its binary version, plain or xz-compressed."""

import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from atent.data import checks
from atent.data.files import data_root, find, read, record
from atent.data.sources import dataset
from atent.data.split import Source, split

PIXELS = 3 * 32 * 32
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
KNOWN = {
    "data_batch_1.bin.xz": "e2a43fa19cd9f7add9da28d081cf270c1fb43659339d82788e8223e03afffa02",
    "data_batch_2.bin.xz": "7f6181e80b71ae0e1a37f9b2187f5f030d0bf96a13958aec96c2cdd0ee77b402",
    "data_batch_3.bin.xz": "1fbd807d3435afd5e80abec38469474bde710eb1f0176e0cdf0e94fee8e071fe",
    "data_batch_4.bin.xz": "d28a1c4cbf49b7cbc0b16b52295b5da81f19527bf7d5047cd4e7c28f17e1d3cc",
    "data_batch_5.bin.xz": "0e848ff3d46388820b749f7769f8e8fb7fe7c1b24e68a2641e2841cc89784dcf",
    "test_batch.bin.xz": "1377e087a000cffe7541e25b55ea489fa020d6e279388b1feb7aa485fd2f08dd",
    "missing.csv": "a978923397f20c58c0b061de6b69ca72bde9385b07858f3a4b64f8842c182df7",
}


def records(path: Path, classes: int = 10, head: int = 1) -> tuple[np.ndarray, np.ndarray, str]:
    """uint8 (n, 3, 32, 32) images, (n,) labels, and the sha256 of the file.

    A record has ``head`` bytes of labels, of which the last one is used, then the pixels. Raises ValueError if the file
    is damaged, ends inside a record or contains a label of ``classes`` or above.
    """
    content, digest = read(path)
    size = head + PIXELS
    if not content or len(content) % size:
        raise ValueError(f"{path}: {len(content)} bytes; wanted one or more complete records of {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    y = rows[:, head - 1]
    checks.labels(path, y, len(rows), classes)
    return rows[:, head:].reshape(-1, 3, 32, 32), y, digest


def absent(path: Path) -> tuple[dict[str, Any], str]:
    """How many official records `missing.csv` (file, position, label) lists as absent, and its sha256;
    ValueError for a line of another form."""
    content, digest = read(path)
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        batches, labels = [row["file"] for row in rows], [int(row["label"]) for row in rows]
        kinds = [dict(enumerate(CLASSES))[label] for label in labels]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: wanted lines of file, position and label (0 to 9)") from error
    test = sum(batch == "test_batch" for batch in batches)
    return {
        "records": len(rows),
        "train": len(rows) - test,
        "test": test,
        "classes": {kind: kinds.count(kind) for kind in CLASSES if kind in kinds},
    }, digest


@dataset
def cifar10(root: str | None = None) -> Source:
    """Ten classes, x (n, 3, 32, 32) uint8 RGB, scale 255; officially 50,000 training and 10,000 test images.

    Reads data_batch_1..5 and test_batch, each `.bin.xz` or `.bin`, from <root>/cifar10,
    <root>/cifar-10-batches-bin (the official archive) or the root itself. A `missing.csv` in the same folder lists
    official records that are absent: `about["missing"]` counts them, so that a test accuracy over fewer than
    10,000 images can be reported as such. ids are positions in the order of the files.
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    Raises FileNotFoundError, or ValueError if a file is damaged.
    """
    folders = [data_root(root) / name for name in ("cifar10", "cifar-10-batches-bin", ".")]
    paths = find("cifar10", folders, [(f"{batch}.bin.xz", f"{batch}.bin") for batch in BATCHES])
    # lzma releases the interpreter lock, so threads unpack in parallel.
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
        x, y, digests = zip(*pool.map(records, paths), strict=True)
    files = {p.name: record(digest, KNOWN.get(p.name)) for p, digest in zip(paths, digests, strict=True)}
    missing = None
    listed = paths[0].parent / "missing.csv"
    if listed.is_file():
        missing, digest = absent(listed)
        files[listed.name] = record(digest, KNOWN[listed.name])
    labels = np.concatenate(y[:5])
    checks.every_class(paths[0].parent, labels, 10)
    return Source(
        classes=10,
        train=split(np.concatenate(x[:5]), labels, 255.0),
        test=split(x[5], y[5], 255.0),
        validation=min(1000, len(labels) // 10),
        about={
            "source": "Krizhevsky, Nair and Hinton, CIFAR-10 (Krizhevsky 2009)",
            "files": files,
            "test": "official, less the missing records" if missing else "official",
            "missing": missing,
            "class_names": CLASSES,
        },
    )
