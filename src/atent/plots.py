"""Every figure, from plain results to a matplotlib Figure, without pyplot and its global state."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart by colour-blind readers; yellow last, since it is weak on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

_COLOUR = {"natural": PALETTE[0], "robust": PALETTE[1]}
_MARKERS = "os^DvPX"
_STYLE = {"train": (0, (4, 2)), "validation": "-"}
_TEXT = 12
_GREY = "#555555"


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as .png (two pixels per screen pixel) or .svg; the same figure gives the same bytes.

    Raises ValueError for another suffix, OSError of one line if the file cannot be written (`run.atomic`).
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"a figure is saved as .png or .svg, not as {Path(path).name!r}")
    with atomic(path) as temporary:
        _write(figure, temporary, kind)


def svg(figure: Figure) -> bytes:
    """The figure as SVG for a page: its text stays text, in the reader's own sans-serif, and is drawn as it is written,
    without mathematics between dollar signs. The same figure gives the same bytes."""
    import warnings

    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    out = io.BytesIO()
    with warnings.catch_warnings():
        # the reader's font draws what ours lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _write(figure, out, "svg", text="none")
    return out.getvalue()


def narrow(figure: Figure, height: float) -> Figure:
    """The same figure, 5.2 inches wide and ``height`` inches high, its legend in at most two columns: on a phone its
    text can be read."""
    figure.set_size_inches(5.2, height)
    for old in list(figure.legends):
        handles = [handle for handle in old.legend_handles if handle is not None]
        labels, title = [text.get_text() for text in old.get_texts()], old.get_title()
        # two columns have room for 24 letters each
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=2 if max(map(len, labels)) <= 24 else 1,
            frameon=False, fontsize=_TEXT - 1, title=title.get_text() or None,
        )  # fmt: skip
        legend.get_title().set(color=title.get_color(), fontsize=title.get_fontsize())
        old.remove()
    return figure


def _write(figure: Figure, out: Path | io.BytesIO, kind: str, text: str = "path") -> None:
    import matplotlib

    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "atent", "svg.fonttype": text}):
        figure.savefig(out, format=kind, dpi=200, metadata=metadata, facecolor="white")


def curves(rows: Sequence[dict] | Mapping[str, Sequence[dict]], *, title: str | None = None) -> Figure:
    """Natural and robust accuracy (%) against epoch, in training (dashed) and validation (solid).

    `rows`: the rows of metrics.jsonl, or {run name: rows} for one panel per run, with a shared y axis. Keys
    of a row: `epoch` (from 1) and, as fractions in [0, 1], each optional or None, `train_natural`,
    `train_robust`, `validation_natural`, `validation_robust`; `validation_natural_low` / `_high` and the same
    for robust draw a band. The last row with a true `best` is marked. Raises ValueError if a run has no
    rows or no accuracies, a row no epoch, or a value is not a fraction.
    """
    runs = rows if isinstance(rows, Mapping) else {None: rows}
    if not runs:
        raise ValueError("no runs to draw")
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    lines = math.ceil(len(runs) / columns)
    figure = _figure(9, 1.2 + 3.8 * lines)
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for panel, (name, run) in zip(panels, runs.items(), strict=False):
        note = _panel(panel, name, list(run), handles)
        # three panels in a row leave no room for the note in one line
        note = note.replace(": ", ":\n") if columns == 3 else note
        heading = title if name is None else name
        panel.set_title("\n".join(line for line in (heading, note) if line), loc="left", fontsize=_TEXT)
    for i, panel in enumerate(panels):
        if i >= len(runs):
            panel.remove()
        elif i % columns == 0:
            panel.set_ylabel("accuracy (%)")
    if title and None not in runs:
        figure.suptitle(title, x=0.01, ha="left", fontsize=_TEXT + 2)
    order = [key for key in (*_labels(), "95 % interval", "best epoch") if key in handles]
    figure.legend(
        [handles[key] for key in order], order, loc="outside lower center", ncols=3, frameon=False, fontsize=_TEXT - 1
    )
    return figure


def together(runs: Mapping[str, Sequence[dict]]) -> Figure:
    """Validation accuracy (%) of several runs against epoch, one line per run: natural above, robust below.

    `runs`: {name: rows of metrics.jsonl}, keys as in `curves`; a panel that no run has values for is left out. Raises
    ValueError where there is nothing to draw or a value is no fraction.
    """
    from matplotlib.ticker import MaxNLocator

    found = {}
    for kind in ("natural", "robust"):
        lines = {name: _series(list(rows), f"validation_{kind}", f"run {name!r}: ") for name, rows in runs.items()}
        lines = {name: series for name, series in lines.items() if series[0]}
        if lines:
            found[kind] = lines
    if not found:
        raise ValueError("no validation accuracies to draw")
    names = [name for name in runs if any(name in lines for lines in found.values())]
    figure = _figure(9, 1.2 + 3 * len(found))
    handles: dict[str, Any] = {}
    for axes, (kind, lines) in zip(figure.subplots(len(found), squeeze=False, sharex=True).flat, found.items()):
        _axes(axes)
        for name, (epochs, values) in lines.items():
            (handles[name],) = axes.plot(
                epochs, values, linewidth=2, marker="o" if len(epochs) <= 12 else None, markersize=4, clip_on=False,
                **_look(names.index(name)),
            )  # fmt: skip
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{kind} accuracy (%)")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=2, frameon=False, fontsize=_TEXT - 1
    )
    return figure


def dots(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Accuracies (%) as dots with their intervals, one line per model, from the top.

    `table`: {model: {kind: share}}, a share with the fractions `value` and, optional or None, `low` and `high`; a model
    may lack a kind, such as "robust". Raises ValueError where there is nothing to draw or a value is no fraction.
    """
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    if not kinds:
        raise ValueError("no accuracies to draw: the table is empty")
    figure = _figure(9, 1.4 + 0.5 * len(table))
    axes = figure.subplots()
    _axes(axes)
    for i, kind in enumerate(kinds):
        places, spans = [], []
        for j, (model, row) in enumerate(table.items()):
            if kind in row:
                cell = {end: row[kind].get(end) for end in ("value", "low", "high")}
                cell = {end: row[kind]["value"] if value is None else value for end, value in cell.items()}
                spans.append([100 * _fraction(cell, end, f"{model}, {kind}") for end in ("value", "low", "high")])
                places.append(j + 0.08 + 0.3 * (i + 0.5) / len(kinds))
        axes.hlines(places, [s[1] for s in spans], [s[2] for s in spans], color=PALETTE[i % len(PALETTE)], linewidth=2)
        axes.plot(
            [s[0] for s in spans], places, linestyle="none", marker="os^Dv"[i % 5], markersize=7, label=kind,
            color=PALETTE[i % len(PALETTE)], clip_on=False,
        )  # fmt: skip
    # above its line a name has the whole width
    for j, model in enumerate(table):
        axes.text(0.8, j - 0.22, model, va="center", fontsize=_TEXT - 1)
    axes.set_yticks([j - 0.5 for j in range(len(table))], [])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%), with its 95 % interval")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=_TEXT - 1)
    return figure


