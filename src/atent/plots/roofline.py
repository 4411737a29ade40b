"""Achieved FLOP per second against arithmetic intensity, below what the machine gives at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import GREY, MARKERS, PALETTE, TEXT, blank, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roofline(bench: Mapping[str, Any]) -> Figure:
    """The roofline of a `bench.json`: a colour a network, a marker a kind of pass (Williams, Waterman and Patterson
    2009).

    The roof is the smaller of the measured peak of a matrix product and of the measured bandwidth times the intensity.
    Bytes are those of every operator's tensors: a point above the sloping part has had them from a cache. Raises
    ValueError if the roofline was not measured.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    roof, section = bench.get("roof"), bench["sections"].get("roofline")
    if not roof or section is None:
        raise ValueError("no roofline to draw: measure the section roofline")
    cases = [(c["name"], [r for r in c["rows"] if "intensity" in r.get("figures", {})]) for c in section["cases"]]
    cases = [(name, rows) for name, rows in cases if rows]
    peak, bandwidth = roof["flops"] / 1e9, roof["bandwidth"] / 1e9
    figure = blank(8, 5.6)
    axes = figure.subplots()
    plain(axes)
    found = [row["figures"]["intensity"] for _, rows in cases for row in rows]
    ridge = peak / bandwidth
    low, high = min([*found, ridge]) / 2.5, max([*found, ridge]) * 2.5
    axes.plot([low, ridge, high], [bandwidth * low, peak, peak], color=GREY, linewidth=2, zorder=1)
    axes.text(high, peak, f"{peak:.3g} GFLOP/s ", ha="right", va="bottom", fontsize=TEXT - 1, color=GREY)
    axes.annotate(
        f"{bandwidth:.3g} GB/s", (low, bandwidth * low), xytext=(14, -2), textcoords="offset points",
        fontsize=TEXT - 1, color=GREY,
    )  # fmt: skip
    kinds: list[str] = []
    for i, (_, rows) in enumerate(cases):
        for row in rows:
            kind = row["name"].partition(",")[0]
            if kind not in kinds:
                kinds.append(kind)
            place = row["figures"]["intensity"], row["figures"]["flops_per_second"] / 1e9
            axes.plot(
                *place, color=PALETTE[i % len(PALETTE)], marker=MARKERS[kinds.index(kind) % len(MARKERS)],
                markersize=9, linestyle="none", markeredgecolor="white",
            )  # fmt: skip
    for i, (name, _) in enumerate(cases):
        axes.plot([], [], color=PALETTE[i % len(PALETTE)], linewidth=5, label=name)
    for i, kind in enumerate(kinds):
        axes.plot([], [], color=GREY, marker=MARKERS[i % len(MARKERS)], linestyle="none", markersize=8, label=kind)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
    axes.set_xlabel("FLOP per byte that operators read and write")
    axes.set_ylabel("GFLOP/s")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT - 1)
    return figure
