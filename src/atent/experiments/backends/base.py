"""The backend interface, the commands that it runs, and the scheduling loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atent import runs as folder
from atent import trust
from atent.runs.locks import held, stealing
from atent.signals import stop_requests
from atent.train.interrupt import Interrupted


@dataclass(frozen=True)
class Task:
    """One command of `atent`, which makes a run folder."""

    run: Path
    """The run folder."""
    words: tuple[str, ...]
    """The command and its options."""
    log: Path
    """Where its output goes."""

    @property
    def stop(self) -> Path:
        """A file that asks it to save and end, where no signal reaches it."""
        return self.log.with_suffix(".stop")


class Child(Protocol):
    """A command that was started."""

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs."""

    def stop(self) -> None:
        """Request that it saves and exits."""

    def wait(self) -> None:
        """Wait until it has ended."""

    def kill(self) -> None:
        """Terminate it immediately if it still runs."""


class Backend(AbstractContextManager["Backend"], Protocol):
    """Where commands run. It is entered before `start`."""

    at_once: int
    """Commands at a time."""
    pause: float
    """Polling interval in seconds."""

    def start(self, task: Task) -> Child:
        """Start a command."""

    def threads(self) -> int | None:
        """CPU threads of each training; None for what the training itself chooses."""

    def settle(self, tasks: Iterable[Task]) -> None:
        """End what an earlier command that was killed has left at work on these tasks."""


def train_task(
    run: Path, log: Path, recipe: str, seed: int, *, resume: bool, overrides: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Task:  # fmt: skip
    """The command that trains ``run`` by a recipe with ``overrides``, or resumes it from what it has saved.

    ``options`` are given in both cases. What a folder holds that does not resume is removed.
    """
    words = ["train", *trust.options()]
    if resume:
        words += ["--resume", str(run)]
    else:
        # Equal settings and no state to resume from: the same training restarts.
        if run.exists():
            with held(run / folder.LOCK, "train"):
                folder.clear(run)
        words += [recipe, "--runs", str(run.parent), "--name", run.name, "--train.seed", str(seed)]
        words += ["--no_baseline", *overrides]
    words += [*options, *(["--steal-lock"] if stealing() else [])]
    return Task(run, tuple(words), log)


def drive(
    backend: Backend,
    take: Callable[[], Task | None],
    ended: Callable[[Task, int, float], None],
    *,
    changed: Callable[[list[Task]], None] = lambda running: None,
    unwanted: Callable[[Task], bool] = lambda task: False,
    interrupted: Callable[[], str],
) -> None:
    """Run the tasks that ``take`` gives, as many at a time as the backend allows, until it gives none and all ended.

    Parameters
    ----------
    backend
        Where they run; entered already.
    take
        The next task; None if there is none at the moment.
    ended
        Called with each task that ended, its exit status and its seconds; it may raise.
    changed
        Called with the running tasks after each start and end.
    unwanted
        Whether a running task is to be stopped: asked again and again.
    interrupted
        What `Interrupted` says.

    Raises
    ------
    Interrupted
        After a signal of `atent.signals`. Whatever ends the loop, the running tasks are stopped first, with their state
        saved.
    """
    running: dict[Child, tuple[Task, float]] = {}
    stopping: set[Child] = set()
    with stop_requests() as asked:
        try:
            while True:
                while len(running) < backend.at_once and not asked() and (task := take()) is not None:
                    running[backend.start(task)] = task, time.perf_counter()
                    changed([task for task, _ in running.values()])
                if asked():
                    raise Interrupted(interrupted())
                if not running:
                    return
                time.sleep(backend.pause)
                for child in list(running):
                    status = child.poll()
                    # A signal to the process group also ends the children, which is not a failure.
                    if status is None or (status and asked()):
                        continue
                    task, begun = running.pop(child)
                    stopping.discard(child)
                    ended(task, status, time.perf_counter() - begun)
                    changed([task for task, _ in running.values()])
                for child, (task, _) in running.items():
                    # Only once: a second signal would interrupt the saving that the first started.
                    if child not in stopping and unwanted(task):
                        stopping.add(child)
                        child.stop()
        finally:
            _stop(list(running))


def _stop(children: Sequence[Child]) -> None:
    """Request each to save and exit, and wait; a second Ctrl-C terminates them immediately."""
    try:
        for child in children:
            child.stop()
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.kill()


def reason(task: Task, status: int) -> str:
    """The last output line of a failed command, and its log file."""
    if status < 0:
        return f"{task.run.name} was ended by {signal.Signals(-status).name} (see {task.log})"
    text = task.log.read_text(errors="replace") if task.log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{task.run.name} failed: {lines[-1].removeprefix('atent: ') if lines else 'no output'} (see {task.log})"
