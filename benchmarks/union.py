"""Standard training, PGD-AT, TRADES and ATENT, on a convolutional network and a vision transformer of its size, under
linf, l2, l1, l0 and patches at once.

    python benchmarks/union.py train --data digits --seeds 0 1 2       # run folders in --runs
    python benchmarks/union.py evaluate --data digits --seeds 0 1 2    # a file for each in --out
    python benchmarks/union.py table                                   # README.md and pictures in --out

Each stage takes up what an earlier call left: trainings resume, evaluations resume, what is done is kept. All methods
of a data set train for the same epochs by the package's recipes, with one optimizer for each network, and take the
last epoch's weights. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from atent import runs as folder
from atent.attacks import ATTACKS, Attack
from atent.attacks.oracle import Oracle
from atent.attacks.several import parse_threat, several
from atent.attacks.spec import parse
from atent.evaluate import evaluate, union
from atent.evaluate.fewest import fewest
from atent.experiments.pipeline import run_job
from atent.experiments.recipe_files import read_recipe
from atent.experiments.recipes import job
from atent.experiments.target import load_target
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.threat import Threat, per_sample

METHODS = ("standard", "pgdat", "trades", "atent")
NETWORKS = ("cnn", "vit")


@dataclass(frozen=True)
class Plan:
    """How the networks of one data set are trained and evaluated."""

    recipe: str
    """What the names of its recipes begin with."""
    epochs: int
    cnn: str
    """The convolutional network; the transformer is that of the recipes."""
    n: int
    """Test images, a stratified sample."""
    threats: tuple[str, ...]
    patches: str
    """The threat of the curve over K, with its largest K."""


_APGD = "APGD(steps=50), APGD(steps=50, loss=dlr)"
_L1 = "APGD(steps=50, radii=shrinking), APGD(steps=50, loss=dlr, radii=shrinking)"
_L0 = "SparsePGD(steps=100), SparseRS(queries=500)"
_PATCH = "TokenAttack(score=l1), __main__:EveryPatch"
PLANS = {
    # linf as trained; the other radii leave PGD-AT's convolutional network of seed 0 right on about half of the
    # validation images.
    "digits": Plan(
        "digits-linf", 20, "digits_cnn", 200,
        (f"linf 0.15: {_APGD}", f"l2 0.75: {_APGD}", f"l1 1: {_L1}", f"l0 1: {_L0}", f"patch 1 side 2: {_PATCH}"),
        "patch 8 side 2",
    ),
    "mnist5k": Plan(
        "mnist5k-linf", 4, "small_cnn", 200,
        (f"linf 0.3: {_APGD}", f"l2 2: {_APGD}", f"l1 10: {_L1}", f"l0 12: {_L0}", f"patch 1 side 7: {_PATCH}"),
        "patch 8 side 7",
    ),
}  # fmt: skip
# Whether a difference is one of networks that are trained too little.
PLANS["digits-long"] = replace(PLANS["digits"], epochs=40)


@dataclass(frozen=True)
class EveryPatch(Attack):
    """One patch at each place of the grid, by signed gradient steps: no choice of the place can be wrong.

    For a threat of one free patch: steps of a quarter of the box from x, at each place in turn, until a sample is
    misclassified; the first misclassified point is returned, else x.
    """

    norms: ClassVar[tuple[str, ...]] = ("patch",)

    threat: Threat
    steps: int = 10
    """Number of gradient steps at each place."""

    @property
    def passes(self) -> int:
        # The grids of both data sets have 16 places.
        return 16 * 2 * (self.steps + 1)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        blocks, step = self.threat.blocks(x.shape[1:]), 0.25 * self.threat.width
        found, done = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for place in torch.eye(blocks.count, dtype=x.dtype, device=x.device):
            inside, z = blocks.largest(place.expand(len(x), -1), 1), x
            for i in range(self.steps + 1):
                grad, _, logits = oracle.gradient(z, y, cross_entropy)
                new = oracle.fooled(logits, y) & ~done
                found, done = torch.where(per_sample(new, x), z, found), done | new
                if i < self.steps:
                    z = torch.where(inside, self.threat.clamp(z + step * grad.sign()), x)
            if done.all():
                break
        return found


def trained(data: str, method: str, network: str, seed: int, runs: Path) -> Path:
    """The run folder of one training, which is made, resumed or found.

    By the package's recipe, but that all train for the same epochs and take the last ones: no epoch is chosen.
    """
    plan, path = PLANS[data], runs / f"{data}-{method}-{network}-{seed}"
    name = f"{plan.recipe}-{method}" + ("-vit" if network == "vit" else "")
    if (path / folder.EVALUATION).is_file():
        return path
    tables = read_recipe(name)
    tables["train"] |= {"epochs": plan.epochs, "select": "last", "validate_every": 10, "seed": seed}
    tables["evaluate"] = tables.get("evaluate", {}) | {"attacks": [], "last": False}
    if network == "cnn":
        tables["model"] = {"name": plan.cnn}
    begun = time.process_time()
    run_job(job(tables, name), path, resume=path.is_dir(), progress=False)
    print(f"{path.name}: trained in {time.process_time() - begun:.0f} CPU s", flush=True)
    return path


def evaluated(data: str, method: str, network: str, seed: int, runs: Path, out: Path) -> None:
    """The union report of one training and the fewest patches that break each image, as a file in ``out``."""
    plan, path = PLANS[data], runs / f"{data}-{method}-{network}-{seed}"
    place = out / f"{path.name}.json"
    if place.is_file() or not (path / folder.EVALUATION).is_file():
        return
    begun = time.process_time()
    target = load_target(str(path), attacks=(), limit=plan.n, device="cpu", seed=0)
    x, y, ids = target.test()
    attacks = several(plan.threats, target.data.box, shape=target.data.shape)
    partial = path / "union.partial.jsonl"
    found = union(evaluate(target.model, x, y, attacks, ids=ids, cascade="threat", resume=partial))
    token = parse("TokenAttack(score=l1)", parse_threat(plan.patches, target.data.box), ATTACKS)
    least = fewest(target.model, x, y, token, ids=ids).tolist()
    config = folder.read_config(path / folder.CONFIG)
    folder.write_json(
        place,
        {
            "data": data, "method": method, "network": network, "seed": seed,
            "model": config["model"]["name"], "parameters": config["about"]["parameters"], "epochs": plan.epochs,
            "optimizer": config["optimizer"], "samples": target.samples(), "union": found.to_json(),
            "patches": {"threat": plan.patches, "fewest": [None if k == float("inf") else int(k) for k in least]},
            "trained": config["provenance"], "provenance": folder.provenance(seed=0, device="cpu"),
        },
    )  # fmt: skip
    partial.unlink(missing_ok=True)
    robust = {name: result["robust"]["value"] for name, result in found.threats.items()}
    print(f"{path.name}: {robust}, union {found.worst['value']}, {time.process_time() - begun:.0f} CPU s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "evaluate", "table"), help="stage")
    parser.add_argument("--data", choices=PLANS, default="digits", help="data set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="training methods")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="kinds of network")
    parser.add_argument("--runs", type=Path, default=Path("runs/union"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=Path("results/union"), help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for place in (args.runs, args.out):
        place.mkdir(parents=True, exist_ok=True)
    if args.what == "table":
        from union_table import write

        write(args.out)
        return 0
    for seed in args.seeds:
        for method in args.methods:
            for network in args.networks:
                if args.what == "train":
                    trained(args.data, method, network, seed, args.runs)
                else:
                    evaluated(args.data, method, network, seed, args.runs, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
