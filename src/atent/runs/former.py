"""Files of earlier versions: the keys that have another name today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from atent.runs import manifest
from atent.runs.files import read_jsonl

# Clean accuracy was called natural: natural, natural_loss, validation_natural_low.
_NATURAL = re.compile(r"(?:(?<=_)|^)natural(?=_|$)")


def with_present_keys(value: Any) -> Any:
    """Plain values with the current keys at every depth; ``value`` itself is unchanged."""
    if isinstance(value, dict):
        return {
            _NATURAL.sub("clean", key) if isinstance(key, str) else key: with_present_keys(inner)
            for key, inner in value.items()
        }
    return [with_present_keys(inner) for inner in value] if isinstance(value, list) else value


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl of any version. Raises as `read_jsonl`, and Damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: `atent train --resume {Path(path).parent}` restores it")
    manifest.check_file(path)
    rows: list[dict[str, Any]] = with_present_keys(read_jsonl(path))
    return rows
