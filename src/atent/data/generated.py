"""Generated samples in addition to a training set, for a share of each batch (Gowal et al. 2021, Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from atent.data import checks
from atent.data.arrays import arrays
from atent.data.files import record
from atent.data.settings import DataSettings
from atent.data.split import Data, Split, split
from atent.data.stored import Stored

SHARE = 0.7
"""Default share of each batch, that of Gowal et al. 2021."""


def check(settings: DataSettings) -> None:
    """ValueError, in one line, for a share that is out of range or has no effect."""
    share = settings.generated_share
    if share is not None and settings.generated is None:
        raise ValueError(
            "data.generated_share has no effect without data.generated: name the file of generated samples"
        )
    if share is not None and not 0 < share < 1:
        raise ValueError(f"data.generated_share is {share:g}; it must be above 0 and below 1")


def mixed(data: Data, settings: DataSettings) -> Data:
    """The data with the samples of ``settings.generated`` appended to the training part.

    The file is an ``.npz`` with ``image``, uint8 (n, h, w, c), and ``label``, (n,) integers of the data's classes, as
    the published sets of generated images are. An epoch has as many samples as before: each batch takes its share of
    generated samples and the rest from the training set. Validation and test samples do not change.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        In one line: for another layout, shape or range of labels, data that are not images of uint8 in memory.
    """
    if settings.generated is None:
        return data
    path = Path(settings.generated)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.generated: wanted an .npz file, {path} does not exist; set it to the file's path"
        )
    if isinstance(data.train.x, Stored):
        raise ValueError("data.generated needs the training images in memory: set data.resident true")
    if data.train.scale != 255 or len(data.shape) != 3:
        raise ValueError(f"data.generated is for images of uint8; {data.name} has samples of shape {data.shape}")
    found, digest = arrays(path, ("image", "label"))
    x, y = found["image"], found["label"]
    c, h, w = data.shape
    if x.dtype.name != "uint8" or x.shape[1:] != (h, w, c):
        raise ValueError(f"{path}: image is {x.dtype} {x.shape}; wanted uint8 (n, {h}, {w}, {c}), channels last")
    checks.labels(f"{path}: label", y, len(x), data.classes)
    first = int(data.train.ids.max()) + 1 if len(data.train) else 0
    more = split(x.transpose(0, 3, 1, 2), y, data.train.scale)
    train = Split(
        torch.cat([data.train.x, more.x]),  # type: ignore[list-item]
        torch.cat([data.train.y, more.y]),
        torch.cat([data.train.ids, first + more.ids]),
        data.train.scale,
    )
    share = SHARE if settings.generated_share is None else settings.generated_share
    files = {**data.about["files"], path.name: record(digest, None)}
    about = {**data.about, "files": files, "generated": {"file": path.name, "n": len(more), "share": share}}
    return replace(data, train=train, about=about, generated=len(more), share=share)
