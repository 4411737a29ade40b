"""Optional dependencies: imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any


def extra(module: str, name: str, asked: str) -> Any:
    """The module of an extra; ImportError, in one line with the command that installs it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{asked} needs {module}, which is not installed ({error}): pip install 'atent[{name}]'"
        ) from None
