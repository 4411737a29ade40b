"""Standard training, PGD-AT, TRADES and ATENT, on a convolutional network and a vision transformer of its size, under
linf, l2, l1, l0 and patches at once.

    python benchmarks/union.py train --data digits --seeds 0 1 2       # run folders in --runs
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from atent import runs as folder
from atent.experiments.pipeline import run_job
from atent.experiments.recipe_files import read_recipe
from atent.experiments.recipes import job

METHODS = ("standard", "pgdat", "trades", "atent")
NETWORKS = ("cnn", "vit")
TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"recipe": "digits-linf", "epochs": 20, "cnn": "digits_cnn"},
    "mnist5k": {"recipe": "mnist5k-linf", "epochs": 4, "cnn": "small_cnn"},
}
"""For each data set: what its recipes begin with, epochs of every method, and the convolutional network."""


def trained(data: str, method: str, network: str, seed: int, runs: Path) -> Path:
    """The run folder of one training, which is made, resumed or found.

    By the package's recipe, but that all train for the same epochs and take the last ones: no epoch is chosen.
    """
    how = TRAINING[data]
    name = f"{how['recipe']}-{method}" + ("-vit" if network == "vit" else "")
    path = runs / f"{data}-{method}-{network}-{seed}"
    if (path / folder.EVALUATION).is_file():
        return path
    tables = read_recipe(name)
    tables["train"] |= {"epochs": how["epochs"], "select": "last", "validate_every": 10, "seed": seed}
    tables["evaluate"] = tables.get("evaluate", {}) | {"attacks": [], "last": False}
    if network == "cnn":
        tables["model"] = {"name": how["cnn"]}
    begun = time.process_time()
    run_job(job(tables, name), path, resume=path.is_dir(), progress=False)
    print(f"{path.name}: trained in {time.process_time() - begun:.0f} CPU s", flush=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train",))
    parser.add_argument("--data", choices=TRAINING, default="digits", help="data set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="training methods")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="kinds of network")
    parser.add_argument("--runs", type=Path, default=Path("runs/union"), help="folder of the run folders")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.methods:
            for network in args.networks:
                trained(args.data, method, network, seed, args.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
