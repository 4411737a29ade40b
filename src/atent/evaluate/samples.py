"""Samples that were checked once, for all that is measured on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from atent.checks import as_samples, check_batch, numbered
from atent.threat import Box


@dataclass(frozen=True, eq=False)
class Checked:
    """Inputs, labels and sample numbers, as `checked` gives them: `evaluate`, `sweep` and `masking_checks` take it in
    place of their inputs."""

    x: Tensor
    y: Tensor
    ids: Tensor
    boxes: frozenset[Box]
    """The boxes that hold every input."""


def checked(model: nn.Module, x: Any, y: Any, ids: Tensor | None, boxes: Iterable[Box]) -> Checked:
    """The samples, checked against the ``boxes`` of the threats, of which there is none without an attack.

    Parameters
    ----------
    x
        Inputs, as `evaluate` takes them, or `Checked` samples, of which only further boxes are checked; then ``y`` and
        ``ids`` are those of these samples.

    Raises
    ------
    ValueError
        In one line, for no samples, for inputs outside a box, and for what are no inputs, labels or numbers.
    """
    wanted = frozenset(boxes) or frozenset({(float("-inf"), float("inf"))})
    if isinstance(x, Checked):
        found, left = replace(x, boxes=x.boxes | wanted), wanted - x.boxes
    else:
        inputs, labels = as_samples(x, y, model)
        if not len(inputs):
            raise ValueError("no samples to evaluate: give at least one")
        found, left = Checked(inputs, labels, numbered(ids, len(inputs), inputs.device), wanted), wanted
    for box in left:
        check_batch(found.x, found.y, box)
    return found
