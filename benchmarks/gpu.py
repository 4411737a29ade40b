"""A queue for a GPU that is available for minutes: checks, timings, then trainings, restartable at any point.

    python benchmarks/gpu.py plan                                   # what would be done, with estimates; starts nothing
    python benchmarks/gpu.py run --slice 9m --budget 40m --out DIR  # works, and ends by itself with all written
    python benchmarks/gpu.py pack DATA/cifar10 --to DIR             # data as parts, to be carried one or two at a time
    python benchmarks/gpu.py wheels --to DIR                        # Python packages that a bare machine may lack

Jobs run in the order of --jobs (default benchmarks/gpu.toml), each in a process of its own; what is done is skipped,
what failed is recorded with its reason and stops nothing. `run` takes a slice of time: before it is over the job at
work saves a checkpoint inside its epoch, and the next slice resumes it. --budget is the time of all slices together;
neither has a limit of its own. The state lies in --state; runs of an interrupted slice lose at most the minute since
their last checkpoint.

--take DIR brings parts: data (`pack`), the state of an earlier machine, and results. Sets that are incomplete wait for
their other parts, and jobs for their data. At the end of a slice --out gets report.json, the new results (JSON, weights
in float16) and, where it fits, the state, as parts of at most --part-size MiB; what does not fit follows after the next
slice, and report.json names it. Without --out nothing is packed.

Needed are torch, numpy, scipy, scikit-learn, safetensors, filelock, pydantic and matplotlib; --wheels DIR installs into
the state what `wheels` has fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_parts

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "numpy", "scipy", "sklearn", "safetensors", "filelock", "pydantic", "matplotlib")
CARRIED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
"""What `wheels` fetches: those of NEEDED that machines with torch often lack."""
LEAST = 15.0
"""Seconds below which no job is begun: a process with torch takes some to start."""
GRACE = 20.0
"""Seconds that a job may take to save beyond its time, before it is killed."""
RESTARTS = 5
"""How often in a slice a job that stopped before its time is begun again."""


@dataclass
class Options:
    """The command line."""

    command: str
    folder: Path | None
    jobs: Path
    state: Path
    out: Path | None
    device: str
    slice: float
    budget: float
    margin: float
    part_size: float
    most_files: int
    most_mib: float
    take: list[Path] = field(default_factory=list)
    wheels: Path | None = None
    to: Path = Path("parts")


def seconds(text: str) -> float:
    """A length of time, as 540, 30s, 9m or 1.5h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid duration: write 540, 30s, 9m or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


