"""Image grids, and decision regions of a network in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.plots.canvas import GREY, PALETTE, TEXT, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from torch import Tensor

    from atent.threat import Box

COLOURS = PALETTE[:2]
"""Of the two classes of `regions`."""


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
    figure = blank(side * columns, lines * (side * x.shape[2] / x.shape[3] + 0.35))
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for i, panel in enumerate(panels):
        panel.set_axis_off()
        if i < len(x):
            picture = x[i].transpose(1, 2, 0)
            panel.imshow(
                picture[..., 0] if x.shape[1] == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            if labels is not None:
                panel.set_title(str(labels[i]), fontsize=TEXT - 3)
    if title:
        figure.suptitle(title, fontsize=TEXT + 1)
    return figure


def pixels(x: Tensor, box: Box) -> Tensor:
    """Inputs (n, ...) in a box, or in one for each channel, as values in [0, 1]: black is the lower end."""
    from atent.threat import Threat

    low, high = Threat("linf", 0.0, box).edges(x.float())
    # An end of the box may be no number of float32.
    shown: Tensor = ((x.float() - low) / (high - low)).clamp(0, 1)
    return shown


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
    """The difference of two tensors of one shape, centred at 0.5, and its magnification, which maps the largest
    difference to 0 or 1."""
    d = (x_adv - x).detach().cpu().float()
    largest = float(d.abs().max()) if d.numel() else 0.0
    factor = 0.5 / largest if largest else 1.0
    return (0.5 + factor * d).clamp(0, 1), factor


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

    `panels`: {title: {"regions": classes (len(up), len(across)) seen at the lattice of `across` and `up`, "robust":
    bool (n,), whether the network is correct on the entire ball}}. `x` (n, 2), `y` (n,) 0 or 1, arrays; `eps` the
    radius, in the coordinates' units. Balls with an adversary are drawn strongly, the others faintly; class 1 has
    triangles. Raises ValueError for no panels, or where the sizes disagree.
    """
    if not panels:
        raise ValueError("no panels to draw")
    columns = 2 if len(panels) > 1 else 1
    lines = math.ceil(len(panels) / columns)
    tall = (up[-1] - up[0]) / (across[-1] - across[0])
    figure = blank(5.6 * columns, 1.0 + (5.0 * tall + 0.5) * lines)
    places = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, (title, panel) in zip(places, panels.items(), strict=False):
        _panel(axes, title, panel, across, up, x, y, eps)
    for axes in places[len(panels) :]:
        axes.remove()
    for i in range(len(panels)):
        if i % columns == 0:
            places[i].set_ylabel("second coordinate", fontsize=TEXT)
        if i + columns >= len(panels):
            places[i].set_xlabel("first coordinate", fontsize=TEXT)
    figure.legend(
        handles=_handles(eps, classes), loc="outside lower center", ncols=columns * 2, frameon=False, fontsize=TEXT - 1
    )
    return figure


def _panel(
    axes: Axes, title: str, panel: Mapping[str, Any], across: Sequence[float], up: Sequence[float], x: Any, y: Any,
    eps: float,
) -> None:  # fmt: skip
    """One network's regions, their border, the points and their balls."""
    import numpy
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    seen, robust = numpy.asarray(panel["regions"]), numpy.asarray(panel["robust"], dtype=bool)
    if seen.shape != (len(up), len(across)) or robust.shape != (len(x),) or len(x) != len(y):
        raise ValueError(
            f"{title}: regions {seen.shape} on a lattice of {(len(up), len(across))}, {len(robust)} verdicts for"
            f" {len(x)} points with {len(y)} classes"
        )
    tint = ListedColormap([_tint(colour) for colour in COLOURS])
    axes.pcolormesh(across, up, seen, cmap=tint, vmin=0, vmax=1, shading="nearest", rasterized=True)
    axes.contour(across, up, seen, levels=[0.5], colors=[GREY], linewidths=1.2)
    for kind, colour in enumerate(COLOURS):
        for firm in (True, False):
            chosen = numpy.flatnonzero((numpy.asarray(y) == kind) & (robust == firm))
            balls = [Rectangle((x[i][0] - eps, x[i][1] - eps), 2 * eps, 2 * eps) for i in chosen]
            axes.add_collection(
                PatchCollection(
                    balls, facecolor="none", edgecolor=colour, linewidth=0.5 if firm else 0.9,
                    alpha=0.25 if firm else 0.9,
                )
            )  # fmt: skip
        own = numpy.asarray(x)[numpy.asarray(y) == kind]
        axes.plot(
            own[:, 0], own[:, 1], linestyle="none", marker="o^"[kind], markersize=4, color=colour,
            markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
    axes.set_xlim(across[0], across[-1])
    axes.set_ylim(up[0], up[-1])
    axes.set_aspect("equal")
    axes.tick_params(labelsize=TEXT - 2)
    axes.set_title(title, fontsize=TEXT - 1, loc="left")


def _handles(eps: float, classes: Sequence[str]) -> list[Line2D]:
    """The legend of `regions`: the two classes, and the two kinds of balls."""
    from matplotlib.lines import Line2D

    points = [
        Line2D([], [], linestyle="none", marker="o^"[kind], color=colour, label=classes[kind])
        for kind, colour in enumerate(COLOURS)
    ]
    square: dict[str, Any] = {
        "linestyle": "none", "marker": "s", "markersize": 11, "markerfacecolor": "none", "color": GREY,
    }  # fmt: skip
    return [
        *points,
        Line2D([], [], **square, alpha=0.9, markeredgewidth=1.4, label=f"ball of radius {eps:g}, not robust"),
        Line2D([], [], **square, alpha=0.35, markeredgewidth=0.8, label="ball, robust"),
    ]


def _tint(colour: str) -> tuple[float, ...]:
    """The colour, mixed with four parts of white."""
    from matplotlib.colors import to_rgb

    return tuple(0.8 + 0.2 * part for part in to_rgb(colour))