def accuracies(table: dict[str, dict[str, dict]], *, title: str | None = None) -> Figure:
    """Accuracy (%) under each attack as grouped bars, one colour per model, with 95 % intervals.

    `table`: {model: {attack: share}}, a share as `run.share` gives it (fractions `value`, `low`, `high`);
    a model may lack an attack. Raises ValueError if there is nothing to draw or a value is no fraction.
    """
    attacks = list(dict.fromkeys(attack for row in table.values() for attack in row))
    if not attacks:
        raise ValueError("no accuracies to draw: the table is empty")
    many = len(table) > 4
    figure = _figure(11, 6.5) if many else _figure(9, 5)
    axes = figure.subplots()
    _axes(axes)
    axes.grid(axis="x", visible=False)
    width = 0.84 / len(table)
    size = max(7, min(_TEXT - 1, 160 / (len(table) * len(attacks))))
    for i, (model, row) in enumerate(table.items()):
        places = [j for j, attack in enumerate(attacks) if attack in row]
        x = [j + (i - (len(table) - 1) / 2) * width for j in places]
        value, low, high = (
            [100 * _fraction(row[attacks[j]], key, f"{model}, {attacks[j]}") for j in places]
            for key in ("value", "low", "high")
        )
        below = [max(0.0, v - end) for v, end in zip(value, low, strict=True)]
        above = [max(0.0, end - v) for v, end in zip(value, high, strict=True)]
        axes.bar(
            x,
            value,
            0.92 * width,
            label=model,
            color=PALETTE[i % len(PALETTE)],
            hatch=None if i < len(PALETTE) else "//",
            yerr=[below, above],
            error_kw={"ecolor": "#333333", "capsize": min(4, 30 * width), "elinewidth": 1.2},
        )
        for place, v, end in zip(x, value, high, strict=True):
            # side by side, numbers over many bars would run into each other
            axes.text(
                place,
                end + 1.2,
                f"{v:.1f}",
                ha="center",
                va="bottom",
                fontsize=size,
                rotation=90 * many,
            )
        for j, attack in enumerate(attacks):
            if attack not in row:
                # an empty place would read as zero
                axes.text(
                    j + (i - (len(table) - 1) / 2) * width,
                    1.2,
                    "not\nrun",
                    ha="center",
                    va="bottom",
                    fontsize=size - 1,
                    color=_GREY,
                )
    axes.set_xticks(range(len(attacks)), attacks)
    if len(attacks) > 5:
        axes.tick_params(axis="x", rotation=30)
    axes.set_ylim(0, 118 if many else 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")
    if title:
        axes.set_title(title, fontsize=_TEXT + 2, loc="left")
    counts = {cell.get("n") for row in table.values() for cell in row.values()}
    count = counts.pop() if len(counts) == 1 else None
    note = "error bars: 95 % intervals" + (f", n = {count:,}" if count else "")
    legend = figure.legend(
        loc="outside lower center", ncols=_columns(table), frameon=False, fontsize=_TEXT - 1, title=note
    )
    legend.get_title().set(color=_GREY, fontsize=_TEXT - 2)
    return figure


def pareto(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], *, robust: str = "robust accuracy (%)"
) -> Figure:
    """Natural against robust accuracy (%), a point per model with its 95 % intervals, and the Pareto front in grey.

    `panels`: {title: {model: {"natural": share, "robust": share}}}, a share with the fractions `value` and, optional or
    None, `low` and `high`; one panel beside the other with common axes, and a model looks the same in each. Models that
    none of their panel beats in one accuracy without losing in the other are filled, the rest hollow. `robust` names
    the upright axis. Raises ValueError where there is nothing to draw or a value is no fraction.
    """
    names = list(dict.fromkeys(name for table in panels.values() for name in table))
    if not names:
        raise ValueError("no models to draw")
    columns = _columns(names)
    figure = _figure(9 if len(panels) == 1 else 6.5 * len(panels), 5.2 + 0.26 * math.ceil(len(names) / columns))
    places = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True).flat
    handles: dict[str, Any] = {}
    for axes, (title, table) in zip(places, panels.items(), strict=True):
        _axes(axes)
        spans = {
            name: [_span(row[kind], f"{name}, {kind}") for kind in ("natural", "robust")] for name, row in table.items()
        }
        at = {name: (x[0], y[0]) for name, (x, y) in spans.items()}
        front = sorted(p for p in set(at.values()) if not any(_beats(q, p) for q in at.values()))
        # whatever lies below and left of these steps is beaten
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
                x[0], y[0], linestyle="none", marker=_MARKERS[i % len(_MARKERS)], markersize=9, color=colour, zorder=3,
                markerfacecolor=colour if at[name] in front else "white", markeredgewidth=1.8, label=name,
            )  # fmt: skip
        axes.set_xlabel("natural accuracy (%)")
        axes.set_title(title, loc="left", fontsize=_TEXT)
    figure.axes[0].set_ylabel(robust)
    legend = figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False,
        fontsize=_TEXT - 1, title="bars: 95 % intervals; filled: on the Pareto front",
    )  # fmt: skip
    legend.get_title().set(color=_GREY, fontsize=_TEXT - 2)
    return figure


