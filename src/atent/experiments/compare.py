"""Several methods on the same data, split, network and epochs (or time), once per seed, in one table.

Each training is a process of its own, so that its memory and its time are its own. What is finished stays: the same
command again reuses finished runs and resumes started ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from atent import runs as folder
from atent import trust
from atent.experiments import migrate
from atent.experiments.collect import collect
from atent.experiments.comparison import draw, draw_pareto, markdown
from atent.experiments.pipeline import Say
from atent.experiments.plan import NAME, PLAN, Build, Plan, Run, agree, place, seeded, state
from atent.experiments.results import ComparisonFile
from atent.messages import first_only
from atent.progress import bar
from atent.runs.locks import InUse, held, stealing
from atent.signals import followed, resumed_by
from atent.threads import cores, wait_passively
from atent.train.interrupt import Interrupted, stop_requests

RESULT = "comparison.json"
TABLE = "comparison.md"
_SOURCE = Path(__file__).resolve().parents[2]


def compare(
    plan: Plan,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    at_once: int = 1,
    build: Build,
    beside: str | Path | None = None,
    progress: bool = True,
    say: Say = lambda line: None,
) -> tuple[Path, ComparisonFile]:
    """Train what is not trained yet, ``at_once`` runs at a time, and write the table; its folder and content.

    ``beside`` is the folder of an earlier comparison that the Pareto plot shows as well: equal epochs, say, beside
    equal time.

    Raises ValueError (InUse while another process is at work there) and FileExistsError of one line before anything is
    trained; ChildProcessError where a run fails and Interrupted after a signal of `atent.signals`: the other runs are
    stopped, with their state saved, and the same command resumes. The runs end with the process that started them.
    """
    agree(plan.jobs)
    other = _beside(beside)
    path = place(runs, name, plan, build)
    with resumed_by("the same command resumes"), held(path / folder.LOCK, "compare"):
        if place(runs, name, plan, build) != path:
            raise InUse(f"{path} was taken by another comparison meanwhile: give the same command again")
        # Runs of a comparison that was killed save and end by themselves; what they are is known after that.
        for run in plan.runs(path):
            if run.path.is_dir():
                with held(run.path / folder.LOCK, "compare", wait=first_only(say)):
                    pass
        todo = {run.path: state(run, build) for run in plan.runs(path)}
        jobs = {job.recipe: seeded(job, plan.seeds[0]).sections() for job in plan.jobs.values()}
        folder.write_json(path / PLAN, {"command": plan.command, "seeds": plan.seeds, "jobs": jobs})
        counts = {kind: list(todo.values()).count(kind) for kind in ("finished", "started")}
        notes = "".join(f", {n} {kind} before" for kind, n in counts.items() if n)
        say(f"compare {path}: {len(todo)} runs{notes}")
        _train(plan, path, todo, at_once, progress=progress, say=say)
        for run in plan.runs(path):
            if state(run, build) != "finished":
                raise ChildProcessError(f"{run.path} ended without a result: see {run.log}")
        found = collect(plan, path, at_once)
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
    """The earlier comparison that the Pareto plot shows as well."""
    if path is None:
        return None
    if not (Path(path) / RESULT).is_file():
        raise FileNotFoundError(f"{path} holds no {RESULT}: give --beside the folder of a finished comparison")
    return migrate.read(Path(path) / RESULT, ComparisonFile)


def _write(path: Path, found: ComparisonFile, other: ComparisonFile | None) -> None:
    folder.write_json(path / RESULT, found.to_json())
    folder.write_atomic(path / TABLE, markdown(found))
    draw(path, found)
    draw_pareto(path, [other, found] if other else [found])


def _train(
    plan: Plan, path: Path, todo: dict[Path, str], at_once: int, *, progress: bool, say: Say
) -> None:  # fmt: skip
    waiting = deque(run for run in plan.runs(path) if todo[run.path] != "finished")
    running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
    again = "finished runs stay as they are, and the same command resumes"
    done = len(todo) - len(waiting)
    with stop_requests() as asked, bar(len(todo), "compare", enabled=progress) as advance:
        advance(done, "")
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.popleft()
                    running[_start(plan, run, todo[run.path], at_once)] = run, time.perf_counter()
                    advance(0, ", ".join(r.path.name for r, _ in running.values()))
                time.sleep(0.05)
                if asked():
                    raise Interrupted(f"interrupted with {done} of {len(todo)} runs finished: {again}")
                for child in [c for c in running if c.poll() is not None]:
                    run, begun = running.pop(child)
                    if child.returncode and not asked():
                        raise ChildProcessError(f"{_failure(run, child.returncode)}; {again}")
                    done += not child.returncode
                    say(f"{done:>3} of {len(todo)}  {run.path.name}  {time.perf_counter() - begun:.0f} s")
                    advance(1, ", ".join(r.path.name for r, _ in running.values()))
        finally:
            _stop(list(running))


def _start(plan: Plan, run: Run, stage: str, at_once: int) -> subprocess.Popen[bytes]:
    # A file of the current folder must not replace a module of the library.
    words = [sys.executable, *(["-P"] if Path.cwd() != _SOURCE else []), "-m", "atent", "train", *trust.options()]
    if stage == "started":
        words += ["--resume", str(run.path), "--quiet"]
    else:
        # Equal settings and no state to resume from: the same training begins anew.
        if run.path.exists():
            with held(run.path / folder.LOCK, "compare"):
                folder.clear(run.path)
        words += [run.given, "--runs", str(run.path.parent), "--name", run.path.name]
        words += ["--train.seed", str(run.job.train.seed), "--no_baseline", "--quiet", *plan.overrides]
        if at_once > 1 and run.job.train.threads is None:
            words += ["--train.threads", str(max(1, cores() // at_once))]
    words += ["--steal-lock"] if stealing() else []
    environment = followed(dict(os.environ))
    wait_passively(environment)
    with open(run.log, "ab") as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask each to save and end, and wait; a second Ctrl-C ends them at once."""
    try:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.kill()
            child.wait()


def _failure(run: Run, status: int) -> str:
    """What a failed run said last, and where to read the rest."""
    if status < 0:
        return f"{run.path.name} was ended by {signal.Signals(-status).name} (see {run.log})"
    lines = [line.strip() for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{run.path.name} failed: {lines[-1].removeprefix('atent: ') if lines else 'no word'} (see {run.log})"
