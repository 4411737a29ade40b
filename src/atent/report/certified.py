"""The certificates of a run."""

from __future__ import annotations

from typing import Any

from atent import plots
from atent.experiments.certificate_lines import at_most, layout
from atent.experiments.results import SmoothingFile
from atent.report import words
from atent.report.collect import Certificate, Run
from atent.report.commands import certified_by, command
from atent.report.render import Drawing, drawing


def certificates(run: Run) -> dict[str, Any]:
    """Each certificate: its rows, what is shown below them, and the curve of smoothing."""
    shown = []
    for name, found in run.certificates.items():
        _, rows, below = layout(found.content)
        lines = [f"Test images: {found.content.images.text}.", *below, f"File: {name}"]
        listed = "; ".join(line.rstrip(".") for line in lines) + "."
        kind = "randomised smoothing" if found.radii is not None else "bounds"
        shown.append((kind, rows, listed, _curve(run, kind, found)))
    return {
        "certificates": shown,
        "unfinished": run.unfinished,
        "command": command(run, "certify", *certified_by(run)),
    }


def _curve(run: Run, name: str, found: Certificate) -> Drawing | None:
    content = found.content
    if found.radii is None or not isinstance(content, SmoothingFile):
        return None
    listed = ", ".join(f"{words.percent(row.share.value)} at {at_most(row.radius)}" for row in content.certified)
    return drawing(
        plots.certified({run.name: found.radii}),
        f"Certified accuracy of {len(found.radii):,} test images against l2 radius in pixel units: {listed}.",
        f"{name.capitalize()}; each certificate fails with probability at most {content.sampling['alpha']:g}.",
    )
