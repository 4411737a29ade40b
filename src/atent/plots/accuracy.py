"""Accuracies with their intervals: by row, against each other, and against the radius."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import (
    GREY,
    MARKERS,
    PALETTE,
    TEXT,
    Row,
    blank,
    fraction,
    legend_columns,
    listed,
    look,
    plain,
    span,
    whole_ticks,
)
from atent.threat import COUNTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def dots(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Accuracies (%) as dots with their intervals, one line per model, from the top.

    `table`: {model: {kind: share}}, a share with the fractions `value` and, optional or None, `low` and `high`; a model
    may lack a kind, such as "robust". Raises ValueError if there is nothing to draw or a value is not a fraction.
    """
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    if not kinds:
        raise ValueError("no accuracies to draw: the table is empty")
    figure = blank(9, 1.4 + 0.5 * len(table))
    axes = figure.subplots()
    plain(axes)
    for i, kind in enumerate(kinds):
        places, spans = [], []
        for j, (model, row) in enumerate(table.items()):
            if kind in row:
                cell = {end: row[kind].get(end) for end in ("value", "low", "high")}
                cell = {end: row[kind]["value"] if value is None else value for end, value in cell.items()}
                spans.append([100 * fraction(cell, end, f"{model}, {kind}") for end in ("value", "low", "high")])
                places.append(j + 0.08 + 0.3 * (i + 0.5) / len(kinds))
        axes.hlines(places, [s[1] for s in spans], [s[2] for s in spans], color=PALETTE[i % len(PALETTE)], linewidth=2)
        axes.plot(
            [s[0] for s in spans], places, linestyle="none", marker="os^Dv"[i % 5], markersize=7, label=kind,
            color=PALETTE[i % len(PALETTE)], clip_on=False,
        )  # fmt: skip
    # above its line a name has the whole width
    for j, model in enumerate(table):
        axes.text(0.8, j - 0.22, model, va="center", fontsize=TEXT - 1)
    axes.set_yticks([j - 0.5 for j in range(len(table))], [])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%), with its 95 % interval")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT - 1)
    return figure


