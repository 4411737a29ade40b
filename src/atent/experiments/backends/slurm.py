"""SLURM jobs, by submitit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from atent.experiments.backends.base import Task
from atent.experiments.backends.worker import work
from atent.extras import extra

_FOLDER = ".slurm"
"""Of submitit's own files, beside the run folders."""
_SHARED = (
    "cluster", "name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node",
    "stderr_to_stdout",
)  # fmt: skip
"""Parameters that submitit takes for every cluster; the others are SLURM's."""


class Job:
    """A command in a SLURM job."""

    def __init__(self, job: Any, task: Task, library: Any) -> None:
        self.job, self.task, self.library = job, task, library

    def poll(self) -> int | None:
        """Its exit status; 1 where the job ended without one, such as at its time limit."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:
            # submitit reports the end of a job by several error classes of its own.
            line = (str(error).strip().splitlines() or [""])[-1]
            with open(self.task.log, "a") as log:
                log.write(f"atent: SLURM job {self.job.job_id} ended without a result: {line}\n")
            return 1
        finally:
            _note(self.task).unlink(missing_ok=True)

    def stop(self) -> None:
        """Write the file that its worker looks for; a job that waits in the queue is cancelled."""
        self.task.stop.touch()
        if str(self.job.state).upper() == "PENDING":
            self.job.cancel()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.job.wait()

    def kill(self) -> None:
        """Cancel it, where it still runs."""
        if not self.job.done():
            self.job.cancel()
        _note(self.task).unlink(missing_ok=True)


class Slurm:
    """SLURM jobs.

    Parameters
    ----------
    at_once
        How many jobs are in the queue or at work at a time.
    cpus, gpus
        Of each job.
    parameters
        More of submitit's parameters, as "partition=gpu" or "timeout_min=240"; cluster=local runs processes of this
        machine in place of jobs.
    """

    pause = 1.0

    def __init__(self, at_once: int = 1, *, cpus: int = 1, gpus: float = 0.0, parameters: Sequence[str] = ()) -> None:
        self.at_once, self.cpus, self.gpus = at_once, cpus, gpus
        self.parameters = _parsed(parameters)
        self.cluster = self.parameters.pop("cluster", None)
        self.library = extra("submitit", "slurm", "--backend slurm")
        self._executors: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        self._executor(Path(_FOLDER), check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._executors.clear()

    def _executor(self, place: Path, *, check: bool = False) -> Any:
        """submitit's executor, whose files lie at ``place``; ValueError if there is no SLURM, or for a parameter
        that it does not know."""
        if place in self._executors:
            return self._executors[place]
        try:
            made = self.library.AutoExecutor(folder=place, cluster=self.cluster or "slurm")
            gpus = {"gpus_per_node": int(self.gpus)} if self.gpus else {}
            made.update_parameters(**{"cpus_per_task": self.cpus, **gpus, **self.parameters})
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"--backend slurm: {' '.join(str(error).split())[:200]}") from None
        if not check:
            self._executors[place] = made
        return made

    def start(self, task: Task) -> Job:
        """Submit a job; its number is kept until it has ended."""
        with suppress(FileNotFoundError):
            task.stop.unlink()
        executor = self._executor(task.run.parent / _FOLDER)
        job = executor.submit(work, task, os.getcwd(), dict(os.environ))
        _note(task).write_text(job.job_id)
        return Job(job, task, self.library)

    def threads(self) -> int | None:
        """The number of CPUs of a job."""
        return self.cpus

    def settle(self, tasks: Iterable[Task]) -> None:
        """Stop the jobs that a killed command has left at work, and wait until they have saved."""
        left = []
        for task in tasks:
            if _note(task).is_file():
                kind = self.library.SlurmJob if self.cluster is None else self.library.LocalJob
                left.append(Job(kind(task.run.parent / _FOLDER, _note(task).read_text().strip()), task, self.library))
        for job in left:
            job.stop()
        for job in left:
            job.wait()
            _note(job.task).unlink(missing_ok=True)


def _note(task: Task) -> Path:
    """The file with the number of the job."""
    return task.log.with_suffix(".job")


def _parsed(parameters: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in parameters:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--slurm takes NAME=VALUE, such as partition=gpu or timeout_min=240, got {word!r}")
        own = key in _SHARED or key.startswith("slurm_")
        found[key if own else f"slurm_{key}"] = int(value) if value.lstrip("-").isdigit() else value
    return found