def _span(share: Mapping[str, Any], where: str) -> list[float]:
    """Value and ends of its interval in %, the value itself where there is none."""
    ends = {end: share["value"] if share.get(end) is None else share[end] for end in ("value", "low", "high")}
    return [100 * _fraction(ends, end, where) for end in ends]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is at least as good in both, and better in one."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def minimum_norm(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, norm: str = "l2", title: str | None = None
) -> Figure:
    """Robust accuracy (%) against the radius, one falling step line per attack.

    `curves`: {attack: (radii, accuracy)} as `evaluate.norms.curve` gives them: radii in pixel units that rise from 0,
    fractions in [0, 1] that do not rise; each holds until the next radius. `norm` names the radius. Raises ValueError
    for no curves, or one that is empty, does not begin at 0, or goes the wrong way.
    """
    if not curves:
        raise ValueError("no curves to draw")
    end = max((radii[-1] for radii, _ in curves.values() if len(radii)), default=0.0)
    figure = _figure(9, 5)
    axes = figure.subplots()
    _axes(axes)
    for i, (attack, (radii, accuracy)) in enumerate(curves.items()):
        if not len(radii) or len(radii) != len(accuracy):
            raise ValueError(
                f"{attack}: {len(radii)} radii and {len(accuracy)} accuracies, expected as many, at least 1"
            )
        if radii[0] != 0 or any(b <= a for a, b in pairwise(radii)) or not math.isfinite(radii[-1]):
            raise ValueError(f"{attack}: radii must be finite and rise from 0")
        values = [100 * _fraction({"accuracy": v}, "accuracy", attack) for v in accuracy]
        if any(b > a for a, b in pairwise(values)):
            raise ValueError(f"{attack}: the accuracy must not rise with the radius")
        axes.step(
            # the last value holds as far as the picture goes
            [*radii, 1.05 * end],
            [*values, values[-1]],
            where="post",
            label=attack,
            linewidth=2,
            **_look(i),
        )
    axes.set_xlim(0, 1.05 * end if end else 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"{norm} radius (pixel units)")
    axes.set_ylabel("robust accuracy (%)")
    if title:
        axes.set_title(title, fontsize=_TEXT + 2, loc="left")
    figure.legend(loc="outside lower center", ncols=_columns(curves), frameon=False, fontsize=_TEXT - 1)
    return figure


