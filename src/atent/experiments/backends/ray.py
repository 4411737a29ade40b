"""Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Any, Self

from atent.experiments.backends.base import Task
from atent.experiments.backends.worker import work
from atent.extras import extra
from atent.signals import handled


class RayTask:
    """A command that Ray runs."""

    def __init__(self, library: Any, reference: Any, task: Task) -> None:
        self.library, self.reference, self.task = library, reference, task

    def poll(self) -> int | None:
        """Its exit status; 1 where Ray lost it, such as with its machine."""
        ready, _ = self.library.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self.library.get(self.reference))
        except self.library.exceptions.RayError as error:
            line = (str(error).splitlines() or [""])[-1]
            with open(self.task.log, "a") as log:
                log.write(f"atent: ray lost the task: {type(error).__name__} {line}\n")
            return 1

    def stop(self) -> None:
        """Write the file that its worker looks for."""
        self.task.stop.touch()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.library.wait([self.reference])

    def kill(self) -> None:
        """End its worker, where it still runs."""
        if self.poll() is None:
            self.library.cancel(self.reference, force=True)


class Ray:
    """Ray tasks; the cluster of this machine ends with the command.

    Parameters
    ----------
    at_once
        Maximum number of concurrent tasks; the cluster's resources may allow fewer.
    address
        The cluster, such as "auto" or "ray://host:10001". Default: one on this machine.
    cpus, gpus
        Of each training.
    """

    pause = 0.1

    def __init__(self, at_once: int = 1, *, address: str | None = None, cpus: int = 1, gpus: float = 0.0) -> None:
        self.at_once, self.address, self.cpus, self.gpus = at_once, address, cpus, gpus
        self.library = extra("ray", "ray", "--backend ray")
        self._open = ExitStack()

    def __enter__(self) -> Self:
        own = {"num_cpus": self.at_once * self.cpus} if self.address is None else {"address": self.address}
        handlers = {each: signal.getsignal(each) for each in handled()}
        try:
            self.library.init(**own, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, OSError) as error:
            where = self.address or "this machine"
            raise ConnectionError(f"no Ray cluster at {where}: {str(error).splitlines()[0]}") from None
        finally:
            # Ray takes SIGTERM for itself.
            for each, handler in handlers.items():
                signal.signal(each, handler)
        self._open.callback(self.library.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start(self, task: Task) -> RayTask:
        """Submit a task."""
        with suppress(FileNotFoundError):
            task.stop.unlink()
        remote = self.library.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(work)
        return RayTask(self.library, remote.remote(task, os.getcwd(), dict(os.environ)), task)

    def threads(self) -> int | None:
        """The number of CPUs of a training."""
        return self.cpus

    def settle(self, tasks: Iterable[Task]) -> None:
        """Do nothing: tasks end with the command that started them."""
