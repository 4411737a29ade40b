"""One hour of training, killing, resuming, evaluating, certifying and comparing, at random moments.

    python benchmarks/soak.py --minutes 60        # results/reliability/soak.json; `make soak`

Each command runs once to its end, undisturbed: the reference. Then it runs again and again in folders of its own, and
is sent SIGKILL at a random moment, or SIGTERM, SIGINT or SIGHUP now and then; the command that resumes it follows, is
killed as well, and so on, until one call ends by itself. Its results must equal the reference: weights bit for bit, and
rows, results and certificates in all values except times. Each process is watched for memory and open files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

import atent
from atent.runs import provenance, read_json, read_jsonl, write_json

MOST_KILLS = 6
"""Kills of one command before it may end."""
TIMES = {"seconds", "seconds_per_epoch", "seconds_per_image", "time", "minutes", "memory_mb", "threads", "dirty"}
"""Keys whose values say when, for how long, and in how much memory."""
QUIET = ("--quiet",)
TRAININGS = {
    "atent": ("digits-linf-atent",),
    "atent-l2": ("digits-l2-atent",),
    "atent-plus": ("digits-linf-atent-plus",),
    "pgdat-awp": ("digits-linf-pgdat-awp",),
    "trades-ema": ("digits-linf-trades-ema",),
    "mma": ("digits-l2-mma",),
    "free": ("digits-linf-free", "--train.epochs", "2"),
    "fgsmrs": ("digits-linf-fgsmrs",),
    "mart": ("digits-linf-mart",),
    "smoothadv": ("digits-l2-smoothadv",),
    "entropy-sgd": ("digits-linf-entropy-sgd",),
    "crown-ibp": ("digits-linf-crown-ibp",),
    "embedding": ("digits-linf-pgdat-er",),
    "standard-vit": ("digits-linf-standard-vit",),
}
SHORT = (
    "--train.epochs", "3", "--train.save-minutes", "0.01", "--train.validate-limit", "60", "--evaluate.limit", "60",
    "--evaluate.attacks", "FGSM", "PGD(steps=5)", "--no-baseline",
)  # fmt: skip


@dataclass
class Count:
    """The counts of one kind of command."""

    cycles: int = 0
    """Commands that came to their end."""
    kills: int = 0
    """SIGKILLs."""
    signals: int = 0
    """Other signals."""
    calls: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Calls that ended by themselves with an error, and their last line."""
    left: list[str] = field(default_factory=list)
    """Files that are in the way at the end: temporary and partial ones, and locks that are held."""
    memory: int = 0
    """Largest resident memory of a process, in KiB."""
    files: int = 0
    """Most open files of a process."""


@dataclass(frozen=True)
class Command:
    """One command, the command that takes it up again, and what it leaves."""

    kind: str
    name: str
    first: Callable[[Path], list[str]]
    """Arguments in a folder."""
    again: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    """The results in a folder that must be equal."""


def stripped(value: Any) -> Any:
    """Plain values without those that say when and for how long."""
    if isinstance(value, dict):
        return {k: stripped(v) for k, v in value.items() if k not in TIMES}
    return [stripped(v) for v in value] if isinstance(value, list) else value


def weights(path: Path) -> dict[str, bytes]:
    """The tensors of a file, bit for bit."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def trained(run: Path) -> dict[str, Any]:
    """The results of a training."""
    evaluation = read_json(run / "evaluation.json")
    return {
        "best": weights(run / "best.safetensors"), "last": weights(run / "last" / "model.safetensors"),
        "rows": stripped(read_jsonl(run / "metrics.jsonl")), "evaluation": stripped(evaluation),
    }  # fmt: skip


def training(name: str, recipe: tuple[str, ...]) -> Command:
    """A training, resumed by --resume once its folder holds a configuration."""
    start = ["train", recipe[0], *SHORT, *recipe[1:], "--runs", "runs", "--name", name, *QUIET]

    def again(place: Path) -> list[str]:
        run = place / "runs" / name
        if (run / "config.json").is_file():
            return ["train", "--resume", f"runs/{name}", *QUIET]
        shutil.rmtree(run, ignore_errors=True)
        return start

    return Command("train", name, lambda place: start, again, lambda place: trained(place / "runs" / name))


def repeated(kind: str, name: str, argv: list[str], result: Callable[[Path], Any], run: Path | None = None) -> Command:
    """A command that repeating the command resumes, on a copy of ``run``."""

    def first(place: Path) -> list[str]:
        if run is not None:
            shutil.copytree(run, place / "run")
        return argv

    return Command(kind, name, first, lambda place: argv, result)


def measurements(run: Path) -> list[Command]:
    """Evaluations, certificates and a comparison."""
    attacks = ("FGSM", "PGD(steps=20)", "Square(queries=150)", "APGD(steps=20)")
    evaluate = ["evaluate", "run", "--limit", "150", "--batch-size", "25", *QUIET]
    certify = ["certify", "run", "--limit", "40", "--n", "3000", "--sigma", "0.25", *QUIET]
    compare = [
        "compare", "digits-linf-fgsmrs", "digits-linf-pgdat", "--seeds", "1", "--name", "c", "--runs", ".",
        "--train.epochs", "1", "--train.validate-limit", "60", "--evaluate.limit", "60", "--evaluate.attacks", "FGSM",
        *QUIET,
    ]  # fmt: skip
    return [
        repeated("evaluate", "attacks", [*evaluate, "--attacks", *attacks], evaluated, run),
        repeated(
            "evaluate", "radii", [*evaluate, "--radius", "0.05", "0.1", "--attacks", "PGD(steps=10)"], evaluated, run
        ),
        repeated("certify", "smoothing", certify, certified, run),
        repeated("compare", "recipes", compare, lambda at: stripped(read_json(at / "c" / "comparison.json"))),
    ]


def evaluated(place: Path) -> Any:
    """The evaluation that was added to a run's own."""
    return stripped(read_json(place / "run" / "evaluation-2.json"))


