"""A queue of long trainings and measurements that runs for days at low priority on a CPU.

    python benchmarks/campaign.py run            # works until the queue is empty; repeating the command resumes it
    python benchmarks/campaign.py status         # done, running, core hours, expected end of each job
    python benchmarks/campaign.py pause          # saves what runs and waits; `resume` continues
    python benchmarks/campaign.py retry NAME     # a failed job is queued again

Jobs run in the order of the file (--jobs, default benchmarks/cifar.toml), each in a process of its own with one thread
and a low priority. A job sees the code of the commit that was checked out when it began, in a clone that later work
does not touch; a job that is interrupted, killed or paused resumes exactly. A failed job is recorded with its reason
and does not stop the others. The state lies in --state (default: $ATENT_CAMPAIGN, else ~/.local/state/atent/campaign):
`jobs/` holds a record per job, `logs/` what it printed, `runs/` its run folders, `code/` the clones; the loss of all of
it costs the jobs that are not finished, as those under --out count as done. A finished job writes --out/NAME/ at once
(see campaign_worker.py); campaign_evaluate.py evaluates the networks that are there, and campaign_tables.py writes
their tables.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

HERE = Path(__file__).resolve().parent
KINDS = ("train", "curves", "measure", "attack", "timing", "table", "command")
INTERRUPTED = 3
"""Exit status of a worker that saved its state and stopped."""
KILLS = 3
"""A job whose process is killed this often without finishing counts as failed."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One entry of the jobs file."""

    name: str
    kind: str
    hours: float = 0.0
    """Estimated core hours."""
    training: str = ""
    """Name of a training of the scale's tables, or of a recipe. Default: the job's name."""
    seed: int = 0
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of [train] on top of the scale's, such as channels_last; precision "auto" is measured at each start."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of other sections, on top of the scale's, such as the network; such a job's run has the job's name."""
    argv: tuple[str, ...] = ()
    """kind command: what follows `atent`; {out}, {runs} and {code} are its results, the runs, and its clone. The
    files of the folder {runs}/NAME, NAME the job's, count as results."""
    of: dict[str, Any] = field(default_factory=dict)
    """kind attack: the network, by the name of its run without the seed, the attack with norm and eps, and n. kind
    table: the arguments of `reproduce` (what, scale, seeds, only), and own, changes of single recipes."""


@dataclass(frozen=True)
class Queue:
    """The jobs file: a scale of `atent reproduce`, and jobs in order of priority."""

    scale: str
    jobs: tuple[Job, ...]


_TYPES: dict[str, Any] = {
    "name": str, "kind": str, "hours": (int, float), "training": str, "seed": int, "train": dict, "argv": list,
    "of": dict, "changes": dict,
}  # fmt: skip
_NAME = re.compile(r"\w[\w.-]*")


def read_queue(path: Path, kinds: Sequence[str] = KINDS) -> Queue:
    """The jobs of a TOML file; ValueError for whatever a campaign could not run."""
    from atent.paper.scales import SCALES

    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if content.get("scale") not in SCALES:
        raise ValueError(f"{path}: scale {content.get('scale')!r} is not known, use one of {', '.join(SCALES)}")
    if not content.get("job"):
        raise ValueError(f"{path} has no jobs: add [[job]] tables with a name and a kind")
    jobs = tuple(_job(path, row, content.get("train", {}), kinds) for row in content["job"])
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{path} has two jobs named {twice}: give each its own name")
    return Queue(content["scale"], jobs)


