"""The user's own image files: one folder per class."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from atent.data.files import FIX, data_root, record
from atent.data.sources import dataset
from atent.data.split import Source, halves, split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# What such a file may hold, whatever its suffix: for others, such as PostScript, Pillow starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
GREY, COLOUR = ("1", "L"), ("RGB", "RGBA", "P", "LA", "PA", "CMYK", "YCbCr")
TEST_SEED = 20210


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listing(path: Path) -> tuple[list[str], list[Path], np.ndarray]:
    """Class names, image files class by class in order of name, and their labels."""
    folders = _folders(path)
    if len(folders) < 2:
        raise ValueError(f"{path}: {len(folders)} class folders; at least 2 are needed")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise ValueError(f"{folder}: class without images; wanted files of {', '.join(SUFFIXES)}")
        files += found
        labels += [label] * len(found)
    return [folder.name for folder in folders], files, np.array(labels)


def _decode(files: list[Path]) -> np.ndarray:
    """uint8 (n, 1, h, w) where every image is grey, else (n, 3, h, w). Alpha is dropped."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs pillow: pip install 'atent[data]'") from error
    images = []
    for file in files:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.mode not in GREY + COLOUR:
                    raise ValueError(f"mode {image.mode}; wanted 8-bit grey or colour")
                images.append(np.asarray(image.convert("L" if image.mode in GREY else "RGB")))
        # Pillow reports damage by exceptions of many kinds, whatever its decoder runs into.
        except Exception as error:
            raise ValueError(f"{file}: not a readable image ({' '.join(str(error).split())})") from error
        if images[-1].shape[:2] != images[0].shape[:2]:
            sizes = [f"{a.shape[1]} x {a.shape[0]}" for a in (images[-1], images[0])]
            raise ValueError(f"{file}: {sizes[0]} pixels; all must be {sizes[1]}, as {files[0].name} is")
    if all(image.ndim == 2 for image in images):
        return np.stack(images)[:, None]
    colour = [np.stack([image] * 3, axis=2) if image.ndim == 2 else image for image in images]
    return np.stack(colour).transpose(0, 3, 1, 2)


def _digest(root: Path, files: list[Path]) -> dict[str, Any]:
    """One sha256 over names and contents, in order: a folder may hold too many files to list."""
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return {**record(total.hexdigest(), None), "files": len(files)}


@dataset
def folder(root: str | None = None) -> Source:
    """Images <root>/train/<class>/*.png and <root>/test/<class>/*.png, or <root>/<class>/*.png alone.

    x: (n, 1, h, w) where all images are grey, else (n, 3, h, w); uint8, scale 255. All must have one size.
    Classes are numbered in order of name and must be the same in train and test. PNG, JPEG and BMP files
    are read, with pillow. Without train and test folders a stratified split by a constant seed gives 20 %
    of the images to the test set. ids are positions in the order of class, then file name.
    Raises FileNotFoundError, ImportError where pillow is not installed, or ValueError with the file at fault.
    """
    path = data_root(root)
    if not path.is_dir():
        raise FileNotFoundError(f"folder: wanted a folder of class folders, {path} is not one; {FIX}")
    parts = {p.name for p in _folders(path)} & {"train", "test"}
    if len(parts) == 1:
        lacking = ({"train", "test"} - parts).pop()
        raise FileNotFoundError(f"folder: {path / lacking} not found beside {parts.pop()}; {FIX}")
    about: dict[str, Any]
    if parts:
        names, files, y = _listing(path / "train")
        test_names, test_files, y_test = _listing(path / "test")
        if names != test_names:
            odd = sorted(set(names) ^ set(test_names))[0]
            raise ValueError(f"{path}: class {odd!r} is in only one of train and test")
        x = _decode(files + test_files)
        n = len(files)
        train, test = split(x[:n], y, 255.0), split(x[n:], y_test, 255.0)
        about = {"files": {"train": _digest(path, files), "test": _digest(path, test_files)}, "test": "test"}
    else:
        names, files, y = _listing(path)
        if len(files) < 2 * len(names):
            raise ValueError(f"{path}: {len(files)} images of {len(names)} classes; a test split needs more")
        train, test = halves(_decode(files), y, 255.0, max(1, round(0.2 * len(files))), TEST_SEED)
        about = {
            "files": {".": _digest(path, files)},
            "test": f"stratified split of 20 % by the constant seed {TEST_SEED}",
        }
    return Source(
        classes=len(names),
        train=train,
        test=test,
        validation=min(1000, max(1, len(train) // 10)),
        about={"source": path.resolve().name, **about, "class_names": names},
    )
