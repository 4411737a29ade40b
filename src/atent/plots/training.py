"""Curves of a training against its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import COLOUR, GREY, TEXT, Row, blank, fraction, listed, look, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {"train": (0, (4, 2)), "validation": "-"}


def curves(rows: Sequence[Row] | Mapping[str, Sequence[Row]], *, title: str | None = None) -> Figure:
    """Clean and robust accuracy (%) against epoch, in training (dashed) and validation (solid).

    `rows`: the rows of metrics.jsonl, or {run name: rows} for one panel per run, with a shared y axis. Keys
    of a row: `epoch` (from 1) and, as fractions in [0, 1], each optional or None, `train_clean`,
    `train_robust`, `validation_clean`, `validation_robust`; `validation_clean_low` / `_high` and the same
    for robust draw a band. The last row with a true `best` is marked. Raises ValueError if a run has no
    rows or no accuracies, a row no epoch, or a value is not a fraction.
    """
    runs = rows if isinstance(rows, Mapping) else {None: rows}
    if not runs:
        raise ValueError("no runs to draw")
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    lines = math.ceil(len(runs) / columns)
    figure = blank(9, 1.2 + 3.8 * lines)
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for panel, (name, run) in zip(panels, runs.items(), strict=False):
        note = _panel(panel, name, list(run), handles)
        # three panels in a row leave no room for the note in one line
        note = note.replace(": ", ":\n") if columns == 3 else note
        heading = title if name is None else name
        panel.set_title("\n".join(line for line in (heading, note) if line), loc="left", fontsize=TEXT)
    for i, panel in enumerate(panels):
        if i >= len(runs):
            panel.remove()
        elif i % columns == 0:
            panel.set_ylabel("accuracy (%)")
    if title and None not in runs:
        figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT + 2)
    order = [key for key in (*_labels(), "95 % interval", "best epoch") if key in handles]
    figure.legend(
        [handles[key] for key in order], order, loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT - 1
    )
    return figure


def together(runs: Mapping[str, Sequence[Row]]) -> Figure:
    """Validation accuracy (%) of several runs against epoch, one line per run: clean above, robust below.

    `runs`: {name: rows of metrics.jsonl}, keys as in `curves`; a panel without values is omitted. Raises
    ValueError if there is nothing to draw or a value is not a fraction.
    """
    from matplotlib.ticker import MaxNLocator

    found = {}
    for kind in ("clean", "robust"):
        lines = {name: _series(list(rows), f"validation_{kind}", f"run {name!r}: ") for name, rows in runs.items()}
        lines = {name: series for name, series in lines.items() if series[0]}
        if lines:
            found[kind] = lines
    if not found:
        raise ValueError("no validation accuracies to draw")
    names = [name for name in runs if any(name in lines for lines in found.values())]
    figure = blank(9, 1.2 + 3 * len(found))
    handles: dict[str, Any] = {}
    for axes, (kind, lines) in zip(figure.subplots(len(found), squeeze=False, sharex=True).flat, found.items()):
        plain(axes)
        for name, (epochs, values) in lines.items():
            (handles[name],) = axes.plot(
                epochs, values, linewidth=2, marker="o" if len(epochs) <= 12 else None, markersize=4, clip_on=False,
                **look(names.index(name)),
            )  # fmt: skip
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{kind} accuracy (%)")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        [handles[name] for name in names],
        [*map(listed, names)],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=TEXT - 1,
    )
    return figure


def characteristics(rows: Sequence[Row], *, decay: int | None = None, title: str | None = None) -> Figure:
    """Clean and robust accuracy (%) against epoch, in training (dashed), on the test set (solid) and on the validation
    split (dotted).

    `rows`: `epoch` and, as fractions, each optional, `train_clean`, `train_robust` and the same for `test` and
    `validation`; `test_clean_low` / `_high` and the same for robust draw a band. `decay`: the first epoch at a lower
    rate, marked. Raises ValueError for no rows or values that are not fractions.
    """
    from matplotlib.ticker import MaxNLocator

    if not rows:
        raise ValueError("no rows to draw")
    figure = blank(9, 5.4)
    axes = figure.subplots()
    plain(axes)
    dashes: dict[str, Any] = {"train": (0, (4, 2)), "test": "-", "validation": (0, (1, 1.5))}
    for kind, colour in COLOUR.items():
        for split, style in dashes.items():
            epochs, values = _series(list(rows), f"{split}_{kind}", "")
            if epochs:
                name = f"{kind}, {split}"
                axes.plot(
                    epochs, values, color=colour, linestyle=style, linewidth=2 if split == "test" else 1.5, label=name,
                    marker="o" if len(epochs) <= 12 and split == "test" else None, markersize=4, clip_on=False,
                )  # fmt: skip
        both = [row for row in rows if row.get(f"test_{kind}_low") is not None]
        if both:
            epochs, low = _series(both, f"test_{kind}_low", "")
            _, high = _series(both, f"test_{kind}_high", "")
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    if decay is not None:
        axes.axvline(decay, color=GREY, linestyle=":", linewidth=1.5, label="lower rate from here")
    axes.set_ylim(0, 100)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        axes.set_title(title, fontsize=TEXT, loc="left")
    legend = figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT - 1, title="bands: 95 % intervals"
    )
    legend.get_title().set(color=GREY, fontsize=TEXT - 2)
    return figure


def _labels() -> dict[str, tuple[str, str]]:
    return {f"{kind}, {split}": (split, kind) for kind in COLOUR for split in _STYLE}


def _panel(axes: Axes, name: str | None, rows: list[Row], handles: dict[str, Any]) -> str:
    """Draws one run, adds what it drew to `handles` for the legend; returns the note on its best epoch."""
    from matplotlib.ticker import MaxNLocator

    run = f"run {name!r}: " if name is not None else ""
    if not rows:
        raise ValueError(f"{run}no rows to draw")
    for i, row in enumerate(rows):
        if not isinstance(row.get("epoch"), int):
            raise ValueError(f"{run}row {i + 1} has no epoch")
    plain(axes)
    drawn = {}
    for label, (split, kind) in _labels().items():
        epochs, values = _series(rows, f"{split}_{kind}", run)
        if not epochs:
            continue
        # a few points are easily taken for a line that is not there
        marker = "o" if len(epochs) <= 12 else None
        width = 2 if split == "validation" else 1.5
        (drawn[label],) = axes.plot(
            epochs,
            values,
            color=COLOUR[kind],
            linestyle=_STYLE[split],
            label=label,
            linewidth=width,
            marker=marker,
            markersize=5,
            clip_on=False,
            markerfacecolor="white" if split == "train" else COLOUR[kind],
        )
    if not drawn:
        raise ValueError(f"{run}no accuracies in the rows")
    for label, line in drawn.items():
        handles.setdefault(label, line)
    for kind in COLOUR:
        both = [row for row in rows if all(row.get(f"validation_{kind}_{end}") is not None for end in ("low", "high"))]
        if both:
            epochs, low = _series(both, f"validation_{kind}_low", run)
            _, high = _series(both, f"validation_{kind}_high", run)
            band = axes.fill_between(epochs, low, high, color=COLOUR[kind], alpha=0.18, linewidth=0)
            handles.setdefault("95 % interval", band)
    if len({row["epoch"] for row in rows}) == 1:
        axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return _best(axes, rows, handles)


def _best(axes: Axes, rows: list[Row], handles: dict[str, Any]) -> str:
    best = next((row for row in reversed(rows) if row.get("best")), None)
    if best is None:
        return ""
    handles["best epoch"] = axes.axvline(best["epoch"], color=GREY, linestyle=":", linewidth=1.5)
    found = []
    for kind, colour in COLOUR.items():
        value = best.get(f"validation_{kind}")
        if value is not None:
            axes.plot(
                best["epoch"],
                100 * value,
                marker="*",
                markersize=13,
                color=colour,
                markeredgecolor="white",
                linestyle="none",
                zorder=5,
                clip_on=False,
                label="_best",
            )
            found.append(f"{kind} {100 * value:.1f} %")
    _gap(axes, best, rows[-1])
    return f"best epoch {best['epoch']}" + (": " + ", ".join(found) if found else "")


def _gap(axes: Axes, best: Row, last: Row) -> None:
    """The loss of robust accuracy from the best to the last epoch: robust overfitting, Rice et al. 2020."""
    top, end = best.get("validation_robust"), last.get("validation_robust")
    if top is None or end is None or last["epoch"] == best["epoch"] or top - end < 0.005:
        return
    axes.annotate(
        "",
        (last["epoch"], 100 * end),
        (last["epoch"], 100 * top),
        arrowprops={"arrowstyle": "<->", "color": GREY, "shrinkA": 0, "shrinkB": 0},
        annotation_clip=False,
    )
    axes.annotate(
        f"gap {100 * (top - end):.1f}",
        (last["epoch"], 50 * (top + end)),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=TEXT - 2,
        color=GREY,
        annotation_clip=False,
    )


def _series(rows: list[Row], key: str, run: str) -> tuple[list[int], list[float]]:
    present = [row for row in rows if row.get(key) is not None]
    return (
        [row["epoch"] for row in present],
        [100 * fraction(row, key, f"{run}epoch {row['epoch']}") for row in present],
    )
