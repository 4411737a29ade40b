"""The statements of the theory on a run's network."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from atent import plots
from atent.report.collect import Run
from atent.report.commands import command
from atent.report.render import Drawing, drawing


def concerns(run: Run) -> bool:
    """Whether the page has this section: the theory is about ATENT."""
    return bool(run.theories) or run.config["method"].get("name") == "ATENT"


def theory(run: Run) -> dict[str, Any]:
    """Each theory result with its curves."""
    shown: list[tuple[str, Any, list[Drawing]]] = []
    for name, found in run.theories.items():
        drawings = [
            drawing(plots.lines(asdict(curve) | {"title": ""}), f"{curve.title}. {curve.ends()}.", curve.title)
            for curve in found.curves.values()
        ]
        shown.append((name, found, drawings))
    return {"theories": shown, "command": command(run, "theory")}
