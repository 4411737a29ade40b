"""Run folders: atomic files with checksums, valid JSON, provenance; `checkpoint` and `loading` handle weights."""

from atent.runs.files import atomic, write_atomic
from atent.runs.folder import (
    check_free,
    check_name,
    clear,
    completed,
    create,
    free_name,
    is_free,
    no_run,
    read_config,
    relocated,
)
from atent.runs.former import read_rows, with_present_keys
from atent.runs.json_files import append_jsonl, keep_jsonl, read_json, read_jsonl, write_json
from atent.runs.manifest import Damaged
from atent.runs.names import BEST, CONFIG, CURVES, EVALUATION, LAST, LOCK, MANIFEST, METRICS
from atent.runs.origin import provenance
from atent.runs.trusted import admit, signed
from atent.runs.values import as_json, dumps, plain

__all__ = [
    "BEST",
    "CONFIG",
    "CURVES",
    "EVALUATION",
    "LAST",
    "LOCK",
    "MANIFEST",
    "METRICS",
    "Damaged",
    "admit",
    "append_jsonl",
    "as_json",
    "atomic",
    "check_free",
    "check_name",
    "clear",
    "completed",
    "create",
    "dumps",
    "free_name",
    "is_free",
    "keep_jsonl",
    "no_run",
    "plain",
    "provenance",
    "read_config",
    "read_json",
    "read_jsonl",
    "read_rows",
    "relocated",
    "signed",
    "with_present_keys",
    "write_atomic",
    "write_json",
]
