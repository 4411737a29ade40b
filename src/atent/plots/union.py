"""Figure of several threats: robust accuracy by threat, and the overlap of the threats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import GREY, PALETTE, TEXT, blank, plain, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def union(report: Mapping[str, Any], *, title: str | None = None, stacked: bool = False) -> Figure:
    """Robust accuracy (%) under each threat and under all, with 95 % intervals, beside the overlap of the threats.

    `report`: as `UnionReport.to_json` gives it. The overlap is a table: of the correctly classified samples that the
    threat of the row fools, the share (%) that the threat of the column fools too. `stacked`: one above the other,
    for a narrow page. Raises ValueError for no threats and for values that are not fractions.
    """
    names = list(report["threats"])
    if not names:
        raise ValueError("no threats to draw")
    longest, height = max(map(len, names)), 1.5 + 0.42 * (len(names) + 2)
    if stacked:
        figure = blank(6, 2 * height + 0.03 * longest)
        accuracy, overlap = figure.subplots(2, 1)
    else:
        figure = blank(11 + 0.06 * longest, max(height, 2 + 0.5 * len(names) + 0.03 * longest))
        accuracy, overlap = figure.subplots(1, 2)
    _accuracies(accuracy, report, names)
    _overlap(overlap, report["broken"], names)
    figure.suptitle(title or f"several threats at once, n = {report['n']:,}", fontsize=TEXT, x=0.02, ha="left")
    return figure


def _accuracies(axes: Axes, report: Mapping[str, Any], names: list[str]) -> None:
    """A bar for each threat, then the average and the union; a line at the clean accuracy."""
    rows = [(name, report["threats"][name]["robust"], PALETTE[5]) for name in names]
    rows += [("average", report["average"], GREY), ("union", report["worst"], PALETTE[1])]
    plain(axes)
    for i, (name, share, colour) in enumerate(rows):
        value, low, high = span(share, name)
        axes.barh(i, value, color=colour, height=0.65)
        axes.hlines(i, low, high, color="black", linewidth=1.5)
    clean, *_ = span(report["clean"], "clean")
    axes.axvline(clean, color=PALETTE[0], linestyle="--", linewidth=1.5)
    axes.annotate(
        "clean", (clean, 1), (-3, 2), xycoords=("data", "axes fraction"), textcoords="offset points", ha="right",
        color=PALETTE[0], fontsize=TEXT - 2,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("robust accuracy (%), with its 95 % interval")


def _overlap(axes: Axes, broken: Mapping[str, Mapping[str, int]], names: list[str]) -> None:
    """A cell for each pair of threats; grey where the threat of the row fools none."""
    share = [[broken[a][b] / broken[a][a] if broken[a][a] else float("nan") for b in names] for a in names]
    axes.imshow(share, cmap="Oranges", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#DDDDDD")
    for i, row in enumerate(share):
        for j, value in enumerate(row):
            if value == value:
                text = f"{broken[names[i]][names[i]]:,}" if i == j else f"{100 * value:.0f} %"
                colour = "white" if value > 0.6 else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=TEXT - 2, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=TEXT - 1)
    axes.set_title("of the images that the row fools, the column also fools", fontsize=TEXT - 1, loc="left")
