"""Several methods on the same data, split, network and epochs (or time), once per seed, in one table.

Each training is a process of its own, so that its memory and its time are its own. What is finished stays: the same
command again reuses finished runs and resumes started ones.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, relabelled, show, spell
from atent.experiments import migrate
from atent.experiments.comparison import INTERVAL, accuracy, caveat, draw, draw_pareto, markdown, measure, winner
from atent.experiments.pipeline import Job, Say, threat_of
from atent.experiments.results import COMPARISON_VERSION
from atent.progress import bar
from atent.runs.checkpoint import STATE
from atent.threads import cores, wait_passively
from atent.threat import Threat
from atent.train.interrupt import Interrupted, stop_requests

PLAN = "plan.json"
RESULT = "comparison.json"
TABLE = "comparison.md"
NAME = "compare"


# Where and how fast a run is made, not what it is.
_ASIDE = (
    "recipe", "data.root", "train.threads", "train.save_minutes", "train.precision", "train.channels_last",
    "evaluate.batch",
)  # fmt: skip

Build = Callable[[dict[str, Any], str | None], Job]
"""build(tables, recipe): the job that a saved configuration describes."""


# ---- what is compared ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one command compares."""

    jobs: dict[str, Job]
    """Each recipe's job, overrides applied, by the recipe as it was given (a name or a path)."""
    seeds: tuple[int, ...]
    """Every job is trained once with each."""
    overrides: tuple[str, ...] = ()
    """The words that gave the overrides, to be handed on."""
    command: str = ""
    """The command line, for the record."""

    def runs(self, path: Path) -> list[Run]:
        """All runs, in the order in which they are trained: seed by seed."""
        return [
            Run(given, _seeded(job, seed), path / f"{job.recipe}-seed{seed}")
            for seed in self.seeds
            for given, job in self.jobs.items()
        ]


@dataclass(frozen=True)
class Run:
    """One training of a comparison."""

    given: str
    """The recipe as it was given."""
    job: Job
    path: Path

    @property
    def log(self) -> Path:
        """Where its output goes: beside the run folder."""
        return self.path.with_name(self.path.name + ".log")


def agree(jobs: Mapping[str, Job]) -> None:
    """ValueError, in one line with the mend, unless the jobs may be compared.

    Data settings (root and augment aside), network, epochs (or minutes), batch size, and the judgement's attacks,
    threat, number of images and seed must be the same.
    """
    (first, one), *others = jobs.items()
    for name, other in others:
        a, b = _common(one), _common(other)
        differ = {key: (a[key], b[key]) for key in a if a[key] != b[key]}
        judged = ("evaluate.norm", "evaluate.eps")
        if not any(key in differ for key in judged) and _attacks(one) != _attacks(other):
            differ["evaluate.attacks"] = (one.evaluate.attacks, other.evaluate.attacks)
        if differ:
            told = ", ".join(f"{key} ({_word(x)} and {_word(y)})" for key, (x, y) in differ.items())
            mend = " ".join(f"--{key} {_word(y if x is None else x)}" for key, (x, y) in differ.items())
            raise ValueError(f"recipes {first} and {name} differ in {told}: give both the same, such as by {mend}")


def _common(job: Job) -> dict[str, Any]:
    """What the jobs of a comparison must share, by its option; the attacks are compared by `_attacks`."""
    threat = _judged_by(job)
    return {
        **{f"data.{k}": v for k, v in asdict(job.data).items() if k not in ("root", "augment")},
        **{f"model.{k}": v for k, v in asdict(job.model).items()},
        # By the clock, epochs are only what a schedule is written for.
        "train.epochs": job.train.epochs if job.train.minutes is None else None,
        "train.minutes": job.train.minutes,
        "train.batch_size": job.train.batch_size,
        "evaluate.norm": threat and threat.norm,
        "evaluate.eps": threat and threat.eps,
        "evaluate.limit": job.evaluate.limit,
        "evaluate.seed": job.evaluate.seed,
    }


def _judged_by(job: Job) -> Threat | None:
    own = getattr(job.method, "threat", None)
    # The box is the data's, which is not loaded yet; a method that has a threat must have that box.
    return threat_of(own, own.box if own else (0.0, 1.0), job.evaluate)


