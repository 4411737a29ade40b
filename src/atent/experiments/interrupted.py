"""Trainings that were interrupted, and what a new training and the commands that read a run report about them."""

from __future__ import annotations

from pathlib import Path

from atent import runs as folder
from atent.messages import once
from atent.runs.locks import InUse, held
from atent.runs.names import STATE, VALIDATION_ROWS
from atent.train.interrupt import again


def beside(root: str | Path, name: str, new: Path) -> str | None:
    """One line if root/name or one of its numbered successors before ``new`` is a training that was interrupted.

    Parameters
    ----------
    root, name
        Where the run would be if the name were free.
    new
        The folder of the new run.

    Returns
    -------
    str or None
        The line names the last of them and the command that resumes it; None if there is none.
    """
    number, found, path = 1, None, Path(root) / name
    while path != new and path.exists():
        found = path if is_interrupted(path) else found
        number += 1
        path = Path(root) / f"{name}-{number}"
    if found is None:
        return None
    return f"{_unfinished(found)}; this is a new training in {new}"


def note_unfinished(run: Path) -> str | None:
    """One line if a run that is evaluated, compared or shown is a training that was interrupted, and the same line on
    stderr, once; None for any other run."""
    # Curves are drawn at the end of the epochs, before the evaluation.
    if (run / folder.CURVES).exists() or not is_interrupted(run):
        return None
    line = f"{_unfinished(run)}; its epochs so far are used"
    once(line)
    return line


def _unfinished(run: Path) -> str:
    return f"{run} is unfinished: {again(folder.read_config(run / folder.CONFIG), run)} continues it"


def is_interrupted(run: Path) -> bool:
    """Whether a run of a recipe has a checkpoint but did not end, and no process is at work on it."""
    # A training draws its curves at its end, before the evaluation. `atent evaluate` may write one before that.
    ended = (run / folder.CURVES).exists() and any(
        (run / name).exists() for name in (folder.EVALUATION, VALIDATION_ROWS)
    )
    if ended or not (run / folder.LAST / STATE).is_file():
        return False
    try:
        with held(run / folder.LOCK, "read"):
            return folder.read_config(run / folder.CONFIG).get("recipe") is not None
    except (InUse, OSError, ValueError, KeyError):
        return False
