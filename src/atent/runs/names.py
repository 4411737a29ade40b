"""The names of a run folder's files."""

import glob
from pathlib import Path

CONFIG = "config.json"
METRICS = "metrics.jsonl"
BEST = "best.safetensors"
EVALUATION = "evaluation.json"
VALIDATION_ROWS = "validation.jsonl"
"""The metrics of each epoch, for sweeps; metrics.jsonl, with the same rows, is written by checkpoints."""
CURVES = "curves.png"
MANIFEST = "manifest.json"
"""The SHA-256 sums of the others."""
LOCK = ".lock"
"""Who is at work on the run."""
LAST = "last"
"""The folder of what a resume needs; the names below are of files in it."""
STATE = "state.pt"
PREVIOUS = "previous.pt"
"""The checkpoint before ``STATE``."""
WEIGHTS = "model.safetensors"


def results_in(place: Path, stem: str) -> list[Path]:
    """The result files that begin with ``stem``, such as "evaluation", in a folder: the plain name, then by number.

    Shards are parts of a result, which --merge joins.
    """
    found = (file for file in place.glob(f"{glob.escape(stem)}*.json") if ".shard-" not in file.name)
    return sorted(found, key=lambda file: (len(file.name), file.name))
