"""Checks of data and settings from outside. Each failure is a ValueError of one line."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from atent.contracts import decimal, in_units, label_remedy
from atent.messages import unknown
from atent.threat import Box

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """registry[name]. Raises ValueError with the nearest name and all allowed ones."""
    if name in registry:
        return registry[name]
    raise ValueError(unknown(what, str(name), registry))


def labels(file: object, y: np.ndarray, n: int, classes: int | None = None) -> None:
    """y must be n integers, from 0 and below `classes`. The ValueError names `file`."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{file}: labels are {y.dtype} of shape {y.shape}; wanted integers of shape (n,){label_remedy(y)}"
        )
    if len(y) != n:
        raise ValueError(f"{file}: {len(y)} labels for {n} images")
    if n == 0:
        raise ValueError(f"{file}: no records; at least one is needed")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "0 upwards" if classes is None else f"0 to {classes - 1}"
        raise ValueError(f"{file}: labels run from {low} to {high}; allowed are {limit}")


def every_class(file: object, y: np.ndarray, classes: int) -> None:
    """Each class must have a sample in y, and there must be at least two. The ValueError names `file`."""
    if classes < 2:
        raise ValueError(f"{file}: {classes} class; at least 2 are needed")
    # No array of `classes` entries: a stray label of 10**9 would allocate gigabytes.
    seen = np.unique(y)
    if len(seen) < classes:
        empty = next(label for label in range(classes) if label >= len(seen) or seen[label] != label)
        from_1 = (int(seen[0]), int(seen[-1]), len(seen)) == (1, classes - 1, classes - 1)
        hint = "labels that count from 1 become classes by y - 1"
        if not from_1:
            hint = "number the classes that exist, names, y = np.unique(y, return_inverse=True)"
        raise ValueError(f"{file}: class {empty} of 0 to {classes - 1} has no training sample: {hint}")


def channels_first(name: str, shape: Sequence[int], *, n: int | None = None, narrow: bool = False) -> None:
    """The shape of a sample, or of each of n, must not be (h, w, c). The ValueError names the input by `name`.

    `narrow`: also for images of at most 4 columns, which inputs other than images may equal in shape.
    """
    if len(shape) == 3 and shape[0] > 4 and (narrow or shape[1] > 4) and shape[2] in (1, 3, 4):
        whole, wanted = (tuple(shape), "(c, h, w)") if n is None else ((n, *shape), "(n, c, h, w)")
        axes = "2, 0, 1" if n is None else "0, 3, 1, 2"
        raise ValueError(
            f"{name}: shape {whole} has its channels last; wanted {wanted}: move them by x.permute({axes}), of an array"
            f" x.transpose({axes})"
        )


def floats(file: object, x: np.ndarray, box: Box) -> None:
    """x must be finite and inside the box, which may be one per channel. The ValueError names `file`."""
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(f"{file}: {int((~finite).sum())} values are NaN or infinite; all must be finite")
    if isinstance(box[0], tuple):
        if len(box[0]) != x.shape[1]:
            raise ValueError(f"{file}: the box is for {len(box[0])} channels and the inputs have {x.shape[1]}")
        for channel, pair in enumerate(zip(*box)):
            floats(f"{file}, channel {channel}", x[:, channel], pair)
        return
    low, high = float(x.min()), float(x.max())
    # Values that are clipped to an end become the number of their own precision that is nearest to it, as 0.1 in
    # float32, which may lie outside.
    precision = x.dtype if x.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore"):
        ends = [float(np.asarray(end, precision)) for end in box]
    if low < min(box[0], ends[0]) or high > max(box[1], ends[1]):
        fix = in_units(low, high, *box, "give")
        raise ValueError(
            f"{file}: values run from {low:g} to {high:g}; floats must be in [{decimal(box[0])}, {decimal(box[1])}]:"
            f" {fix}"
        )


def levels(file: object, x: np.ndarray) -> None:
    """uint8 x must not be binary: divided by 255 it would be black. The ValueError names `file`."""
    if x.dtype == np.uint8 and x.size and int(x.max()) == 1:
        raise ValueError(f"{file}: uint8 values are 0 and 1 of 255, nearly black: give floats, x.astype(np.float32)")


def count(name: str, value: int | None) -> None:
    """ValueError unless a number of samples in the settings is None or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"data.{name} is {value}; it must be 1 or more")
