"""Scaling over processes: training, evaluation and certification by 1, 2 and 4 processes of one thread each.

    python benchmarks/scaling.py --out results/speed/scaling.json
    python benchmarks/scaling.py --quick --out scaling.json
    python benchmarks/scaling.py --model results/speed/scaling.json

Strong scaling shares one batch or set of samples among the ranks, weak scaling gives each rank as many as one process
has. Rounds start each number of processes by torchrun, in turned order; every start measures all cases and is written
before the next, so that repeating the command resumes. Times are wall seconds (several processes have no other): the
machine must have no other work. Images are random and the networks untrained, as neither changes the cost of a step.
``--model`` prints the cost model of docs/distributed.md beside the measured times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from atent import Threat
from atent.attacks import PGD, AutoAttack
from atent.attacks.base import Attack
from atent.bench.machine import instruction_sets
from atent.certify import Sampling, certify_run
from atent.data import from_tensors
from atent.distributed import World
from atent.distributed.launch import joined
from atent.distributed.world import traffic
from atent.evaluate import evaluate
from atent.methods import ATENT, PGDAT
from atent.models import build
from atent.runs import provenance, write_json
from atent.train import Callback, TrainSettings, fit
from atent.train.callbacks import Progress

THREAT = Threat("linf", 8 / 255)
METHODS = {"PGD-AT": lambda: PGDAT(THREAT, steps=3), "ATENT": lambda: ATENT(THREAT, steps=3)}
WARM = 2
"""Steps of a training that are not counted."""


@dataclass(frozen=True)
class Size:
    """How much one process measures."""

    batch: int = 64
    steps: int = 6
    samples: int = 128
    attacked: int = 16
    """Samples of AutoAttack, in batches of 4."""
    images: int = 4
    noise: int = 4100
    """Above 4,000 noise samples, the ranks share single images."""


FULL, QUICK = Size(), Size(batch=16, steps=3, samples=32, attacked=8, images=2)


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels."""
    made = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 32, 32, generator=made), torch.arange(n) % 10


class Stopwatch(Callback):
    """Times, messages and bytes of each step, on rank 0."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int, int]] = []

    def step(self, progress: Progress) -> None:
        """Note the time and the counts after a step."""
        self.marks.append((time.perf_counter(), traffic.messages, traffic.bytes))

    def row(self) -> dict[str, float]:
        """Medians of the counted steps."""
        counted = self.marks[WARM - 1 :]
        each = [[b - a for a, b in zip(one, two, strict=True)] for one, two in pairwise(counted)]
        seconds, messages, sent = (median(column) for column in zip(*each, strict=True))
        return {"seconds": seconds, "messages": messages, "bytes": sent}


def training(network: str, method: str, batch: int, size: Size) -> dict[str, float]:
    """One step of a training."""
    torch.manual_seed(0)
    x, y = images(batch * (WARM + size.steps) + 20)
    data = from_tensors(x, y, x[:20], y[:20], validation=20)
    watch = Stopwatch()
    settings = TrainSettings(epochs=1, batch_size=batch, validate_limit=10, device="cpu", threads=1)
    net = build(network, shape=(3, 32, 32), classes=10)
    fit(net, data, METHODS[method](), settings=settings, progress=False, callbacks=[watch])
    return watch.row() if watch.marks else {}


def timed(work: Callable[[], object], world: World) -> dict[str, float]:
    """One call, which all ranks begin together."""
    world.wait()
    before = time.perf_counter()
    work()
    world.wait()
    return {"seconds": time.perf_counter() - before}


def evaluation(attack: Attack, n: int, batch: int, world: World) -> dict[str, float]:
    """An attack on every sample. The untrained network's logits do not depend on the input, so that all remain
    correctly classified: the most that an evaluation takes."""
    net, (x, _) = network("small_cnn"), images(n)
    with torch.no_grad():
        y = net(x).argmax(1)
    return timed(lambda: evaluate(net, x, y, {"attack": attack}, batch=batch, world=world), world)


def certification(n: int, noise: int, world: World) -> dict[str, float]:
    """Randomised smoothing of n images."""
    net, (x, y) = network("small_cnn"), images(n)
    sampling = Sampling(sigma=0.25, n0=100, n=noise)
    return timed(lambda: certify_run(net, x, y, sampling, world=world), world)


def attacks(size: Size) -> dict[str, tuple[Attack, int, int]]:
    """Attacks, with the samples of one process and of a batch."""
    short = AutoAttack(THREAT, steps=10, queries=200)
    return {"PGD-10": (PGD(THREAT, steps=10), size.samples, 32), "AutoAttack, short": (short, size.attacked, 4)}


def network(name: str) -> nn.Module:
    """The untrained network, the same on every rank."""
    torch.manual_seed(0)
    net: nn.Module = build(name, shape=(3, 32, 32), classes=10)
    return net.eval()


def measure(size: Size) -> dict[str, dict[str, float]]:
    """All cases, by the processes of this job; what rank 0 found."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    with joined() as world:
        for kind, times in {"strong": 1, "weak": world.size}.items():
            if kind == "weak" and world.size == 1:
                found |= {name.replace("strong", kind): row for name, row in found.items()}
                break
            for name in ("small_cnn", "resnet20"):
                for method in METHODS:
                    batch = size.batch * times // (2 if name == "resnet20" else 1)
                    found[f"{method}, {name}, {kind}"] = training(name, method, batch, size)
            for name, (attack, n, batch) in attacks(size).items():
                found[f"{name}, small_cnn, {kind}"] = evaluation(attack, n * times, batch, world)
            found[f"smoothing, small_cnn, {kind}"] = certification(size.images * times, size.noise, world)
        if world.size > 1:
            found["messages"] = messages(world)
    return found if world.first else {}


