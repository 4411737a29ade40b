"""A sweep in the report: its trials, figures and trainings."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from atent.experiments.results import SweepFile
from atent.experiments.sweep.collect import caption, figures, layout
from atent.report.collect import SweepFolder
from atent.report.render import Drawing, drawing, number_of, render

_CAPTIONS = {
    "parallel": "Each line is a trial: its settings and its objective.",
    "importance": "Share of the variance over the trials that each setting explains.",
    "pareto": "The trials and their Pareto front.",
}


def of_sweep(sweep: SweepFolder) -> Markup:
    """The table of the trials as `atent sweep` prints it, its figures, and each training."""
    found = sweep.found
    headings, rows = layout(found)
    return render(
        "sweep.html",
        found=found,
        path=sweep.path,
        headings=headings,
        rows=[(row[0], [(text, number_of(text)) for text in row[1:]]) for row in rows],
        caption=caption(found),
        drawings=_drawings(found),
        trainings=[(trial.number, seed) for trial in found.trials for seed in trial.seeds],
        columns=["run", "trial", "seed", *found.objectives, "best epoch", "epochs"],
    )


def _drawings(found: SweepFile) -> list[Drawing]:
    headings, rows = layout(found)
    summary = "; ".join(
        f"trial {row[0]}: " + ", ".join(f"{name} {text}" for name, text in zip(headings[1:], row[1:]) if name and text)
        for row in rows
    )
    shares = " ".join(
        f"For {name}: " + ", ".join(f"{key} {100 * share:.0f} %" for key, share in each.items()) + "."
        for name, each in found.importance.items()
    )
    alt: dict[str, Any] = {"importance": shares}
    made = []
    for name, figure in figures(found).items():
        kind = name.partition("-")[0]
        made.append(drawing(figure, alt.get(kind, summary), _CAPTIONS[kind]))
    return made
