"""Bounds and relaxations of the hidden layers, from the input to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from atent.certify import interval
from atent.certify.affine import vectors
from atent.certify.graph import Graph, Node
from atent.certify.interval import Box
from atent.certify.linear import Coefficients, Form, Relaxation, back, form, least, relax, widest
from atent.certify.operators import CURVED
from atent.certify.region import Region
from atent.certify.window import all_units, open_units, windows_of
from atent.guard import check_classes

KEEPING = ("crown", "alpha-crown")
"""Methods that keep the better of linear bounds and intervals."""
BUDGET = 2**18
"""On a CPU, about how many coefficients of pairs (sample, unit) exist at once: more do not fit its caches."""


def hidden_layers(graph: Graph, place: Region, method: str, chunk: int) -> tuple[list[Box], dict[int, Relaxation]]:
    """The boxes of all nodes, and the relaxations of the nonlinear ones, in the order of evaluation."""
    boxes: list[Box] = []
    relaxations: dict[int, Relaxation] = {}
    tight: set[int] = set()
    for number, node in enumerate(graph.nodes):
        if node.kind == "input":
            boxes.append(interval.start(place))
            continue
        if node.kind in CURVED and method != "ibp":
            source = node.inputs[0]
            if (
                method in ("dual", *KEEPING)
                and source not in tight
                and _improvable(graph, source, boxes, place, method in KEEPING)
            ):
                boxes[source] = _tighten(graph, node, boxes, relaxations, place, method in KEEPING, chunk)
                tight.add(source)
            relaxations[number] = relax(
                node, boxes[source], adaptive=method != "dual", rounding=place.arithmetic is not None
            )
        try:
            boxes.append(interval.step(node, [boxes[k] for k in node.inputs], place))
        except (RuntimeError, IndexError) as error:
            first = str(error).strip().splitlines()[0]
            shape = tuple(place.centre.shape)
            raise ValueError(f"the model cannot take inputs of shape {shape}: {node.name}: {first}") from None
        except ValueError as error:
            raise ValueError(f"{node.name}: {error}") from None
    if boxes[graph.output].lower.dim() != 2:
        shape = tuple(boxes[graph.output].lower.shape)
        raise ValueError(f"the model must return logits (n, classes), got shape {shape}")
    check_classes(boxes[graph.output].lower.shape[1])
    if place.arithmetic is not None:
        boxes[graph.output] = _defined(boxes, boxes[graph.output])
    return boxes, relaxations


def _defined(boxes: list[Box], logits: Box) -> Box:
    """The box of the logits, infinite for each sample of which a value may be NaN: its interval is the real line.

    Layers after such a value may hide it: the interval of its sigmoid is finite, and the network's own is NaN.
    """
    anything = [vectors(box.lower.isneginf() & box.upper.isposinf()).any(1) for box in boxes]
    lost = torch.stack(anything).any(0).unsqueeze(1)
    slack = torch.zeros_like(logits.lower) if logits.slack is None else logits.slack
    lower, upper = logits.lower.masked_fill(lost, -torch.inf), logits.upper.masked_fill(lost, torch.inf)
    return replace(logits, lower=lower, upper=upper, slack=slack.masked_fill(lost, torch.inf))


def _improvable(graph: Graph, number: int, boxes: list[Box], place: Region, keep: bool) -> bool:
    """Whether a linear bound can be tighter than the node's interval.

    It cannot directly after a nonlinear node, nor where the interval is exact.
    """
    behind = graph.nodes[number]
    while behind.kind == "affine" and not behind.op.mixes:
        behind = graph.nodes[behind.inputs[0]]
    # In l2 one layer is exact for the ball, not for its intersection with the box.
    exact = boxes[number].mixes < (1 if place.norm == "l2" and keep else interval.INEXACT)
    return behind.kind not in CURVED and not exact


def _tighten(
    graph: Graph,
    node: Node,
    boxes: list[Box],
    relaxations: dict[int, Relaxation],
    place: Region,
    keep: bool,
    chunk: int,
) -> Box:
    """The box of the input of ``node`` by linear bounds.

    ``keep``: the tighter of the linear bound and the interval; ReLU inputs of known sign are not bounded again.
    """
    source = node.inputs[0]
    box = boxes[source]
    shape, n, device = box.lower.shape[1:], len(box.lower), box.lower.device
    mask = (box.lower < 0) & (box.upper > 0) if keep and node.kind == "relu" else None
    if device.type == "cpu":
        chunk = max(1, min(chunk, BUDGET // widest(graph, source, boxes)))
    rounding = place.arithmetic is not None
    found, rows, columns = [], [], []
    if len(shape) == 3:
        for units in all_units(n, shape, chunk, device) if mask is None else open_units(mask, chunk):
            hot = windows_of(units, n, shape, box.lower.dtype)
            linear = back(graph, form(source, hot, rounding=rounding), boxes, relaxations, units.samples)
            found.append(least(linear, boxes, place, units.samples))
            rows.append(units.samples)
            columns.append(units.columns)
    else:
        width = shape.numel()
        for samples, places, unit in _all(n, width, chunk, device) if mask is None else _open(vectors(mask), chunk):
            # The part up to the nearest ReLUs is the same for all samples: computed per unit, not per pair.
            one = torch.zeros(len(places), width, dtype=box.lower.dtype, device=device)
            one = one.scatter(1, places[:, None], 1.0).view(1, -1, *shape)
            shared = back(graph, form(source, one, rounding=rounding), boxes)
            linear = back(graph, _spread(shared, samples, unit), boxes, relaxations, samples)
            found.append(least(linear, boxes, place, samples))
            rows.append(samples)
            columns.append(places[unit])
    if not found:
        return box
    where, below = (torch.cat(rows), torch.cat(columns)), torch.cat(found)
    old_lower, old_upper = vectors(box.lower), vectors(box.upper)
    lower, upper = old_lower.index_put(where, below[:, 0]), old_upper.index_put(where, -below[:, 1])
    if keep:
        lower, upper = torch.fmax(lower, old_lower), torch.fmin(upper, old_upper)
    return replace(box, lower=lower.view_as(box.lower), upper=upper.view_as(box.upper))


def _spread(shared: Form, samples: Tensor, unit: Tensor) -> Form:
    """Functions of (1, units) as pairs (sample, unit): each function and its negative, (pairs, 2)."""

    def both(t: Tensor) -> Tensor:
        return torch.stack([t[0, unit], -t[0, unit]], 1)

    error = shared.error
    if error is not None:
        # Each sample has its own error, unless nothing was rounded.
        error = (error[0, unit] if len(error) == 1 else error[samples, unit])[:, None].expand(-1, 2)
    pending: dict[int, Coefficients] = {k: both(a) for k, a in shared.pending.items() if isinstance(a, Tensor)}
    return Form(pending, both(shared.constant), error)


Pairs = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Chunks of pairs (sample, unit): the samples, the distinct units, and the index of each pair's unit in these."""


def _all(n: int, width: int, chunk: int, device: torch.device) -> Pairs:
    """Every unit of every sample; no host sync."""
    for units in torch.arange(width, device=device).split(max(1, chunk // max(n, 1))):
        samples = torch.arange(n, device=device).repeat(len(units))
        yield samples, units, torch.arange(len(units), device=device).repeat_interleave(n)


def _open(mask: Tensor, chunk: int) -> Pairs:
    """The pairs where ``mask`` (n, units) is true, unit by unit."""
    for pairs in mask.T.nonzero().split(chunk):
        if len(pairs):
            units, unit = pairs[:, 0].unique_consecutive(return_inverse=True)
            yield pairs[:, 1], units, unit
