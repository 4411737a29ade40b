"""The image files of a folder: their listing, headers and pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from atent.data.reading import OFF
from atent.messages import once
from atent.progress import bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_UNREAD = (".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".jp2", ".avif", ".heic")
# Allowed contents, whatever the suffix: for other formats, such as PostScript, Pillow starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
GREY, COLOUR = ("1", "L"), ("RGB", "RGBA", "P", "LA", "PA", "CMYK", "YCbCr")
# A JPEG may contain a preview as a second image, which is not an animation.
_ANIMATED = ("PNG", "GIF", "WEBP")
_TOGETHER = 2**24  # bytes of pixels that are decoded at once


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of one part of a data set, class by class in order of name."""

    root: Path
    names: list[str]
    """Relative to the root, with forward slashes."""
    labels: np.ndarray
    stamps: np.ndarray
    """int64 (n, 2): size in bytes and time of the last change in nanoseconds."""
    classes: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def source(self, i: int) -> Any:
        """What Pillow opens to read the header of a file alone."""
        return self.root / self.names[i]

    def content(self, i: int) -> bytes:
        """The bytes of a file; ValueError, in one line, if it is missing or has changed since it was listed."""
        file = self.root / self.names[i]
        try:
            with open(file, "rb") as opened:
                found = os.fstat(opened.fileno())
                content = opened.read()
        except OSError as error:
            raise ValueError(f"{file}: can no longer be read ({error.strerror}); it was there when listed") from error
        if (found.st_size, found.st_mtime_ns) != tuple(self.stamps[i]):
            raise ValueError(f"{file}: has changed since it was listed: start the command again")
        return content


@dataclass(frozen=True)
class Form:
    """Target shape of all images: uint8 (channels, height, width)."""

    channels: int
    height: int
    width: int
    size: int | None = None
    """Images are cropped to their central square and resized to this side; None: all have the same size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.channels, self.height, self.width


def folders(path: Path) -> list[Path]:
    """The folders in a folder, without those whose names begin with a dot."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(path: Path) -> tuple[list[os.DirEntry[str]], list[str]]:
    """The image files of a folder and the names of its folders, without names that begin with a dot, as those of the
    files that macOS puts beside others."""
    with os.scandir(path) as entries:
        seen = [e for e in entries if not e.name.startswith(".")]
    kinds = [os.path.splitext(e.name)[1].lower() for e in seen]
    files = [e for e, kind in zip(seen, kinds) if kind in SUFFIXES and not e.is_dir()]
    lost = next((e.name for e in files if not e.is_file()), None)
    if lost is not None:
        raise ValueError(f"{path / lost}: a link to a file that does not exist: restore the file, or remove the link")
    others = [kind for e, kind in zip(seen, kinds) if kind in _UNREAD and not e.is_dir()]
    if others:
        raise ValueError(
            f"{path}: images of {', '.join(sorted(set(others)))} ({len(others)}) are not read: convert them to .png, or"
            " move them elsewhere"
        )
    return files, sorted(e.name for e in seen if e.is_dir())


def listing(path: Path, root: Path, inner: str = "") -> Listing:
    """The image files of the class folders of ``path``, or of the folder ``inner`` in each; ValueError, in one line,
    if there are too few."""
    classes = folders(path)
    if len(classes) < 2:
        raise ValueError(f"{path}: {len(classes)} class folders; at least 2 are needed")
    names: list[str] = []
    stamps: list[tuple[int, int]] = []
    counts = []
    for each in (folder / inner for folder in classes):
        if not each.is_dir():
            raise ValueError(f"{each}: not a folder; the images of a class belong there")
        found, inside = _images(each)
        deeper = next((name for name in inside if _images(each / name)[0]), None)
        if deeper is not None:
            raise ValueError(
                f"{each / deeper}: images in a folder inside a class folder are not read: move them to {each}"
            )
        if not found:
            raise ValueError(f"{each}: class without images; wanted files of {', '.join(SUFFIXES)}")
        prefix = each.relative_to(root).as_posix()
        for entry in sorted(found, key=lambda e: os.path.normcase(e.name)):
            about = entry.stat()
            names.append(f"{prefix}/{entry.name}")
            stamps.append((about.st_size, about.st_mtime_ns))
        counts.append(len(found))
    labels = np.repeat(np.arange(len(classes)), counts)
    return Listing(root, names, labels, np.array(stamps, np.int64), [each.name for each in classes])