def accuracies(table: Mapping[str, Mapping[str, Row]], *, title: str | None = None) -> Figure:
    """Accuracy (%) under each attack as grouped bars, one colour per model, with 95 % intervals.

    `table`: {model: {attack: share}}, a share as `run.share` gives it (fractions `value`, `low`, `high`);
    a model may lack an attack. Raises ValueError if there is nothing to draw or a value is not a fraction.
    """
    attacks = list(dict.fromkeys(attack for row in table.values() for attack in row))
    if not attacks:
        raise ValueError("no accuracies to draw: the table is empty")
    many = len(table) > 4
    figure = blank(11, 6.5) if many else blank(9, 5)
    axes = figure.subplots()
    plain(axes)
    axes.grid(axis="x", visible=False)
    for i, model in enumerate(table):
        _bars(axes, i, model, table, attacks, upright=many)
    axes.set_xticks(range(len(attacks)), attacks)
    if len(attacks) > 5:
        axes.tick_params(axis="x", rotation=30)
    axes.set_ylim(0, 118 if many else 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")
    if title:
        axes.set_title(title, fontsize=TEXT + 2, loc="left")
    counts = {cell.get("n") for row in table.values() for cell in row.values()}
    count = counts.pop() if len(counts) == 1 else None
    note = "error bars: 95 % intervals" + (f", n = {count:,}" if count else "")
    legend = figure.legend(
        loc="outside lower center", ncols=legend_columns(table), frameon=False, fontsize=TEXT - 1, title=note
    )
    legend.get_title().set(color=GREY, fontsize=TEXT - 2)
    return figure


def _bars(
    axes: Axes, i: int, model: str, table: Mapping[str, Mapping[str, Row]], attacks: Sequence[str], *, upright: bool
) -> None:
    """The bars of the model number ``i``, one for each attack, with their intervals and numbers."""
    row, width = table[model], 0.84 / len(table)
    size = max(7, min(TEXT - 1, 160 / (len(table) * len(attacks))))
    middle = {attack: j + (i - (len(table) - 1) / 2) * width for j, attack in enumerate(attacks)}
    met = [attack for attack in attacks if attack in row]
    value, low, high = (
        [100 * fraction(row[attack], key, f"{model}, {attack}") for attack in met] for key in ("value", "low", "high")
    )
    below = [max(0.0, v - end) for v, end in zip(value, low, strict=True)]
    above = [max(0.0, end - v) for v, end in zip(value, high, strict=True)]
    axes.bar(
        [middle[attack] for attack in met], value, 0.92 * width, label=listed(model), color=PALETTE[i % len(PALETTE)],
        hatch=None if i < len(PALETTE) else "//", yerr=[below, above],
        error_kw={"ecolor": "#333333", "capsize": min(4, 30 * width), "elinewidth": 1.2},
    )  # fmt: skip
    text: dict[str, Any] = {"ha": "center", "va": "bottom"}
    for attack, v, end in zip(met, value, high, strict=True):
        # side by side, numbers over many bars would run into each other
        axes.text(middle[attack], end + 1.2, f"{v:.1f}", fontsize=size, rotation=90 * upright, **text)
    for attack in attacks:
        if attack not in row:
            # an empty place would read as zero
            axes.text(middle[attack], 1.2, "not\nrun", fontsize=size - 1, color=GREY, **text)


def pareto(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], *, robust: str = "robust accuracy (%)"
) -> Figure:
    """Clean against robust accuracy (%), a point per model with its 95 % intervals, and the Pareto front in grey.

    `panels`: {title: {model: {"clean": share, "robust": share}}}, a share with the fractions `value` and, optional or
    None, `low` and `high`; one panel beside the other with common axes, and a model looks the same in each. Models that
    none of their panel beats in one accuracy without losing in the other are filled, the rest hollow. `robust` names
    the upright axis. Raises ValueError if there is nothing to draw or a value is not a fraction.
    """
    names = list(dict.fromkeys(name for table in panels.values() for name in table))
    if not names:
        raise ValueError("no models to draw")
    columns = legend_columns(names)
    figure = blank(9 if len(panels) == 1 else 6.5 * len(panels), 5.2 + 0.26 * math.ceil(len(names) / columns))
    places = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True).flat
    handles: dict[str, Any] = {}
    for axes, (title, table) in zip(places, panels.items(), strict=True):
        plain(axes)
        spans = {
            name: [span(row[kind], f"{name}, {kind}") for kind in ("clean", "robust")] for name, row in table.items()
        }
        at = {name: (x[0], y[0]) for name, (x, y) in spans.items()}
        front = sorted(p for p in set(at.values()) if not any(_beats(q, p) for q in at.values()))
        # points below and left of these steps are dominated
        axes.step([x for x, _ in front], [y for _, y in front], where="pre", color="#999999", linewidth=1.2, zorder=1)
        for name, (x, y) in spans.items():
            i = names.index(name)
            colour = PALETTE[i % len(PALETTE)]
            bars = {
                key: [[max(0.0, value - low)], [max(0.0, high - value)]]
                for key, (value, low, high) in (("xerr", x), ("yerr", y))
            }
            axes.errorbar(x[0], y[0], **bars, color=colour, elinewidth=1, alpha=0.55, zorder=2)
            (handles[name],) = axes.plot(
                x[0], y[0], linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=9, color=colour, zorder=3,
                markerfacecolor=colour if at[name] in front else "white", markeredgewidth=1.8, label=name,
            )  # fmt: skip
        axes.set_xlabel("clean accuracy (%)")
        axes.set_title(title, loc="left", fontsize=TEXT)
    figure.axes[0].set_ylabel(robust)
    legend = figure.legend(
        list(handles.values()), [*map(listed, handles)], loc="outside lower center", ncols=columns, frameon=False,
        fontsize=TEXT - 1, title="bars: 95 % intervals; filled: on the Pareto front",
    )  # fmt: skip
    legend.get_title().set(color=GREY, fontsize=TEXT - 2)
    return figure


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is at least as good in both, and better in one."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def security(rows: Sequence[Row], *, title: str | None = None) -> Figure:
    """Robust accuracy (%) against the radius of the threat, one line per attack, with bands of 95 % intervals.

    `rows` as `evaluate.sweep` gives them: attack, norm, radius, clean, robust and monotone (shares). A line begins at
    radius 0 with the clean accuracy. Where what smaller radii fooled is more than a radius fools itself, a dashed line
    counts it too. linf radii that are integer multiples of 1/255 are written as such, those of l0 and patch as counts
    of what the row's `threat` says. Raises ValueError for no rows, for rows of several norms, and for values that are
    not fractions.
    """
    norms = sorted({row["norm"] for row in rows})
    if len(norms) != 1:
        raise ValueError(f"a security curve is of one norm, got {', '.join(norms) or 'no rows'}: draw one for each")
    levels = norms[0] == "linf" and all(
        row["radius"] < 1 and abs(255 * row["radius"] - round(255 * row["radius"])) < 1e-6 for row in rows
    )
    unit = 255 if levels else 1
    units = "1/255 in pixel units" if levels else _units(norms[0], [str(row.get("threat", "")) for row in rows])
    figure = blank(8, 5.2)
    axes = figure.subplots()
    plain(axes)
    for i, name in enumerate(dict.fromkeys(row["attack"] for row in rows)):
        own = sorted((row for row in rows if row["attack"] == name), key=lambda row: row["radius"])
        begin = [] if own[0]["radius"] == 0 else [{"radius": 0.0, "robust": own[0]["clean"]}]
        x = [unit * row["radius"] for row in (*begin, *own)]
        value, low, high = (
            [100 * fraction(row["robust"], key, f"{name} at {row['radius']:g}") for row in (*begin, *own)]
            for key in ("value", "low", "high")
        )
        colour = PALETTE[i % len(PALETTE)]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, value, color=colour, marker="o", markersize=5, linewidth=2, label=listed(name), clip_on=False)
        counted = [100 * fraction(row["monotone"], "value", name) for row in own]
        if any(a < b for a, b in zip(counted, value[len(begin) :], strict=True)):
            axes.plot(
                x[len(begin) :],
                counted,
                color=colour,
                linestyle=(0, (4, 2)),
                label=listed(f"{name}, with smaller radii"),
            )  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{norms[0]} radius ({units})")
    if norms[0] in COUNTS:
        whole_ticks(axes.xaxis)
    axes.set_ylabel("robust accuracy (%)")
    if title:
        axes.set_title(title, fontsize=TEXT + 1, loc="left")
    counts = {row["robust"]["n"] for row in rows}
    note = "bands: 95 % intervals" + (f", n = {counts.pop():,}" if len(counts) == 1 else "")
    legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT - 1, title=note)
    legend.get_title().set(color=GREY, fontsize=TEXT - 2)
    return figure


