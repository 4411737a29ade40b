"""Interruption of a training between two steps, and the command that resumes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atent.messages import quoted
from atent.runs import CONFIG, read_config
from atent.signals import stop_requests

__all__ = ["Interrupted", "again", "how_to_resume", "resumption", "stop_requests"]


class Interrupted(Exception):
    """The training was stopped between two steps and can be resumed; the message names the command.

    Examples
    --------
    >>> from atent.train import Interrupted
    >>> try:
    ...     raise Interrupted("interrupted at epoch 2, step 7: resume with `atent train --resume runs/a`")
    ... except Interrupted as stopped:
    ...     print(stopped)
    interrupted at epoch 2, step 7: resume with `atent train --resume runs/a`
    """


def how_to_resume(config: dict[str, Any], path: Path | None, epoch: int, step: int) -> str:
    """The line of an interrupted training: its position, and the command that resumes it."""
    where = f"interrupted at epoch {epoch + 1}, step {step + 1}"
    if path is None:
        return f"{where}; nothing was saved, since there is no run folder"
    return f"{where}: resume with {again(config, path)}"


def again(config: dict[str, Any], path: Path) -> str:
    """The command or call that resumes the run of a configuration."""
    verb = "pretrain" if config["method"]["name"] == "ACL" else "train"
    command = f"`atent {verb} --resume {quoted(path)}`"
    if not config["model"].get("name"):
        model = "" if config["model"].get("builder") else " --model module:function"
        about = config["about"]["data"]
        known = config["data"].get("builder") or about.get("settings") or about.get("source") != "tensors"
        data = "" if known else " --data module:function"
        return f"fit(..., run={str(path)!r}, resume=True), or {command[:-1]}{model}{data}`"
    return command


def resumption(path: Path) -> str:
    """How a run that was stopped outside its steps is resumed."""
    if not (path / CONFIG).is_file():
        return "nothing was saved yet, repeat the command"
    return f"resume with {again(read_config(path / CONFIG), path)}"
