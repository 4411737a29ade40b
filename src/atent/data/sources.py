"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atent.data.split import Data
from atent.registry import Registry


def _fits(found: Any) -> bool:
    return callable(found) or isinstance(found, Data)


SOURCES: Registry[Callable[..., Any]] = Registry(
    "data set", "atent.data", "atent.data", _fits, "Data, or a function that gives Data or a Source",
    {"hf": "atent.data.hugging_face"},
)  # fmt: skip
"""Name -> loader: a function that gives a `Source`, or `Data`; of its parameters only ``root``, the data's folder or
None, ``reading``, a `Reading`, and ``columns``, those of a table, are given."""

dataset = SOURCES.register
"""Decorator that makes a loader known by its function's name, or ``dataset("name")`` by another."""