def _units(norm: str, threats: Sequence[str] = ()) -> str:
    """The unit of the radii of a norm; ``threats`` as text distinguish pixels from elements."""
    if norm == "patch":
        return "patches"
    if norm == "l0":
        units = [text.rpartition(" ")[2].removesuffix("s") + "s" for text in threats]
        return units[0] if len(set(units)) == 1 and units[0] in ("pixels", "elements") else "number changed"
    return "pixel units"


def minimum_norm(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, norm: str = "l2", title: str | None = None
) -> Figure:
    """Robust accuracy (%) against the radius, one falling step line per attack.

    `curves`: {attack: (radii, accuracy)} as `evaluate.norms.curve` gives them: radii, or counts, that rise from 0,
    fractions in [0, 1] that do not rise; each holds until the next radius. `norm` names the radius. Raises ValueError
    for no curves, or one that is empty, does not begin at 0, or goes the wrong way.
    """
    if not curves:
        raise ValueError("no curves to draw")
    end = max((radii[-1] for radii, _ in curves.values() if len(radii)), default=0.0)
    figure = blank(9, 5)
    axes = figure.subplots()
    plain(axes)
    for i, (attack, (radii, accuracy)) in enumerate(curves.items()):
        if not len(radii) or len(radii) != len(accuracy):
            raise ValueError(
                f"{attack}: {len(radii)} radii and {len(accuracy)} accuracies, expected as many, at least 1"
            )
        if radii[0] != 0 or any(b <= a for a, b in pairwise(radii)) or not math.isfinite(radii[-1]):
            raise ValueError(f"{attack}: radii must be finite and rise from 0")
        values = [100 * fraction({"accuracy": v}, "accuracy", attack) for v in accuracy]
        if any(b > a for a, b in pairwise(values)):
            raise ValueError(f"{attack}: the accuracy must not rise with the radius")
        axes.step(
            # the last value extends to the edge of the figure
            [*radii, 1.05 * end],
            [*values, values[-1]],
            where="post",
            label=listed(attack),
            linewidth=2,
            **look(i),
        )
    axes.set_xlim(0, 1.05 * end if end else 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"{norm} radius ({_units(norm)})")
    if norm in COUNTS:
        whole_ticks(axes.xaxis)
    axes.set_ylabel("robust accuracy (%)")
    if title:
        axes.set_title(title, fontsize=TEXT + 2, loc="left")
    figure.legend(loc="outside lower center", ncols=legend_columns(curves), frameon=False, fontsize=TEXT - 1)
    return figure


