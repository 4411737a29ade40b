"""One job of a campaign, in a process of its own; `campaign.py` starts it with the code of the job's commit.

    python campaign_worker.py NAME STATE OUT NICE

A finished training leaves OUT/NAME/: config.json, metrics.jsonl, curves.png, best.safetensors (float16), and job.json
with the commit, each segment's hardware, precision and core hours, and the number of images seen. A measurement leaves
measures.json or timing-*.json beside its job.json, a command what it writes to {out}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from campaign import INTERRUPTED, State, now, write
from campaign_evaluate import of_tables

from atent import runs as folder
from atent import signals
from atent.cli import main as atent
from atent.data import load as load_data
from atent.experiments import recipes as config
from atent.models import make
from atent.paper import engine, timing, training_curves
from atent.paper.layout import Measure, Table, Training
from atent.paper.reproduce import reproduce
from atent.paper.scales import SCALES
from atent.paper.tables import TABLES
from atent.probe import bfloat16_pays
from atent.runs.checkpoint import export
from atent.train.interrupt import Interrupted

BEAT = 10.0
"""Seconds between heartbeats: what a killed process can lose of its core hours."""


class Beat(threading.Thread):
    """Writes down who works, where, and with how much CPU time; ends the process when its parent is gone."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.parent, self.started, self.done = path, os.getppid(), time.monotonic(), threading.Event()
        made = folder.provenance()
        self.segment: dict[str, Any] = {
            "pid": os.getpid(), "began": now(), "hardware": made["device_name"],
            "instructions": torch.backends.cpu.get_cpu_capability(), "threads": made["threads"],
            "torch": made["torch"], "python": made["python"],
        }  # fmt: skip

    def now(self) -> dict[str, Any]:
        """The segment so far; CPU seconds of this process and of the children that it waited for."""
        seconds = round(time.monotonic() - self.started, 1)
        return {**self.segment, "seconds": seconds, "core_seconds": round(sum(os.times()[:4]), 1)}

    def run(self) -> None:
        """Until the process ends."""
        while True:
            write(self.path, self.now())
            if self.done.wait(BEAT):
                return
            if os.getppid() != self.parent:
                os.kill(os.getpid(), signal.SIGTERM)

    def end(self) -> None:
        """The last figure."""
        self.done.set()
        self.join()
        write(self.path, self.now())


class Work:
    """What every kind of job needs."""

    def __init__(self, record: dict[str, Any], state: State, out: Path, beat: Beat) -> None:
        self.record, self.job, self.beat = record, record["job"], beat
        self.out = out / record["name"]
        self.bench = engine.Bench(
            SCALES[record["scale"]], state.place / "runs", config.job, config.read_recipe,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip

    def training(self) -> Training:
        """The network of the job, with the settings of the jobs file on top."""
        name = self.job["training"]
        known = [t for each in self._tables() for t in each.trainings()]
        known.append(training_curves.training(self.bench))
        found = next((t for t in known if t.name == name), Training(name))
        if found.after is not None:
            self.trained(found.after)
        train = dict(self.job["train"])
        if train.get("precision") == "auto":
            train["precision"] = self._precision(found)
        self.beat.segment["precision"] = train.get("precision", "float32")
        changes, own = dict(found.changes), self.job.get("changes", {})
        for section, values in {**own, "train": train}.items():
            changes[section] = {**changes.get(section, {}), **values}
        return replace(found, label=self.record["name"] if own else name, changes=changes)

    def trained(self, training: Training) -> Path:
        """The run of another job; ValueError if it is not there."""
        run = self.bench.path(training, self.job["seed"])
        if not (run / folder.BEST).is_file():
            raise ValueError(f"{run.name} is not trained: its job comes first, in the same jobs file")
        return run

    def _tables(self) -> list[Table]:
        scale = self.bench.scale
        return [describe(scale) for key, describe in TABLES.items() if key not in scale.without]

    def _precision(self, training: Training) -> str:
        """bfloat16 where it is faster on this machine and agrees, measured anew at each start."""
        made = engine.job(self.bench, training, self.job["seed"])
        data = load_data(made.data)
        model = make(replace(made.model, weights=None), classes=data.classes, shape=data.shape)
        layout = self.job["train"].get("channels_last", False)
        found = bfloat16_pays(model, data.shape, "cpu", channels_last=layout)
        print(f"precision: {found}", flush=True)
        return "bfloat16" if found.pays else "float32"

    def measures(self) -> list[Measure]:
        """What the scale's tables measure of the job's network."""
        return of_tables(self.bench.scale, self.job["training"])

    def describe(self, **more: Any) -> dict[str, Any]:
        """The content of job.json."""
        segments = [*self.record["segments"], self.beat.now()]
        return {
            "name": self.record["name"], "scale": self.record["scale"], **self.job, "commit": self.record["commit"],
            "began": self.record["began"], "ended": now(),
            "core_hours": round(sum(s["core_seconds"] for s in segments) / 3600, 3), **more, "segments": segments,
        }  # fmt: skip


def train(work: Work) -> None:
    """A network of the scale."""
    publish(work, engine.train(work.bench, work.training(), work.job["seed"]))


def curves(work: Work) -> None:
    """The network of figure S1, whose weights are measured on test images after each epoch."""
    training = work.training()
    training_curves.make(work.bench, [work.job["seed"]], training)
    publish(work, work.bench.path(training, work.job["seed"]))


def publish(work: Work, run: Path) -> None:
    """The small copy of a run under the results, in one move."""
    fresh = work.out.with_name(f".{work.out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    export(run, fresh)
    for name in (folder.CURVES, training_curves.TEST):
        if (run / name).is_file():
            shutil.copy(run / name, fresh / name)
    rows = folder.read_jsonl(run / folder.METRICS)
    images = len(rows) * folder.read_json(run / folder.CONFIG)["about"]["data"]["counts"]["train"]
    write(fresh / "job.json", work.describe(epochs=len(rows), images_seen=images))
    shutil.rmtree(work.out, ignore_errors=True)
    os.replace(fresh, work.out)


def measure(work: Work) -> None:
    """What the tables want of a finished network, into measures.json."""
    run = work.trained(Training(work.job["training"]))
    engine.measure(work.bench, run, work.measures())
    work.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / engine.MEASURES, work.out / engine.MEASURES)
    write(work.out / "job.json", work.describe())


def attack(work: Work) -> None:
    """One attack on the network of another job, into measures.json."""
    of = work.job["of"]
    run = work.trained(Training(of["network"]))
    engine.measure(work.bench, run, [Measure("attack", of["n"], attack=of["attack"])])
    work.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / engine.MEASURES, work.out / engine.MEASURES)
    write(work.out / "job.json", work.describe())