def _attacks(job: Job) -> list[str]:
    """The attacks in one spelling, whatever their order."""
    threat = _judged_by(job)
    return sorted(spell(parse(text, threat, ATTACKS), threat=True) for text in job.evaluate.attacks)


def _word(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, tuple | list):
        return shlex.join(map(str, value))
    return "none" if value is None else shlex.quote(str(value))


def _seeded(job: Job, seed: int) -> Job:
    return replace(job, train=replace(job.train, seed=seed))


# ---- the folder ------------------------------------------------------------------------------------------


def place(runs: str | Path, name: str | None, plan: Plan, build: Build) -> Path:
    """The folder to work in: a free one, or that of an earlier comparison that ``plan`` goes on with.

    Without a name: that of the same comparison, else the first free one of compare, compare-2 ... A folder that is
    named may be widened by recipes and seeds. ValueError, in one line, where it holds anything else.
    """
    free = folder.free_name(runs, name or NAME)
    if name is None:
        own = re.compile(rf"{NAME}(-\d+)?")
        for path in sorted(p.parent for p in Path(runs).glob(f"{NAME}*/{PLAN}")):
            saved = folder.read_json(path / PLAN)
            same = saved["seeds"] == list(plan.seeds) and set(saved["jobs"]) == {j.recipe for j in plan.jobs.values()}
            if own.fullmatch(path.name) and same and not _plan_differs(saved, plan, build):
                return path
        return free
    path = Path(runs) / name
    if path == free:
        return path
    if not (path / PLAN).is_file():
        raise FileExistsError(f"{path} exists and holds no comparison: choose another --name")
    saved = folder.read_json(path / PLAN)
    differs = _plan_differs(saved, plan, build)
    if differs:
        raise ValueError(f"{path} holds a comparison with other settings ({differs}): choose another --name")
    missing = [r for r in saved["jobs"] if r not in {j.recipe for j in plan.jobs.values()}]
    missing += [f"seed {k}" for k in saved["seeds"] if k not in plan.seeds]
    if missing:
        raise ValueError(
            f"{path} holds a comparison with {', '.join(missing)}, which this command leaves out:"
            " choose another --name, or add what is missing"
        )
    return path


def _plan_differs(saved: dict[str, Any], plan: Plan, build: Build) -> str:
    for job in plan.jobs.values():
        if job.recipe in saved["jobs"]:
            differs = _differs(saved["jobs"][job.recipe], _seeded(job, saved["seeds"][0]), build)
            if differs:
                return f"{job.recipe}: {differs}"
    return ""


def _differs(saved: dict[str, Any], job: Job, build: Build, aside: tuple[str, ...] = ()) -> str:
    """The first setting in which a saved configuration differs from ``job``: "train.epochs 1, not 2"; "" for none.

    The sections ``aside`` do not count.
    """
    sections = ("data", "model", "method", "optimizer", "schedule", "train", "evaluate")
    try:
        old = _flat(build({s: folder.completed(saved)[s] for s in sections}, saved["recipe"]))
    except (KeyError, ValueError) as error:
        return f"not to be read: {str(error).splitlines()[0]}"
    new = _flat(job)
    for key in [*new, *(k for k in old if k not in new)]:
        if key.partition(".")[0] not in aside and old.get(key) != new.get(key):
            return f"{key} {_word(old.get(key))}, not {_word(new.get(key))}"
    return ""


