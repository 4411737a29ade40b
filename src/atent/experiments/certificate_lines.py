"""Certificates as text: their lines and their curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from atent.certify import Certificate
from atent.experiments.results import BoundsFile, CertificateFile, SequentialFile, Share, SmoothingFile
from atent.threat import radius


def at_most(radius: float) -> str:
    """A certified radius in four digits, rounded down: nothing is certified beyond it."""
    near = float(f"{radius:.4g}")
    # 8/255 is computed with an error in the last bits.
    if near > radius * (1 + 1e-9):
        near -= 10.0 ** (math.floor(math.log10(radius)) - 3)
    return f"{near:.4g}"


def linf_ball(radius: float, shape: Sequence[int] | None) -> str:
    """A certified linf radius, rounded down: of images in grey levels, of signals and tables as it is.

    ``shape``: of one sample; None if an older file does not say, which is of images.
    """
    return f"linf {at_most(255 * radius)}/255" if shape is None or len(shape) == 3 else f"linf {at_most(radius)}"


def layout(found: CertificateFile) -> tuple[str, list[tuple[str, Share]], list[str]]:
    """A certificate as text: a title, (name, share) rows, and the lines below them."""
    images = found.images
    rows, below = [("clean, base network", found.clean)], []
    title = f"{found.run}: {images.name}, test images: {images.text}"
    if isinstance(found, BoundsFile):
        rows += [(f"verified by {found.method}, {each.threat.text}", each.share) for each in found.certified]
        below = [f"{each.seconds_per_image:.3g} s per image" for each in found.certified]
    elif isinstance(found, SequentialFile):
        title += f", shard {found.shard} of them" if found.shard else ""
        (at,) = found.certified
        rows.append((f"certified at l2 {at.radius:g} ({linf_ball(at.linf_radius, images.shape)})", at.share))
        rows += [("certified for a wrong class", found.certified_wrong), ("abstained", found.abstained)]
        below = _below(found, _sequential_lines(found))
    elif isinstance(found, SmoothingFile):
        title += f", shard {found.shard} of them" if found.shard else ""
        rows.append(("clean, smoothed network", found.smoothed))
        for at in found.certified:
            rows.append((f"certified at l2 {at.radius:g} ({linf_ball(at.linf_radius, images.shape)})", at.share))
        below = _below(found, _smoothing_lines(found))
    return title, rows, below


def _smoothing_lines(found: SmoothingFile) -> list[str]:
    sampling = found.sampling
    return [
        f"sigma {sampling['sigma']:g}, n {sampling['n']:,}, n0 {sampling['n0']}, alpha {sampling['alpha']:g} per image,"
        f" seed {sampling['seed']}; largest certifiable l2 radius {at_most(found.largest_radius)}",
        f"abstained {found.abstained.k} of {found.n}; mean radius {found.radius_mean:.4g}, median"
        f" {found.radius_median:.4g}, 0 where wrong",
    ]


def _below(found: SmoothingFile | SequentialFile, lines: list[str]) -> list[str]:
    """The footnotes: those of the kind, the time, a warning, and the network."""
    hint = [f"warning: {found.hint}"] if found.hint else []
    folded = (found.made.get("network") or {}).get("batch_norms_folded")
    network = [f"certified with {folded} batch norms folded: equal up to rounding"] if folded else []
    return [*lines, f"{found.seconds_per_image:.3g} s per image", *hint, *network]


def _sequential_lines(found: SequentialFile) -> list[str]:
    sampling = found.sampling
    return [
        f"sequential test: sigma {sampling['sigma']:g}, n {sampling['n']:,} at most, n0 {sampling['n0']}, alpha"
        f" {sampling['alpha']:g} per image in total, seed {sampling['seed']}",
        f"noise samples per image: mean {found.samples_mean:,.0f}, median {found.samples_median:,}, most"
        f" {found.samples_most:,}; all of n0 and n are {sampling['n0'] + sampling['n']:,}",
    ]


def draw(found: Mapping[str, Certificate | None], out: str, radii: Sequence[float | str] | None = None) -> None:
    """Plot certified accuracy against radius, one curve per run, with the requested ``radii`` marked.

    ValueError for a sequential test, which decides one radius.
    """
    from atent import plots

    names = [Path(run).name for run in found]
    curves = {name if names.count(name) == 1 else run: c.radii() for name, (run, c) in zip(names, found.items()) if c}
    marks = {r: f"l2 {r:g}" for r in (radius(r, "radius") for r in radii or ()) if r > 0}
    plots.save(plots.certified(curves, marks=marks), out)
