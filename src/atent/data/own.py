"""Tensors, arrays and torch Datasets of the user's own, as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from atent.checks import as_tensor
from atent.data import checks
from atent.data.files import record
from atent.data.split import Source, split
from atent.registry import first_line
from atent.threat import Box, Threat

_TWICE = 8
"""Number of items that are read twice, to detect random transforms."""


def tensor_source(given: Mapping[str, Tensor | np.ndarray], box: Box) -> Source:
    """The source of x_train, y_train, x_test and y_test, see `atent.data.from_tensors`."""
    a = {key: _array(key, value) for key, value in given.items()}
    for key in ("x_train", "x_test"):
        if a[key].ndim not in (2, 4) or 0 in a[key].shape:
            fix = (
                ""
                if 0 in a[key].shape
                else ": flatten them by x.reshape(len(x), -1), and begin the network with nn.Unflatten"
            )
            raise ValueError(f"{key}: shape {a[key].shape}; allowed are (n, d) and (n, c, h, w){fix}")
        checks.channels_first(key, a[key].shape[1:], n=len(a[key]))
        if a[key].dtype != np.uint8:
            if a[key].dtype.kind != "f":
                raise ValueError(f"{key}: {a[key].dtype}; allowed are uint8 and floats in the box")
            checks.floats(key, a[key], box)
    checks.levels("x_train", a["x_train"])
    if a["x_train"].dtype == np.uint8 and Threat("linf", 0.0, box).span != (0.0, 1.0):
        raise ValueError(f"box {box} has no effect for inputs of uint8, which become [0, 1]: omit it, or give floats")
    if a["x_train"].shape[1:] != a["x_test"].shape[1:] or a["x_train"].dtype != a["x_test"].dtype:
        test, train = a["x_test"], a["x_train"]
        raise ValueError(f"x_test is {test.dtype} {test.shape}; x_train is {train.dtype} {train.shape}")
    checks.labels("y_train", a["y_train"], len(a["x_train"]))
    classes = int(a["y_train"].max()) + 1
    checks.every_class("y_train", a["y_train"], classes)
    checks.labels("y_test", a["y_test"], len(a["x_test"]), classes)
    scale = 255.0 if a["x_train"].dtype == np.uint8 else None
    # The training samples are copied into their two parts; the caller may change its tensors later.
    kept = {key: a[key].copy() if isinstance(given[key], Tensor) else a[key] for key in ("x_test", "y_test")}
    return Source(
        classes=classes,
        train=split(a["x_train"], a["y_train"], scale),
        test=split(kept["x_test"], kept["y_test"], scale),
        validation=min(1000, max(1, len(a["x_train"]) // 10)),
        box=(0.0, 1.0) if scale else box,
        about={"source": "tensors", "files": {}, "test": "x_test"},
    )


def dataset_source(train: Any, test: Any, box: Box = (0.0, 1.0)) -> Source:
    """The source of two map-style Datasets, see `atent.data.from_dataset`."""
    parts = {"train": _items("train", train), "test": _items("test", test)}
    arrays = {f"{key}_{part}": value for part, pair in parts.items() for key, value in zip("xy", pair, strict=True)}
    made = tensor_source(arrays, box)
    names = getattr(train, "classes", None)
    named = isinstance(names, list | tuple) and len(names) == made.classes and all(isinstance(n, str) for n in names)
    made.about.update(
        source=f"Dataset {type(train).__name__}",
        files={part: record(_digest(*pair), None) for part, pair in parts.items()},
        test="test",
        class_names=list(names) if named and names else None,
    )
    return made


def _array(name: str, value: Tensor | np.ndarray) -> np.ndarray:
    """As a numpy array, floats as float32."""
    tensor = as_tensor(name, value).detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _digest(x: np.ndarray, y: np.ndarray) -> str:
    """The sha256 of the items, since a Dataset has no file."""
    found = hashlib.sha256(f"{x.dtype.name} {x.shape}".encode())
    found.update(np.ascontiguousarray(x).data)
    found.update(y.astype(np.int64).data)
    return found.hexdigest()


def _items(part: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """x (n, ...) and y (n,) of all items; ValueError, in one line, if a data set cannot consist of them."""
    from torch.utils.data import IterableDataset

    kind = type(data).__name__
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        is_loader = hasattr(data, "batch_size") and hasattr(data, "dataset")
        remedy = (
            "give its dataset" if is_loader else "use from_tensors(*collect(train), *collect(test)), if it is finite"
        )
        raise ValueError(f"{part}: {kind} has no numbered items, which a map-style Dataset has: {remedy}")
    n = len(data)
    if n < 1:
        raise ValueError(f"{part}: the {kind} is empty; at least one item is needed")
    item = _reader(part, data)
    first, _ = item(0)
    x, y = np.empty((n, *first.shape), first.dtype), []
    for i in range(n):
        value, label = item(i)
        if (value.shape, value.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{part}: item {i} is {value.dtype} {value.shape} and item 0 {first.dtype} {first.shape}; all must be"
                " the same"
            )
        x[i] = value
        y.append(label)
    for i in range(min(n, _TWICE)):
        value, label = item(i)
        if not np.array_equal(value, x[i], equal_nan=x.dtype.kind == "f"):
            raise ValueError(
                f"{part}: item {i} differs between two reads: remove random transforms from the Dataset, and set"
                " data.augment"
            )
        if not np.array_equal(label, y[i]):
            raise ValueError(f"{part}: item {i} has label {label} after {y[i]} before: give each item one label")
    try:
        labels = np.array(y)
    except ValueError:
        raise ValueError(f"{part}: labels of several shapes; wanted one integer for each item") from None
    checks.labels(f"{part}: y", labels, n)
    return x, labels


def _reader(part: str, data: Any) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Item i as the array x, floats as float32, and the label."""

    def item(i: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            pair = data[i]
        except Exception as error:
            raise ValueError(f"{part}: item {i} raised {first_line(error)}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{part}: item {i} is a {type(pair).__name__}; wanted a pair (x, y)")
        x, y = pair
        if not isinstance(x, Tensor | np.ndarray):
            raise ValueError(
                f"{part}: item {i} contains a {type(x).__name__}; wanted a tensor or an array, (c, h, w) or (d,), such"
                " as torchvision's transform ToTensor returns"
            )
        value = _array(f"{part}: item {i}", x)
        if value.ndim not in (1, 3):
            raise ValueError(f"{part}: item {i} has shape {value.shape}; allowed are (d,) and (c, h, w)")
        checks.channels_first(f"{part}: item {i}", value.shape)
        return value, np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)

    return item