def _flat(job: Job) -> dict[str, Any]:
    """A job's settings by their options, as JSON has them, without those that only say where it runs."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else key)
        elif path not in _ASIDE:
            yield path, value

    plain = json.loads(folder.dumps(job.sections()))
    # The method's name comes first: where it differs, so do its fields.
    return {"method.name": plain["method"]["name"], **dict(walk(plain, ""))}


def state(run: Run, build: Build, aside: tuple[str, ...] = ()) -> str:
    """new, started or finished; ValueError, in one line, where the folder holds something else.

    Settings of the sections ``aside`` may differ.
    """
    path = run.path
    if not path.exists():
        return "new"
    if not (path / folder.CONFIG).is_file():
        # A kill may come before the configuration is written; only hidden temporary files are there then.
        if path.is_dir() and all(p.name.startswith(".") for p in path.iterdir()):
            return "new"
        raise FileExistsError(f"{path} exists and is no run folder: choose another --name")
    differs = _differs(folder.read_json(path / folder.CONFIG), run.job, build, aside)
    if differs:
        raise ValueError(f"{path} was trained with other settings ({differs}): choose another --name")
    if (path / folder.EVALUATION).is_file():
        return "finished"
    return "started" if (path / folder.LAST / STATE).is_file() else "new"


@contextmanager
def _alone(path: Path) -> Iterator[tuple[int, ...]]:
    """Hold the folder against a second command; yields what the children inherit, since orphans must hold it too."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield ()
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another comparison, or a run of one that was killed, is at work in {path}") from None
        yield (handle,)
    finally:
        os.close(handle)


# ---- the runs --------------------------------------------------------------------------------------------


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
) -> tuple[Path, dict[str, Any]]:
    """Train what is not trained yet, ``at_once`` runs at a time, and write the table; its folder and content.

    ``beside`` is the folder of an earlier comparison that the Pareto plot shows as well: equal epochs, say, beside
    equal time.

    Raises ValueError and FileExistsError of one line before anything is trained; ChildProcessError where a run fails
    and Interrupted after Ctrl-C: the other runs are stopped, with their state saved, and the same command goes on.
    """
    agree(plan.jobs)
    other = None
    if beside is not None:
        if not (Path(beside) / RESULT).is_file():
            raise FileNotFoundError(f"{beside} holds no {RESULT}: give --beside the folder of a finished comparison")
        other = migrate.comparison(folder.read_json(Path(beside) / RESULT))
    path = place(runs, name, plan, build)
    path.mkdir(parents=True, exist_ok=True)
    with _alone(path) as inherited:
        todo = {run.path: state(run, build) for run in plan.runs(path)}
        jobs = {job.recipe: _seeded(job, plan.seeds[0]).sections() for job in plan.jobs.values()}
        folder.write_json(path / PLAN, {"command": plan.command, "seeds": plan.seeds, "jobs": jobs})
        counts = {kind: list(todo.values()).count(kind) for kind in ("finished", "started")}
        notes = "".join(f", {n} {kind} before" for kind, n in counts.items() if n)
        say(f"compare {path}: {len(todo)} runs{notes}")
        _train(plan, path, todo, at_once, inherited, progress=progress, say=say)
        for run in plan.runs(path):
            if state(run, build) != "finished":
                raise ChildProcessError(f"{run.path} ended without a result: see {run.log}")
        found = collect(plan, path, at_once)
        folder.write_json(path / RESULT, found)
        folder.write_atomic(path / TABLE, markdown(found))
        draw(path, found)
        draw_pareto(path, [other, found] if other else [found])
    return path, found


def _train(
    plan: Plan, path: Path, todo: dict[Path, str], at_once: int, inherited: tuple[int, ...], *, progress: bool, say: Say
) -> None:
    waiting = deque(run for run in plan.runs(path) if todo[run.path] != "finished")
    running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
    again = "finished runs stay as they are, and the same command again goes on"
    done = len(todo) - len(waiting)
    with stop_requests() as asked, bar(len(todo), "compare", enabled=progress) as advance:
        advance(done, "")
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.popleft()
                    running[_start(plan, run, todo[run.path], at_once, inherited)] = run, time.perf_counter()
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


