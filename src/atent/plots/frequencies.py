"""Frequencies: the bands of perturbations, and the error under noise of one frequency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import COLOUR, GREY, PALETTE, TEXT, blank, clean_error, plain, span, whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bands(report: Mapping[str, Any], *, title: str | None = None, stacked: bool = False) -> Figure:
    """Accuracy under each band of the perturbations, its share of their energy, and the spectrum.

    `report`: as `BandReport.to_json` gives it; `stacked` puts the three one below the other. Raises ValueError for
    no bands and for values that are not fractions.
    """
    import numpy
    from matplotlib.colors import LogNorm

    rows = report["bands"]
    if not rows:
        raise ValueError("no bands to draw")
    figure = blank(5.2, 10) if stacked else blank(12, 4.6)
    left, middle, right = figure.subplots(3, 1) if stacked else figure.subplots(1, 3, width_ratios=(5, 4, 4))
    parts = {"none": report["clean"], "whole": report["full"], **{row["band"]: row["robust"] for row in rows}}
    for place, (name, share) in enumerate(parts.items()):
        value, low, high = span(share, name)
        left.hlines(place, low, high, color=COLOUR["robust"], linewidth=2)
        left.plot(value, place, "o", color=COLOUR["clean" if name == "none" else "robust"], markersize=7, clip_on=False)
    plain(left)
    left.set_yticks(range(len(parts)), list(parts))
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel("accuracy (%), 95 % intervals")
    left.set_title("under this part of the perturbation", fontsize=TEXT, loc="left")
    for place, row in enumerate(rows):
        if row["energy"] is not None:
            value, low, high = span(row["energy"], row["band"])
            middle.barh(place, value, 0.6, color=PALETTE[0])
            middle.hlines(place, low, high, color="#333333", linewidth=1.5)
        middle.plot([100 * row["white"]] * 2, [place - 0.38, place + 0.38], color=GREY, linestyle=":", linewidth=2)
    plain(middle)
    middle.set_yticks(range(len(rows)), [row["band"] for row in rows])
    middle.invert_yaxis()
    middle.set_xlim(0, 100)
    middle.set_xlabel("share of energy (%); dotted: white noise")
    middle.set_title("energy", fontsize=TEXT, loc="left")
    spectrum = numpy.asarray(report["spectrum"], dtype=float)
    floor = max(spectrum.max() * 1e-4, 1e-12)
    shown = right.imshow(
        numpy.maximum(spectrum, floor), cmap="viridis", interpolation="nearest",
        norm=LogNorm(floor, max(spectrum.max(), 2 * floor)),
    )  # fmt: skip
    edge = report["cut"] - 0.5
    right.axhline(edge, color="white", linewidth=1)
    right.axvline(edge, color="white", linewidth=1)
    whole_ticks(right.xaxis, right.yaxis)
    right.set_xlabel("horizontal frequency", fontsize=TEXT)
    right.set_ylabel("vertical frequency", fontsize=TEXT)
    right.set_title("share of each coefficient (%)", fontsize=TEXT, loc="left")
    # The page writes text as it is: powers of ten in mathematics would show their dollar signs.
    figure.colorbar(shown, ax=right, shrink=0.8, format=lambda value, _: f"{100 * value:g}")
    figure.suptitle(title or f"{report['attack']}, n = {report['n']:,}", fontsize=TEXT + 1)
    return figure


def fourier(report: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """The error (%) under noise of each frequency, the constant image in the centre. The colours reach to the largest
    error, or to 10 %.

    `report`: as `FourierReport.to_json` gives it. Raises ValueError for counts that are no share of n.
    """
    import numpy

    errors, n = numpy.asarray(report["errors"], dtype=float), report["n"]
    if errors.ndim != 2 or not errors.size or errors.min() < 0 or errors.max() > n:
        raise ValueError(f"a Fourier map needs counts of errors from 0 to {n}, one for each frequency")
    h, w = errors.shape
    figure = blank(6.2, 5.4)
    axes = figure.subplots()
    extent = (-(w // 2) - 0.5, w - w // 2 - 0.5, h - h // 2 - 0.5, -(h // 2) - 0.5)
    most = max(10.0, 100 * float(errors.max()) / n)
    shown = axes.imshow(100 * errors / n, cmap="magma", vmin=0, vmax=most, interpolation="nearest", extent=extent)
    whole_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("horizontal frequency", fontsize=TEXT)
    axes.set_ylabel("vertical frequency", fontsize=TEXT)
    bar = figure.colorbar(shown, ax=axes, shrink=0.9)
    bar.set_label("error (%)", fontsize=TEXT)
    summary = f"noise of l2 norm {report['eps']:.3g}, n = {n:,}; without noise {clean_error(report):.1f} % error"
    axes.set_title(title or summary, fontsize=TEXT - 1, loc="left")
    return figure
