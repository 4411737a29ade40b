"""The effect of contrastive pre-training: trainings from pre-trained and from random weights, over several seeds.

    python benchmarks/pretraining.py digits --seeds 3 --runs runs/pretraining --out results/pretraining-digits

For each seed a network is pre-trained by the recipe SCALE-acl. The trainings that follow see as many samples in as many
steps from its weights as from random ones. What is finished is not made again: repeating the command resumes, and
``--finished`` writes the table of what is there. Options that are not known here are fields of all recipes, such as
--data.root PATH.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.cli.jobs import recipe_job
from atent.data.described import words as words_on
from atent.evaluate.outcomes import per_sample
from atent.experiments import migrate
from atent.experiments.job import Job
from atent.experiments.pipeline import run_job
from atent.experiments.pretraining import pretraining
from atent.experiments.results import EvaluationFile
from atent.markdown import table
from atent.stats import paired, t_interval

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


def shares(each: Iterable[EvaluationFile]) -> dict[str, list[float]]:
    """Clean and robust accuracy of each evaluation."""
    each = list(each)
    return {"clean": [e.clean.value for e in each], "robust": [e.worst.value for e in each]}


def outcomes(found: EvaluationFile) -> dict[str, str]:
    """One character per image, 1 or 0: right without an attack, and right under all."""
    rows = per_sample(found.outcomes)
    robust = (row["right"] and set(row["attacks"].values()) == {"robust"} for row in rows)
    return {"clean": found.outcomes["clean"], "robust": "".join("01"[held] for held in robust)}


def means(each: Sequence[EvaluationFile]) -> dict[str, Any]:
    """Means over the seeds with Student's interval; nothing for a single seed."""
    if len(each) < 2:
        return {}
    return {
        kind: asdict(t_interval(values, resolution=1 / each[0].n, within=(0.0, 1.0)))
        for kind, values in shares(each).items()
    }


def differences(pairs: Sequence[tuple[EvaluationFile, EvaluationFile]]) -> dict[str, Any]:
    """Differences paired by seed and image, with intervals that cover other seeds and other images."""
    if not pairs:
        return {}
    one, other = shares(a for a, _ in pairs), shares(b for _, b in pairs)
    by_image = [(outcomes(a), outcomes(b)) for a, b in pairs]
    return {
        kind: asdict(
            paired(
                one[kind], other[kind], pairs[0][0].n, ([a[kind] for a, _ in by_image], [b[kind] for _, b in by_image])
            )
        )
        for kind in one
    }


def content(scale: str, found: dict[str, dict[int, EvaluationFile]], made: dict[str, Job]) -> dict[str, Any]:
    """What is written: each run's accuracies, their means over the seeds, and the differences of `PAIRS`.

    ``found`` holds evaluations by name and seed, of those that are finished.
    """
    first = next(iter(found["scratch"].values()))
    return {
        "schema_version": 1, "scale": scale, "n": first.n, "data": first.to_json()["data"], "attacks": list(ATTACKS),
        "pretraining_epochs": made["acl"].train.epochs,
        "rows": [
            {"name": name, "what": what, "epochs": made[name].train.epochs, "images": made[name].data.limit,
             "seeds": sorted(found[name]), **shares(found[name].values()), "mean": means([*found[name].values()])}
            for name, what in ROWS.items()
        ],
        "differences": [
            {"of": a, "less": b, "seeds": (both := sorted({*found[a]} & {*found[b]})),
             **differences([(found[a][seed], found[b][seed]) for seed in both])}
            for a, b in PAIRS
        ],
        "provenance": first.provenance,
    }  # fmt: skip


def figure(estimate: dict[str, float] | None, values: Sequence[float] = ()) -> str:
    """A mean with its interval, or where there is none the values; in %."""
    if not estimate:
        return ", ".join(f"{100 * v:.1f}" for v in values)
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def page(result: dict[str, Any], command: str) -> str:
    """The tables, as Markdown."""
    kinds = ("clean", "robust")

    def seeds(row: dict[str, Any]) -> str:
        return ", ".join(map(str, row["seeds"]))

    rows = [
        [row["what"], str(row["epochs"]), seeds(row), *(figure(row["mean"].get(k), row[k]) for k in kinds)]
        for row in result["rows"]
    ]
    names = {row["name"]: row["what"] for row in result["rows"]}
    gains = [
        [f"{names[each['of']]}, less {names[each['less']]}", seeds(each), *(figure(each.get(k)) for k in kinds)]
        for each in result["differences"]
    ]
    return "\n".join(
        [
            f"# Contrastive pre-training, {result['scale']}", "",
            f"{result['pretraining_epochs']} epochs of pre-training without labels, not counted in the table."
            f" Test images: {words_on(result['data'])}. Robust: correct under {' and '.join(result['attacks'])}."
            " Means over the seeds with Student's 95 % interval, in %. AutoAttack may lower robust accuracies.",
            "", *table(["training", "epochs", "seeds", "clean accuracy", "robust accuracy"], rows), "",
            "Differences in points, paired by seed and image; their 95 % intervals cover other seeds and other images:",
            "", *table(["difference", "seeds", "clean accuracy", "robust accuracy"], gains), "",
            f"    {command}", "",
        ]
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=["digits", "mnist5k"])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--out", type=Path, help="folder for pretraining.json and pretraining.md")
    parser.add_argument("--finished", action="store_true", help="train nothing: the table of what is finished")
    given, words = parser.parse_known_args(argv)
    found: dict[str, dict[int, EvaluationFile]] = {name: {} for name in ("acl", *ROWS)}
    for seed in range(given.seeds):
        made = jobs(given.scale, seed, given.runs, words)
        for name, job in made.items():
            path = given.runs / f"{name}-seed{seed}"
            if not given.finished or (path / folder.EVALUATION).is_file():
                found[name][seed] = measured(name, job, path)
    command = f"python benchmarks/pretraining.py {given.scale} --seeds {given.seeds}"
    result = content(given.scale, found, made)
    out = given.out or Path("results") / f"pretraining-{given.scale}"
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / "pretraining.json", result)
    folder.write_atomic(out / "pretraining.md", page(result, command).encode())
    print(page(result, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
