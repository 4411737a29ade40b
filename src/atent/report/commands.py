"""The commands that the page names: what measures a figure that is missing."""

from __future__ import annotations

from atent import runs as folder
from atent.experiments.recorded import names_data, names_model
from atent.report.collect import Run
from atent.runs.checkpoint import STATE


def command(run: Run, verb: str, *options: str) -> list[str]:
    """A command on the run, with the names that its folder does not hold; the one that resumes it before its first
    weights."""
    words = ["atent", verb, str(run.path), *options]
    if not (run.path / folder.BEST).is_file() and (run.path / folder.LAST / STATE).is_file():
        words = ["atent", "train", "--resume", str(run.path)]
    elif verb == "evaluate" and not _has_threat(run):
        words += ["--norm", "linf", "--eps", "8/255"]
    if not names_model(run.config):
        words += ["--model", run.model or "MODULE:FUNCTION"]
    if not names_data(run.config):
        words += ["--data", run.data or "MODULE:FUNCTION"]
    return words


def _has_threat(run: Run) -> bool:
    evaluate = run.config.get("evaluate") or {}
    return bool(run.config["method"].get("threat")) or None not in (evaluate.get("norm"), evaluate.get("eps"))
