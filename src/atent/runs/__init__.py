"""Run folders: whole files, valid JSON, provenance; `atent.runs.checkpoint` and `atent.runs.loading` hold weights."""

from atent.runs.files import (
    append_jsonl,
    atomic,
    dumps,
    keep_jsonl,
    plain,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
)
from atent.runs.folder import (
    BEST,
    CONFIG,
    CURVES,
    EVALUATION,
    LAST,
    METRICS,
    check_name,
    completed,
    create,
    free_name,
    read_config,
    relocated,
)
from atent.runs.former import read_rows, with_present_keys
from atent.runs.origin import provenance

__all__ = [
    "BEST",
    "CONFIG",
    "CURVES",
    "EVALUATION",
    "LAST",
    "METRICS",
    "append_jsonl",
    "atomic",
    "check_name",
    "completed",
    "create",
    "dumps",
    "free_name",
    "keep_jsonl",
    "plain",
    "provenance",
    "read_config",
    "read_json",
    "read_jsonl",
    "read_rows",
    "relocated",
    "with_present_keys",
    "write_atomic",
    "write_json",
]
