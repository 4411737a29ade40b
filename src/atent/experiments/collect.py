"""Collects the finished runs of a comparison into the content of comparison.json."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent import stats
from atent.attacks.spec import relabelled
from atent.evaluate.outcomes import FOOLED
from atent.experiments import migrate
from atent.experiments.comparison import INTERVAL, accuracy, attributed, caveat_of, measure, remarks, winner
from atent.experiments.plan import Plan
from atent.experiments.results import (
    COMPARISON_VERSION,
    Adversary,
    ComparisonFile,
    Difference,
    EvaluationFile,
    PairResult,
    RecipeResult,
    SeedResult,
    Spread,
)
from atent.runs.checkpoint import check_best
from atent.runs.manifest import read_json


@dataclass(frozen=True)
class Row:
    """The runs of one row of the table."""

    label: str
    method: str
    """For tables."""
    threat: dict[str, Any] | None
    """The method's, as plain values."""
    seeds: list[SeedResult]
    evaluations: list[EvaluationFile]
    """One for each seed."""
    unfinished: Sequence[str] = ()
    """A line for each run whose training is unfinished."""
    code: Sequence[Mapping[str, str]] = ()
    """For each seed the hashes of the user's files that its training recorded, by module."""


def code_of_run(config: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of the user's files in the configuration of a run, by module; earlier versions record none."""
    return dict((config.get("about") or {}).get("code") or {})


def collect(plan: Plan, path: Path, at_once: int = 1) -> ComparisonFile:
    """The content of comparison.json, from finished runs."""
    made: dict[str, list[tuple[SeedResult, EvaluationFile, dict[str, str]]]] = {given: [] for given in plan.jobs}
    for run in plan.runs(path):
        found = evaluation_of(run.path)
        seed = run.job.train.seed
        code = code_of_run(folder.read_config(run.path / folder.CONFIG))
        made[run.given].append((seed_result(run.path, seed, found, last=run.job.evaluate.last), found, code))
    rows = []
    for given, job in plan.jobs.items():
        threat, (seeds, evaluations, codes) = getattr(job.method, "threat", None), zip(*made[given])
        name, plain = job.recipe or "", threat and threat.plain()
        rows.append(Row(name, job.title, plain, list(seeds), list(evaluations), code=codes))
    job = next(iter(plan.jobs.values()))
    return assembled(
        rows, command=plan.command, model=job.model.name, epochs=job.train.epochs, minutes=job.train.minutes,
        batch_size=job.train.batch_size, at_once=at_once,
    )  # fmt: skip


def assembled(rows: list[Row], *, differs: Sequence[str] = (), **head: Any) -> ComparisonFile:
    """The comparison of these rows; ``head``: the fields of `ComparisonFile` that do not follow from them."""
    seeds = [found.seed for found in rows[0].seeds]
    evaluation = rows[-1].evaluations[-1]
    made = _with_best([_row(row) for row in rows])
    return ComparisonFile(
        schema_version=COMPARISON_VERSION,
        data=evaluation.data,
        seeds=seeds,
        threats=evaluation.threats,
        interval=INTERVAL if len(seeds) > 1 else "exact binomial, 95 %; one seed: no standard deviation",
        caveat=caveat_of(evaluation),
        rows=made,
        provenance=folder.provenance(device=made[0].seeds[0].provenance["device"]),
        cascade=evaluation.cascade,
        pairs=pairs(rows),
        differs=[*differs, *_edited(rows)],
        remarks=[
            *attributed({r.label: [line for e in r.evaluations for line in remarks(e.attacks)] for r in rows}),
            *(f"{line}." for r in rows for line in r.unfinished),
        ],
        **head,
    )


def _edited(rows: list[Row]) -> list[str]:
    """The user's files that differ between the trainings, and attacks whose code does between the evaluations."""
    trained: dict[str, set[str]] = {}
    for code in (each for row in rows for each in row.code):
        for module, source in code.items():
            trained.setdefault(module, set()).add(source)
    every = [evaluation.attacks for row in rows for evaluation in row.evaluations]
    # Evaluations of earlier versions record no code.
    odd = [name for name in every[0] if len({tuple(a[name].code) for a in every if a[name].code}) > 1]
    edited = [f"the code of {module}" for module, sources in trained.items() if len(sources) > 1]
    return [*edited, *(f"the code of the attack {name}" for name in odd)]


def evaluation_of(path: Path) -> EvaluationFile:
    """The evaluation.json of the run at ``path``."""
    check_best(path)
    file = path / folder.EVALUATION
    content = migrate.evaluation(read_json(file))
    # Reused runs of an earlier version may have less specific labels.
    return migrate.parsed({**content, "attacks": relabelled(content["attacks"])}, EvaluationFile, file)


def _row(row: Row) -> RecipeResult:
    seeds = row.seeds
    memory = [s.memory_mb for s in seeds if s.memory_mb is not None]
    last = [s.last for s in seeds if s.last is not None]
    return RecipeResult(
        recipe=row.label,
        method=row.method,
        threat=Adversary(**row.threat) if row.threat else None,
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


# ---- pairs -----------------------------------------------------------------------------------------------


def pairs(rows: Sequence[Row]) -> list[PairResult]:
    """Every row less every later one, paired by seed and image; none for a single seed without outcomes by image."""
    kept = [{kind: _outcomes(row, kind) for kind in ("clean", "worst")} for row in rows]
    out = []
    for i, j in itertools.combinations(range(len(rows)), 2):
        found = [_difference(rows[i], rows[j], kind, kept[i][kind], kept[j][kind]) for kind in ("clean", "worst")]
        if found[0] is not None and found[1] is not None:
            by_image = found[0].p is not None and found[1].p is not None
            out.append(PairResult(rows[i].label, rows[j].label, found[0], found[1], _basis(rows[i], by_image)))
    return out


def _difference(
    one: Row, other: Row, kind: str, a: list[str] | None, b: list[str] | None
) -> Difference | None:  # fmt: skip
    shares = [[getattr(found, kind) for found in sorted(row.seeds, key=lambda s: s.seed)] for row in (one, other)]
    outcomes = (a, b) if a is not None and b is not None else None
    if outcomes is None and len(shares[0]) == 1:
        return None
    values = [[share.value for share in side] for side in shares]
    found = stats.paired(values[0], values[1], shares[0][0].n, outcomes)
    p = None if outcomes is None else stats.mcnemar_by_image(*outcomes)
    return Difference(found.value, found.low, found.high, p)


def _outcomes(row: Row, kind: str) -> list[str] | None:
    """For each seed "1" or "0" by image, in the order of the seeds; None if a file does not say."""
    out = []
    for seed, found in sorted(zip(row.seeds, row.evaluations), key=lambda pair: pair[0].seed):
        clean = found.outcomes.get("clean")
        if clean is None:
            return None
        marks = found.outcomes["attacks"].values() if kind == "worst" else ()
        text = "".join("1" if n == "1" and FOOLED not in rest else "0" for n, *rest in zip(clean, *marks))
        # Labels or ids that do not fit the share would pair the wrong images.
        if text.count("1") != getattr(seed, kind).k:
            return None
        out.append(text)
    return out


def _basis(row: Row, by_image: bool) -> str:
    seeds, images = len(row.seeds), f"{row.seeds[0].clean.n:,} images"
    if seeds == 1:
        return f"over {images}, for these two networks"
    return f"over {seeds} seeds and {images}" if by_image else f"over {seeds} seeds, on the same {images}"


def _with_best(rows: list[RecipeResult]) -> list[RecipeResult]:
    """The rows, each with its figures that lie above every other row's interval."""

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


def seed_result(path: Path, seed: int, evaluation: EvaluationFile, *, last: bool = True) -> SeedResult:
    """One training, from the metrics of the run at ``path`` and its ``evaluation``; ``last``: with the last epoch."""
    rows = folder.read_rows(path / folder.METRICS)
    if evaluation.epoch is None:
        raise ValueError(f"{path / folder.EVALUATION} does not say which epoch was evaluated: remove it")
    # Where the last epoch is the best there is one evaluation of both; without evaluate.last there is none.
    end = evaluation if evaluation.epoch == rows[-1]["epoch"] else evaluation.last
    memory = [row["memory_mb"] for row in rows if row.get("memory_mb") is not None]
    return SeedResult(
        seed=seed,
        run=path.name,
        clean=evaluation.clean,
        attacks={name: attack.robust for name, attack in evaluation.attacks.items()},
        worst=evaluation.worst,
        last=end.worst if end is not None and last else None,
        seconds_per_epoch=statistics.median(row["seconds"] for row in rows),
        memory_mb=max(memory, default=None),
        best_epoch=evaluation.epoch,
        passes=rows[-1].get("passes", rows[-1]["epoch"]),
        minutes=sum(row["seconds"] for row in rows) / 60,
        provenance=evaluation.provenance,
    )