def certified(
    models: Mapping[str, Sequence[float]], *, marks: Mapping[float, str] | None = None, title: str | None = None
) -> Figure:
    """Certified accuracy (%) against the l2 radius, one step curve with its 95 % band per model.

    `models`: {name: one radius per test image}, in pixel units, within which its right class is proved; negative
    where the class is wrong or nothing is proved. `marks`: {radius: label} draws dotted vertical lines. Raises
    ValueError if there is nothing to draw or a radius is not finite.
    """
    from .run import interval

    if not models or not all(len(radii) for radii in models.values()):
        raise ValueError("no certificates to draw: give the radii of one model at least")
    figure = _figure(9, 5.4)
    axes = figure.subplots()
    _axes(axes)
    end = 0.0
    for i, (name, radii) in enumerate(models.items()):
        if not all(math.isfinite(r) for r in radii):
            raise ValueError(f"{name}: radii must be finite numbers, -1 where the class is wrong")
        n, proved = len(radii), sorted(r for r in radii if r >= 0)
        # The share is left-continuous: it falls just beyond each radius, so a step holds up to its right end.
        places = [0.0, *proved]
        counts = [len(proved), *range(len(proved), 0, -1)]
        if proved:
            places.append(proved[-1])
            counts.append(0)
            end = max(end, proved[-1])
        known = {k: interval(k, n) for k in set(counts)}
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(
            places,
            [100 * k / n for k in counts],
            drawstyle="steps-pre",
            color=colour,
            linewidth=2,
            linestyle="-" if i < len(PALETTE) else "--",
            label=f"{name} (n = {n:,})",
        )
        axes.fill_between(
            places,
            [100 * known[k][0] for k in counts],
            [100 * known[k][1] for k in counts],
            step="pre",
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    for place, label in (marks or {}).items():
        axes.axvline(place, color=_GREY, linestyle=":", linewidth=1.5)
        axes.annotate(
            label, (place, 0), (4, 3), textcoords="offset points", va="bottom", fontsize=_TEXT - 2, color=_GREY
        )
        end = max(end, place)
    axes.set_xlim(0, 1.05 * end if end else 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("certified l2 radius (pixel units)")
    axes.set_ylabel("certified accuracy (%)")
    if title:
        axes.set_title(title, fontsize=_TEXT + 2, loc="left")
    legend = figure.legend(
        loc="outside lower center",
        ncols=_columns(models),
        frameon=False,
        fontsize=_TEXT - 1,
        title="bands: 95 % intervals of the test sample",
    )
    legend.get_title().set(color=_GREY, fontsize=_TEXT - 2)
    return figure


def images(x: Any, labels: Sequence[str] | None = None, *, columns: int = 8, title: str | None = None) -> Figure:
    """A grid of images (n, c, h, w), c = 1 or 3, floats in [0, 1], array or tensor, with captions.

    Raises ValueError for another shape or range, no images, or labels of another number than images.
    """
    import numpy

    # bfloat16 has no numpy type
    x = x.detach().cpu().float().numpy() if hasattr(x, "detach") else numpy.asarray(x, dtype=float)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.size == 0:
        raise ValueError(f"images are (n, c, h, w) with c = 1 or 3 and n > 0, not {tuple(x.shape)}")
    # written so that NaN fails too
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"images lie in [0, 1], not in [{x.min():.3g}, {x.max():.3g}]")
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"{len(x)} images but {len(labels)} labels")
    columns = min(columns, len(x))
    lines = math.ceil(len(x) / columns)
    # a lone picture at full width would be a poster
    side = min(9 / columns, 2.2)
    figure = _figure(side * columns, lines * (side * x.shape[2] / x.shape[3] + 0.35))
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for i, panel in enumerate(panels):
        panel.set_axis_off()
        if i < len(x):
            picture = x[i].transpose(1, 2, 0)
            panel.imshow(
                picture[..., 0] if x.shape[1] == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            if labels is not None:
                panel.set_title(str(labels[i]), fontsize=_TEXT - 3)
    if title:
        figure.suptitle(title, fontsize=_TEXT + 1)
    return figure


def adversarial(x: Any, x_adv: Any, y: Any, seen: Any, *, title: str | None = None) -> Figure:
    """Original, adversarial and difference of each image, two images a row, captioned with their classes.

    `x`, `x_adv`: (n, c, h, w) tensors, c = 1 or 3, floats in [0, 1]; `y`, `seen` (n,): true classes, and the model's
    classes of `x_adv`. The differences are magnified by one factor, that of the largest, around mid-grey. Raises
    ValueError as `images`.
    """
    import torch

    difference, factor = magnified(x, x_adv)
    panels = [x.detach().cpu().float(), x_adv.detach().cpu().float(), difference]
    captions = [
        caption
        for true, found in zip(y, seen, strict=True)
        for caption in (f"class {int(true)}", f"seen as {int(found)}", f"difference x {factor:.3g}")
    ]
    return images(torch.stack(panels, 1).flatten(0, 1), captions, columns=6 if len(x) > 1 else 3, title=title)


def magnified(x: Any, x_adv: Any) -> tuple[Any, float]:
    """What changed between two tensors of one shape, around mid-grey 0.5, and the factor by which it is magnified: that
    which brings the largest change of all to 0 or 1."""
    d = (x_adv - x).detach().cpu().float()
    largest = float(d.abs().max()) if d.numel() else 0.0
    factor = 0.5 / largest if largest else 1.0
    return (0.5 + factor * d).clamp(0, 1), factor


def security(rows: Sequence[dict], *, title: str | None = None) -> Figure:
    """Robust accuracy (%) against the radius of the threat, one line per attack, with bands of 95 % intervals.

    `rows` as `evaluate.sweep` gives them: attack, norm, radius, natural, robust and monotone (shares). A line begins at
    radius 0 with the natural accuracy. Where what smaller radii fooled is more than a radius fools itself, a dashed
    line counts it too. Radii that are whole grey levels are written as such. Raises ValueError for no rows, for rows of
    several norms, and for values that are no fractions.
    """
    norms = sorted({row["norm"] for row in rows})
    if len(norms) != 1:
        raise ValueError(f"a security curve is of one norm, got {', '.join(norms) or 'no rows'}: draw one for each")
    grey = all(abs(255 * row["radius"] - round(255 * row["radius"])) < 1e-6 for row in rows)
    unit = 255 if grey else 1
    figure = _figure(8, 5.2)
    axes = figure.subplots()
    _axes(axes)
    for i, name in enumerate(dict.fromkeys(row["attack"] for row in rows)):
        own = sorted((row for row in rows if row["attack"] == name), key=lambda row: row["radius"])
        begin = [] if own[0]["radius"] == 0 else [{"radius": 0.0, "robust": own[0]["natural"]}]
        x = [unit * row["radius"] for row in (*begin, *own)]
        value, low, high = (
            [100 * _fraction(row["robust"], key, f"{name} at {row['radius']:g}") for row in (*begin, *own)]
            for key in ("value", "low", "high")
        )
        colour = PALETTE[i % len(PALETTE)]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, value, color=colour, marker="o", markersize=5, linewidth=2, label=name, clip_on=False)
        counted = [100 * _fraction(row["monotone"], "value", name) for row in own]
        if any(a < b for a, b in zip(counted, value[len(begin) :], strict=True)):
            axes.plot(
                x[len(begin) :], counted, color=colour, linestyle=(0, (4, 2)), label=f"{name}, with smaller radii"
            )
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{norms[0]} radius ({'1/255 of the pixel range' if grey else 'pixel units'})")
    axes.set_ylabel("robust accuracy (%)")
    if title:
        axes.set_title(title, fontsize=_TEXT + 1, loc="left")
    legend = figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=_TEXT - 1,
        title=f"bands: 95 % intervals, n = {rows[0]['robust']['n']:,}",
    )  # fmt: skip
    legend.get_title().set(color=_GREY, fontsize=_TEXT - 2)
    return figure