class Queue:
    """Works through the jobs within a slice."""

    def __init__(self, o: Options) -> None:
        import campaign

        self.campaign, self.o = campaign, o
        queue = campaign.read_queue(o.jobs, (*campaign.KINDS, "smoke", "speed"))
        self.scale, self.jobs = queue.scale, queue.jobs
        self.state = campaign.State(o.state)
        self.results = o.state / "out"
        self.stop = False
        self.begun = time.time()
        self.kept = self._read("slices.json", [])
        left = o.budget - sum(entry["seconds"] for entry in self.kept)
        self.end = self.begun + max(0.0, min(o.slice, left))

    def _read(self, name: str, default: Any) -> Any:
        path = self.o.state / name
        return json.loads(path.read_text()) if path.is_file() else default

    # ---- what is to do

    def data(self) -> Path:
        """Where the data lie: what was carried, or else as for every command."""
        carried = self.o.state / "data"
        return carried if carried.is_dir() else Path(os.environ.get("ATENT_DATA_ROOT", "data")).absolute()

    def estimate(self, job: Any) -> float:
        """Seconds that a job will still take: by its own epochs so far, by a timing of its kind, or by the file."""
        record = self.state.record(job.name)
        if record["status"] in ("done", "failed"):
            return 0.0
        done = self._epochs(job)
        if done and done[0]:
            run = self._run_folder(job.name if job.changes else job.training or job.name, job)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            each = sum(row["seconds"] for row in rows) / len(rows)
            return float(max(0, done[1] - done[0]) * each)
        timed = self.results / str(job.of.get("speed", "")) / "speed.json"
        if timed.is_file() and "epochs" in job.of:
            return float(json.loads(timed.read_text())["seconds_per_epoch"] * job.of["epochs"])
        return 3600.0 * float(job.hours)

    def _run_folder(self, name: str, job: Any) -> Path:
        return self.state.place / "runs" / self.scale / f"{name}-seed{job.seed}"

    def _epochs(self, job: Any) -> tuple[float, float] | None:
        """Epochs done and to do of a training."""
        if job.kind not in ("train", "curves"):
            return None
        known = {"name": job.name, "scale": self.scale, "job": self.campaign.asked_of(job)}
        found: tuple[float, float] | None = self.campaign.progress(self.state, known)
        return found

    def blocked(self, job: Any) -> str:
        """Why a job cannot begin now; "" if it can."""
        if job.kind in ("smoke", "speed"):
            return ""
        if job.kind in ("measure", "attack"):
            name = job.of.get("network") or job.training or job.name
            # Under its own name, or another job's, which then has no record of this one.
            trained = (self._run_folder(name, job) / "best.safetensors").is_file()
            return "" if trained and self._status(name) in ("done", "queued") else f"waits for the training {name}"
        from atent.experiments.recipe_files import read_recipe

        with contextlib.suppress(ValueError, OSError):  # the job itself reports it
            needed = read_recipe(job.training or job.name).get("data", {}).get("name", "digits")
            if needed in ("cifar10", "mnist", "fashion-mnist") and not (self.data() / needed).is_dir():
                return f"waits for the data {needed}"
        return ""

    def _status(self, name: str) -> str:
        return str(self.state.record(name)["status"])

    def plan(self) -> None:
        """Print what will be done."""
        left = self.end - time.time() - self.o.margin
        print(
            f"device {self.o.device}, slice {self.end - self.begun:.0f} s, saved {self.o.margin:.0f} s before its end"
        )
        wide, clock = max(len(job.name) for job in self.jobs), 0.0
        begins: set[str] = set()
        for job in self.jobs:
            record, estimate = self.state.record(job.name), self.estimate(job)
            why = self.blocked(job) if record["status"] not in ("done", "failed") else record.get("error") or ""
            follows = why.removeprefix("waits for the training ") in begins
            if not why or follows:
                clock += estimate
                begins.add(job.name)
            later = clock > left and record["status"] not in ("done", "failed") and (not why or follows)
            word = "ends in a later slice" if later else why
            print(f"{job.name:{wide}}  {record['status']:11}  {estimate:8.0f} s  {clock:8.0f} s  {word}", flush=True)

    # ---- work

    def run(self) -> None:
        """Until the slice is over or nothing is left."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        with self.campaign.alone(self.state):
            for job in self.jobs:
                self._finish(job)
            self._note()

    def _ask(self, *_: Any) -> None:
        self.stop = True

    def left(self) -> float:
        """Seconds of work."""
        return 0.0 if self.stop else self.end - self.o.margin - time.time()

    def _finish(self, job: Any) -> None:
        for _ in range(RESTARTS):
            if self._status(job.name) in ("done", "failed"):
                return
            why = self.blocked(job)
            # A timing cannot be cut: one that does not fit leaves its time to the jobs behind it.
            least = min(self.estimate(job), self.o.slice / 2) if job.kind == "speed" else 0.0
            if why or self.left() < max(min(LEAST, self.o.slice / 6), least):
                if why:
                    print(f"{job.name}: {why}", flush=True)
                return
            self._start(job)

    def _start(self, job: Any) -> None:
        """One process of the job, until it is done, or its time is over."""
        campaign, state = self.campaign, self.state
        record = state.record(job.name)
        if record["status"] == "running":
            record = state.settle(record, "interrupted")
        if "job" not in record:
            record |= {"commit": _commit(), "scale": self.scale, "began": campaign.now(), "kills": 0}
            record["job"] = campaign.asked_of(job)
        record.pop("ended", None)
        state.write(record | {"status": "running"})
        until = self.end - self.o.margin
        print(f"{campaign.now()}  start  {job.name}, {self.left():.0f} s left", flush=True)
        words = [job.name, str(state.place), str(self.results), str(until), self.o.device]
        with state.log(job.name).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_worker.py"), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment(), cwd=state.place, start_new_session=True,
            )  # fmt: skip
        status = self._wait(child, until)
        late = self.left() <= 0
        record["kills"] = record["kills"] + 1 if status < 0 and not late else 0
        if status == 0:
            state.settle(record, "done", error=None)
        elif status == campaign.INTERRUPTED or late or (status < 0 and record["kills"] < campaign.KILLS):
            state.settle(record, "interrupted")
        else:
            why = f"killed by signal {-status}" if status < 0 else campaign.last_line(state.log(job.name))
            state.settle(record, "failed", error=why)
        print(f"{campaign.now()}  {record['status']:11} {job.name}  {record.get('error') or ''}", flush=True)
        self._note()

    def _wait(self, child: subprocess.Popen[bytes], until: float) -> int:
        """The exit status; the child is asked to stop when it is late or the queue is, then killed."""
        grace, asked = min(GRACE, self.o.margin / 2), 0.0
        while child.poll() is None:
            now = time.time()
            if (self.stop or now > until + grace / 2) and not asked:
                asked = now
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            if asked and now > asked + grace:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.05)
        return int(child.returncode)

    def _environment(self) -> dict[str, str]:
        paths = [str(HERE.parent / "src"), str(self.o.state / "site"), os.environ.get("PYTHONPATH", "")]
        return {
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_WAIT_POLICY": "PASSIVE", **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1",
            "ATENT_DATA_ROOT": str(self.data()),
        }  # fmt: skip

    def _note(self) -> None:
        """Keep how long this slice has worked."""
        entry = {"began": self.begun, "seconds": round(time.time() - self.begun, 1), "device": self.o.device}
        self.campaign.write(self.o.state / "slices.json", [*self.kept, entry])

    # ---- what goes back

    def report(self) -> dict[str, Any]:
        """All that is known, without weights."""
        found: dict[str, Any] = {"slices": self._read("slices.json", []), "jobs": {}}
        for job in self.jobs:
            record = self.state.record(job.name)
            entry = {key: record.get(key) for key in ("status", "error", "commit", "segments")}
            for name in ("smoke.json", "speed.json"):
                path = self.results / job.name / name
                if path.is_file():
                    entry[name.removesuffix(".json")] = json.loads(path.read_text())
            more = {"epochs": self._epochs(job), "left": self.estimate(job), "log": self._tail(job.name)}
            found["jobs"][job.name] = entry | more
        return found

    def _tail(self, name: str) -> list[str]:
        path = self.state.log(name)
        return path.read_text(errors="replace").splitlines()[-30:] if path.is_file() else []

    def send(self) -> None:
        """report.json, new results and the state into --out, as far as its limits go."""
        out, box = self.o.out, self.o.state / "outbox"
        if out is None:
            return
        out.mkdir(parents=True, exist_ok=True)
        sent = self._read("sent.json", {})
        fresh = {p: _stamp(p) for p in _files(self.results) if sent.get(str(p.relative_to(self.results))) != _stamp(p)}
        if fresh:
            gpu_parts.pack("results", self.results, fresh, box, self.o.part_size)
            sent |= {str(path.relative_to(self.results)): stamp for path, stamp in fresh.items()}
            self.campaign.write(self.o.state / "sent.json", sent)
        room, files = self.o.most_mib - 1.0, self.o.most_files - 1
        waiting = sorted(box.glob("*.part"))
        for part in list(waiting):
            size = part.stat().st_size / gpu_parts.MIB
            if files and size <= room:
                shutil.move(part, out / part.name)
                waiting.remove(part)
                room, files = room - size, files - 1
        # The last part of a set may be a small one: one file less than would fit.
        chosen, left = self._state_files(min(room, files * self.o.part_size) - 0.1)
        if chosen:
            gpu_parts.pack("state", self.o.state, chosen, out, self.o.part_size)
        about = {"results that wait": [p.name for p in waiting], "state that stays": left}
        self.campaign.write(out / "report.json", self.report() | about)
        for what, names in about.items():
            if names:
                print(f"{what}: {', '.join(names)}", flush=True)

    def _state_files(self, room: float) -> tuple[list[Path], list[str]]:
        """The files that another machine resumes from, and the names of the runs that do not fit, the largest."""
        place = self.o.state
        chosen = [place / "slices.json", *self.state.jobs(), *self.results.rglob("*.json")]
        chosen, groups, left = [p for p in chosen if p.is_file()], [], []
        for run in sorted((place / "runs").glob("*/*")):
            if run.is_dir():
                groups.append((run, [p for p in _files(run) if not p.name.startswith("previous")]))
        groups.sort(key=lambda group: gpu_parts.size_of(group[1]))
        if gpu_parts.size_of(chosen) > room:
            return [], ["everything"]
        for run, files in groups:
            if gpu_parts.size_of([*chosen, *files]) <= room:
                chosen += files
            else:
                left.append(run.name)
        return chosen, left


def _files(folder: Path) -> list[Path]:
    """All files below a folder but temporary ones and locks."""
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".lock"]


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_mtime_ns, path.stat().st_size]


def _commit() -> str:
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


# ---- the command line ------------------------------------------------------------------------------------


def bring(o: Options) -> None:
    """Take the parts that were carried here, and the packages."""
    parts = o.state / "parts"
    gpu_parts.keep(o.take, parts)
    into = {"data": o.state / "data", "results": o.state / "out"}
    if not any((o.state / "jobs").glob("*.json")):
        into["state"] = o.state
    for line in gpu_parts.unpack(parts, into):
        print(line, flush=True)
    site = o.state / "site"
    if o.wheels is not None and not site.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
        subprocess.run([*pip, str(site), *map(str, sorted(o.wheels.glob("*.whl")))], check=True)
    sys.path[:0] = [str(HERE.parent / "src"), str(site)]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} cannot be imported here: carry them (`wheels`) and give --wheels DIR")


def fetch(o: Options) -> None:
    """Wheels of CARRIED in the versions that are installed here, for Python 3.12 on x86-64 Linux."""
    from importlib.metadata import version

    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 17)] + ["--platform=manylinux2014_x86_64"]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.12",
            "--implementation=cp", *platforms, "-d", str(o.to), *(f"{name}=={version(name)}" for name in CARRIED),
        ],
        check=True,
    )  # fmt: skip
    print("\n".join(sorted(path.name for path in o.to.glob("*.whl"))))


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("plan", "run", "pack", "wheels"))
    parser.add_argument("folder", nargs="?", type=Path, help="pack: a data set's folder, such as DATA/cifar10")
    parser.add_argument("--jobs", type=Path, default=HERE / "gpu.toml", help="the jobs file")
    default = Path(os.environ.get("ATENT_GPU") or Path.home() / ".local" / "state" / "atent" / "gpu")
    parser.add_argument("--state", type=Path, default=default, help="the folder of the state (default %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder for what goes back")
    parser.add_argument("--device", default="cuda", help="where to compute (default cuda)")
    parser.add_argument("--slice", type=seconds, default=540.0, help="time of this call (default 9m)")
    parser.add_argument("--budget", type=seconds, default=float("inf"), help="time of all calls (default: no limit)")
    parser.add_argument("--margin", type=seconds, default=20.0, help="left for saving and packing (default 20s)")
    parser.add_argument("--part-size", type=float, default=15.0, help="MiB of a part, at most (default 15)")
    parser.add_argument("--files", dest="most_files", type=int, default=8, help="files in --out, at most (default 8)")
    parser.add_argument("--mib", dest="most_mib", type=float, default=60.0, help="MiB in --out, at most (default 60)")
    parser.add_argument("--take", type=Path, nargs="*", default=[], help="parts, or folders of them, to take in")
    parser.add_argument("--wheels", type=Path, default=None, help="run: folder of the wheels to install")
    parser.add_argument("--to", type=Path, default=Path("parts"), help="pack, wheels: where to write")
    o = Options(**vars(parser.parse_intermixed_args(argv)))
    o.state = o.state.resolve()
    if not (o.part_size > 0 and o.most_mib > 1 and o.most_files > 1):
        parser.error("--part-size must be above 0, --mib above 1 and --files at least 2")
    if o.margin >= o.slice:
        parser.error(f"--margin {o.margin:g} s leaves no time of --slice {o.slice:g} s: give a longer slice")
    return o


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 failed, 2 not understood."""
    o = parse(argv)
    try:
        if o.command == "pack":
            if o.folder is None or not o.folder.is_dir():
                raise ValueError("pack needs a data set's folder, such as DATA/cifar10")
            for part in gpu_parts.pack("data", o.folder.parent, _files(o.folder), o.to, o.part_size):
                print(f"{part}  {part.stat().st_size / gpu_parts.MIB:.1f} MiB")
        elif o.command == "wheels":
            fetch(o)
        else:
            bring(o)
            queue = Queue(o)
            queue.plan()
            if o.command == "run":
                queue.run()
                queue.send()
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