def _start(
    plan: Plan, run: Run, stage: str, at_once: int, inherited: tuple[int, ...]
) -> subprocess.Popen[bytes]:  # fmt: skip
    words = [sys.executable, "-m", "atent", "train"]
    if stage == "started":
        words += ["--resume", str(run.path), "--quiet"]
    else:
        # Equal settings and no state to go on from: the same training begins anew.
        if run.path.exists():
            shutil.rmtree(run.path)
        words += [run.given, "--runs", str(run.path.parent), "--name", run.path.name]
        words += ["--train.seed", str(run.job.train.seed), "--no_baseline", "--quiet", *plan.overrides]
        if at_once > 1 and run.job.train.threads is None:
            words += ["--train.threads", str(max(1, cores() // at_once))]
    environment = dict(os.environ)
    wait_passively(environment)
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited, env=environment
        )


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


# ---- the result ----------------------------------------------------------------------------------------


def collect(plan: Plan, path: Path, at_once: int = 1) -> dict[str, Any]:
    """The content of comparison.json, from finished runs."""
    made: dict[str, list[dict[str, Any]]] = {given: [] for given in plan.jobs}
    evaluation: dict[str, Any] = {}
    for run in plan.runs(path):
        evaluation = migrate.evaluation(folder.read_json(run.path / folder.EVALUATION))
        # Runs of an earlier version, which are used again, may have labels that said less.
        evaluation["attacks"] = relabelled(evaluation["attacks"])
        made[run.given].append(_of_run(run, evaluation))
    attacks = list(evaluation["attacks"])
    rows: list[dict[str, Any]] = []
    for given, job in plan.jobs.items():
        seeds, threat = made[given], getattr(job.method, "threat", None)
        memory, last = [s["memory_mb"] for s in seeds], [s["last"] for s in seeds]
        rows.append(
            {
                "recipe": job.recipe,
                "method": job.title,
                "threat": threat and threat.plain(),
                "natural": accuracy([s["natural"] for s in seeds]),
                "attacks": {a: accuracy([s["attacks"][a] for s in seeds]) for a in attacks},
                "worst": accuracy([s["worst"] for s in seeds]),
                "last": None if None in last else accuracy(last),
                "seconds_per_epoch": measure([s["seconds_per_epoch"] for s in seeds]),
                "memory_mb": None if None in memory else measure(memory),
                "best_epoch": measure([s["best_epoch"] for s in seeds]),
                "passes": measure([s["passes"] for s in seeds]),
                "minutes": measure([s["minutes"] for s in seeds]),
                "seeds": seeds,
            }
        )
    columns = {"natural": [r["natural"] for r in rows], "worst": [r["worst"] for r in rows]}
    best = {key: winner(cells) for key, cells in columns.items()}
    beaten = {a: winner([r["attacks"][a] for r in rows]) for a in attacks}
    for i, row in enumerate(rows):
        row["best"] = {
            **{key: best[key] == i for key in columns},
            "attacks": {a: beaten[a] == i for a in attacks},
        }
    job = next(iter(plan.jobs.values()))
    device = rows[0]["seeds"][0]["provenance"]["device"]
    content = {
        "schema_version": COMPARISON_VERSION,
        "command": plan.command,
        "data": evaluation["data"],
        "model": job.model.name,
        "epochs": job.train.epochs,
        "minutes": job.train.minutes,
        "batch_size": job.train.batch_size,
        "seeds": plan.seeds,
        "threats": list(dict.fromkeys(show(Threat(**a["threat"])) for a in evaluation["attacks"].values())),
        "at_once": at_once,
        "interval": INTERVAL if len(plan.seeds) > 1 else "exact binomial, 95 %; one seed: no standard deviation",
        "caveat": caveat(evaluation["attacks"]),
        "rows": rows,
        "provenance": folder.provenance(device=device),
    }
    # Plain from here on, so that what is printed is what is stored.
    return json.loads(json.dumps(content, default=asdict, allow_nan=False))


def _of_run(run: Run, evaluation: dict[str, Any]) -> dict[str, Any]:
    rows = folder.read_jsonl(run.path / folder.METRICS)
    # Where the last epoch is the best there is one judgement of both; none is asked for without evaluate.last.
    last = evaluation if evaluation["epoch"] == rows[-1]["epoch"] else evaluation.get("last", {})
    last = last if run.job.evaluate.last else {}
    memory = [row["memory_mb"] for row in rows if row.get("memory_mb") is not None]
    return {
        "seed": run.job.train.seed,
        "run": run.path.name,
        "natural": evaluation["natural"],
        "attacks": {name: attack["robust"] for name, attack in evaluation["attacks"].items()},
        "worst": evaluation["worst"],
        "last": last.get("worst"),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
        "memory_mb": max(memory, default=None),
        "best_epoch": evaluation["epoch"],
        "passes": rows[-1].get("passes", rows[-1]["epoch"]),
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "provenance": evaluation["provenance"],
    }
