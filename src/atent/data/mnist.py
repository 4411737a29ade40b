"""MNIST and Fashion-MNIST: four files each in the IDX format, gzip-compressed or plain."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from atent.data import checks
from atent.data.files import data_root, find, read, record
from atent.data.sources import dataset
from atent.data.split import Source, split

IMAGES, LABELS = 2051, 2049
NAMES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
SETS: dict[str, dict[str, Any]] = {
    "mnist": {
        "folders": ("mnist", "MNIST/raw", "."),
        "source": "LeCun, Cortes and Burges, The MNIST database of handwritten digits (LeCun et al. 1998)",
        "class_names": [str(label) for label in range(10)],
    },
    "fashion-mnist": {
        "folders": ("fashion-mnist", "FashionMNIST/raw", "."),
        "source": "Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747 (2017)",
        "class_names": [
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ],
    },
}
KNOWN = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


def idx(path: Path, magic: int) -> tuple[np.ndarray, str]:
    """uint8 (n, h, w) for magic number 2051, (n,) for 2049, and the sha256 of the file.

    Raises ValueError for another magic number, and if the number of bytes differs from that in the header.
    """
    header = 16 if magic == IMAGES else 8

    def promised(head: bytes) -> int:
        return header + math.prod(struct.unpack_from(f">{header // 4}I", head)[1:]) if len(head) >= header else header

    content, digest = read(path, promised)
    if len(content) < header:
        raise ValueError(f"{path}: {len(content)} bytes; an IDX header alone has {header}")
    seen, *shape = struct.unpack_from(f">{header // 4}I", content)
    if seen != magic:
        raise ValueError(f"{path}: magic number {seen}; wanted {magic}")
    values = np.frombuffer(content, np.uint8, offset=header)
    size = math.prod(shape)
    if len(values) != size or size == 0:
        seen = f"{len(values)} or more" if len(values) > size else str(len(values))
        raise ValueError(f"{path}: {seen} values; its header says {shape}, that is {size}")
    return values.reshape(shape), digest


def _load(name: str, root: str | None = None) -> Source:
    """Ten classes, x (n, 1, 28, 28) uint8, scale 255, 60,000 training and 10,000 test images.

    Searches <root>/mnist (or fashion-mnist), torchvision's <root>/MNIST/raw (or FashionMNIST/raw) and the root
    itself; files may be unpacked. Your own files in this layout are accepted: `about` says whether each has
    the known sha256. ids are positions in the train or t10k files.
    Raises FileNotFoundError, or ValueError if a file is damaged or inconsistent.
    """
    folders = [data_root(root) / folder for folder in SETS[name]["folders"]]
    paths = find(name, folders, [(f"{file}.gz", file) for file in NAMES])
    files, arrays = {}, []
    for path, magic in zip(paths, (IMAGES, LABELS, IMAGES, LABELS), strict=True):
        values, digest = idx(path, magic)
        owner = next((other for other, known in KNOWN.items() if digest in known.values()), name)
        if owner != name:
            raise ValueError(f"{path}: this is a file of {owner}, not of {name}")
        files[path.name] = record(digest, KNOWN[name][path.name])
        arrays.append(values)
    x, y, x_test, y_test = arrays
    checks.labels(paths[1], y, len(x), 10)
    checks.labels(paths[3], y_test, len(x_test), 10)
    checks.every_class(paths[1], y, 10)
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"{paths[2]}: images of {x_test.shape[1:]}; those of training have {x.shape[1:]}")
    return Source(
        classes=10,
        train=split(x[:, None], y, 255.0),
        test=split(x_test[:, None], y_test, 255.0),
        validation=min(1000, len(x) // 10),
        about={
            "source": SETS[name]["source"],
            "files": files,
            "test": "official",
            "class_names": SETS[name]["class_names"],
        },
    )


@dataset
def mnist(root: str | None = None) -> Source:
    """MNIST from its four idx files, which may be gzipped."""
    return _load("mnist", root)


@dataset("fashion-mnist")
def fashion_mnist(root: str | None = None) -> Source:
    """Fashion-MNIST from its four idx files, which may be gzipped."""
    return _load("fashion-mnist", root)
