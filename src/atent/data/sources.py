"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atent.data.split import Data
from atent.registry import Registry


def _fits(found: Any) -> bool:
    return callable(found) or isinstance(found, Data) or is_pair(found)


def is_pair(found: Any) -> bool:
    """Whether it is a pair of the training and the test set, as `atent.data.from_dataset` takes them."""
    return isinstance(found, tuple | list) and len(found) == 2


SOURCES: Registry[Callable[..., Any]] = Registry(
    "data set", "atent.data", "atent.data", _fits,
    "Data, a pair (train, test) of torch Datasets, or a function that gives these or a Source",
    {"hf": "atent.data.hugging_face"},
)  # fmt: skip
"""Name -> loader: a function that gives a `Source`, `Data` or a pair of torch Datasets, or the latter two themselves.
Of a function's parameters only ``root``, the data's folder or None, ``reading``, a `Reading`, and ``columns``, those of
a table, are given."""

dataset = SOURCES.register
"""Decorator that makes a loader known by its function's name, or ``dataset("name")`` by another."""
