"""Evaluate the networks that a campaign left under its --out, from the float16 weights that are kept there.

    python benchmarks/campaign_evaluate.py run [NETWORK ...]   # until nothing is missing; the same command resumes
    python benchmarks/campaign_evaluate.py status              # what is there, what is missing and its core hours

What is measured, and in which order, says --steps (default: benchmarks/cifar_evaluate.toml). Measures go into
NETWORK/measures.json, evaluations and certificates into files of their own; NETWORK/evaluated.json has an entry for
each piece of work with its core seconds, hardware and commit. --minutes ends after that time, between or within
measures; what was done of an attack is kept. One process at a time works on --results.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import Queue, now, read_queue, write
from filelock import FileLock, Timeout

from atent import runs as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import parse
from atent.cli import main as atent
from atent.experiments import recipes as config
from atent.paper import engine
from atent.paper.layout import Measure
from atent.paper.scales import SCALES, Scale
from atent.paper.tables import TABLES
from atent.signals import raising
from atent.train.interrupt import Interrupted

HERE = Path(__file__).resolve().parent
ENTRIES = "evaluated.json"
PASS = 0.8e-3
"""Core seconds of a forward or a backward pass of ResNet-20 for one image, by a PGD-10 on 9,980 images on one core of
an AMD EPYC (Zen 4) in float32."""
CLEAN = 0.7
"""Share of the images that is attacked: those that are correctly classified without an attack."""

TAKEN = 0.35
"""Share of its noise samples that a sequential test takes at l2 0.435, of the first two networks."""


@dataclass(frozen=True)
class Step:
    """One kind of measurement, of the networks whose names match."""

    networks: tuple[str, ...]
    measures: str = ""
    attack: str = ""
    n: int = 0
    clean: int = 0
    """The images of a measure without an attack."""
    argv: tuple[str, ...] = ()
    minutes: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A step for one network: a measure, or a command."""

    name: str
    hours: float
    measure: Measure | None = None
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A folder that `campaign.py` wrote when a training ended."""

    place: Path
    training: str
    seed: int
    job: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.place.name


@dataclass(frozen=True)
class Steps:
    """The steps file."""

    scale: Scale
    queue: Queue
    steps: tuple[Step, ...]

    def pieces(self, network: Network) -> list[Piece]:
        """All work on a network, in order, each piece once."""
        found: dict[str, Piece] = {}
        tables = of_tables(self.scale, network.training)
        for step in self.steps:
            if not any(fnmatch.fnmatch(network.name, pattern) for pattern in step.networks):
                continue
            if step.argv:
                words = tuple(word.format(network=network.place) for word in step.argv)
                name = " ".join(["atent", *step.argv]).replace("{network}", network.name)
                found.setdefault(name, Piece(name, step.minutes / 60, argv=words))
                continue
            wanted = [m for m in tables if step.measures and fnmatch.fnmatch(m.key, step.measures)]
            wanted += [Measure("attack", step.n, attack=step.attack)] if step.attack else []
            wanted += [Measure("clean", step.clean)] if step.clean else []
            for m in wanted:
                found.setdefault(m.key, Piece(m.key, cost(m), measure=m))
        return list(found.values())

    def missing(self, network: Network) -> list[Piece]:
        """The pieces that are not there, in order."""
        made, done = engine.measured(network.place), entries(network.place)
        commands = {entry["what"] for entry in done if entry["finished"]}
        return [p for p in self.pieces(network) if p.name not in (made if p.measure else commands)]


def read_steps(path: Path) -> Steps:
    """The steps file; ValueError, in one line, for what it cannot ask for."""
    content = tomllib.loads(path.read_text())
    rows = content.get("step", [])
    for row in rows:
        if sum(key in row for key in ("measures", "attack", "clean", "argv")) != 1 or not row.get("networks"):
            raise ValueError(f"{path}: a step has networks and one of measures, attack, clean and argv, not {row}")
    steps = tuple(
        Step(**{**row, "networks": tuple(row["networks"]), "argv": tuple(row.get("argv", ()))}) for row in rows
    )
    return Steps(SCALES[content["scale"]], read_queue(path.parent / content["jobs"]), steps)


def of_tables(scale: Scale, training: str) -> list[Measure]:
    """What the tables of a scale measure of a training."""
    tables = [make(scale) for name, make in TABLES.items() if name not in scale.without]
    wanted = [m for table in tables for m in engine.needed(table).get(training, [])]
    return list({m.key: m for m in wanted}.values())


def cost(m: Measure) -> float:
    """Estimated core hours of a measure of ResNet-20."""
    n = min(m.n, 9980)
    if m.kind == "attack":
        attack = parse(m.attack, None, ATTACKS)
        return n * CLEAN * PASS * attack.passes / 3600
    passes = {"clean": 1, "smoothing": _drawn(m), "bounds": 20}[m.kind]
    return n * PASS * passes / 3600


def _drawn(m: Measure) -> float:
    """Expected noise samples of an image."""
    return m.predicted + TAKEN * m.samples if m.predicted else m.samples


def networks(results: Path, queue: Queue) -> list[Network]:
    """The finished trainings, in the order of the queue; others after them."""
    found = []
    for path in sorted(results.glob("*/job.json")):
        job = folder.read_json(path)
        if job["kind"] in ("train", "curves") and (path.parent / folder.BEST).is_file():
            found.append(Network(path.parent, job["training"], job["seed"], job))
    order = [job.name for job in queue.jobs]
    return sorted(found, key=lambda n: order.index(n.name) if n.name in order else len(order))


def entries(place: Path) -> list[dict[str, Any]]:
    """What was done on a network, a piece of work at a time."""
    path = place / ENTRIES
    return json.loads(path.read_text()) if path.is_file() else []


def work(steps: Steps, some: Sequence[Network], deadline: float | None) -> Iterator[str]:
    """Do what is missing, steps in their order, networks within a step; a line for each piece."""
    bench = engine.Bench(
        steps.scale, some[0].place.parent if some else Path(), config.job, config.read_recipe, deadline,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    rank = {network.name: {p.name: i for i, p in enumerate(steps.pieces(network))} for network in some}
    left = [(rank[n.name][p.name], n, p) for n in some for p in steps.missing(n)]
    for _, network, piece in sorted(left, key=lambda each: each[0]):
        bench.check()
        entry = {"what": piece.name, "began": now(), **machine(), "finished": False}
        spent, clock = sum(os.times()[:4]), time.monotonic()
        try:
            done(bench, network, piece)
            entry["finished"] = True
        finally:
            entry["seconds"] = round(time.monotonic() - clock, 1)
            entry["core_seconds"] = round(sum(os.times()[:4]) - spent, 1)
            write(network.place / ENTRIES, [*entries(network.place), entry])
        yield f"{now()}  {network.name}: {piece.name}, {entry['core_seconds']:.0f} core seconds"


def done(bench: engine.Bench, network: Network, piece: Piece) -> None:
    """One piece of work; Interrupted where time is up or a signal came."""
    if piece.measure is not None:
        engine.measure(bench, network.place, [piece.measure])
        return
    with engine.alarm(bench.deadline):
        status = atent([*piece.argv])
    if status > 128:
        raise Interrupted("interrupted: the same command resumes")
    if status:
        raise ValueError(f"{piece.name} ended with status {status}")


def machine() -> dict[str, Any]:
    """Where it was done."""
    made = folder.provenance()
    return {key: made[key] for key in ("device_name", "threads", "torch", "commit", "dirty")}


def show(steps: Steps, some: Sequence[Network]) -> None:
    """What is there and what is missing, by network; then the trainings that are not finished."""
    total = 0.0
    for network in some:
        missing = steps.missing(network)
        spent = sum(entry["core_seconds"] for entry in entries(network.place)) / 3600
        hours = sum(p.hours for p in missing)
        total += hours
        count = len(steps.pieces(network))
        print(f"{network.name}: {count - len(missing)} of {count} done in {spent:.2f} core hours; {hours:.1f} to go")
        for piece in missing:
            print(f"    {60 * piece.hours:7.1f} core min  {piece.name}")
    known = {network.name for network in some}
    for job in steps.queue.jobs:
        if job.kind in ("train", "curves") and job.name not in known:
            print(f"{job.name}: not trained, {job.hours:g} core hours")
    print(f"{total:.1f} core hours to go for the networks that are there")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 failed or out of time, 2 not understood."""
    parser = argparse.ArgumentParser(
        prog="campaign_evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "status"))
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="folders of --results (default: all)")
    parser.add_argument("--steps", type=Path, default=HERE / "cifar_evaluate.toml", help="the steps file")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "cifar", help="the campaign's --out")
    parser.add_argument("--minutes", type=float, help="end after that time (default: none)")
    o = parser.parse_intermixed_args(argv)
    try:
        steps = read_steps(o.steps)
        found = networks(o.results, steps.queue)
        unknown = set(o.names) - {n.name for n in found}
        if unknown:
            raise ValueError(f"{o.results} has no finished network {', '.join(sorted(unknown))}")
        some = [n for n in found if not o.names or n.name in o.names]
        if o.command == "status":
            show(steps, some)
            return 0
        deadline = None if o.minutes is None else time.monotonic() + 60 * o.minutes
        with FileLock(o.results / ".evaluating.lock", timeout=0), raising():
            for line in work(steps, some, deadline):
                print(line, flush=True)
    except Timeout:
        print(f"another process evaluates {o.results}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 1
    except (Interrupted, ValueError, OSError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
