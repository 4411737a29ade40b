"""Processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import atent
from atent.experiments.backends.base import Task
from atent.signals import followed
from atent.threads import cores, wait_passively

_SOURCE = Path(atent.__file__).resolve().parents[1]


class Process:
    """A process; `subprocess.Popen` by the names of `Child`."""

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        # A file of the current folder must not replace a module of the library.
        alone = ["-P"] if Path.cwd() != _SOURCE else []
        given = followed(dict(environment))
        wait_passively(given)
        with open(task.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *alone, "-m", "atent", *task.words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=given,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.process.wait()

    def kill(self) -> None:
        """Send SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()


class Local:
    """Processes of this machine, which end with the one that started them.

    Parameters
    ----------
    at_once
        How many run at a time; each then gets its share of the CPU cores.
    """

    pause = 0.05

    def __init__(self, at_once: int = 1) -> None:
        self.at_once = at_once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, task: Task) -> Process:
        """Start a process."""
        return Process(task, os.environ)

    def threads(self) -> int | None:
        """A share of the cores, where several run at a time."""
        return max(1, cores() // self.at_once) if self.at_once > 1 else None

    def settle(self, tasks: Iterable[Task]) -> None:
        """Nothing: the processes follow their parent, and hold the locks of their runs until they have ended."""
