"""`atent evaluate`: robust accuracy of a model on its test images."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any

from atent.cli import output
from atent.cli.gate import GateOptions
from atent.cli.parse import Flat, Place, Text, arg
from atent.cli.shards import parsed
from atent.cli.studies import StudyOptions, print_studies
from atent.cli.target import Target

if typing.TYPE_CHECKING:
    from atent.experiments.gate import Limits, Verdict
    from atent.experiments.results import EvaluationFile
    from atent.experiments.target import Target as Evaluated

RENAMED = {"--radii": "--radius", "--batch": "--batch-size"}


def evaluate(
    target: Annotated[Target, Flat],
    studies: Annotated[StudyOptions, Flat],
    gates: Annotated[GateOptions, Flat],
    *,
    attacks: Annotated[tuple[str, ...] | None, arg("ATTACK ...")] = None,
    threats: Annotated[tuple[str, ...] | None, arg("THREAT ...")] = None,
    cascade: bool = True,
    radius: Annotated[tuple[str, ...], arg("R ...")] = (),
    checks: bool = False,
    per_class: bool = False,
    strict: bool = False,
    search_dtype: Annotated[typing.Literal["bfloat16", "float16"] | None, arg("{bfloat16,float16}")] = None,
    shard: Text = None,
    merge: bool = False,
    out: Place = None,
    json: bool = False,
) -> int:
    """Measure the robust accuracy of a model on its test images, with exact 95 % intervals, against true labels.

    The attacks run in order of increasing cost, each on the images that remain correctly classified. Repeating the
    command resumes an interrupted evaluation. Exit status: 0 success, 1 failure, an accuracy below its --min-... or,
    with --strict, a check that warns, 2 invalid usage.

    Parameters
    ----------
    attacks
        Attacks, each written as a call, such as "PGD(steps=40, step_size=0.01, restarts=5)", or an attack of another
        package with a prefix: "foolbox:LinfPGD(steps=40)" (docs/attacks.md). Default: the recipe's if they support the
        norm, else "PGD(steps=20)" and AutoAttack (linf, l2, l1), SparsePGD in both forms and SparseRS (l0), TokenAttack
        in two forms (patch).
    threats
        Several threats instead of one, each as "linf 8/255", "l2 0.5", "l1 12", "l0 6 group pixel" or "patch 1 side 4",
        optionally with attacks after a colon, such as "l1 12: APGD, Square" (default: strong attacks for the norm).
        Reports the union, every threat alone, which images each threat fools, and union.png.
    cascade
        Run each attack only on the images that remain correctly classified after the previous attacks; the last
        accuracy is the worst case. --no-cascade: run each attack on every correctly classified image, as training
        reports.
    radius
        Also measure each attack alone at these radii, such as 2/255 4/255 8/255; writes a table and security.png.
    checks
        Also check for masked gradients and weak attacks; prints a table of the checks.
    per_class
        Also print clean and robust accuracy per class, and the pairs of classes that attacks confuse most.
    strict
        Exit with 1 if a check warns; implies --checks.
    search_dtype
        Former name of --precision.
    shard
        i/k, with i from 1 to k: evaluate only the i-th of k shards (every k-th batch) and write
        evaluation.shard-i-of-k.json beside the result; the machines need no connection. Give --checks with --merge.
    merge
        Merge the shards of the same command (same options) into one evaluation. The result does not depend on k. It
        equals that of one process bit for bit with --no-cascade and attacks of one part; otherwise (cascade,
        AutoAttack) up to the rounding of batches of other sizes.
    out
        JSON file to write. Default: evaluation.json in the run folder, beside the weights file, or in the current
        folder; a number is appended if it exists. Partial results are kept in a file of that name that ends in
        .partial.jsonl, from which repeating the command resumes after an interruption.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    from atent import runs as folder
    from atent.distributed import alone, entered
    from atent.experiments.evaluation import Request, evaluate_target, measured, unfinished_evaluation
    from atent.experiments.gate import gate_target
    from atent.experiments.shards import evaluation_shard, merging
    from atent.experiments.target import load_target
    from atent.runs import locks
    from atent.runs.manifest import write_new
    from atent.signals import computed

    part = parsed(shard, merge, {"checks": checks, "strict": strict, "per-class": per_class})
    asked = gates.limits(whole=shard is None)
    places = {name: Path(path) if path else None for name, path in (("out", out), ("junit", gates.junit))}
    locks.steal(target.steal_lock)
    with output.json_alone(json) as emit, entered(lambda: output.own(**places)):
        subject = load_target(**target.keywords(), attacks=attacks, threats=threats)
        output.threads(target.threads)
        subject, dtype = measured(subject, target.search_dtype(search_dtype))  # type: ignore[arg-type]
        held = gate_target(subject, asked, dtype)
        place = Path(out) if out else subject.place / f"{subject.stem}{folder.EVALUATION}"
        request = Request(cascade, radius, checks or strict, studies.studies(), dtype)
        if part is not None:
            written = evaluation_shard(subject, place, part, request, progress=not target.quiet)
            print(f"written: {written}, shard {part.text} of {place.name}; merge all shards with --merge")
            emit({"shard": part.text, "written": str(written)})
            return 0
        resumed = merging if merge else unfinished_evaluation
        with entered(lambda: resumed(subject, place, request)) as partial:
            evaluation = evaluate_target(
                subject, request, partial=partial, blocks=merge, progress=not target.quiet
            )  # fmt: skip
            with computed(evaluation):
                path = alone(lambda: write_new(place, evaluation.to_json(), numbered=out is None))
        emit(evaluation.to_json())
        passed, warned = alone(lambda: _shown(subject, evaluation, path, gates, asked, held, per_class=per_class))
    return 1 if not passed or (warned and strict) else 0


