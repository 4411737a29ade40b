"""Overhead of a training's safeguards: checks for numbers that are not finite, and checkpoints.

    python benchmarks/upkeep.py        # results/reliability/upkeep.json; half a minute, then a training of a minute

Checks: the time of `Finite.see` relative to a full step of standard training on the same network and batch, in turns;
the median over the rounds, in CPU seconds, one thread. Keeping: the time inside `Keeper.save` and `Keeper.begin` of a
training by the recipe digits-linf-atent that lasts more than a minute, as a share of all its time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from atent.experiments.pipeline import run_job
from atent.experiments.recipe_files import read_recipe
from atent.experiments.recipes import job
from atent.models import build
from atent.runs import provenance, write_json
from atent.train import TrainSettings
from atent.train.finite import Finite
from atent.train.run_files import Keeper

NETWORKS = {"digits_cnn": ((1, 8, 8), 128), "small_cnn": ((1, 28, 28), 128), "resnet18": ((3, 32, 32), 16)}
"""Shapes of an image, and the size of a batch."""


def marks(name: str, rounds: int) -> dict[str, Any]:
    """The cost of the checks on one network."""
    shape, size = NETWORKS[name]
    torch.manual_seed(0)
    model = build(name, classes=10, shape=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    watch = Finite(model, optimizer, None, TrainSettings(), None)
    x, y = torch.rand(size, *shape), torch.arange(size) % 10
    steps, seen = [], []
    for k in range(rounds + 3):
        begun = time.process_time()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        between = time.process_time()
        watch.see(k, [loss])
        end = time.process_time()
        if k >= 3:
            steps.append(between - begun)
            seen.append(end - between)
    step, mark = statistics.median(steps), statistics.median(seen)
    return {"network": name, "batch": size, "rounds": rounds, "step": step, "mark": mark, "share": mark / step}


def keeping(epochs: int) -> dict[str, Any]:
    """The cost of checkpoints in one training."""
    spent = [0.0, 0]
    save, begin = Keeper.save, Keeper.begin

    def timed(function: Any) -> Any:
        def run(self: Keeper, *args: Any, **given: Any) -> None:
            begun = time.perf_counter()
            function(self, *args, **given)
            spent[0] += time.perf_counter() - begun
            spent[1] += 1

        return run

    Keeper.save, Keeper.begin = timed(save), timed(begin)  # type: ignore[method-assign]
    try:
        tables = read_recipe("digits-linf-atent")
        tables["train"] |= {"epochs": epochs, "threads": 1}
        tables["evaluate"] = {"attacks": [], "last": False}
        with tempfile.TemporaryDirectory() as place:
            begun = time.perf_counter()
            run_job(job(tables, "digits-linf-atent"), Path(place) / "run", progress=False, say=lambda line: None)
            seconds = time.perf_counter() - begun
    finally:
        Keeper.save, Keeper.begin = save, begin  # type: ignore[method-assign]
    return {"recipe": "digits-linf-atent", "epochs": epochs, "seconds": seconds, "saves": int(spent[1]),
            "saving": spent[0], "share": spent[0] / seconds}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=60, help="steps that are timed for each network")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the training")
    parser.add_argument("--out", type=Path, default=Path("results/reliability/upkeep.json"), help="JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "marks": [marks(name, given.rounds) for name in NETWORKS], "keeping": keeping(given.epochs),
        "provenance": provenance(seed=0),
    }  # fmt: skip
    write_json(given.out, found)
    for row in found["marks"]:
        print(f"{row['network']}: {100 * row['share']:.2f} % of a step of {1000 * row['step']:.1f} ms")
    kept = found["keeping"]
    print(f"keeping: {100 * kept['share']:.2f} % of {kept['seconds']:.0f} s, {kept['saves']} saves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
