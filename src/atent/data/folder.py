"""The user's own image files: one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent.data.cache import FOLDER, cached
from atent.data.files import FIX, data_root, record
from atent.data.images import Decoder, Listing, blocks, decoded, digest, folders, form_of, header, listing, pillow
from atent.data.reading import MEMORY, OFF, Reading
from atent.data.sources import dataset
from atent.data.split import Source, Split, parted, split
from atent.data.stored import Stored
from atent.distributed.world import current
from atent.messages import note, once
from atent.progress import bar

TEST_SEED = 20210


@dataset
def folder(root: str | None = None, reading: Reading = MEMORY) -> Source:
    """Images <root>/train/<class>/*.png and <root>/test/<class>/*.png, or <root>/<class>/*.png alone.

    x: (n, 1, h, w) if all images are greyscale, else (n, 3, h, w); uint8, scale 255. All must have the same size,
    unless ``reading`` gives one. Classes are numbered in order of name and must be the same in train and test. PNG,
    JPEG and BMP files are read, with pillow. Without train and test folders a stratified split by a constant seed makes
    20 % of the images the test set. ids are positions in the order of class, then file name. ``reading`` says whether
    the images are kept in memory.
    Raises FileNotFoundError, ImportError if pillow is not installed, or ValueError that names the invalid file.
    """
    path = data_root(root)
    if not path.is_dir():
        raise FileNotFoundError(f"folder: wanted a folder of class folders, {path} is not one; {FIX}")
    inside = {p.name for p in folders(path)}
    present = inside & {"train", "test"}
    if len(present) == 1:
        lacking = ({"train", "test"} - present).pop()
        raise FileNotFoundError(f"folder: {path / lacking} not found beside {present.pop()}; {FIX}")
    if present and inside > present:
        once(f"{path}: the folders train and test are read, and not {', '.join(sorted(inside - present))}")
    parts = {name: listing(path / name, path) for name in (("train", "test") if present else (".",))}
    classes = [part.classes for part in parts.values()]
    if classes[0] != classes[-1]:
        odd = sorted(set(classes[0]) ^ set(classes[-1]))[0]
        raise ValueError(f"{path}: class {odd!r} is in only one of train and test")
    if not present and len(parts["."]) < 2 * len(classes[0]):
        raise ValueError(f"{path}: {len(parts['.'])} images of {len(classes[0])} classes; a test split needs more")
    splits, files = read_parts(parts, reading, path)
    if present:
        train, test, how = splits["train"], splits["test"], "test"
    else:
        train, test = parted(splits["."], max(1, round(0.2 * len(parts["."]))), TEST_SEED)
        how = f"stratified split of 20 % by the constant seed {TEST_SEED}"
    sized = {} if reading.size is None else {"size": reading.size}
    return Source(
        classes=len(classes[0]),
        train=train,
        test=test,
        validation=min(1000, max(1, len(train) // 10)),
        about={"source": path.resolve().name, "files": files, "test": how, "class_names": classes[0], **sized},
    )


def read_parts(
    parts: Mapping[str, Listing], reading: Reading, path: Path
) -> tuple[dict[str, Split], dict[str, dict[str, Any]]]:
    """The samples of each part, in memory or on disk, and what is recorded of its files."""
    workers = reading.threads()
    found: dict[str, tuple[Any, str]] = {}
    if _in_memory(parts, reading):
        found = in_arrays(parts, reading.size, workers)
    elif reading.cache == OFF:
        form = form_of(list(parts.values()), reading.size, workers, every=False)
        for name, part in parts.items():
            found[name] = Stored(Decoder(part, form, workers), torch.arange(len(part))), _of_sizes(part)
    else:
        place = Path(reading.cache).expanduser() if reading.cache else path / FOLDER
        for name, kept in cached(parts, reading.size, place, workers).items():
            found[name] = Stored(kept.rows, torch.arange(len(kept.rows))), kept.sha256
    splits, files = {}, {}
    for name, (x, sha256) in found.items():
        y = parts[name].labels
        splits[name] = split(x if isinstance(x, Stored) else x.numpy(), y, 255.0)
        files[name] = {**record(sha256, None), "files": len(y)}
    return splits, files


def in_arrays(parts: Mapping[str, Listing], size: int | None, workers: int) -> dict[str, tuple[Tensor, str]]:
    """The images of each part, uint8 (n, c, h, w), and one sha256 over its names and contents."""
    form = form_of(list(parts.values()), size, workers)
    out: dict[str, tuple[Tensor, str]] = {}
    with bar(sum(map(len, parts.values())), "images", enabled=True) as advance:
        for name, part in parts.items():
            x, hashes = np.empty((len(part), *form.shape), np.uint8), []
            for block in blocks(part, form):
                x[block.start : block.stop], new = decoded(part, block, form, workers)
                hashes += new
                advance(len(new), "")
            out[name] = torch.from_numpy(x), digest(part, hashes)
    return out


def _of_sizes(part: Listing) -> str:
    """A hash over names and sizes; the contents are not read before a batch needs them."""
    total = hashlib.sha256(b"names and sizes\n")
    for name, size in zip(part.names, part.stamps[:, 0].tolist(), strict=True):
        total.update(f"{name}\0{size}\n".encode())
    return total.hexdigest()


def _in_memory(parts: Mapping[str, Listing], reading: Reading) -> bool:
    """As the settings say; for auto, whether the pixels need less than half of the free memory."""
    if reading.resident != "auto":
        return reading.resident
    pillow()
    first = next(iter(parts.values()))
    width, height, _ = (reading.size, reading.size, True) if reading.size else header(first, 0)
    # Each process of a job has a copy.
    need, free = 3 * width * height * sum(map(len, parts.values())) * current().size, _free()
    if free is None or need <= free / 2:
        return True
    if current().first:
        note(
            f"the images need up to {need / 1e9:.3g} GB, more than half of the {free / 1e9:.3g} GB of free memory: they"
            " stay on disk (data.resident false)"
        )
    return False


def _free() -> int | None:
    """Bytes of free memory; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = dict(line.split(":", 1) for line in lines)
        return int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass  # not Linux, or an unknown format: sysconf below
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
