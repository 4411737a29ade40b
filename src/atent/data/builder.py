"""Data from a function of the user's own that takes arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atent.data import load
from atent.data.settings import DataSettings
from atent.data.split import Data
from atent.models.reference import resolve


def built(name: str, args: Mapping[str, Any], root: str | None = None) -> Data:
    """The data of a builder: a function as module:function called with the keywords ``args``, or a data set by name.

    Without ``args``: the data of `load`, from ``root``. ValueError, in one line, as there, for ``args`` with a data set
    by name, and for a function that does not return `Data`.
    """
    if not args:
        return load(DataSettings(name, root))
    if ":" not in name or root is not None:
        what = "root" if root is not None else "builder arguments"
        raise ValueError(f"{name} takes no {what}: arguments are for data by module:function")
    made = resolve(name, Data, "Data, such as atent.data.from_tensors returns", args)
    return replace(made, name=name, about={**made.about, "name": name})
