"""From the finished runs of a comparison to the content of comparison.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from atent import runs as folder
from atent.attacks.spec import relabelled
from atent.experiments import migrate
from atent.experiments.comparison import INTERVAL, accuracy, caveat_of, measure, winner
from atent.experiments.pipeline import Job
from atent.experiments.plan import Plan, Run
from atent.experiments.results import (
    COMPARISON_VERSION,
    Adversary,
    ComparisonFile,
    EvaluationFile,
    RecipeResult,
    SeedResult,
    Spread,
)


def collect(plan: Plan, path: Path, at_once: int = 1) -> ComparisonFile:
    """The content of comparison.json, from finished runs."""
    made: dict[str, list[SeedResult]] = {given: [] for given in plan.jobs}
    for run in plan.runs(path):
        evaluation = _evaluation(run)
        made[run.given].append(seed_result(run, evaluation))
    rows = _with_best([_row(job, made[given]) for given, job in plan.jobs.items()])
    job = next(iter(plan.jobs.values()))
    return ComparisonFile(
        schema_version=COMPARISON_VERSION,
        command=plan.command,
        data=evaluation.data,
        model=job.model.name,
        epochs=job.train.epochs,
        minutes=job.train.minutes,
        batch_size=job.train.batch_size,
        seeds=list(plan.seeds),
        threats=evaluation.threats,
        at_once=at_once,
        interval=INTERVAL if len(plan.seeds) > 1 else "exact binomial, 95 %; one seed: no standard deviation",
        caveat=caveat_of(evaluation),
        rows=rows,
        provenance=folder.provenance(device=rows[0].seeds[0].provenance["device"]),
    )


def _evaluation(run: Run) -> EvaluationFile:
    file = run.path / folder.EVALUATION
    content = migrate.evaluation(folder.read_json(file))
    # Runs of an earlier version, which are used again, may have labels that said less.
    return migrate.parsed({**content, "attacks": relabelled(content["attacks"])}, EvaluationFile, file)


def _row(job: Job, seeds: list[SeedResult]) -> RecipeResult:
    threat = getattr(job.method, "threat", None)
    memory = [s.memory_mb for s in seeds if s.memory_mb is not None]
    last = [s.last for s in seeds if s.last is not None]
    return RecipeResult(
        recipe=job.recipe or "",
        method=job.title,
        threat=Adversary(**threat.plain()) if threat else None,
        clean=accuracy([asdict(s.clean) for s in seeds]),
        attacks={a: accuracy([asdict(s.attacks[a]) for s in seeds]) for a in seeds[0].attacks},
        worst=accuracy([asdict(s.worst) for s in seeds]),
        last=accuracy([asdict(share) for share in last]) if len(last) == len(seeds) else None,
        seconds_per_epoch=measure([s.seconds_per_epoch for s in seeds]),
        memory_mb=measure(memory) if len(memory) == len(seeds) else None,
        best_epoch=measure([s.best_epoch for s in seeds]),
        passes=measure([s.passes for s in seeds if s.passes is not None]),
        minutes=measure([s.minutes for s in seeds if s.minutes is not None]),
        best={},
        seeds=seeds,
    )


def _with_best(rows: list[RecipeResult]) -> list[RecipeResult]:
    """The rows, each with what of it lies above every other row's for certain."""

    def best(cells: Sequence[Spread]) -> list[bool]:
        first = winner(cells)
        return [first == i for i in range(len(cells))]

    clean, worst = best([r.clean for r in rows]), best([r.worst for r in rows])
    attacks = {a: best([r.attacks[a] for r in rows]) for a in rows[0].attacks}
    return [
        replace(row, best={
            "clean": clean[i], "worst": worst[i], "attacks": {a: each[i] for a, each in attacks.items()},
        })
        for i, row in enumerate(rows)
    ]  # fmt: skip


def seed_result(run: Run, evaluation: EvaluationFile) -> SeedResult:
    """One training, from its metrics and its ``evaluation``."""
    rows = folder.read_rows(run.path / folder.METRICS)
    if evaluation.epoch is None:
        raise ValueError(f"{run.path / folder.EVALUATION} does not say which epoch was evaluated: remove it")
    # Where the last epoch is the best there is one evaluation of both; none is asked for without evaluate.last.
    last = evaluation if evaluation.epoch == rows[-1]["epoch"] else evaluation.last
    memory = [row["memory_mb"] for row in rows if row.get("memory_mb") is not None]
    return SeedResult(
        seed=run.job.train.seed,
        run=run.path.name,
        clean=evaluation.clean,
        attacks={name: attack.robust for name, attack in evaluation.attacks.items()},
        worst=evaluation.worst,
        last=last.worst if last is not None and run.job.evaluate.last else None,
        seconds_per_epoch=statistics.median(row["seconds"] for row in rows),
        memory_mb=max(memory, default=None),
        best_epoch=evaluation.epoch,
        passes=rows[-1].get("passes", rows[-1]["epoch"]),
        minutes=sum(row["seconds"] for row in rows) / 60,
        provenance=evaluation.provenance,
    )