def _drawn(evaluation: EvaluationFile, found: dict[str, Any], path: Path, stem: str) -> list[Path]:
    """Print the tables of radii and studies, and draw their figures; return the files."""
    from atent import plots
    from atent.experiments.comparison import radius_remarks

    written = []
    if evaluation.sweep:
        _radii(found["sweep"])
        # An evaluation prints its hint with its own table.
        for line in radius_remarks(evaluation.sweep, hints=evaluation.hint is None):
            print(line)
        written.append(output.save_figure(plots.security(found["sweep"]), path.with_name(f"{stem}security.png")))
    written += print_studies(evaluation, path, stem)
    if evaluation.union is not None:
        figure = plots.union(evaluation.union.to_json())
        written.append(output.save_figure(figure, path.with_name(f"{stem}union.png")))
    return written


_PAIRS = 10
"""Confusions shown."""


def _shown(
    subject: Evaluated, evaluation: EvaluationFile, path: Path, gates: GateOptions, asked: Limits,
    held: list[Verdict], *, per_class: bool,
) -> tuple[bool, bool]:  # fmt: skip
    """Print the tables, draw the figures and apply the gates of a written evaluation; return whether all pass and
    whether a check warns."""
    from atent.experiments.evaluation import summary
    from atent.experiments.gate import of_evaluation

    found = evaluation.to_json()
    output.accuracies({subject.name: evaluation})
    if per_class:
        _classes(found)
    written = [path, *_drawn(evaluation, found, path, subject.stem)]
    print("\n" + "\n".join(summary(evaluation)))
    warned = _checks(found["checks"]) if "checks" in found else False
    print(f"\nwritten: {', '.join(map(str, written))}")
    passed = gates.report([*of_evaluation(evaluation, asked, subject.name, str(path)), *held])
    return passed, warned


def _classes(found: dict[str, Any]) -> None:
    """Print clean and robust accuracy, one row per class, and the pairs of classes that attacks confuse most."""
    from rich.table import Table

    table = Table(title="per class, 95 % intervals", title_justify="left")
    table.add_column("class")
    for heading in ("n", "clean", f"robust to all of {', '.join(found['attacks']) or 'no attack'}"):
        table.add_column(heading, justify="right")
    names = found["data"]["class_names"]
    for row in found["per_class"]:
        name = str(names[row["class"]]) if names else str(row["class"])
        table.add_row(name, f"{row['n']:,}", output.share(row["clean"]), output.share(row["worst"]))
    output.print_table(table)
    pairs = found.get("fooled_as", [])
    if not pairs:
        return
    table = Table(title="confusions under attack", title_justify="left")
    for heading in ("class", "fooled as", "samples"):
        table.add_column(heading, justify="right" if heading == "samples" else "left")
    for row in pairs[:_PAIRS]:
        label, predicted = (str(names[row[key]]) if names else str(row[key]) for key in ("class", "predicted"))
        table.add_row(label, predicted, f"{row['k']:,} of {row['n']:,}")
    output.print_table(table)


def _radii(rows: list[dict[str, Any]]) -> None:
    """Print robust accuracies, one row per radius and one column per attack."""
    from rich.table import Table

    table = Table(title="each attack alone, by radius", title_justify="left")
    table.add_column("accuracy, 95 % interval")
    names = dict.fromkeys(row["attack"] for row in rows)
    for name in names:
        table.add_column(name, justify="right")
    for threat in dict.fromkeys(row["threat"] for row in rows):
        cells = {row["attack"]: output.share(row["robust"]) for row in rows if row["threat"] == threat}
        table.add_row(threat, *(cells.get(name, "") for name in names))
    output.print_table(table)
    for row in rows:
        if row["robust"]["k"] > row["monotone"]["k"]:
            print(
                f"{row['attack']} at {row['threat']}: {output.share(row['monotone'])} counting its successes at smaller"
                " radii: the attack is too weak at this radius"
            )


def _checks(checks: list[dict[str, Any]]) -> bool:
    """Print the table of the checks; return whether one of them warns."""
    from rich.table import Table

    table = Table(title="checks for masked gradients and weak attacks", title_justify="left")
    for heading in ("check", "", "figure"):
        table.add_column(heading, overflow="fold")
    failed = [check for check in checks if not check["passed"]]
    for check in checks:
        table.add_row(check["name"], "pass" if check["passed"] else "warn", check["figure"])
    print()
    output.print_table(table)
    for check in failed:
        print(f"{check['name']}: {check['why']}")
    return bool(failed)