def certified(
    models: Mapping[str, Sequence[float]], *, marks: Mapping[float, str] | None = None, title: str | None = None
) -> Figure:
    """Certified accuracy (%) against the l2 radius, one step curve with its 95 % band per model.

    `models`: {name: one radius per test image}, in pixel units, within which its correct class is certified; negative
    where the class is wrong or nothing is certified. `marks`: {radius: label} draws dotted vertical lines. Raises
    ValueError if there is nothing to draw or a radius is not finite.
    """
    if not models or not all(len(radii) for radii in models.values()):
        raise ValueError("no certificates to draw: give the radii of one model at least")
    figure = blank(9, 5.4)
    axes = figure.subplots()
    plain(axes)
    end = max(_steps(axes, i, name, radii) for i, (name, radii) in enumerate(models.items()))
    for place, label in (marks or {}).items():
        axes.axvline(place, color=GREY, linestyle=":", linewidth=1.5)
        axes.annotate(label, (place, 0), (4, 3), textcoords="offset points", va="bottom", fontsize=TEXT - 2, color=GREY)
        end = max(end, place)
    axes.set_xlim(0, 1.05 * end if end else 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("certified l2 radius (pixel units)")
    axes.set_ylabel("certified accuracy (%)")
    if title:
        axes.set_title(title, fontsize=TEXT + 2, loc="left")
    legend = figure.legend(
        loc="outside lower center",
        ncols=legend_columns(models),
        frameon=False,
        fontsize=TEXT - 1,
        title="bands: 95 % intervals of the test sample",
    )
    legend.get_title().set(color=GREY, fontsize=TEXT - 2)
    return figure


def _steps(axes: Axes, i: int, name: str, radii: Sequence[float]) -> float:
    """The step curve of the model number ``i`` with its band; its largest radius, 0 where nothing is certified."""
    from atent.stats import interval

    if not all(math.isfinite(r) for r in radii):
        raise ValueError(f"{name}: radii must be finite numbers, -1 where the class is wrong")
    n, certified = len(radii), sorted(r for r in radii if r >= 0)
    # The share is left-continuous: it falls just beyond each radius, so a step holds up to its right end.
    places = [0.0, *certified]
    counts = [len(certified), *range(len(certified), 0, -1)]
    if certified:
        places.append(certified[-1])
        counts.append(0)
    known = {k: interval(k, n) for k in set(counts)}
    colour = PALETTE[i % len(PALETTE)]
    axes.plot(
        places, [100 * k / n for k in counts], drawstyle="steps-pre", color=colour, linewidth=2,
        linestyle="-" if i < len(PALETTE) else "--", label=listed(f"{name} (n = {n:,})"),
    )  # fmt: skip
    axes.fill_between(
        places, [100 * known[k][0] for k in counts], [100 * known[k][1] for k in counts], step="pre", color=colour,
        alpha=0.15, linewidth=0,
    )  # fmt: skip
    return places[-1]
