"""Samples that are checked once for several measurements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from atent.checks import as_samples, check_batch, numbered
from atent.docstrings import Documented
from atent.threat import Box


@dataclass(frozen=True, eq=False)
class Checked(metaclass=Documented):
    """Checked inputs, labels and sample numbers, as `checked` gives them.

    `evaluate`, `sweep`, `masking_checks` and the ``measure`` functions take it in place of their inputs.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import checked, predict
    >>> model = torch.nn.Linear(4, 3)
    >>> samples = checked(model, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]), None, [(0.0, 1.0)])
    >>> samples.ids.tolist(), predict(model, samples.x, samples.y).shape
    ([0, 1, 2, 3, 4], torch.Size([5]))
    """

    x: Tensor
    """Inputs (n, ...)."""
    y: Tensor
    """True labels (n,)."""
    ids: Tensor
    """Sample numbers (n,), int64."""
    boxes: frozenset[Box]
    """The boxes that contain every input."""


def checked(model: nn.Module, x: Any, y: Any, ids: Tensor | None, boxes: Iterable[Box]) -> Checked:
    """The samples, checked once for several evaluations.

    Parameters
    ----------
    model
        The network that gets them, whose device and dtype arrays are converted to.
    x
        Inputs, as `evaluate` takes them, or `Checked` samples, of which only further boxes are checked; then ``y`` and
        ``ids`` are those of these samples.
    y
        True labels (n,), or None where ``x`` is a DataLoader or `Checked` samples.
    ids
        Sample numbers (n,), default: 0 .. n-1.
    boxes
        The boxes of the threats, each a pair of the smallest and the largest legal value; none without an attack.

    Returns
    -------
    Checked
        Inputs, labels and numbers.

    Raises
    ------
    ValueError
        In one line, for no samples, for inputs outside a box, and for invalid inputs, labels or numbers.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import checked, evaluate
    >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> samples = checked(model, x, y, None, [(0.0, 1.0)])
    >>> [evaluate(model, samples, attacks=[FGSM(Threat("linf", eps))]).n for eps in (0.1, 0.2)]
    [5, 5]
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
