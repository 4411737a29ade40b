"""A measured quantity against a setting: the cost of K, and any curve with a mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import GREY, PALETTE, TEXT, blank, legend_columns, listed, look, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost(
    lines: Mapping[str, tuple[Sequence[tuple[float, float]], tuple[float, float]]],
    others: Mapping[str, float],
    *,
    cpu: bool = False,
) -> Figure:
    """Seconds per epoch against the Langevin steps K, with the fitted line of each, and levels of other methods.

    `lines`: {name: (points (K, seconds), (slope, intercept))}; `others`: {name: seconds}, drawn as dashed levels;
    `cpu`: they are seconds of the process's CPU. Raises ValueError if there is no line.
    """
    if not lines:
        raise ValueError("no times to draw")
    figure = blank(8, 5.2)
    axes = figure.subplots()
    plain(axes)
    most = max(k for points, _ in lines.values() for k, _ in points)
    for i, (name, (points, (slope, intercept))) in enumerate(lines.items()):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot([0, most], [intercept, intercept + slope * most], color=colour, linewidth=1.5)
        axes.plot(*zip(*points), color=colour, marker="o", markersize=7, linestyle="none", label=listed(name))
    for i, (name, seconds) in enumerate(others.items(), start=len(lines)):
        axes.axhline(seconds, color=PALETTE[i % len(PALETTE)], linestyle=(0, (4, 2)), label=listed(name))
    axes.set_xlim(0, 1.05 * most)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Langevin steps K")
    axes.set_ylabel(f"{'CPU ' if cpu else ''}seconds per epoch")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT - 1)
    return figure


def lines(curve: Mapping[str, Any]) -> Figure:
    """Lines over numbers: `curve` has `title`, `x` and `y` (names of the axes), `log` ("", "x", "y" or "xy"), and
    `lines`, {label: (xs, ys)}; optional are `mark`, a place for a dotted upright line, and `error`, half widths of bars
    on the first line. Raises ValueError if there is nothing to draw.
    """
    from matplotlib.ticker import NullFormatter

    if not curve["lines"]:
        raise ValueError("no lines to draw")
    figure = blank(8, 5)
    axes = figure.subplots()
    plain(axes)
    for i, (label, (x, y)) in enumerate(curve["lines"].items()):
        bars = curve.get("error") if i == 0 else None
        axes.errorbar(
            x, y, yerr=bars, label=listed(label), linewidth=2, capsize=3, marker="o" if len(x) <= 30 else None,
            markersize=4, **look(i),
        )  # fmt: skip
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in curve["log"]:
            axes.set(**{f"{name}scale": "log"})
            # The usual labels are formulas, which text that may come from files never is.
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
    if curve.get("mark") is not None:
        axes.axvline(curve["mark"], color=GREY, linestyle=":", linewidth=1.5)
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(curve["y"])
    axes.set_title(curve["title"], fontsize=TEXT, loc="left")
    figure.legend(loc="outside lower center", ncols=legend_columns(curve["lines"]), frameon=False, fontsize=TEXT - 1)
    return figure
