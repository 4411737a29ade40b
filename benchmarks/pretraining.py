"""What contrastive pre-training brings: trainings from pre-trained and from random weights, over several seeds.

    python benchmarks/pretraining.py digits --seeds 3 --runs runs/pretraining --out results/pretraining-digits

For each seed a network is pre-trained by the recipe SCALE-acl. The trainings that follow see as many samples in as many
steps from its weights as from random ones. What is finished is not made again: the same command resumes, and the table
holds the seeds that are complete. Options that are not known here are fields of all recipes, such as --data.root PATH.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.cli.jobs import recipe_job
from atent.data.described import words as words_on
from atent.experiments import migrate
from atent.experiments.pipeline import Job, run_job
from atent.experiments.pretraining import pretraining
from atent.experiments.results import EvaluationFile
from atent.markdown import table
from atent.stats import Estimate, paired, t_interval

ATTACKS = ("PGD(steps=20)", "PGD(steps=50, loss=margin)")
ROWS = {
    "scratch": "TRADES, random weights",
    "trades": "TRADES, pre-trained",
    "linear": "TRADES of the last layer alone, pre-trained",
    "few-scratch": "TRADES on 10 % of the labels, random weights",
    "few": "standard training on 10 % of the labels, pre-trained (the teacher)",
    "semi": "DistilledTRADES, the teacher's answers, pre-trained",
}
PAIRS = (("trades", "scratch"), ("semi", "few-scratch"))


def jobs(scale: str, seed: int, place: Path, words: Sequence[str]) -> dict[str, Job]:
    """The pre-training and what follows it, by name, in the order in which they are made."""

    def made(recipe: str, *own: str) -> Job:
        fixed = ["--train.seed", str(seed), "--evaluate.no-last", "--evaluate.attacks", *ATTACKS]
        return recipe_job(f"{scale}-acl{recipe}", [*words, *own, *fixed], prog="pretraining.py")[0]

    begin = ["--model.weights", str(place / f"acl-seed{seed}")]
    teacher = ["--method.teacher", str(place / f"few-seed{seed}")]
    few = made("-few", *begin)
    whole = made("-trades", *begin)
    # A tenth of the samples for ten times as many epochs: as many steps, to one batch.
    epochs = 10 * whole.train.epochs
    tenth = ["--data.limit", str(few.data.limit), "--train.epochs", str(epochs), "--train.validate-every", "20"]
    return {
        "acl": pretraining(made("")),
        "scratch": made("-trades", "--model.weights", "none"),
        "trades": whole,
        "linear": made("-linear", *begin),
        "few-scratch": made("-trades", "--model.weights", "none", *tenth),
        "few": few,
        "semi": made("-semi", *begin, *teacher),
    }


def measured(name: str, job: Job, path: Path) -> EvaluationFile:
    """The evaluation of a run, which is trained where it is not finished."""
    if not (path / folder.EVALUATION).is_file():
        print(f"{name}: {path}", flush=True)
        run_job(job, path, resume=(path / folder.LAST / "state.pt").is_file(), progress=False)
    return migrate.read(path / folder.EVALUATION, EvaluationFile)


def content(scale: str, found: dict[int, dict[str, EvaluationFile]], made: dict[str, Job]) -> dict[str, Any]:
    """What is written: each run's accuracies, their means over seeds, and the differences of `PAIRS`."""
    seeds, first = sorted(found), next(iter(found.values()))
    n = first["scratch"].n

    def shares(name: str) -> dict[str, list[float]]:
        each = [found[seed][name] for seed in seeds]
        return {"clean": [e.clean.value for e in each], "robust": [e.worst.value for e in each]}

    def means(name: str) -> dict[str, Any]:
        if len(seeds) < 2:
            return {}
        return {kind: _plain(t_interval(values, resolution=1 / n)) for kind, values in shares(name).items()}

    def differences(a: str, b: str) -> dict[str, Any]:
        one, other = shares(a), shares(b)
        return {kind: _plain(paired(one[kind], other[kind], n)) for kind in one} if len(seeds) > 1 else {}

    return {
        "schema_version": 1, "scale": scale, "seeds": seeds, "n": n, "data": first["scratch"].to_json()["data"],
        "attacks": list(ATTACKS), "pretraining_epochs": made["acl"].train.epochs,
        "rows": [
            {"name": name, "what": what, "epochs": made[name].train.epochs, "images": made[name].data.limit,
             "seeds": shares(name), "mean": means(name)}
            for name, what in ROWS.items()
        ],
        "differences": [{"of": a, "less": b, **differences(a, b)} for a, b in PAIRS],
        "provenance": first["scratch"].provenance,
    }  # fmt: skip


def _plain(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def page(told: dict[str, Any], command: str) -> str:
    """The table, as Markdown."""

    def figure(estimate: dict[str, float] | None, values: Sequence[float] = ()) -> str:
        if not estimate:
            return ", ".join(f"{100 * v:.1f}" for v in values)
        return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"

    rows = [
        [row["what"], f"{row['epochs']}", *(figure(row["mean"].get(k), row["seeds"][k]) for k in ("clean", "robust"))]
        for row in told["rows"]
    ]
    names = {row["name"]: row["what"] for row in told["rows"]}
    gains = [
        [f"{names[each['of']]}, less {names[each['less']]}", *(figure(each.get(k)) for k in ("clean", "robust"))]
        for each in told["differences"]
    ]
    seeds, subset = ", ".join(map(str, told["seeds"])), words_on(told["data"])
    return "\n".join(
        [
            f"# Contrastive pre-training, {told['scale']}", "",
            f"{told['pretraining_epochs']} epochs of pre-training without labels; seeds {seeds}; test images:"
            f" {subset}. Robust: the worst of {' and '.join(told['attacks'])} for each image. Means over"
            " seeds with Student's 95 % interval, in %.",
            "", *table(["training", "epochs", "clean accuracy", "robust accuracy"], rows), "",
            "Differences paired by seed, in points:", "",
            *table(["difference", "clean accuracy", "robust accuracy"], gains), "",
            f"    {command}", "",
        ]
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=["digits", "mnist5k"])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--out", type=Path, help="folder for pretraining.json and pretraining.md")
    given, words = parser.parse_known_args(argv)
    out = given.out or Path("results") / f"pretraining-{given.scale}"
    found: dict[int, dict[str, EvaluationFile]] = {}
    for seed in range(given.seeds):
        made = jobs(given.scale, seed, given.runs, words)
        each = {name: measured(name, job, given.runs / f"{name}-seed{seed}") for name, job in made.items()}
        found[seed] = each
        told = content(given.scale, found, made)
        out.mkdir(parents=True, exist_ok=True)
        folder.write_json(out / "pretraining.json", told)
        command = f"python benchmarks/pretraining.py {given.scale} --seeds {given.seeds}"
        folder.write_atomic(out / "pretraining.md", page(told, command).encode())
    print(page(told, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
