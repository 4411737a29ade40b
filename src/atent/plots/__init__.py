"""Every figure, from plain results to a matplotlib Figure, without pyplot and its global state."""

from atent.plots.accuracy import accuracies, certified, dots, minimum_norm, pareto, security
from atent.plots.canvas import PALETTE, narrow, save, svg
from atent.plots.frequencies import bands, fourier
from atent.plots.matrices import corruptions, transfer
from atent.plots.pictures import adversarial, images, magnified, pixels, regions
from atent.plots.quantities import cost, lines
from atent.plots.roofline import roofline
from atent.plots.sweep import front, importance, parallel
from atent.plots.training import characteristics, curves, together
from atent.plots.union import union

__all__ = [
    "PALETTE",
    "accuracies",
    "adversarial",
    "bands",
    "certified",
    "characteristics",
    "corruptions",
    "cost",
    "curves",
    "dots",
    "fourier",
    "front",
    "images",
    "importance",
    "lines",
    "magnified",
    "minimum_norm",
    "narrow",
    "parallel",
    "pareto",
    "pixels",
    "regions",
    "roofline",
    "save",
    "security",
    "svg",
    "together",
    "transfer",
    "union",
]