def _job(path: Path, row: dict[str, Any], common: dict[str, Any], kinds: Sequence[str]) -> Job:
    """One [[job]] table; ``common`` are the file's settings of [train]."""
    where = f"{path}, job {row.get('name')}"
    for key, value in row.items():
        if key not in _TYPES:
            raise ValueError(f"{where}: unknown field {key!r}, known are {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise ValueError(f"{where}: {key} {value!r} is of the wrong type")
    if not _NAME.fullmatch(row.get("name", "")):
        raise ValueError(f"{where}: a name is letters, digits, '_', '-' and '.', since files are called by it")
    if row.get("kind") not in kinds:
        raise ValueError(f"{where}: kind {row.get('kind')!r} is not known, use one of {', '.join(kinds)}")
    return Job(**{**row, "argv": tuple(row.get("argv", ())), "train": {**common, **row.get("train", {})}})


def asked_of(job: Job) -> dict[str, Any]:
    """What a record keeps of a job."""
    asked = {key: getattr(job, key) for key in ("kind", "seed", "train", "changes", "of")}
    return asked | {"argv": list(job.argv), "training": job.training or job.name}


def run_name(job: Job) -> str:
    """The folder of a training's run, without the seed."""
    return job.name if job.changes else job.training or job.name


class State:
    """The folder that remembers the campaign; one JSON file per job, written atomically by the parent alone."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in ("jobs", "logs", "code", "runs"):
            (place / name).mkdir(parents=True, exist_ok=True)

    def record(self, name: str) -> Record:
        """What is known of a job."""
        path = self.place / "jobs" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {"name": name, "status": "queued", "segments": []}

    def write(self, record: Record) -> None:
        """Store a record."""
        write(self.place / "jobs" / f"{record['name']}.json", record)

    def jobs(self) -> list[Path]:
        """The records' files."""
        return sorted((self.place / "jobs").glob("*.json"))

    def beat_file(self, name: str) -> Path:
        """Where the worker of a job writes its heartbeat: process, CPU seconds, hardware of the present segment."""
        return self.place / "jobs" / f"{name}.beat"

    def log(self, name: str) -> Path:
        """What a job printed."""
        return self.place / "logs" / f"{name}.log"

    @property
    def flag(self) -> Path:
        """Exists while the campaign is paused."""
        return self.place / "paused"

    def settle(self, record: Record, status: str, **more: Any) -> Record:
        """The record with its last segment closed and stored."""
        beat = self.beat_file(record["name"])
        if beat.is_file():
            with contextlib.suppress(ValueError):  # a kill within the first write
                record["segments"].append(json.loads(beat.read_text()))
            beat.unlink()
        record |= {"status": status, "ended": now(), **more}
        self.write(record)
        return record


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def now() -> str:
    """UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def core_hours(record: Record) -> float:
    """CPU time of all segments of a job."""
    return sum(segment["core_seconds"] for segment in record["segments"]) / 3600


# ---- the code of a job -----------------------------------------------------------------------------------


def git(*words: str, at: Path) -> str:
    """Output of git; ValueError with its own last line where it fails."""
    done = subprocess.run(["git", "-C", str(at), *words], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def pinned(state: State, commit: str) -> Path:
    """A clone at that commit, made if it is not there."""
    place = state.place / "code" / commit[:12]
    if not place.exists():
        fresh = place.with_name(f"{place.name}.{os.getpid()}")
        git("clone", "--quiet", "--no-checkout", str(HERE.parent), str(fresh), at=HERE)
        git("checkout", "--quiet", "--detach", commit, at=fresh)
        os.replace(fresh, place)
    return place


# ---- the queue -------------------------------------------------------------------------------------------


@dataclass
class Campaign:
    """The parent: starts workers in order, watches them, and keeps their records."""

    queue: Queue
    state: State
    out: Path
    workers: int = 1
    threads: int = 1
    nice: int = 10
    in_place: bool = False
    """Jobs use this checkout's files as they are, not a clone at its commit."""
    poll: float = 1.0
    running: dict[str, tuple[subprocess.Popen[bytes], Record]] = field(default_factory=dict)
    stop: bool = False

    def run(self) -> None:
        """Work until every job is done or failed, or a signal asks to stop."""
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, self._ask)
        with alone(self.state):
            self._adopt()
            while True:
                self._reap()
                paused = self.state.flag.exists()
                if (self.stop or paused) and self.running:
                    self._end_workers()
                if self.stop:
                    return
                waiting = [] if paused else self._waiting()
                if not (waiting or self.running or paused):
                    return
                while waiting and len(self.running) < self.workers:
                    self._start(waiting.pop(0))
                time.sleep(self.poll)

    def _adopt(self) -> None:
        """Jobs whose results are under ``out`` count as done in a state that has not finished them.

        The state may be lost, its runner may be killed between the results and their record, or another queue with
        the same ``out`` may finish a job that this one began.
        """
        for job in self.queue.jobs:
            reported = self.out / job.name / "job.json"
            if self.state.record(job.name)["status"] in ("done", "failed") or not reported.is_file():
                continue
            made, asked = json.loads(reported.read_text()), asked_of(job)
            same = all(made.get(key) == asked[key] for key in ("kind", "seed", "training"))
            if not same or made.get("scale") != self.queue.scale:
                raise ValueError(f"{reported} is of another job: give another --out, or rename the job {job.name}")
            kept = ("segments", "commit", "scale", "began", "ended")
            self.state.write({"name": job.name, "status": "done", "job": asked} | {key: made[key] for key in kept})
            run = self.state.place / "runs" / self.queue.scale / f"{run_name(job)}-seed{job.seed}"
            if job.kind in ("train", "curves"):
                shutil.rmtree(run, ignore_errors=True)  # what this queue began of it has no final weights
                shutil.copytree(reported.parent, run)
            print(f"{now()}  found  {job.name} in {self.out}", flush=True)

    def _ask(self, *_: Any) -> None:
        self.stop = True

    def _waiting(self) -> list[Job]:
        """Jobs that are neither finished nor running, in order; those that a killed parent left running among them."""
        return [
            job
            for job in self.queue.jobs
            if job.name not in self.running and self.state.record(job.name)["status"] not in ("done", "failed")
        ]

    def _start(self, job: Job) -> None:
        record = self.state.record(job.name)
        if record["status"] == "running":
            record = self.state.settle(record, "interrupted")
        asked = asked_of(job)
        if "commit" not in record:
            commit = git("rev-parse", "HEAD", at=HERE)
            record |= {"commit": commit, "scale": self.queue.scale, "began": now(), "kills": 0, "job": asked}
        elif any(record["job"].get(key, value) != value for key, value in asked.items()):
            print(f"{now()}  note   {job.name} keeps the settings with which it began", flush=True)
        record.pop("ended", None)
        try:
            code = HERE.parent if self.in_place else pinned(self.state, record["commit"])
        except ValueError as error:
            self.state.settle(record, "failed", error=str(error))
            return
        self.state.write(record | {"status": "running"})
        with self.state.log(job.name).open("ab") as log:
            child = subprocess.Popen(
                [
                    sys.executable, str(code / "benchmarks" / "campaign_worker.py"), job.name, str(self.state.place),
                    str(self.out), str(self.nice),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(code), cwd=self.state.place,
                start_new_session=True,
            )  # fmt: skip
        self.running[job.name] = child, record
        print(f"{now()}  start  {job.name} (commit {record['commit'][:7]})", flush=True)

    def _environment(self, code: Path) -> dict[str, str]:
        # Threads that spin while they wait make two jobs on two cores ten times slower.
        calm = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {**os.environ, **calm, **threads, "PYTHONPATH": str(code / "src"), "PYTHONUNBUFFERED": "1"}

    def _reap(self, asked: bool = False) -> None:
        """Take note of workers that ended; ``asked``: they were asked to stop."""
        for name, (child, record) in list(self.running.items()):
            status = child.poll()
            if status is None:
                continue
            del self.running[name]
            record["kills"] = record["kills"] + 1 if status < 0 and not asked else 0
            if status == 0:
                self.state.settle(record, "done", error=None)
            elif asked or status == INTERRUPTED or (status < 0 and record["kills"] < KILLS):
                self.state.settle(record, "interrupted")
            else:
                reason = f"killed by signal {-status}, {KILLS} times" if status < 0 else last_line(self.state.log(name))
                self.state.settle(record, "failed", error=reason)
            print(f"{now()}  {record['status']:6} {name}  {core_hours(record):.2f} core hours", flush=True)

    def _end_workers(self) -> None:
        """Ask every worker to save and stop, and wait for it."""
        for child, _ in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        while self.running:
            self._reap(asked=True)
            time.sleep(0.05)


def last_line(path: Path) -> str:
    """The last line that says something, or a hint where there is none."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended without output"


@contextlib.contextmanager
def alone(state: State) -> Iterator[None]:
    """Hold the state against a second campaign; ValueError if there is one."""
    lock = FileLock(state.place / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"a campaign is running on {state.place}: see `status`, or give another --state") from None
    try:
        yield
    finally:
        lock.release()


def at_work(state: State) -> bool:
    """Whether a campaign holds the state."""
    try:
        with alone(state):
            return False
    except ValueError:
        return True


# ---- status ----------------------------------------------------------------------------------------------


def progress(state: State, record: Record) -> tuple[float, float] | None:
    """Epochs done and to do of a training; None for other jobs, and before its first step."""
    job = record.get("job", {})
    name = record["name"] if job.get("changes") else job.get("training")
    run = state.place / "runs" / record.get("scale", "") / f"{name}-seed{job.get('seed')}"
    if not (run / "config.json").is_file():
        return None
    rows = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return len(rows), json.loads((run / "config.json").read_text())["train"]["epochs"]


def table(queue: Queue, state: State, workers: int = 1) -> list[dict[str, Any]]:
    """A row per job: status, epochs, core hours spent and left, and the expected end if the campaign runs on."""
    rows, clock = [], 0.0
    pace = _pace(state, queue) * workers
    for job in queue.jobs:
        record = state.record(job.name)
        beat = state.beat_file(job.name)
        if beat.is_file():
            with contextlib.suppress(ValueError):
                record["segments"].append(json.loads(beat.read_text()))
        spent, done = core_hours(record), progress(state, record)
        left = max(0.0, job.hours - spent)
        if done and done[0]:
            left = spent * (done[1] - done[0]) / done[0]
        if record["status"] in ("done", "failed"):
            left = 0.0
        clock += left / pace
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=clock)
        rows.append(
            {
                "job": job.name, "status": record["status"],
                "epochs": f"{done[0]}/{done[1]}" if done else "", "spent": spent, "left": left,
                "end": record.get("ended", "") if not left else end.isoformat(timespec="minutes"),
                "error": record.get("error") or "",
            }
        )  # fmt: skip
    return rows


def _pace(state: State, queue: Queue) -> float:
    """Core hours per hour of a worker, from all segments so far; 1 before there are any."""
    segments = [s for job in queue.jobs for s in state.record(job.name)["segments"] if s["seconds"] > 60]
    spent = sum(s["core_seconds"] for s in segments)
    return spent / sum(s["seconds"] for s in segments) if spent else 1.0


def show(rows: Sequence[dict[str, Any]], state: State) -> None:
    """Print the table."""
    word = "paused" if state.flag.exists() else "running" if at_work(state) else "not running"
    print(f"campaign {state.place}: {word}")
    wide = max(len(row["job"]) for row in rows)
    print(
        f"{'job':{wide}}  {'status':11}  {'epochs':>7}  {'core h':>7}  {'left':>7}  expected end (UTC), if it runs on"
    )
    for row in rows:
        line = f"{row['job']:{wide}}  {row['status']:11}  {row['epochs']:>7}  {row['spent']:7.2f}  {row['left']:7.2f}"
        print(f"{line}  {row['error'][:160] or row['end']}")
    print(f"{sum(r['spent'] for r in rows):.1f} core hours spent, {sum(r['left'] for r in rows):.1f} to go")


# ---- the command line ------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 failed, 2 not understood."""
    parser = argparse.ArgumentParser(
        prog="campaign.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "status", "pause", "resume", "retry"))
    parser.add_argument("name", nargs="?", help="retry: the job")
    parser.add_argument("--jobs", type=Path, default=HERE / "cifar.toml", help="the jobs file")
    default = os.environ.get("ATENT_CAMPAIGN") or Path.home() / ".local" / "state" / "atent" / "campaign"
    parser.add_argument("--state", type=Path, default=Path(default), help="the folder of the state")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "cifar", help="folder for results")
    parser.add_argument("--workers", type=int, default=1, help="concurrent jobs (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a job (default 1)")
    parser.add_argument("--nice", type=int, default=10, help="niceness of the jobs, 0 to 19 (default 10)")
    parser.add_argument("--in-place", action="store_true", help="use this checkout as it is, not its commit")
    o = parser.parse_intermixed_args(argv)
    try:
        queue, state = read_queue(o.jobs), State(o.state.resolve())
        if o.command == "run":
            Campaign(queue, state, o.out.resolve(), o.workers, o.threads, o.nice, o.in_place).run()
        elif o.command == "status":
            show(table(queue, state, o.workers), state)
        elif o.command == "pause":
            pause(state)
        elif o.command == "resume":
            state.flag.unlink(missing_ok=True)
            print("resumed" if at_work(state) else "no campaign is running: start it by `run`")
        else:
            retry(queue, state, o.name)
    except (ValueError, OSError) as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    return 0


def pause(state: State, patience: float = 300.0) -> None:
    """Ask the campaign to save and wait, and return once nothing runs; ValueError if that takes too long."""
    state.flag.touch()
    until = time.monotonic() + patience
    while at_work(state) and any(json.loads(p.read_text())["status"] == "running" for p in state.jobs()):
        if time.monotonic() > until:
            raise ValueError(f"a job still runs after {patience:.0f} s: see {state.place / 'logs'}")
        time.sleep(0.5)
    print("paused")


def retry(queue: Queue, state: State, name: str | None) -> None:
    """Queue a failed job again, with the code of the present commit; its run folder is used again where it fits."""
    if name not in [job.name for job in queue.jobs]:
        raise ValueError(f"no job given: use one of {', '.join(job.name for job in queue.jobs)}")
    record = state.record(name)
    if record["status"] != "failed":
        raise ValueError(f"{name} is {record['status']}: only failed jobs are tried again")
    state.write({"name": name, "status": "queued", "segments": record["segments"]})
    print(f"{name} is queued again")


if __name__ == "__main__":
    sys.exit(main())