def times(work: Work) -> None:
    """Table S4's interleaved steps."""
    work.out.mkdir(parents=True, exist_ok=True)
    for norm in timing.NORMS:
        folder.write_json(work.out / f"timing-{norm}.json", timing.timed(work.bench, norm))
    write(work.out / "job.json", work.describe())


def table(work: Work) -> None:
    """A table or figure of `atent reproduce` at some scale, perhaps with other settings of single recipes."""
    of = dict(work.job["of"])
    own, scale = of.pop("own", {}), SCALES[of["scale"]]
    SCALES[scale.name] = replace(scale, own={**scale.own, **own})
    reproduce(
        **of, build=config.job, read=config.read_recipe, out=work.out, runs=work.bench.runs / work.record["name"],
        progress=False, say=work.bench.say,
    )  # fmt: skip
    write(work.out / "job.json", work.describe())


def command(work: Work) -> None:
    """Any command of atent."""
    places = {"out": work.out, "runs": work.bench.runs, "code": Path(__file__).parents[1]}
    words = [w.format(**places) for w in work.job["argv"]]
    work.out.mkdir(parents=True, exist_ok=True)
    status = atent(words)
    if status > 128:
        raise Interrupted(f"atent {words[0]} was stopped")
    if status:
        raise ValueError(f"atent {words[0]} ended with status {status}")
    made = work.bench.runs / work.record["name"]
    for path in made.iterdir() if made.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, work.out / path.name)
    write(work.out / "job.json", work.describe())


WORK: dict[str, Callable[[Work], None]] = {
    "train": train, "curves": curves, "measure": measure, "attack": attack, "timing": times, "table": table,
    "command": command,
}  # fmt: skip


def step_back(nice: int) -> None:
    """Lower the priority of this process, and of its session where Linux shares cores among sessions first."""
    os.nice(nice)
    with contextlib.suppress(OSError):  # no such file elsewhere
        Path("/proc/self/autogroup").write_text(str(nice))


def main(name: str, place: str, out: str, nice: str) -> int:
    """Exit status 0 done, 3 saved and stopped, 1 failed with the reason as the last line of the log."""
    step_back(int(nice))
    state = State(Path(place))
    beat = Beat(state.beat_file(name))
    beat.start()
    try:
        with signals.raising():
            record = json.loads((state.place / "jobs" / f"{name}.json").read_text())
            WORK[record["job"]["kind"]](Work(record, state, Path(out), beat))
    except Interrupted as stop:
        print(stop, flush=True)
        return INTERRUPTED
    except signals.Stopped:
        print("interrupted: saved results are unchanged", flush=True)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        return 1
    finally:
        beat.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
