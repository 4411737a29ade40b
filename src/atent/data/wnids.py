"""ImageNet and Tiny-ImageNet: images in folders whose names are WordNet ids."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from atent.data.files import FIX, data_root, source
from atent.data.folder import read_parts
from atent.data.images import SUFFIXES, Listing, folders, listing
from atent.data.reading import MEMORY, Reading
from atent.data.sources import dataset
from atent.data.split import Source

TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FULL = "https://image-net.org/download.php (ILSVRC2012, training and validation images)"
ANNOTATIONS = "val_annotations.txt"


@dataset("tiny-imagenet")
def tiny_imagenet(root: str | None = None, reading: Reading = MEMORY) -> Source:
    """Tiny-ImageNet, x (n, 3, 64, 64) uint8 RGB, scale 255; officially 200 classes, 100,000 training and 10,000
    validation images, which are the test set here since the official test set has no labels.

    Reads train/<wnid>/images, val/images, val/val_annotations.txt and, if present, words.txt, from
    <root>/tiny-imagenet-200 or the root itself, with pillow. Classes are numbered in order of their wnid.
    Raises FileNotFoundError, ImportError if pillow is not installed, or ValueError that names the invalid file.
    """
    path = _place("tiny-imagenet", root, ("tiny-imagenet-200", "tiny-imagenet", "."), TINY)
    train = listing(path / "train", path, "images")
    _check_exists("tiny-imagenet", path / "val" / ANNOTATIONS, TINY)
    _check_exists("tiny-imagenet", path / "val" / "images", TINY)
    parts = {"train": train, "test": _annotated(path, train.classes)}
    return _source(parts, reading, path, "Tiny-ImageNet (Stanford CS231n)", _words(path / "words.txt", "\t"))


@dataset
def imagenet(root: str | None = None, reading: Reading = MEMORY) -> Source:
    """ImageNet (ILSVRC2012), x (n, 3, size, size) uint8 RGB, scale 255; officially 1000 classes, 1,281,167 training and
    50,000 validation images, which are the test set here since the labels of the official test set are not published.

    Reads train/<wnid> and val/<wnid> from <root>/imagenet or the root itself, with pillow, and the names of the classes
    from LOC_synset_mapping.txt if present. Classes are numbered in order of their wnid. The images have different
    sizes: ``reading.size`` is required.
    Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV (2015).
    Raises FileNotFoundError, ImportError if pillow is not installed, or ValueError that names the invalid file.
    """
    path = _place("imagenet", root, ("imagenet", "."), FULL)
    _check_exists("imagenet", path / "val", FULL)
    if not folders(path / "val"):
        raise FileNotFoundError(
            f"imagenet: {path / 'val'} has no class folders; sort its images into val/<wnid>, as those of train are"
        )
    parts = {"train": listing(path / "train", path), "test": listing(path / "val", path)}
    train, test = (set(part.classes) for part in parts.values())
    if train != test:
        raise ValueError(f"{path}: class {min(train ^ test)!r} is in only one of train and val")
    return _source(parts, reading, path, "ImageNet (ILSVRC2012)", _words(path / "LOC_synset_mapping.txt", " "))


def _place(what: str, root: str | None, names: tuple[str, ...], published: str) -> Path:
    """The first folder of these names in the root that contains a folder train."""
    places = [data_root(root) / name for name in names]
    for place in places:
        if (place / "train").is_dir():
            return place
    searched = ", ".join(map(str, places))
    raise FileNotFoundError(f"{what}: no folder train in {searched}; {source(published)}{FIX}")


def _check_exists(what: str, path: Path, published: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{what}: {path} not found; {source(published)}{FIX}")


def _annotated(path: Path, classes: list[str]) -> Listing:
    """The images that val_annotations.txt lists, in its order: a file name and its wnid first on each line."""
    file, number = path / "val" / ANNOTATIONS, {wnid: label for label, wnid in enumerate(classes)}
    names, labels, stamps = [], [], []
    for at, line in enumerate(_lines(file), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        # A name with a folder could point outside the data.
        if wnid not in number or os.path.basename(name) != name or not name.lower().endswith(SUFFIXES):
            raise ValueError(f"{file}, line {at}: wanted the name of an image, a tab and a wnid of train")
        try:
            about = (path / "val" / "images" / name).stat()
        except OSError:
            raise FileNotFoundError(f"{file}, line {at}: {name} is not in {path / 'val' / 'images'}") from None
        names.append(f"val/images/{name}")
        labels.append(number[wnid])
        stamps.append((about.st_size, about.st_mtime_ns))
    if not names:
        raise ValueError(f"{file}: no lines; wanted one for each image")
    return Listing(path, names, np.array(labels), np.array(stamps, np.int64), classes)


def _words(file: Path, between: str) -> dict[str, str]:
    """wnid -> words, of a file with one class per line; empty if it does not exist."""
    if not file.is_file():
        return {}
    pairs = (line.partition(between) for line in _lines(file))
    return {wnid: words.strip() for wnid, _, words in pairs if words.strip()}


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]


def _source(parts: Mapping[str, Listing], reading: Reading, path: Path, name: str, words: Mapping[str, str]) -> Source:
    splits, files = read_parts(parts, reading, path)
    classes = parts["train"].classes
    sized = {} if reading.size is None else {"size": reading.size}
    return Source(
        classes=len(classes),
        train=splits["train"],
        test=splits["test"],
        validation=min(1000, max(1, len(splits["train"]) // 10)),
        about={
            "source": name,
            "files": files,
            "test": "official validation set",
            "class_names": [words.get(wnid, wnid) for wnid in classes],
            **sized,
        },
    )
