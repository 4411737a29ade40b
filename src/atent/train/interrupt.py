"""Ctrl-C that loses nothing: the loop ends the step it is in, saves, and stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The training was stopped between two steps and can be resumed; the message says how."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came; a second SIGINT interrupts at once."""
    asked = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    # Only the main thread may set handlers; elsewhere the default behaviour stays.
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, note) for s in signals}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def how_to_resume(config: dict[str, Any], path: Path | None, epoch: int, step: int) -> str:
    """The line of an interrupted training: where it stopped, and what resumes it."""
    where = f"interrupted at epoch {epoch + 1}, step {step + 1}"
    if path is None:
        return f"{where}; without a run folder nothing is kept"
    verb = "pretrain" if config["method"]["name"] == "ACL" else "train"
    again = f"`atent {verb} --resume {path}`"
    if not config["model"].get("name"):
        model = "" if config["model"].get("builder") else " --model module:function"
        about = config["about"]["data"]
        known = config["data"].get("builder") or about.get("settings") or about.get("source") != "tensors"
        data = "" if known else " --data module:function"
        again = f"fit(..., run={str(path)!r}, resume=True), or {again[:-1]}{model}{data}`"
    return f"{where}: resume with {again}"
