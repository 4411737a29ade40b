"""Where the time of a training and of an evaluation goes: the ten operators with the most CPU time of their own.

    python benchmarks/profiles.py --out results/speed/profiles.json

ResNet-20 with random weights on random images of CIFAR-10's shape, as `atent bench` has them: steps of ATENT (linf,
K = 10), from the batch to the updated weights, and PGD-40 by `atent.evaluate`, whose searches pass through the folded
network. A first step and a first search are not counted. torch.profiler counts; what it costs itself lies in the
operators that are called most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from atent_step import positive
from torch.profiler import ProfilerActivity, profile

from atent import Threat
from atent.attacks import PGD
from atent.bench.passes import problem
from atent.evaluate import evaluate
from atent.heap import keep_freed
from atent.methods import ATENT
from atent.runs import provenance, write_json

TOP = 10
THREAT = Threat("linf", 8 / 255)


def training(batch: int) -> Callable[[], object]:
    """A step of ATENT: attack, gradient, and the optimizer's step."""
    model, x, y = problem("resnet20", batch)
    model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    method, rng = ATENT(THREAT), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        method.backward(model, x, y, rng=rng)
        optimizer.step()

    return step


def evaluation(images: int) -> Callable[[], object]:
    """PGD-40 on images that the network classifies correctly by construction: the labels are its own."""
    model, x, _ = problem("resnet20", images)
    model.eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return lambda: evaluate(model, x, y, {"PGD-40": PGD(THREAT, steps=40)}, channels_last=True)


def measured(work: Callable[[], object], times: int) -> dict[str, Any]:
    """Self CPU time of the operators over ``times`` runs, after one that is not counted."""
    work()
    begun = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(times):
            work()
    spent = time.process_time() - begun
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    rows = [
        {
            "name": e.key,
            "share": e.self_cpu_time_total / total,
            "seconds": e.self_cpu_time_total / 1e6,
            "calls": e.count,
        }
        for e in events[:TOP]
    ]
    return {"cpu_seconds": spent, "runs": times, "operators": len(events), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, default=128, help="images of a step and of the evaluation")
    parser.add_argument("--runs", type=positive, default=2, help="steps that are profiled")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed()
    results = {
        f"training: a step of ATENT, K = 10, batch {args.batch}": measured(training(args.batch), args.runs),
        f"evaluation: PGD-40 on {args.batch} images": measured(evaluation(args.batch), 1),
    }
    for name, found in results.items():
        print(f"{name}: {found['cpu_seconds']:.1f} s of CPU in {found['runs']} runs")
        for row in found["rows"]:
            print(f"  {row['name']:<50}{100 * row['share']:6.1f} % {row['seconds']:8.2f} s {row['calls']:>7} calls")
    if args.out:
        settings = {"network": "resnet20", "batch": args.batch, "threads": args.threads}
        made = {"benchmark": "profiles", "settings": settings, "results": results}
        write_json(args.out, {**made, "provenance": provenance(seed=0, device="cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
