"""Train robust networks, evaluate their robust accuracy, and certify it.

    from atent import Threat, load
    from atent.attacks import PGD
    from atent.methods import ATENT
    from atent.train import fit

Importing the package is cheap: its subpackages, and torch, are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__: str

_ROOMS = ("attacks", "data", "evaluate", "losses", "methods", "models", "optim", "plots", "runs", "train")
_NAMES = {"Threat": "atent.threat", "load": "atent.train"}

__all__ = ["Threat", "__version__", "load", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"atent.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name == "__version__":
        # Reading the metadata takes longer than importing the package.
        from importlib import metadata

        try:
            globals()[name] = metadata.version("atent")
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            globals()[name] = "unknown"
        return globals()[name]
    raise AttributeError(f"module 'atent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