def messages(world: World) -> dict[str, float]:
    """Seconds of a message of 64 bytes, and of one of 4 MiB for each of its bytes that a rank sends."""
    small, large = torch.zeros(16), torch.zeros(2**20)
    spent = {}
    for name, tensor, repeats in (("latency", small, 200), ("large", large, 20)):
        each = [timed(lambda tensor=tensor: world.add([tensor]), World()) for _ in range(repeats)]
        spent[name] = median(row["seconds"] for row in each)
    sent = 2 * (world.size - 1) / world.size * large.numel() * 4
    return {"latency": spent["latency"], "bandwidth": sent / max(spent["large"] - spent["latency"], 1e-9)}


def start(processes: int, quick: bool) -> dict[str, Any]:
    """What a job of that many processes measures."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [__file__, "--worker", str(out), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def summary(starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median seconds of each case by processes, and efficiency: what a perfect division would take over it."""
    rows = []
    counts = sorted({each["processes"] for each in starts})
    for case in (name for name in starts[0]["found"] if name != "messages"):
        of = {p: [s["found"][case] for s in starts if s["processes"] == p] for p in counts}
        seconds = {p: median(row["seconds"] for row in found) for p, found in of.items()}
        if 1 not in seconds:
            continue
        for p, found in of.items():
            gain = seconds[1] / seconds[p] * (p if case.endswith("weak") else 1)
            traffic_of = {key: found[0][key] for key in ("messages", "bytes") if key in found[0]}
            rows.append({
                "case": case, "processes": p, "repeats": len(found), "seconds": seconds[p],
                "least": min(row["seconds"] for row in found), "most": max(row["seconds"] for row in found),
                "speedup": gain, "efficiency": gain / p, **traffic_of,
            })  # fmt: skip
    return rows


def bound(name: str) -> int:
    """Bytes of the parameters of a network, once, and a flag for each."""
    leaves = list(build(name, shape=(3, 32, 32), classes=10).parameters())
    return sum(p.numel() for p in leaves) * 4 + len(leaves) * 4


def predicted(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The cost model of docs/distributed.md for every measured row of several processes.

    Latency and bandwidth are those of `messages`, and the passes those of one process: no measured row of several
    processes enters.
    """
    rows = content["rows"]
    alone = {row["case"]: row["seconds"] for row in rows if row["processes"] == 1}
    found = []
    for row in (row for row in rows if row["processes"] > 1):
        p = row["processes"]
        link = [s["found"]["messages"] for s in content["starts"] if s["processes"] == p]
        work = alone[row["case"]] * (p if row["case"].endswith("weak") else 1) / min(p, content["cores"])
        sent = 2 * (p - 1) / p * row.get("bytes", 0) / median(each["bandwidth"] for each in link)
        waits = row.get("messages", 0) * median(each["latency"] for each in link)
        found.append({**row, "predicted": work + sent + waits, "communication": sent + waits})
    return found


def show(content: dict[str, Any]) -> None:
    """Print the figures and the model's."""
    for row in content["rows"]:
        size = f"{row['messages']:.0f} messages, {row['bytes']:.0f} bytes" if "bytes" in row else ""
        print(
            f"{row['case']:28} {row['processes']} processes {row['seconds']:8.3f} s  {row['speedup']:.2f} times, "
            f"efficiency {row['efficiency']:.0%}  {size}"
        )
    for row in predicted(content):
        print(
            f"{row['case']:28} {row['processes']} processes predicted {row['predicted']:.3f} s, "
            f"measured {row['seconds']:.3f} s"
        )


def main() -> None:
    """Measure what is not in the file yet, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small batches, one round, 1 and 2 processes")
    parser.add_argument("--model", type=Path, help="print the figures and the cost model of this file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    if given.worker:
        found = measure(size)
        if found:
            given.worker.write_text(json.dumps(found))
        return
    if given.model:
        show(json.loads(given.model.read_text()))
        return
    rounds, processes = (1, [1, 2]) if given.quick else (given.rounds, given.processes)
    content: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {"starts": []}
    if content["starts"] and content["size"] != vars(size):
        parser.error(f"{given.out} was measured with other sizes: name another file by --out")
    known = {(s["round"], s["processes"]) for s in content["starts"]}
    for turn in range(rounds):
        for p in processes if turn % 2 == 0 else processes[::-1]:
            if (turn, p) in known:
                continue
            content["starts"].append({"round": turn, "processes": p, "found": start(p, given.quick)})
            content |= {
                "size": vars(size), "cores": os.cpu_count(),
                "instruction_sets": instruction_sets(Path("/proc/cpuinfo")),
                "bound": {name: bound(name) for name in ("small_cnn", "resnet20")},
                "load": os.getloadavg(), "provenance": provenance(seed=0), "rows": summary(content["starts"]),
            }  # fmt: skip
            content["model"] = predicted(content)
            write_json(given.out, content)
    show(content)


if __name__ == "__main__":
    main()
