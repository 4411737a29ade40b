"""Names of rows and columns in sentences, and the present wording of texts in result files of earlier versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROWS = {
    "atent": "ATENT",
    "atent-smoothing": "ATENT for smoothing",
    "mma": "MMA",
    "pgdat": "PGD-AT",
    "smoothadv": "SmoothAdv",
    "standard": "standard training",
    "trades": "TRADES",
    "trades-smoothing": "TRADES smoothing",
}
"""Names of the methods, by row."""
RADII = {"half": "half radius", "full": "full radius", "small": "radius of the second block"}
"""Names of Table S1's radii, by the first word of a column's key."""
PROTOCOLS = {"published": "published step", "weak": "released step", "autoattack": "AutoAttack"}
"""Names of its protocols, by the second word."""


def leads(rows: Sequence[str], accuracies: Sequence[str], gaps: Sequence[Any]) -> str:
    """The accuracy of the first row, then each other row's with the difference of the first to it."""
    first, *others = (f"{ROWS[row]} {accuracy}" for row, accuracy in zip(rows, accuracies))
    return "; ".join([first, *(f"{other}, difference {gap}" for other, gap in zip(others, gaps))])


_FORMER = {
    "+-": "\u00b1",
    "natural": "clean",
    "draws of noise": "samples of noise",
    "PGD there": "PGD",
    "clean, the network itself": "clean, base network",
    "which lies within that ball": "a ball inside the l2 ball",
    "bounds verify the network itself: there is no smoothed one": "bounds verify the base network, without smoothing",
    "this scale has one network: see the row of ResNet-20": (
        "this scale trains one architecture: see the row TRADES smoothing"
    ),
    "the dual bound of Wong et al.": "dual bound (Wong et al. 2018)",
    "benign, before fine-tuning": "standard training, before fine-tuning",
    "Fine-tuning a benign network": "Fine-tuning a standard-trained network",
    "eps / 10, as the code": "eps / 10, as in the released code",
    "of this process": "CPU time of this process",
    "and the same on the margin": "and PGD-40 with 10 restarts on the margin loss",
    (
        "5,000 training images of MNIST and a small network after 4 epochs stand in for the paper's data and networks,"
        " and all radii are rescaled: the order of methods can be compared with the paper's, the figures cannot"
    ): (
        "5,000 training images of MNIST, a small network and 4 epochs replace the paper's data, networks and schedules,"
        " and all radii are rescaled; the ranking of methods can be compared with the paper's, the values cannot"
    ),
    (
        "for every method: the order of methods can be compared with the paper's; its WRN-34-10 and WRN-28-4 at 76 and"
        " more epochs are out of reach of a CPU"
    ): (
        "for every method; the ranking of methods can be compared with the paper's, whose WRN-34-10 and WRN-28-4 at 76"
        " and more epochs are out of reach of a CPU"
    ),
}
"""Present wording, by that of files of earlier versions."""
_TEXTS = {"about", "about_scale", "interval", "label", "protocol", "published", "strong", "title", "why"}
"""Fields of a result file that are text for readers."""


def present(content: Any, field: str = "") -> Any:
    """A result file's content, with the texts for readers in their present wording; figures and keys are unchanged."""
    if isinstance(content, dict):
        return {key: present(value, key) for key, value in content.items()}
    if isinstance(content, list):
        return [present(value, field) for value in content]
    if not isinstance(content, str) or field not in _TEXTS:
        return content
    for former, new in _FORMER.items():
        if new not in content:
            content = content.replace(former, new)
    return content
