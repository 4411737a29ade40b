"""What runs on the machine of a Ray task or a SLURM job: one command of `atent`, and the file that stops it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress

from atent.experiments.backends.base import Task
from atent.experiments.backends.local import Process

_PAUSE = 0.2
_STOPPED = 128 + signal.SIGTERM
# What the scheduler decides for each of its machines.
_OWN = ("CUDA_VISIBLE_DEVICES", "HIP_", "ROCR_", "SLURM_", "RAY_", "HOSTNAME", "TMPDIR")


def work(task: Task, place: str, environment: Mapping[str, str]) -> int:
    """Run the command in the folder ``place`` and give its exit status.

    ``environment`` is that of the machine that asked, but for what the scheduler sets.
    """
    if task.stop.exists():  # before it began
        return _STOPPED
    os.chdir(place)
    own = {key: value for key, value in os.environ.items() if key.startswith(_OWN)}
    process = Process(task, {**environment, **own})
    try:
        while (status := process.poll()) is None:
            if task.stop.exists():
                process.stop()
                process.wait()
            time.sleep(_PAUSE)
        return status
    except BaseException:
        process.stop()
        process.wait()
        raise
    finally:
        process.kill()
        with suppress(OSError):
            task.stop.unlink()
