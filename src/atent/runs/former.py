"""Files of earlier versions: the keys that have another name today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from atent.messages import quoted
from atent.runs import manifest
from atent.runs.json_files import read_jsonl

# Clean accuracy was called natural: natural, natural_loss, validation_natural_low.
_NATURAL = re.compile(r"(?:(?<=_)|^)natural(?=_|$)")


def with_present_keys(value: Any) -> Any:
    """Plain values with the present keys at every depth: earlier versions called clean accuracy natural.

    Parameters
    ----------
    value
        Dictionaries, lists and other values; unchanged.

    Returns
    -------
    object
        The values with the present keys.

    Examples
    --------
    >>> from atent.runs import with_present_keys
    >>> with_present_keys({"validation_natural": 0.9})
    {'validation_clean': 0.9}
    """
    if isinstance(value, dict):
        return {
            _NATURAL.sub("clean", key) if isinstance(key, str) else key: with_present_keys(inner)
            for key, inner in value.items()
        }
    return [with_present_keys(inner) for inner in value] if isinstance(value, list) else value


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl of any version; ValueError as for `read_jsonl`, and `Damaged` for a changed file.

    Parameters
    ----------
    path
        The file in a run folder.

    Returns
    -------
    list of dict
        One row for each epoch.

    Raises
    ------
    FileNotFoundError
        In one line, if the file is absent.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import append_jsonl, read_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_jsonl(Path(folder) / "metrics.jsonl", {"epoch": 1, "natural": 0.9})
    ...     read_rows(Path(folder) / "metrics.jsonl")
    [{'epoch': 1, 'clean': 0.9}]
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: `atent train --resume {quoted(Path(path).parent)}` restores it")
    manifest.check_file(path)
    rows: list[dict[str, Any]] = with_present_keys(read_jsonl(path))
    return rows