def regions(
    panels: Mapping[str, Mapping[str, Any]],
    across: Sequence[float],
    up: Sequence[float],
    x: Any,
    y: Any,
    *,
    eps: float,
    classes: Sequence[str] = ("class 0", "class 1"),
) -> Figure:
    """Decision regions of two classes in the plane, a panel for each network, with each point's linf ball as a square.

    `panels`: {title: {"regions": classes (len(up), len(across)) seen at the lattice of `across` and `up`, "stands":
    bool (n,), whether the network is right on the whole ball}}. `x` (n, 2), `y` (n,) 0 or 1, arrays; `eps` the radius,
    in the coordinates' units. Balls that do not stand are drawn strongly, the others faintly; class 1 has triangles.
    Raises ValueError for no panels, or where the sizes disagree.
    """
    import numpy
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    if not panels:
        raise ValueError("no panels to draw")
    columns = 2 if len(panels) > 1 else 1
    lines = math.ceil(len(panels) / columns)
    tall = (up[-1] - up[0]) / (across[-1] - across[0])
    figure = _figure(5.6 * columns, 1.0 + (5.0 * tall + 0.5) * lines)
    places = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    colours, size = PALETTE[:2], 2 * eps
    for axes, (title, panel) in zip(places, panels.items(), strict=False):
        seen, stands = numpy.asarray(panel["regions"]), numpy.asarray(panel["stands"], dtype=bool)
        if seen.shape != (len(up), len(across)) or stands.shape != (len(x),) or len(x) != len(y):
            raise ValueError(
                f"{title}: regions {seen.shape} on a lattice of {(len(up), len(across))}, {len(stands)} verdicts for"
                f" {len(x)} points with {len(y)} classes"
            )
        tint = ListedColormap([_tint(colour) for colour in colours])
        axes.pcolormesh(across, up, seen, cmap=tint, vmin=0, vmax=1, shading="nearest", rasterized=True)
        axes.contour(across, up, seen, levels=[0.5], colors=[_GREY], linewidths=1.2)
        for kind in (0, 1):
            for firm in (True, False):
                chosen = numpy.flatnonzero((numpy.asarray(y) == kind) & (stands == firm))
                boxes = [Rectangle((x[i][0] - eps, x[i][1] - eps), size, size) for i in chosen]
                axes.add_collection(
                    PatchCollection(
                        boxes, facecolor="none", edgecolor=colours[kind], linewidth=0.5 if firm else 0.9,
                        alpha=0.25 if firm else 0.9,
                    )
                )  # fmt: skip
            own = numpy.asarray(x)[numpy.asarray(y) == kind]
            axes.plot(
                own[:, 0], own[:, 1], linestyle="none", marker="o^"[kind], markersize=4, color=colours[kind],
                markeredgecolor="white", markeredgewidth=0.4, zorder=3,
            )  # fmt: skip
        axes.set_xlim(across[0], across[-1])
        axes.set_ylim(up[0], up[-1])
        axes.set_aspect("equal")
        axes.tick_params(labelsize=_TEXT - 2)
        axes.set_title(title, fontsize=_TEXT - 1, loc="left")
    for axes in places[len(panels) :]:
        axes.remove()
    for i in range(len(panels)):
        if i % columns == 0:
            places[i].set_ylabel("second coordinate", fontsize=_TEXT)
        if i + columns >= len(panels):
            places[i].set_xlabel("first coordinate", fontsize=_TEXT)
    handles = [
        Line2D([], [], linestyle="none", marker="o^"[kind], color=colours[kind], label=classes[kind]) for kind in (0, 1)
    ]
    square: dict[str, Any] = {
        "linestyle": "none", "marker": "s", "markersize": 11, "markerfacecolor": "none", "color": _GREY,
    }  # fmt: skip
    handles += [
        Line2D([], [], **square, alpha=0.9, markeredgewidth=1.4, label=f"ball of radius {eps:g}, not right throughout"),
        Line2D([], [], **square, alpha=0.35, markeredgewidth=0.8, label="ball, right throughout"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=columns * 2, frameon=False, fontsize=_TEXT - 1)
    return figure


def _tint(colour: str) -> tuple[float, ...]:
    """The colour, mixed with four parts of white."""
    from matplotlib.colors import to_rgb

    return tuple(0.8 + 0.2 * part for part in to_rgb(colour))


def cost(
    lines: Mapping[str, tuple[Sequence[tuple[float, float]], tuple[float, float]]],
    others: Mapping[str, float],
    *,
    cpu: bool = False,
) -> Figure:
    """Seconds per epoch against the Langevin steps K, with the fitted line of each, and levels of other methods.

    `lines`: {name: (points (K, seconds), (slope, intercept))}; `others`: {name: seconds}, drawn as dashed levels;
    `cpu`: they are seconds of the process's CPU. Raises ValueError where there is no line.
    """
    if not lines:
        raise ValueError("no times to draw")
    figure = _figure(8, 5.2)
    axes = figure.subplots()
    _axes(axes)
    most = max(k for points, _ in lines.values() for k, _ in points)
    for i, (name, (points, (slope, intercept))) in enumerate(lines.items()):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot([0, most], [intercept, intercept + slope * most], color=colour, linewidth=1.5)
        axes.plot(*zip(*points), color=colour, marker="o", markersize=7, linestyle="none", label=name)
    for i, (name, seconds) in enumerate(others.items(), start=len(lines)):
        axes.axhline(seconds, color=PALETTE[i % len(PALETTE)], linestyle=(0, (4, 2)), label=name)
    axes.set_xlim(0, 1.05 * most)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Langevin steps K")
    axes.set_ylabel(f"{'CPU ' if cpu else ''}seconds per epoch")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=_TEXT - 1)
    return figure


