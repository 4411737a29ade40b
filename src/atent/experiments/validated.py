"""Validation metrics of a training, written after each epoch and read by sweeps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from atent import runs as folder
from atent.certify import CERTIFIERS
from atent.certify.certifiers import smooths, verified_by
from atent.data import load as load_data
from atent.experiments.job import Job
from atent.experiments.results import Share
from atent.experiments.target import threat_of
from atent.runs.names import VALIDATION_ROWS
from atent.train.callbacks import Callback, Progress, Row

VERIFIED = "validation.json"
"""The file in the run folder with the certified accuracy of the best epoch, if requested."""


class Rows(Callback):
    """Writes each measured epoch's row; a training that resumes begins with those that its checkpoint knows."""

    def start(self, progress: Progress) -> None:
        """Write the rows so far."""
        if progress.run is not None:
            rows = [row for row in progress.history if "validation_clean" in row]
            text = "".join(json.dumps(folder.plain(row), allow_nan=False) + "\n" for row in rows)
            folder.write_atomic(progress.run / VALIDATION_ROWS, text)

    def epoch(self, progress: Progress, row: Row) -> None:
        """Write the row of this epoch."""
        if progress.run is not None and "validation_clean" in row:
            folder.append_jsonl(progress.run / VALIDATION_ROWS, row)


def rows_of(run: Path) -> list[Row]:
    """The rows of a run folder so far."""
    return folder.read_jsonl(run / VALIDATION_ROWS) if (run / VALIDATION_ROWS).is_file() else []


def best_of(rows: list[Row]) -> Row | None:
    """The row of the best epoch so far."""
    return next((row for row in reversed(rows) if row["best"]), None)


def figure(row: Row, name: str) -> float | None:
    """A figure of a best epoch's row, of the weights that are its best; None if it was not measured."""
    averaged = row.get("best_weights") == "average" and f"average_{name}" in row
    found = row.get(f"average_{name}" if averaged else name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def check_certifier(name: str) -> None:
    """ValueError for what does not verify by bounds."""
    if smooths(name):
        bounds = ", ".join(each for each in CERTIFIERS if not smooths(each))
        raise ValueError(f"certifier {name} does not verify by bounds: use one of {bounds}")


def verify(job: Job, model: nn.Module, run: Path, certifier: str) -> Share:
    """The share of the validation images that are verified at the method's threat, written into the run folder.

    ``model`` has the weights of the best epoch; the images are those of the robust validation. ValueError as
    `check_certifier`, and without a threat.
    """
    check_certifier(certifier)
    data = load_data(job.data)
    threat = getattr(job.within(data.box).method, "threat", None) or threat_of(None, data.box, job.evaluate)
    if threat is None:
        raise ValueError("a certified accuracy needs a threat: set evaluate.norm and evaluate.eps")
    part, device = data.sample("validation", job.train.validate_limit or None), next(model.parameters()).device
    certain = 0
    for batch in torch.arange(len(part)).split(job.train.batch_size):
        x, y = part.batch(batch)
        certain += int(verified_by(certifier, model, x.to(device), y.to(device), threat).sum())
    found = Share.of(certain, len(part))
    values = {"" if key == "value" else f"_{key}": value for key, value in asdict(found).items()}
    folder.write_json(
        run / VERIFIED, {"certifier": certifier, **{f"validation_certified{k}": v for k, v in values.items()}}
    )
    return found


def verified_of(run: Path) -> Row:
    """The result of `verify`; empty if it was not requested."""
    return folder.read_json(run / VERIFIED) if (run / VERIFIED).is_file() else {}
