"""Several methods on the same data, split, network and epochs (or time), once per seed, in one table.

Each training is a separate process, with its own memory and time. Finished runs are kept: repeating the command reuses
them and resumes started ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from atent import runs as folder
from atent.experiments import migrate
from atent.experiments.backends import Backend, Local, Task, drive, train_task
from atent.experiments.backends.base import reason
from atent.experiments.collect import collect
from atent.experiments.comparison import draw, draw_pareto, markdown
from atent.experiments.comparison_csv import TABLE_CSV, as_csv
from atent.experiments.comparison_tex import TABLE_TEX, as_tex
from atent.experiments.kept import outdated
from atent.experiments.measured import asked, choice
from atent.experiments.pipeline import Say
from atent.experiments.plan import NAME, PLAN, Build, Plan, Run, agree, evaluated_under, place, seeded, state
from atent.experiments.results import ComparisonFile
from atent.experiments.target import recipe_attacks
from atent.messages import first_only
from atent.progress import bar
from atent.runs.locks import InUse, held
from atent.signals import resumed_by

RESULT = "comparison.json"
TABLE = "comparison.md"


def compare(
    plan: Plan,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    backend: Backend | None = None,
    build: Build,
    beside: str | Path | None = None,
    progress: bool = True,
    say: Say = lambda line: None,
) -> tuple[Path, ComparisonFile]:
    """Train missing runs on the ``backend`` (default: one process at a time) and write the table; return its folder and
    content.

    ``beside`` is the folder of an earlier comparison that the Pareto plot also shows, such as equal epochs beside equal
    time.

    Raises ValueError (InUse while another process is at work there) and FileExistsError of one line before anything is
    trained; ChildProcessError if a run fails and Interrupted after a signal of `atent.signals`: the other runs are
    stopped, with their state saved, and repeating the command resumes. The runs end with the process that started them.
    """
    agree(plan.jobs)
    other, backend = _beside(beside), backend or Local()
    path = place(runs, name, plan, build)
    with resumed_by("repeating the command resumes"), held(path / folder.LOCK, "compare"), backend:
        if place(runs, name, plan, build) != path:
            raise InUse(f"{path} was taken by another comparison in the meantime: repeat the command")
        # Runs of a killed comparison save and exit; their state is known only after that.
        backend.settle([Task(run.path, (), run.log) for run in plan.runs(path)])
        for run in plan.runs(path):
            if run.path.is_dir():
                with held(run.path / folder.LOCK, "compare", wait=first_only(say)):
                    pass  # the lock is acquired only to wait for its holder, and released at once
        todo = {run.path: _stage(run, build) for run in plan.runs(path)}
        jobs = {job.recipe: seeded(job, plan.seeds[0]).sections() for job in plan.jobs.values()}
        about = {"command": plan.command, "seeds": plan.seeds, "jobs": jobs, "code": plan.code()}
        folder.write_json(path / PLAN, about)
        counts = {kind: list(todo.values()).count(kind) for kind in ("finished", "started")}
        notes = "".join(f", {n} {kind} before" for kind, n in counts.items() if n)
        say(f"compare {path}: {len(todo)} runs{notes}")
        _train(plan, path, todo, backend, progress=progress, say=say)
        for run in plan.runs(path):
            if state(run, build) != "finished":
                raise ChildProcessError(f"{run.path} ended without a result: see {run.log}")
        found = collect(plan, path, backend.at_once)
        _write(path, found, other)
    return path, found


def written(
    found: ComparisonFile, *, runs: str | Path = "runs", name: str | None = None, beside: str | Path | None = None
) -> Path:
    """Write a comparison of finished runs into a new folder, as `compare` does; the folder.

    Raises FileExistsError for a ``name`` that is taken, and for ``beside`` as `compare`.
    """
    other = _beside(beside)
    path = folder.create(Path(runs) / name if name else folder.free_name(runs, NAME))
    _write(path, found, other)
    return path


def _beside(path: str | Path | None) -> ComparisonFile | None:
    """The earlier comparison that the Pareto plot also shows."""
    if path is None:
        return None
    if not (Path(path) / RESULT).is_file():
        raise FileNotFoundError(f"{path} has no {RESULT}: give --beside the folder of a finished comparison")
    return migrate.read(Path(path) / RESULT, ComparisonFile)


def _write(path: Path, found: ComparisonFile, other: ComparisonFile | None) -> None:
    folder.write_json(path / RESULT, found.to_json())
    folder.write_atomic(path / TABLE, markdown(found))
    folder.write_atomic(path / TABLE_CSV, as_csv(found))
    folder.write_atomic(path / TABLE_TEX, as_tex(found))
    draw(path, found)
    draw_pareto(path, [other, found] if other else [found])


def _stage(run: Run, build: Build) -> str:
    """`state`, but "started" for a run whose evaluation is by an earlier version of the user's attacks."""
    found, given = state(run, build), run.job.evaluate
    # Several threats bring attacks of their own.
    attacks = [] if given.threats else recipe_attacks(given, evaluated_under(run.job))
    return "started" if found == "finished" and attacks and outdated(run.path, attacks) else found


def _train(
    plan: Plan, path: Path, todo: dict[Path, str], backend: Backend, *, progress: bool, say: Say
) -> None:  # fmt: skip
    waiting = deque(run for run in plan.runs(path) if todo[run.path] != "finished")
    again = "finished runs are kept, and repeating the command resumes"
    done = len(todo) - len(waiting)
    with bar(len(todo), "compare", enabled=progress) as advance:
        advance(done, "")

        running: list[Task] = []

        def take() -> Task | None:
            if not waiting:
                return None
            run, chosen = waiting[0], {}
            # On one machine "auto" is measured by one run; the next waits until it has chosen.
            if isinstance(backend, Local) and todo[run.path] != "started" and asked(run):
                chosen = choice(plan, path, run)
                alike = {str(each.path) for each in plan.runs(path) if asked(each) == asked(run)}
                if not chosen and any(str(task.run) in alike for task in running):
                    return None
            waiting.popleft()
            return _task(plan, run, todo[run.path], backend, chosen)

        def changed(tasks: list[Task]) -> None:
            running[:] = tasks
            advance(0, ", ".join(task.run.name for task in tasks))

        def ended(task: Task, status: int, seconds: float) -> None:
            nonlocal done
            if status:
                raise ChildProcessError(f"{reason(task, status)}; {again}")
            done += 1
            say(f"{done:>3} of {len(todo)}  {task.run.name}  {seconds:.0f} s")
            advance(1, "")

        drive(
            backend, take, ended, changed=changed,
            interrupted=lambda: f"interrupted with {done} of {len(todo)} runs finished: {again}",
        )  # fmt: skip


def without(overrides: Sequence[str], names: Container[str]) -> Iterator[str]:
    """The words without the options of some settings, such as train.precision, and their values."""
    dropped = False
    for word in overrides:
        if word.startswith("--"):
            dropped = word[2:].partition("=")[0].replace("-", "_") in names
        if not dropped:
            yield word


def _task(plan: Plan, run: Run, stage: str, backend: Backend, chosen: dict[str, str]) -> Task:
    threads = backend.threads()
    if threads is not None and run.job.train.threads is None:
        chosen = {**chosen, "train.threads": str(threads)}
    overrides = [*without(plan.overrides, chosen), *(w for name in chosen for w in (f"--{name}", chosen[name]))]
    return train_task(
        run.path, run.log, run.given, run.job.train.seed, resume=stage == "started", overrides=overrides
    )  # fmt: skip
