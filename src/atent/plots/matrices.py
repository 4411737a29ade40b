"""Heat maps: errors by corruption and severity, and robust accuracies between networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import TEXT, blank, clean_error, fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def corruptions(report: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """The error (%) under each corruption, a row, at each severity, a column.

    `report`: as `CorruptionReport.to_json` gives it. Raises ValueError for no rows and for values that are not
    fractions.
    """
    rows = report["rows"]
    if not rows:
        raise ValueError("no corruptions to draw")
    names = list(dict.fromkeys(row["corruption"] for row in rows))
    severities = sorted({row["severity"] for row in rows})
    at = {(r["corruption"], r["severity"]): 100 * fraction(r["error"], "value", r["corruption"]) for r in rows}
    figure = blank(7, 1.6 + 0.36 * len(names))
    axes = figure.subplots()
    _cells(axes, [[at[name, s] for s in severities] for name in names], "magma_r")
    axes.set_xticks(range(len(severities)), [str(s) for s in severities])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("severity", fontsize=TEXT)
    mean, clean = 100 * report["mean"]["value"], clean_error(report)
    summary = f"error (%), n = {report['n']:,}: clean {clean:.1f}, mean {mean:.1f}"
    if report.get("mce") is not None:
        summary += f", mCE {report['mce']['value']:.3g}"
    axes.set_title(title or summary, fontsize=TEXT, loc="left")
    return figure


def transfer(report: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """Robust accuracy (%) of each network, a column, under the attack on each, a row, with 95 % intervals.

    `report`: as `TransferFile.to_json` gives it. Raises ValueError for no networks and for values that are not
    fractions.
    """
    networks = report["networks"]
    if not networks:
        raise ValueError("no networks to draw")
    names = [net["name"] for net in networks]
    shares = [[net["clean"] for net in networks]]
    shares += [[net["robust"][i] for net in networks] for i in range(len(networks))]
    values = [[100 * fraction(s, "value", name) for s, name in zip(row, names, strict=True)] for row in shares]
    ends = [[f"\n[{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in row] for row in shares]
    longest = max(map(len, names))
    figure = blank(2.2 + 0.08 * longest + 1.35 * len(names), 1.8 + 0.03 * longest + 0.62 * len(shares))
    axes = figure.subplots()
    _cells(axes, values, "viridis", ends)
    axes.axhline(0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(shares)), ["no attack", *names])
    axes.set_xlabel("evaluated network", fontsize=TEXT)
    axes.set_ylabel("attacked network", fontsize=TEXT)
    axes.set_title(title or f"accuracy (%), {report['attack']}, n = {report['n']:,}", fontsize=TEXT, loc="left")
    return figure


def _cells(
    axes: Axes, values: Sequence[Sequence[float]], colours: str, more: Sequence[Sequence[str]] | None = None
) -> None:
    """A table of percentages, each written on its colour."""
    import matplotlib

    axes.imshow(values, cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            red, green, blue, _ = matplotlib.colormaps[colours](value / 100)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                j, i, f"{value:.1f}" + (more[i][j] if more else ""), ha="center", va="center", fontsize=TEXT - 3,
                color="white" if dark else "black",
            )  # fmt: skip
    axes.tick_params(length=0, labelsize=TEXT - 1)
