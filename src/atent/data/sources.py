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
    "Data, a pair (train, test) of torch Datasets, or a function that returns these or a Source",
    {"hf": "atent.data.hugging_face"}, page="docs/add-data.md",
)  # fmt: skip
"""Name -> loader: a function that returns a `Source`, `Data` or a pair of torch Datasets, or one of the latter two.
A function may have the parameters ``root`` (the folder of the data or None), ``reading`` (a `Reading`) and ``columns``
(the `Columns` of a table); no others are passed."""

dataset = SOURCES.register
"""Decorator that registers a loader under the name of its function, or ``dataset("name")`` under another."""
