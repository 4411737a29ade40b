"""Figures of sweeps: parallel coordinates, the importance of settings, and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import GREY, PALETTE, TEXT, blank, legend_columns, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PRUNED = "#BBBBBB"


def parallel(
    space: Mapping[str, Sequence[Any] | None],
    trials: Sequence[tuple[Mapping[str, Any], float]],
    *,
    objective: str,
    maximize: bool = True,
    logs: Collection[str] = (),
    pruned: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
) -> Figure:
    """A line for each trial through its settings and, on the last axis, its value, which also gives the colour.

    `space`: {setting: its listed values, or None for numbers of a range}; `trials`: the settings and the value of each;
    `logs`: ranges with a logarithmic axis; `pruned`: the settings of trials without a value, in grey. The best lines
    are drawn last. Raises ValueError for no trials, and for a value that is not finite.
    """
    if not trials:
        raise ValueError("no trials to draw")
    if not all(math.isfinite(value) for _, value in trials):
        raise ValueError("a trial's value must be finite")
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    places = {name: _axis(name, listed, trials, pruned, name in logs) for name, listed in space.items()}
    values = [value for _, value in trials]
    low, high = min(values), max(values)
    colours = matplotlib.colormaps["viridis" if maximize else "viridis_r"]
    norm = Normalize(low, high if high > low else low + 1)
    figure = blank(max(7.0, 2.2 + 1.9 * (len(space) + 1)), 5.2)
    axes = figure.subplots()
    for settings in pruned:
        axes.plot([places[name][0](settings[name]) for name in space], color=_PRUNED, linewidth=1, linestyle=":")
    for settings, value in sorted(trials, key=lambda trial: trial[1], reverse=not maximize):
        heights = [places[name][0](settings[name]) for name in space] + [(value - low) / ((high - low) or 1)]
        axes.plot(heights, color=colours(norm(value)), linewidth=1.8, alpha=0.85, marker="o", markersize=3)
    ticks: list[tuple[str, list[tuple[float, str]]]] = [(name, places[name][1]) for name in space]
    ticks.append((objective, [((v - low) / ((high - low) or 1), f"{v:.4g}") for v in dict.fromkeys((low, high))]))
    _frame(axes, ticks)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=30)
    bar.set_label(objective, fontsize=TEXT)
    if title:
        figure.suptitle(title, fontsize=TEXT, x=0.02, ha="left")
    return figure


def _axis(
    name: str, listed: Sequence[Any] | None, trials: Sequence[tuple[Mapping[str, Any], float]],
    pruned: Sequence[Mapping[str, Any]], log: bool,
) -> tuple[Any, list[tuple[float, str]]]:  # fmt: skip
    """The position of a setting's value on its axis, in [0, 1], and the ticks of the axis."""
    if listed is not None:
        order = sorted(listed) if all(_is_number(value) for value in listed) else list(listed)
        step = max(1, len(order) - 1)
        marks = [(i / step if len(order) > 1 else 0.5, _word(value)) for i, value in enumerate(order)]
        return lambda value: marks[order.index(value)][0], marks
    seen = [settings[name] for settings in (*(s for s, _ in trials), *pruned)]
    scaled = math.log if log else float
    low, high = scaled(min(seen)), scaled(max(seen))
    width = (high - low) or 1.0
    ends = dict.fromkeys((min(seen), max(seen)))
    return lambda value: (scaled(value) - low) / width, [((scaled(e) - low) / width, _word(e)) for e in ends]


def _frame(axes: Axes, ticks: Sequence[tuple[str, Sequence[tuple[float, str]]]]) -> None:
    """A vertical line for each axis, with its marks on the left and its name below."""
    for x, (_, marks) in enumerate(ticks):
        axes.axvline(x, color=GREY, linewidth=1, zorder=0)
        for height, text in marks:
            axes.annotate(
                text, (x, height), (-4, 0), textcoords="offset points", ha="right", va="center", fontsize=TEXT - 3,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
            )  # fmt: skip
    axes.set_xticks(range(len(ticks)), [name for name, _ in ticks], fontsize=TEXT - 2)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(ticks) - 0.9)
    axes.set_ylim(-0.05, 1.05)
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def importance(shares: Mapping[str, Mapping[str, float]], *, n: int) -> Figure:
    """Bars of the share (%) of an objective's variance that each setting explains.

    `shares`: {objective: {setting: a fraction in [0, 1]}}; `n`: the trials that they are of. Raises ValueError for
    nothing to draw.
    """
    names = list(dict.fromkeys(name for each in shares.values() for name in each))
    if not names:
        raise ValueError("no importances to draw")
    height = 0.8 / len(shares)
    figure = blank(8, 1.6 + 0.35 * len(names) * len(shares))
    axes = figure.subplots()
    plain(axes)
    for i, (objective, each) in enumerate(shares.items()):
        places = [j + (i - (len(shares) - 1) / 2) * height for j in range(len(names))]
        widths = [100 * each.get(name, 0.0) for name in names]
        axes.barh(places, widths, height=0.9 * height, color=PALETTE[i % len(PALETTE)], label=objective)
        for place, width in zip(places, widths):
            axes.annotate(
                f"{width:.0f}", (width, place), (4, 0), textcoords="offset points", va="center", fontsize=TEXT - 2
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel(f"share of the variance, {n} trials (%)")
    figure.legend(loc="outside lower center", ncols=legend_columns(shares), frameon=False, fontsize=TEXT - 1)
    return figure


def front(
    points: Mapping[int, tuple[float, float]], best: Collection[int], *, labels: tuple[str, str],
    directions: tuple[str, str] = ("maximize", "maximize"),
) -> Figure:  # fmt: skip
    """Trials by two objectives, those of the Pareto front joined and numbered.

    `points`: the values of each trial by its number; `best`: the numbers of the front. Raises ValueError for no points.
    """
    if not points:
        raise ValueError("no trials to draw")
    figure = blank(7.5, 5.5)
    axes = figure.subplots()
    plain(axes)
    others = [point for number, point in points.items() if number not in best]
    if others:
        axes.plot(*zip(*others), linestyle="none", marker="o", markersize=6, color=_PRUNED, label="dominated")
    chosen = sorted((number for number in points if number in best), key=lambda number: points[number])
    line = [points[number] for number in chosen]
    axes.plot(*zip(*line), marker="o", markersize=8, linewidth=1.5, color=PALETTE[0], label="Pareto front")
    for number in chosen:
        axes.annotate(str(number), points[number], (5, 6), textcoords="offset points", fontsize=TEXT - 2)
    words = [
        f"{label}, {'higher' if way == 'maximize' else 'lower'} is better" for label, way in zip(labels, directions)
    ]
    axes.set_xlabel(words[0])
    axes.set_ylabel(words[1])
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT - 1)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)
