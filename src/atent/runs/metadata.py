"""The metadata of a weights file, validated before use, because the file may come from anyone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from atent.runs.weights import Notes


def metadata_of(path: Path, written: Mapping[str, str], names: Collection[str]) -> tuple[dict[str, Any], Notes]:
    """The training record and the `Notes` of the state, from a safetensors file's metadata; both {} in other files.

    ``names`` are those of its tensors. ValueError for metadata that training did not write.
    """
    try:
        about, notes = (json.loads(written.get(key, "{}")) for key in ("atent", "state"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: its metadata is not valid JSON: copy the file again") from None
    if not isinstance(about, dict) or not isinstance(about.get("model") or {}, dict):
        raise ValueError(f"{path}: its metadata is not what training records: give a file that training wrote")
    if not isinstance(notes, dict) or not _are_notes(notes, names):
        raise ValueError(f"{path}: its metadata does not fit its tensors: copy the file again")
    return about, notes


def _are_notes(notes: Notes, names: Collection[str]) -> bool:
    tied, complex_names = notes.get("tied", {}), notes.get("complex", [])
    return (
        isinstance(tied, dict)
        and all(isinstance(name, str) and name in names for name in tied.values())
        and isinstance(complex_names, list)
        and all(isinstance(name, str) and name in names for name in complex_names)
        and isinstance(notes.get("extra", {}), dict)
    )