def characteristics(rows: Sequence[dict], *, decay: int | None = None, title: str | None = None) -> Figure:
    """Benign and robust accuracy (%) against epoch, in training (dashed), on the test set (solid) and on the validation
    split (dotted).

    `rows`: `epoch` and, as fractions, each optional, `train_natural`, `train_robust` and the same for `test` and
    `validation`; `test_natural_low` / `_high` and the same for robust draw a band. `decay`: the first epoch at a lower
    rate, marked. Raises ValueError for no rows or values that are no fractions.
    """
    from matplotlib.ticker import MaxNLocator

    if not rows:
        raise ValueError("no rows to draw")
    figure = _figure(9, 5.4)
    axes = figure.subplots()
    _axes(axes)
    dashes: dict[str, Any] = {"train": (0, (4, 2)), "test": "-", "validation": (0, (1, 1.5))}
    for kind, colour in _COLOUR.items():
        for split, style in dashes.items():
            epochs, values = _series(list(rows), f"{split}_{kind}", "")
            if epochs:
                name = f"{'benign' if kind == 'natural' else kind}, {split}"
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
        axes.axvline(decay, color=_GREY, linestyle=":", linewidth=1.5, label="lower rate from here")
    axes.set_ylim(0, 100)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        axes.set_title(title, fontsize=_TEXT, loc="left")
    legend = figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=_TEXT - 1, title="bands: 95 % intervals"
    )
    legend.get_title().set(color=_GREY, fontsize=_TEXT - 2)
    return figure


