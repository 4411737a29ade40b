"""Shared parts of all figures: the palette, an empty figure, plain axes, and saving."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atent.runs import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito (2008), distinct to colour-blind readers; yellow last, since it is weak on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

Row = Mapping[str, Any]
"""A row of a result file."""

COLOUR = {"clean": PALETTE[0], "robust": PALETTE[1]}
MARKERS = "os^DvPX"
TEXT = 12
GREY = "#555555"


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
    """The figure as SVG for a page: its text stays text, in the reader's own sans-serif. The same figure gives the same
    bytes."""
    import warnings

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
            frameon=False, fontsize=TEXT - 1, title=title.get_text() or None,
        )  # fmt: skip
        legend.get_title().set(color=title.get_color(), fontsize=title.get_fontsize())
        old.remove()
    return figure


def _write(figure: Figure, out: Path | io.BytesIO, kind: str, text: str = "path") -> None:
    import matplotlib
    from matplotlib.text import Text

    metadata = {"Date": None} if kind == "svg" else None
    for each in figure.findobj(Text):
        # A matplotlibrc in the current folder must not start LaTeX, and names with dollar signs are no mathematics.
        each.set_usetex(False)
        each.set_parse_math(False)
    with matplotlib.rc_context({"svg.hashsalt": "atent", "svg.fonttype": text, "text.usetex": False}):
        figure.savefig(out, format=kind, dpi=200, metadata=metadata, facecolor="white")


def blank(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def whole_ticks(*axes: Axis) -> None:
    """Ticks at integers only, for what counts."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", integer=True))


def plain(axes: Axes) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT - 1)
    axes.xaxis.label.set_fontsize(TEXT)
    axes.yaxis.label.set_fontsize(TEXT)


def look(i: int) -> dict[str, Any]:
    """Colour and dashes of the line number i, distinct beyond the palette."""
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": ("-", (0, (5, 2)), (0, (1, 1.5)))[i // len(PALETTE) % 3]}


def listed(name: str) -> str:
    """A name as a label; legends omit labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def legend_columns(names: Collection[str]) -> int:
    """The number of columns of a legend that fits the longest name, at most 4."""
    return max(1, min(4, len(names), 120 // (max(map(len, names), default=0) + 10)))


def fraction(row: Row, key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {key} is {value}, expected a fraction in [0, 1]")
    return value


def clean_error(report: Row) -> float:
    """The clean error (%) of a report on errors; reports of earlier versions have it by another name."""
    share = next(report[key] for key in ("clean_error", "clean", "natural") if key in report)
    return 100 * fraction(share, "value", "clean error")


def span(share: Mapping[str, Any], where: str) -> list[float]:
    """Value and ends of its interval in %, the value itself where there is none."""
    ends = {end: share["value"] if share.get(end) is None else share[end] for end in ("value", "low", "high")}
    return [100 * fraction(ends, end, where) for end in ends]
