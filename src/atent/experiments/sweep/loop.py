"""The trials of a sweep: starting, resuming, early stopping and recording."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from atent import runs as folder
from atent.experiments.backends import Backend, Local, Task, drive, train_task
from atent.experiments.backends.base import reason
from atent.experiments.code_named import code_named
from atent.experiments.pipeline import Say
from atent.experiments.plan import Run, seeded, state
from atent.experiments.recipe_files import UsageError, as_toml
from atent.experiments.recipes import job
from atent.experiments.results import SweepFile
from atent.experiments.sweep.collect import collect, write
from atent.experiments.sweep.spec import Sweep
from atent.experiments.sweep.study import Study, Trial, keeps
from atent.experiments.validated import best_of, figure, rows_of, verified_of
from atent.messages import first_only
from atent.progress import Advance, bar
from atent.runs.locks import held
from atent.signals import STOPPING, resumed_by
from atent.train.fingerprint import edited

PLAN = "sweep-plan.json"
_AGAIN = "finished trials are kept, and repeating the command resumes"
# Exit statuses of a training that saved and stopped on request.
_STOPPED = {
    status
    for name in STOPPING
    if hasattr(signal, name)
    for status in (128 + getattr(signal, name), -getattr(signal, name))
}
_MOST_RESTARTS = 5
"""Maximum restarts of a training that is stopped from outside, such as by the time limit of a job."""


def run_sweep(
    sweep: Sweep,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    backend: Backend | None = None,
    command: str = "",
    progress: bool = True,
    say: Say = lambda line: None,
) -> tuple[Path, SweepFile]:
    """Run the missing trials and write sweep.json, sweep.md and the plots; return the folder and the content.

    The sweep's folder is ``runs``/``name`` (default: the name of its file). Each training is a run folder in it,
    without an evaluation: a sweep does not use the test set. An existing sweep is resumed, and may request more trials
    than before.

    Raises
    ------
    ValueError, FileExistsError
        Before anything is trained: a folder with other content or in use; a missing extra.
    ChildProcessError
        If every trial failed.
    Interrupted
        After a signal of `atent.signals`: the running trainings are stopped with their state saved.
    """
    backend = backend or Local()
    folder.check_name(name or sweep.name)
    path = Path(runs) / (name or sweep.name)
    with resumed_by("repeating the command resumes"), held(path / folder.LOCK, "sweep"):
        _check(path, sweep)
        study = Study(path, sweep, parallel=backend.at_once > 1)
        plan = {"command": command, "trials": sweep.trials, "sweep": sweep.identity(), "code": _code(sweep)}
        folder.write_json(path / PLAN, plan)
        work = _Work(path, sweep, study, backend, say)
        with backend, bar(sweep.trials, "sweep", enabled=progress) as advance:
            work.settle()
            work.run(advance)
        trials = study.trials()
        if all(trial.state == "failed" for trial in trials):
            raise ChildProcessError(f"every trial failed; the first: {trials[0].notes['reason']}")
        found = collect(sweep, study, path, command)
        write(path, found)
    return path, found


def _check(path: Path, sweep: Sweep) -> None:
    """ValueError or FileExistsError unless the folder is free or holds this sweep."""
    if not (path / PLAN).is_file():
        if not folder.is_free(path):
            raise FileExistsError(f"{path} exists and is not a sweep: choose another --name")
        return
    plan = folder.read_json(path / PLAN)
    saved = plan.get("sweep", {})
    own = json.loads(folder.dumps(sweep.identity()))
    differs = next((key for key in (*own, *saved) if saved.get(key) != own.get(key)), None)
    if differs is not None:
        raise ValueError(f"{path} is another sweep ({differs} differs): choose another --name")
    # Plans of earlier versions record no code.
    if changed := edited(plan.get("code") or {}, _code(sweep)):
        raise ValueError(f"{path} has trials of other code ({changed}): restore it, or choose another --name")


def _code(sweep: Sweep) -> dict[str, str]:
    """`code_named` by the settings of the trainings. A sweep does not use the attacks of the evaluation."""
    used = {key: table for key, table in sweep.tables.items() if key != "evaluate"}
    return code_named([used, [each.plain() for each in sweep.space], sweep.certifier])


class _Work:
    """The state of the running sweep."""

    def __init__(self, path: Path, sweep: Sweep, study: Study, backend: Backend, say: Say) -> None:
        self.path, self.sweep, self.study, self.backend, self.say = path, sweep, study, backend, say
        self.objective = next(iter(sweep.objectives))
        self.maximize = sweep.directions[0] == "maximize"
        self.open: dict[int, Trial] = {}
        self.begun: dict[Path, tuple[int, int]] = {}
        """Trial and seed of each training that runs or waits for its trial to end."""
        self.over: set[int] = set()
        """Trials that ended before all of their trainings did."""
        self.stopped: Counter[Path] = Counter()
        self.epochs: dict[int, int] = {}
        """The results of a trial's trainings."""
        self.seen: dict[Path, int] = {}
        """Number of compared rows per training."""
        self.made = 0

    def settle(self) -> None:
        """Wait until the trainings of a sweep that was killed have saved; take up its unfinished trials."""
        for trial in self.study.trials():
            self.made += trial.state != "running"
            if trial.state == "running":
                self.open[trial.number] = trial
        tasks = [Task(run, (), _log(run)) for n in self.open for run in map(self._run(n), self.sweep.all_seeds)]
        self.backend.settle(tasks)
        for task in tasks:
            if task.run.is_dir():
                with held(task.run / folder.LOCK, "sweep", wait=first_only(self.say)):
                    pass  # the lock is acquired only to wait for its holder, and released at once
        known = len(self.study.trials())
        notes = f", {self.made} finished and {len(self.open)} started before" if known else ""
        self.say(f"sweep {self.path}: {self.sweep.trials} trials of {self.sweep.seeds} seeds{notes}")

    def run(self, advance: Advance) -> None:
        """Train until every trial has ended."""
        advance(self.made, "")
        self.advance = advance
        for number in list(self.open):
            self._complete(number)
        drive(
            self.backend, self.take, self.ended, unwanted=self.unwanted,
            changed=lambda tasks: advance(0, ", ".join(task.run.name for task in tasks)),
            interrupted=lambda: f"interrupted with {self.made} of {self.sweep.trials} trials finished: {_AGAIN}",
        )  # fmt: skip

    # ---- what is started

    def take(self) -> Task | None:
        """The next training: of an open trial, or of a new one."""
        for number in sorted(self.open):
            seed = self._next_seed(number)
            task = None if seed is None else self._task(number, seed)
            if task is not None:
                return task
        while len(self.study.trials()) < self.sweep.trials:
            trial = self.study.propose()
            self.open[trial.number] = trial
            task = self._task(trial.number, self.sweep.first_seed)
            if task is not None:
                return task
        return None

    def _next_seed(self, number: int) -> int | None:
        """A seed of an open trial that is neither trained nor running; asha decides by the first seed before the others
        start."""
        if number in self.over:
            return None
        done, at_work = self._done(number), {seed for n, seed in self.begun.values() if n == number}
        for i, seed in enumerate(self.sweep.all_seeds):
            if seed not in done and seed not in at_work:
                waits = self.sweep.pruner == "asha" and i > 0 and self.sweep.first_seed not in done
                return None if waits else seed
        return None

    def _done(self, number: int) -> dict[int, dict[str, Any]]:
        return {int(seed): found for seed, found in self.open[number].notes.get("seeds", {}).items()}

    def _run(self, number: int) -> Callable[[int], Path]:
        return lambda seed: self.path / f"{trial_name(number)}-seed{seed}"

    def _task(self, number: int, seed: int) -> Task | None:
        """The training; None if the settings are incompatible, which fails the trial."""
        name = trial_name(number)
        recipe, run = self.path / f"{name}.toml", self._run(number)(seed)
        about = f"trial {number} of the sweep {self.sweep.name} of {self.sweep.recipe}"
        try:
            tables = {"about": about, **self.sweep.settings(self.open[number].settings)}
            made = job(tables, name)
            # Numbers that a child reads from the file are those that the journal has.
            folder.write_atomic(recipe, as_toml(tables))
            stage = state(Run(str(recipe), seeded(made, seed), run), job)
        except UsageError as error:
            self._fail(number, str(error).splitlines()[0])
            return None
        threads = self.backend.threads()
        overrides = ["--train.threads", str(threads)] if threads and made.train.threads is None else []
        self.begun[run], self.epochs[number] = (number, seed), made.train.epochs
        return train_task(
            run, _log(run), str(recipe), seed, resume=stage != "new", overrides=overrides,
            options=["--validation-only", *(["--certifier", self.sweep.certifier] if self.sweep.certifier else [])],
        )  # fmt: skip

    # ---- what ends

    def ended(self, task: Task, status: int, seconds: float) -> None:
        """Record the metrics of a finished training, and end its trial after the last seed."""
        number, seed = self.begun.pop(task.run)
        if number not in self.over:
            if self._falls_short(task.run, number, seed):
                self.over.add(number)
            elif status in _STOPPED and self.stopped[task.run] < _MOST_RESTARTS:
                self.stopped[task.run] += 1
                self.say(f"{task.run.name} was stopped externally: resuming")
            elif status:
                self._fail(number, reason(task, status))
            else:
                self._finish(task.run, number, seed)
        if number in self.over and not any(n == number for n, _ in self.begun.values()):
            self.over.discard(number)
            self.open.pop(number, None)

    def _finish(self, run: Path, number: int, seed: int) -> None:
        rows = rows_of(run)
        best = best_of(rows)
        best = best and {**best, **verified_of(run)}
        values = [figure(best, name) if best else None for name in self.sweep.objectives]
        missing = [name for name, value in zip(self.sweep.objectives, values) if value is None]
        if best is None or missing:
            self._fail(number, f"{run.name} measured no {', '.join(missing)}")
            return
        ends = {end: [figure(best, f"{name}_{end}") for name in self.sweep.objectives] for end in ("low", "high")}
        about = {
            "seed": seed, "run": run.name, "values": values, "best_epoch": best["epoch"], "epochs": rows[-1]["epoch"],
            **ends,
        }  # fmt: skip
        done = {**self._done(number), seed: about}
        self.study.note(number, "seeds", {str(key): done[key] for key in sorted(done)})
        self._read(number)
        self._complete(number)

    def _complete(self, number: int) -> None:
        """End a trial after all of its seeds are trained."""
        done = self._done(number).values()
        if len(done) == self.sweep.seeds:
            means = {name: fmean(each["values"][i] for each in done) for i, name in enumerate(self.sweep.objectives)}
            words = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            self._end(number, "complete", list(means.values()), words)

    def _fail(self, number: int, why: str) -> None:
        self.study.note(number, "reason", why)
        self._end(number, "failed", None, f"failed: {why}")

    def _end(self, number: int, how: str, values: list[float] | None, words: str) -> None:
        self.study.end(number, how, values)
        self.made += 1
        self.say(f"{self.made:>3} of {self.sweep.trials}  {trial_name(number)}  {words}")
        self.advance(1, "")
        if any(n == number for n, _ in self.begun.values()):
            self.over.add(number)
        else:
            self.open.pop(number, None)

    def _read(self, number: int) -> None:
        """Reload a trial from the journal."""
        self.open[number] = self.study.trials()[number]

    # ---- what is stopped early

    def unwanted(self, task: Task) -> bool:
        """Whether a training belongs to a trial that has ended or is pruned by its new measurements."""
        number, seed = self.begun[task.run]
        return number in self.over or self._falls_short(task.run, number, seed)

    def _falls_short(self, run: Path, number: int, seed: int) -> bool:
        """asha: report the measured epochs of a trial's first seed, and prune it at the first comparison that it fails.

        The training may be ahead; the comparison uses its measurements up to that epoch.
        """
        if self.sweep.pruner != "asha" or seed != self.sweep.first_seed or number in self.over:
            return number in self.over
        rows, trial = rows_of(run), self.open[number]
        if len(rows) == self.seen.get(run):
            return False
        self.seen[run] = len(rows)
        rungs = [self.sweep.rung * self.sweep.factor**k for k in range(64)]
        passed = int(trial.notes.get("passed", 0))
        for i, row in enumerate(rows):
            epoch, best = row["epoch"], best_of(rows[: i + 1])
            value = figure(best, self.objective) if best else None
            if value is None or epoch <= passed:
                continue
            if epoch not in trial.figures:
                self.study.report(number, epoch, value)
            if epoch < self.epochs[number] and any(passed < rung <= epoch for rung in rungs):
                others = {
                    t.number: t.figures[epoch] for t in self.study.trials() if epoch in t.figures and t.number != number
                }
                if not keeps(value, others, factor=self.sweep.factor, maximize=self.maximize):
                    self.study.note(number, "reached", {"epoch": epoch, "value": value})
                    self._end(number, "pruned", [value], f"pruned after epoch {epoch}, {self.objective} {value:.4g}")
                    return True
            passed = epoch
            self.study.note(number, "passed", epoch)
        self._read(number)
        return False


def trial_name(number: int) -> str:
    """The name of a trial's recipe and run folders."""
    return f"trial-{number:03d}"


def _log(run: Path) -> Path:
    return run.with_name(run.name + ".log")