def lines(curve: Mapping[str, Any]) -> Figure:
    """Lines over numbers: `curve` has `title`, `x` and `y` (names of the axes), `log` ("", "x", "y" or "xy"), and
    `lines`, {label: (xs, ys)}; optional are `mark`, a place for a dotted upright line, and `error`, half widths of bars
    on the first line. Raises ValueError where there is nothing to draw.
    """
    if not curve["lines"]:
        raise ValueError("no lines to draw")
    figure = _figure(8, 5)
    axes = figure.subplots()
    _axes(axes)
    for i, (label, (x, y)) in enumerate(curve["lines"].items()):
        bars = curve.get("error") if i == 0 else None
        axes.errorbar(
            x, y, yerr=bars, label=label, linewidth=2, capsize=3, marker="o" if len(x) <= 30 else None, markersize=4,
            **_look(i),
        )  # fmt: skip
    if "x" in curve["log"]:
        axes.set_xscale("log")
    if "y" in curve["log"]:
        axes.set_yscale("log")
    if curve.get("mark") is not None:
        axes.axvline(curve["mark"], color=_GREY, linestyle=":", linewidth=1.5)
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(curve["y"])
    axes.set_title(curve["title"], fontsize=_TEXT, loc="left")
    figure.legend(loc="outside lower center", ncols=_columns(curve["lines"]), frameon=False, fontsize=_TEXT - 1)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Colour and dashes of the line number i, told apart beyond the palette."""
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": ("-", (0, (5, 2)), (0, (1, 1.5)))[i // len(PALETTE) % 3]}


def _labels() -> dict[str, tuple[str, str]]:
    return {f"{kind}, {split}": (split, kind) for kind in _COLOUR for split in _STYLE}


def _panel(axes: Axes, name: str | None, rows: list[dict], handles: dict[str, Any]) -> str:
    """Draws one run, adds what it drew to `handles` for the legend; returns the note on its best epoch."""
    from matplotlib.ticker import MaxNLocator

    run = f"run {name!r}: " if name is not None else ""
    if not rows:
        raise ValueError(f"{run}no rows to draw")
    for i, row in enumerate(rows):
        if not isinstance(row.get("epoch"), int):
            raise ValueError(f"{run}row {i + 1} has no epoch")
    _axes(axes)
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
            color=_COLOUR[kind],
            linestyle=_STYLE[split],
            label=label,
            linewidth=width,
            marker=marker,
            markersize=5,
            clip_on=False,
            markerfacecolor="white" if split == "train" else _COLOUR[kind],
        )
    if not drawn:
        raise ValueError(f"{run}no accuracies in the rows")
    for label, line in drawn.items():
        handles.setdefault(label, line)
    for kind in _COLOUR:
        both = [row for row in rows if all(row.get(f"validation_{kind}_{end}") is not None for end in ("low", "high"))]
        if both:
            epochs, low = _series(both, f"validation_{kind}_low", run)
            _, high = _series(both, f"validation_{kind}_high", run)
            band = axes.fill_between(epochs, low, high, color=_COLOUR[kind], alpha=0.18, linewidth=0)
            handles.setdefault("95 % interval", band)
    if len({row["epoch"] for row in rows}) == 1:
        axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return _best(axes, rows, handles)


def _best(axes: Axes, rows: list[dict], handles: dict[str, Any]) -> str:
    best = next((row for row in reversed(rows) if row.get("best")), None)
    if best is None:
        return ""
    handles["best epoch"] = axes.axvline(best["epoch"], color=_GREY, linestyle=":", linewidth=1.5)
    found = []
    for kind, colour in _COLOUR.items():
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


def _gap(axes: Axes, best: dict, last: dict) -> None:
    """What robust accuracy lost between the best epoch and the last: robust overfitting, Rice et al. 2020."""
    top, end = best.get("validation_robust"), last.get("validation_robust")
    if top is None or end is None or last["epoch"] == best["epoch"] or top - end < 0.005:
        return
    axes.annotate(
        "",
        (last["epoch"], 100 * end),
        (last["epoch"], 100 * top),
        arrowprops={"arrowstyle": "<->", "color": _GREY, "shrinkA": 0, "shrinkB": 0},
        annotation_clip=False,
    )
    axes.annotate(
        f"gap {100 * (top - end):.1f}",
        (last["epoch"], 50 * (top + end)),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=_TEXT - 2,
        color=_GREY,
        annotation_clip=False,
    )


def _series(rows: list[dict], key: str, run: str) -> tuple[list[int], list[float]]:
    present = [row for row in rows if row.get(key) is not None]
    return (
        [row["epoch"] for row in present],
        [100 * _fraction(row, key, f"{run}epoch {row['epoch']}") for row in present],
    )


def _fraction(row: dict, key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {key} is {value}, expected a fraction in [0, 1]")
    return value


def _columns(names: Collection[str]) -> int:
    """As many columns of a legend as the longest name leaves room for, at most 4."""
    return max(1, min(4, len(names), 120 // (max(map(len, names), default=0) + 10)))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _axes(axes: Axes) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_TEXT - 1)
    axes.xaxis.label.set_fontsize(_TEXT)
    axes.yaxis.label.set_fontsize(_TEXT)
