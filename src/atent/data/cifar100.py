"""CIFAR-100 in the records of its binary version, plain or xz-compressed."""

from __future__ import annotations

from pathlib import Path

from atent.data import checks
from atent.data.cifar import records
from atent.data.files import data_root, find, read, record
from atent.data.sources import dataset
from atent.data.split import Source, split

PUBLISHED = "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-100 binary version)"
CLASSES = 100
NAMES = "fine_label_names.txt"


@dataset
def cifar100(root: str | None = None) -> Source:
    """The 100 fine classes, x (n, 3, 32, 32) uint8 RGB, scale 255; officially 50,000 training and 10,000 test images.

    Reads train and test, each `.bin` or `.bin.xz`, and fine_label_names.txt if present, from <root>/cifar100,
    <root>/cifar-100-binary (the official archive) or the root itself. ids are positions in the files.
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    Raises FileNotFoundError, or ValueError if a file is damaged.
    """
    folders = [data_root(root) / name for name in ("cifar100", "cifar-100-binary", ".")]
    wanted = [(f"{part}.bin", f"{part}.bin.xz") for part in ("train", "test")]
    paths = find("cifar100", folders, wanted, PUBLISHED)
    (x, y, first), (x_test, y_test, second) = (records(path, CLASSES, head=2) for path in paths)
    checks.every_class(paths[0], y, CLASSES)
    files = {path.name: record(digest, None) for path, digest in zip(paths, (first, second), strict=True)}
    names, listed = None, paths[0].parent / NAMES
    if listed.is_file():
        names, digest = _names(listed)
        files[NAMES] = record(digest, None)
    return Source(
        classes=CLASSES,
        train=split(x, y, 255.0),
        test=split(x_test, y_test, 255.0),
        validation=min(1000, len(y) // 10),
        about={
            "source": "Krizhevsky, Nair and Hinton, CIFAR-100 (Krizhevsky 2009)",
            "files": files,
            "test": "official",
            "class_names": names,
        },
    )


def _names(path: Path) -> tuple[list[str], str]:
    """The names of the classes, one per line, and the sha256 of the file."""
    content, digest = read(path)
    names = content.decode("utf-8", "replace").split()
    if len(names) != CLASSES:
        raise ValueError(f"{path}: {len(names)} names; wanted {CLASSES}, one a line")
    return names, digest
