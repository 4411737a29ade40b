"""Several runs side by side, and the table of a comparison over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from atent import plots
from atent.attacks.spec import show
from atent.experiments.comparison import attributed, caption, caveat_of, layout, winner
from atent.experiments.results import ComparisonFile, EvaluationFile, Spread
from atent.report import words
from atent.report.collect import Comparison, Run
from atent.report.render import Drawing, drawing, number_of, render
from atent.threat import Threat


@dataclass(frozen=True)
class Row:
    """A run among several."""

    title: str
    method: str
    found: EvaluationFile | None
    under: str
    """The threats of the evaluation."""
    against: str
    """The threat of the training."""
    best: int | None
    """The best epoch."""
    pace: float | None
    """Seconds per epoch, the median."""


def several(runs: Mapping[str, Run]) -> Markup:
    """One table of all runs, and their curves together."""
    evaluated = {title: run.evaluations[run.leading] for title, run in runs.items() if run.leading is not None}
    return render(
        "several.html",
        rows=[_row(title, run) for title, run in runs.items()],
        attacks=list(dict.fromkeys(name for found in evaluated.values() for name in found.attacks)),
        differ=_differences(evaluated),
        caveat=_caveats(runs, evaluated),
        drawings=[*_accuracies(runs, evaluated), *_curves(runs)],
    )


def _caveats(runs: Mapping[str, Run], evaluated: Mapping[str, EvaluationFile]) -> str | None:
    """The caveats of the evaluations, each once, with the runs that it concerns unless it concerns all."""
    caveats = {title: caveat_of(evaluated[title]) if title in evaluated else None for title in runs}
    return " ".join(attributed({title: [text] if text else [] for title, text in caveats.items()})) or None


def _row(title: str, run: Run) -> Row:
    method = run.config["method"]
    found = run.evaluations[run.leading] if run.leading is not None else None
    threat = method.get("threat")
    seconds = [row["seconds"] for row in run.rows if "seconds" in row]
    return Row(
        title,
        str(method.get("name") or "unknown"),
        found,
        " and ".join(found.threats) if found else "",
        show(Threat(**threat)) if threat else "none",
        run.best_epoch,
        statistics.median(seconds) if seconds else None,
    )


def _accuracies(runs: Mapping[str, Run], evaluated: Mapping[str, EvaluationFile]) -> list[Drawing]:
    if not evaluated:
        return []
    label = words.short(runs)
    dots = {
        label[title]: {"clean": asdict(found.clean), "robust (worst case)": asdict(found.worst)}
        for title, found in evaluated.items()
    }
    listed = "; ".join(
        f"{title} {words.percent(found.clean.value)} and {words.percent(found.worst.value)}"
        for title, found in evaluated.items()
    )
    alt = f"Clean and robust accuracy by run: {listed}."
    return [drawing(plots.dots(dots), alt, height=1.6 + 0.5 * len(dots))]


def _curves(runs: Mapping[str, Run]) -> list[Drawing]:
    curves = {t: r.rows for t, r in runs.items() if any(row.get("validation_clean") is not None for row in r.rows)}
    if not curves:
        return []
    label = words.short(runs)
    drawn = plots.together({label[title]: rows for title, rows in curves.items()})
    listed = " ".join(f"{title}: {words.course(rows)}" for title, rows in curves.items())
    return [drawing(drawn, listed, "Validation accuracy during training.", height=5.5 + 0.12 * len(curves))]


def _differences(evaluated: Mapping[str, EvaluationFile]) -> list[str]:
    """The differences between the evaluations of the runs."""
    aspects: dict[str, Callable[[EvaluationFile], Any]] = {
        "data": lambda f: f.data.name,
        "number of test images": lambda f: f.n,
        "choice of test images": lambda f: f.outcomes.get("ids"),
        "threat": lambda f: f.threats,
        "set of attacks": lambda f: [a.attack for a in f.attacks.values()],
        "order of attacks": lambda f: f.cascade,
    }
    return [name for name, aspect in aspects.items() if len({str(aspect(found)) for found in evaluated.values()}) > 1]


def over_seeds(comparison: Comparison) -> Markup:
    """The table, the figure and the caption of a comparison, and each training of it."""
    found = comparison.found
    headings, rows = layout(found)
    dots = {row.recipe: {"clean": _share(row.clean), "robust (worst case)": _share(row.worst)} for row in found.rows}
    listed = "; ".join(
        f"{row.recipe} {words.percent(row.clean.mean)} and {words.percent(row.worst.mean)}" for row in found.rows
    )
    return render(
        "seeds.html",
        found=found,
        lead=_lead(found),
        path=comparison.path,
        headings=headings,
        rows=[(name, [(entry, number_of(entry.text)) for entry in entries]) for name, entries in rows],
        # The last line of a caption is the caveat, which the template shows above it.
        caption=[line for line in caption(found) if line != found.caveat],
        drawing=drawing(
            plots.dots(dots), f"Clean and worst-case robust accuracy, means over the seeds: {listed}.",
            "Means over the seeds, with 95 % intervals.", height=1.6 + 0.5 * len(dots),
        ),
        trainings=[(row.method, seed) for row in found.rows for seed in row.seeds],
    )  # fmt: skip


def _lead(found: ComparisonFile) -> str:
    """The comparison in one sentence: the recipe with the highest worst case, and whether others overlap with it."""
    best = max(found.rows, key=lambda row: row.worst.mean)
    spread = best.worst
    limits = "" if spread.low is None or spread.high is None else f" [{100 * spread.low:.1f}, {100 * spread.high:.1f}]"
    certain = winner([row.worst for row in found.rows]) is not None
    overlap = "" if certain else "; intervals of other recipes overlap with it"
    seeds = f"mean over {len(best.seeds)} seeds" if len(best.seeds) > 1 else "one seed"
    return (
        f"Of {len(found.rows)} recipes {best.recipe} has the highest worst-case robust accuracy,"
        f" {words.percent(spread.mean)}{limits} ({seeds}){overlap}."
    )


def _share(cell: Spread) -> dict[str, float | None]:
    return {"value": cell.mean, "low": cell.low, "high": cell.high}
