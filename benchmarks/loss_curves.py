"""Compares faster steps with the reference step: loss curves of ATENT on digits, over seeds and precisions.

    python benchmarks/loss_curves.py        # results/loss_curves.json; about four minutes on one core

Five ways to train digits_cnn by ATENT (linf 0.1, K = 10, SGD with momentum, batches of 64 of 1,200 images), each with
the same seeds for weights, order, start and noise: the authors' structure (see atent_step.py), the step of the library,
both under bfloat16 autocast, and the library's step with ``drop_below`` 1e-3. A curve is the mean training loss mu^K of
each epoch. For each epoch the difference of two ways is paired by seed; beside its mean stands its 95 % interval
(Student's t) and the standard deviation over the seeds of one way, which is the noise of a seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from atent_step import authors

from atent import Threat
from atent.data import Data, DataSettings, load
from atent.methods import ATENT
from atent.models import build
from atent.rng import fold
from atent.runs import provenance, write_json

METHOD = ATENT(Threat("linf", 0.1))
WAYS = ("plain", "library", "plain bfloat16", "library bfloat16", "library drop_below 1e-3")
PAIRS = (
    ("library", "plain"), ("library bfloat16", "plain bfloat16"), ("library bfloat16", "library"),
    ("library drop_below 1e-3", "library"),
)  # fmt: skip
# 97.5 % quantiles of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def curve(way: str, seed: int, data: Data, epochs: int) -> list[float]:
    """The mean loss of each epoch."""
    torch.manual_seed(seed)
    model = build("digits_cnn", classes=10, shape=(1, 8, 8)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = ATENT(METHOD.threat, drop_below=1e-3) if "drop_below" in way else METHOD
    low: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if "bfloat16" in way else nullcontext()
    rng, found = torch.Generator(), []
    for epoch in range(epochs):
        order = torch.randperm(len(data.train), generator=rng.manual_seed(fold(seed, "order", epoch)))
        losses = []
        for step, index in enumerate(order.split(64)):
            x, y = data.train.batch(index)
            rng.manual_seed(fold(seed, "step", epoch, step))
            torch.manual_seed(fold(seed, "model", epoch, step))
            optimizer.zero_grad()
            with low:
                if way.startswith("plain"):
                    losses.append(float(authors(method, model, x, y, rng)))
                else:
                    losses.append(float(method.backward(model, x, y, rng=rng)["loss"]))
            optimizer.step()
        found.append(statistics.mean(losses))
    return found


def compared(curves: dict[str, list[list[float]]], one: str, other: str) -> list[dict[str, float]]:
    """Per epoch: the paired difference with its interval, and the seeds' standard deviation of the second."""
    rows = []
    for a, b in zip(zip(*curves[one], strict=True), zip(*curves[other], strict=True), strict=True):
        gaps = [p - q for p, q in zip(a, b, strict=True)]
        half = _T[len(gaps) - 1] * statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.mean(gaps)
        rows.append({"difference": mean, "low": mean - half, "high": mean + half, "seeds": statistics.stdev(b)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two to five seeds")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to train")
    parser.add_argument("--out", type=Path, default=Path("results/loss_curves.json"), help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataSettings("digits", limit=1200))
    curves = {way: [curve(way, seed, data, args.epochs) for seed in args.seeds] for way in args.ways}
    pairs = {f"{a} - {b}": compared(curves, a, b) for a, b in PAIRS if a in curves and b in curves}
    for name, rows in pairs.items():
        last = rows[-1]
        print(
            f"{name}: last epoch {last['difference']:+.4f} [{last['low']:+.4f}, {last['high']:+.4f}], largest"
            f" |difference| {max(abs(r['difference']) for r in rows):.4f}; standard deviation over seeds"
            f" {last['seeds']:.4f}"
        )
    content = {
        "benchmark": "loss_curves", "model": "digits_cnn", "n": len(data.train), "seeds": args.seeds,
        "epochs": args.epochs, "curves": curves, "pairs": pairs, "provenance": provenance(seed=0, device="cpu"),
    }  # fmt: skip
    write_json(args.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