def pillow() -> Any:
    """Pillow's module Image; ImportError with the command that installs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs pillow: pip install 'atent[data]'") from error
    return Image


def _opened(file: Path, source: Any, use: Callable[[Any], Any]) -> Any:
    """The result of ``use`` on the open image; ValueError, in one line, for damage and unsupported formats."""
    try:
        with pillow().open(source, formats=FORMATS) as image:
            if image.mode not in GREY + COLOUR:
                raise ValueError(f"mode {image.mode}; wanted 8-bit greyscale or colour: convert it to 8 bits first")
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise ValueError(f"an animation of {image.n_frames} images; wanted one")
            return use(image)
    except ImportError:
        raise
    # Pillow reports damage by exceptions of many types.
    except Exception as error:
        raise ValueError(f"{file}: not a readable image ({' '.join(str(error).split())})") from error


def header(part: Listing, i: int) -> tuple[int, int, bool]:
    """Width, height and whether it is greyscale, of an image of which only the header is read."""
    file = part.root / part.names[i]
    found: tuple[int, int, bool] = _opened(file, part.source(i), lambda image: (*image.size, image.mode in GREY))
    return found


def form_of(parts: Sequence[Listing], size: int | None, workers: int, *, every: bool = True) -> Form:
    """The common form of the images of all parts: greyscale if all are, else colour.

    ``every``: read the header of each image; else of the first one of each class, and `decode` rejects what does not
    fit. ValueError, in one line, if images have different sizes and no size is given.
    """
    pillow()
    greyscale, first = True, ""
    width = height = 0
    with bar(sum(map(len, parts)), "image headers", enabled=every) as advance:
        for part in parts:
            some: Any = range(len(part)) if every else np.unique(part.labels, return_index=True)[1].tolist()
            found = _over(partial(header, part), some, workers)
            for i, (w, h, is_greyscale) in zip(some, found, strict=True):
                if not first:
                    width, height, first = w, h, part.names[i]
                if size is None and (w, h) != (width, height):
                    raise ValueError(_odd(part.root / part.names[i], (w, h), (width, height), f", as {first} is"))
                greyscale = greyscale and is_greyscale
                advance(1, "")
    height, width = (height, width) if size is None else (size, size)
    return Form(1 if greyscale else 3, height, width, size)


def _odd(file: Path, found: tuple[int, int], size: tuple[int, int], why: str = "") -> str:
    return (
        f"{file}: {found[0]} x {found[1]} pixels; all must be {size[0]} x {size[1]}{why}: set data.size (--data.size"
        f" {min(size)}) to crop and resize them"
    )


def decode(part: Listing, i: int, form: Form, out: np.ndarray) -> str:
    """Write the pixels of image ``i`` to ``out``, uint8 of the form's shape; the sha256 of the file. Alpha is dropped.

    ValueError, in one line, for a file that is damaged, missing or changed, or does not fit the form.
    """
    file, content = part.root / part.names[i], part.content(i)

    def pixels(image: Any) -> np.ndarray:
        greyscale = image.mode in GREY
        if form.channels == 1 and not greyscale:
            raise ValueError(
                f"in colour, unlike those before: data.cache {OFF} needs all greyscale, a cache converts all to RGB"
            )
        if ("A" in image.getbands() or "transparency" in image.info) and _is_transparent(image):
            once(
                "some images have transparent pixels, whose hidden colours are read: paste the images on a background"
                " to avoid that"
            )
        image = image.convert("L" if greyscale else "RGB")
        if form.size is not None:
            image = _square(image, form.size)
        return np.asarray(image)

    found = _opened(file, BytesIO(content), pixels)
    if found.shape[:2] != (form.height, form.width):
        raise ValueError(_odd(file, found.shape[1::-1], (form.width, form.height)))
    out[:] = found if found.ndim == 2 else found.transpose(2, 0, 1)
    return hashlib.sha256(content).hexdigest()


def _is_transparent(image: Any) -> bool:
    return bool(image.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def _square(image: Any, size: int) -> Any:
    """The central square of an image, resized to a side with antialiasing."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # The argument `box` of resize would let pixels outside the square into the first and last ones.
    return image.crop((left, top, left + side, top + side)).resize((size, size), pillow().Resampling.BILINEAR)


def blocks(part: Listing, form: Form) -> list[range]:
    """The positions of a part in blocks that are decoded at once."""
    step = max(1, _TOGETHER // int(np.prod(form.shape)))
    return [range(begin, min(begin + step, len(part))) for begin in range(0, len(part), step)]


def decoded(part: Listing, at: Sequence[int], form: Form, workers: int) -> tuple[np.ndarray, list[str]]:
    """The images at these positions, uint8 (b, c, h, w), and the sha256 of each file."""
    out = np.empty((len(at), *form.shape), np.uint8)
    return out, list(_over(lambda k: decode(part, at[k], form, out[k]), range(len(at)), workers))


def _over(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """``work`` on each item, in order, by threads: Pillow releases the interpreter lock while it decodes."""
    if workers < 2 or len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, "atent-images") as pool:
        try:
            # In chunks, since each submitted item needs memory until it is processed.
            for begin in range(0, len(items), 1024):
                yield from pool.map(work, items[begin : begin + 1024])
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Decoder:
    """The images of a part, decoded at each use."""

    part: Listing
    form: Form
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.form.shape

    def __len__(self) -> int:
        return len(self.part)

    def read(self, at: np.ndarray) -> np.ndarray:
        """The images at these positions; ValueError, in one line, for files that are damaged, missing or changed."""
        return decoded(self.part, at.tolist(), self.form, self.workers)[0]


def digest(part: Listing, hashes: Sequence[str]) -> str:
    """One sha256 over names and contents, in order: a folder may have too many files to list."""
    total = hashlib.sha256()
    for name, each in zip(part.names, hashes, strict=True):
        total.update(f"{name}\0{each}\n".encode())
    return total.hexdigest()