def certified(place: Path) -> dict[str, Any]:
    """The content of a certificate's two files."""
    run = place / "run"
    return {"json": stripped(read_json(run / "certificate.json")), "csv": without_seconds(run / "certificate.csv")}


def without_seconds(path: Path) -> list[list[str]]:
    """The rows of a certificate's table without the columns of times."""
    rows = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    keep = [i for i, name in enumerate(rows[0]) if name not in TIMES]
    return [[row[i] for i in keep] for row in rows]


def watched(process: subprocess.Popen[bytes], count: Count) -> None:
    """Note the largest memory and the most open files of a process that runs."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        count.memory = max(count.memory, peak)
        count.files = max(count.files, len(os.listdir(f"/proc/{process.pid}/fd")))
    except OSError:
        return


def call(argv: list[str], place: Path, count: Count, stop_after: float | None, how: int) -> int | None:
    """Run a command; None if it was stopped by the signal ``how`` after so many seconds, else its exit status."""
    count.calls += 1
    began = time.monotonic()
    with open(place / "output.txt", "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "atent", *argv], cwd=place, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
        while process.poll() is None:
            watched(process, count)
            if stop_after is not None and time.monotonic() - began >= stop_after:
                process.send_signal(how)
                process.wait()
                break
            time.sleep(0.02)
    if process.returncode == -signal.SIGKILL:
        count.kills += 1
        return None
    # What is asked to stop may be at its end already.
    if how != signal.SIGKILL and process.returncode in (-how, 128 + how, 1) and stop_after is not None:
        count.signals += 1
        return None
    return process.returncode


def cycle(command: Command, place: Path, count: Count, seconds: float, wanted: Any, chance: random.Random) -> None:
    """One command, stopped and resumed until it ends, compared with what an undisturbed one left."""
    argv = command.first(place)
    for attempt in range(3 * MOST_KILLS):
        # Later calls have less to do.
        after = chance.uniform(0.1, 1.0) * seconds if attempt < MOST_KILLS else None
        how = signal.SIGKILL if chance.random() < 0.8 else chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        status = call(argv, place, count, after, how)
        if status == 0:
            break
        if status is not None:
            line = (place / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
            count.failures.append(f"{command.kind} {command.name}: exit {status}: {' '.join(line)[:200]}")
            return
        argv = command.again(place)
    count.cycles += 1
    differs = unequal(command.result(place), wanted)
    count.differences += [f"{command.kind} {command.name}: {key}" for key in differs]
    count.left += sorted({p.name for p in place.rglob("*") if ".tmp" in p.suffixes or ".partial" in p.suffixes})


def unequal(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two plain values differ, as paths."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in unequal(found.get(key), wanted.get(key), f"{at}.{key}".lstrip("."))]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [line for i, pair in enumerate(zip(found, wanted)) for line in unequal(*pair, f"{at}[{i}]")]
    return [] if found == wanted else [at or "result"]


def soak(minutes: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it, as plain values."""
    chance, began = random.Random(seed), time.monotonic()
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory(prefix="soak") as root:
        base = Path(root)
        commands = [training(name, recipe) for name, recipe in TRAININGS.items()]
        commands[1:1] = measurements(base / "atent" / "runs" / "atent")
        known: dict[str, tuple[float, Any]] = {}
        done = 0
        while time.monotonic() - began < 60 * minutes:
            command = commands[done % len(commands)]
            count = counts.setdefault(command.kind, Count())
            if command.name not in known:
                place = base / command.name
                place.mkdir()
                start = time.monotonic()
                status = call(command.first(place), place, count, None, signal.SIGKILL)
                if status != 0:
                    raise SystemExit(f"{command.kind} {command.name} ends with {status}: {place / 'output.txt'}")
                known[command.name] = time.monotonic() - start, command.result(place)
            place = base / f"cycle-{done}"
            place.mkdir()
            cycle(command, place, count, *known[command.name], chance)
            shutil.rmtree(place)
            done += 1
            total = sum(c.kills for c in counts.values())
            wrong = sum(len(c.differences) + len(c.failures) for c in counts.values())
            now = (time.monotonic() - began) / 60
            say(f"{now:5.1f} min  {done} cycles, {total} kills, {wrong} wrong: {command.kind} {command.name}")
    names = ("kills", "signals", "cycles", "calls")
    return {
        "minutes": round((time.monotonic() - began) / 60, 1), "seed": seed,
        "total": {name: sum(getattr(c, name) for c in counts.values()) for name in names}
        | {"differences": sum(len(c.differences) for c in counts.values()),
           "failures": sum(len(c.failures) for c in counts.values())},
        "commands": {kind: vars(count) for kind, count in counts.items()},
        "provenance": provenance(seed=seed),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("results/reliability/soak.json"), help="JSON file")
    given = parser.parse_args()
    # Started in the background, it would hand on that SIGINT and SIGHUP are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The commands run elsewhere: they are this code's, wherever a relative path would lead.
    os.environ["PYTHONPATH"] = str(Path(atent.__file__).parent.parent)
    found = soak(given.minutes, given.seed, lambda line: print(line, flush=True))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, found)
    print(json.dumps(found["total"]))
    return 1 if found["total"]["differences"] or found["total"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
