"""Bounds of a network's logits and margins over a threat, and what they verify."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from atent.certify import interval
from atent.certify.graph import Graph, Node, read, refuse_training
from atent.certify.interval import Box
from atent.certify.linear import Coefficients, Form, Relaxation, back, form, least, relax, widest
from atent.certify.operators import CURVED
from atent.certify.region import Region, region
from atent.certify.rounding import Arithmetic, down
from atent.certify.slopes import STEPS, ascended, with_slopes
from atent.certify.window import all_units, open_units, windows_of
from atent.checks import as_inputs, as_samples, check_batch, check_choice, check_number, check_threat
from atent.guard import ask, check_classes, check_weights, guard, random_states, seed_all
from atent.precision import full_precision
from atent.threat import Threat

Method = Literal["ibp", "crown-ibp", "crown", "dual", "alpha-crown"]
METHODS: tuple[str, ...] = ("ibp", "crown-ibp", "crown", "dual", "alpha-crown")
_KEEPING = ("crown", "alpha-crown")
"""Methods that keep the better of linear bounds and intervals."""
CHUNK = 1024
BUDGET = 2**18
"""On a CPU, about how many coefficients of pairs (sample, unit) there are at once: more leave its caches."""
FEW = 4


def bounds(
    model: nn.Module | Graph,
    x: Tensor,
    threat: Threat,
    method: Method = "crown",
    *,
    chunk: int = CHUNK,
    steps: int = STEPS,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """(lower, upper), each (n, classes): what every logit stays between for all inputs within the threat of ``x``.

    ``x`` is (n, ...), in the box, of the model's dtype; the region is the ball cut to the box (`region.Region`).
    ``model`` is in eval mode, or the `read` of one, which saves the tracing. Methods:

    - ``ibp``: interval arithmetic (Gowal et al. 2018); in l2 the first layer uses the norms of its rows;
    - ``crown-ibp``: linear bounds from the logits back to the input, with the relaxations of each ReLU from intervals
      (Zhang et al. 2019, their bound alone without the mixture of training);
    - ``crown``: the relaxations from linear bounds of every layer too (Zhang et al. 2018). A linear bound alone can be
      looser than an interval, so the better of the two is kept for every value. Only values whose sign the interval
      leaves open are bounded again, which costs a host sync per ``chunk``;
    - ``dual``: as crown with the lower slope u/(u-l) of each ReLU and nothing kept from intervals: the dual network of
      Wong and Kolter 2018 (Theorem 1, without the box there; their code cuts to it for MNIST);
    - ``alpha-crown``: as crown, and for each bound of the logits the slopes of the lines below undecided ReLUs are
      found by ``steps`` steps of projected Adam (Xu et al. 2021); hidden layers keep the bounds of crown. Never looser
      than crown.

    ``chunk``: at most how many values of hidden layers crown and dual bound at once, summed over samples; it sets the
    memory.
    They hold for the network in exact arithmetic and for the network as its dtype evaluates it: computed in float64
    whatever the dtype, and widened by a bound of all rounding (docs/certification.md, which says what is assumed of
    the hardware). The region has room for the rounding of an attack in that dtype (`region.region`). Where a sum may
    overflow the bound is infinite. The result is in the model's dtype, rounded outwards. Differentiable in the
    weights; use ``torch.no_grad()`` where no gradient is wanted. Without ``check`` the checks of the data, which make
    a GPU's host wait, are left out.

    ValueError, in one line, for an unknown method, an unsupported layer, a model in train mode, an infinite eps, and
    inputs that the model cannot take.
    """
    x = as_inputs(x, _module(model)) if check else x
    check_number("steps", steps, 0, whole=True)
    graph, place = prepare(model, x, None, threat, method, chunk, check=check)
    with full_precision(x.device):
        boxes, relaxations = _hidden(graph, place, method, chunk)
        box = boxes[graph.output]
        if method == "ibp":
            return down(box.lower, x.dtype), -down(-box.upper, x.dtype)
        eye = torch.eye(box.lower.shape[1], dtype=box.lower.dtype, device=x.device)
        start = form(graph.output, torch.cat([eye, -eye])[None], rounding=True)
        below = _least(graph, start, boxes, relaxations, place, method, steps)
        lower, minus_upper = below.expand(len(x), -1).chunk(2, 1)
        upper = -minus_upper
        if method in _KEEPING:
            lower, upper = torch.fmax(lower, box.lower), torch.fmin(upper, box.upper)
        return down(lower, x.dtype), -down(-upper, x.dtype)


def margins(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    method: Method = "crown",
    *,
    chunk: int = CHUNK,
    steps: int = STEPS,
    check: bool = True,
    rounding: bool = True,
) -> Tensor:
    """Lower bounds (n, classes) of z_y - z_j over the threat, 0 for j = y; ``y`` (n,) integers.

    Bounded as differences (Wong and Kolter 2018; Gowal et al. 2018), not as differences of bounds: all
    affine layers after the last ReLU are merged with e_y - e_j, in ``ibp`` too. ``-margins`` are the worst-case logits
    of certified training. ``rounding=False``, for training: computed in the model's dtype without a bound of the
    rounding, at less cost; not a certificate. Otherwise as `bounds`; ValueError also for labels that are not classes of
    the model.
    """
    if check:
        x, y = as_samples(x, y, _module(model))
    check_number("steps", steps, 0, whole=True)
    graph, place = prepare(model, x, y, threat, method, chunk, check=check, rounding=rounding)
    with full_precision(x.device):
        boxes, relaxations = _hidden(graph, place, method, chunk)
        classes = boxes[graph.output].lower.shape[1]
        if check and len(y) and int(y.max()) >= classes:
            raise ValueError(f"label {int(y.max())} is out of range: the model has {classes} outputs")
        return down(differences(graph, y, place, method, boxes, relaxations, steps), x.dtype)


def _module(model: nn.Module | Graph) -> nn.Module:
    return model.model if isinstance(model, Graph) else model


def differences(
    graph: Graph,
    y: Tensor,
    place: Region,
    method: str,
    boxes: list[Box],
    relaxations: dict[int, Relaxation],
    steps: int = STEPS,
) -> Tensor:
    """The `margins`, once the hidden layers' boxes and relaxations are known."""
    like = boxes[graph.output].lower
    eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    own = eye[y.long()]
    start = back(graph, form(graph.output, own[:, None] - eye, rounding=place.arithmetic is not None), boxes)
    found = []
    if method == "ibp" or method in _KEEPING:
        found.append(least(start, boxes, place))
    if method != "ibp":
        found.append(_least(graph, start, boxes, relaxations, place, method, steps))
    result = found[0] if len(found) == 1 else torch.fmax(found[1], found[0])
    return torch.where(own > 0, 0, result)


def _least(
    graph: Graph,
    start: Form,
    boxes: list[Box],
    relaxations: dict[int, Relaxation],
    place: Region,
    method: str,
    steps: int,
) -> Tensor:
    """The minimum (n, s) of each function by linear bounds down to the input."""
    found = least(back(graph, start, boxes, relaxations), boxes, place)
    if method != "alpha-crown" or not steps:
        return found
    dtype = found.dtype if place.arithmetic is None else place.arithmetic.dtype
    slopes = ascended(graph, start, boxes, relaxations, place, steps, dtype)
    lines = with_slopes(relaxations, {k: t.to(found.dtype) for k, t in slopes.items()})
    return torch.fmax(found, least(back(graph, start, boxes, lines), boxes, place))


@torch.no_grad()
def verified(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    method: Method = "crown",
    *,
    chunk: int = CHUNK,
    steps: int = STEPS,
) -> Tensor:
    """bool (n,): verified that no input within the threat of ``x`` is classified as anything but ``y``, neither by the
    network in exact arithmetic nor as its own dtype evaluates it.

    All `margins` against other classes are above 0. False says nothing about the sample.
    """
    below = margins(model, x, y, threat, method, chunk=chunk, steps=steps)
    return (below > 0).sum(1) == below.shape[1] - 1


def prepare(
    model: nn.Module | Graph, x: Tensor, y: Tensor | None, threat: Threat, method: Method, chunk: int, *,
    check: bool = True, rounding: bool = True,
) -> tuple[Graph, Region]:  # fmt: skip
    """The network as a graph and the region of each sample; ValueError for what bounds cannot take."""
    check_choice("method", method, METHODS)
    check_number("chunk", chunk, 1, whole=True)
    check_threat(threat)
    if threat.norm not in ("linf", "l2"):
        raise ValueError(f"bounds have no form for {threat.norm}: give a threat in linf or l2")
    if math.isinf(float(threat.eps)):
        raise ValueError("bounds need a finite eps, got inf")
    graph = model if isinstance(model, Graph) else read(model)
    check_weights(graph.model)
    refuse_training(graph.model, allowed=graph.training)
    if check:
        check_batch(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, threat.box)
        threat.check_eps(x.shape[1:])
    own = next((p.dtype for p in graph.model.parameters() if p.is_floating_point()), x.dtype)
    if x.dtype != own or own not in (torch.float32, torch.float64):
        raise ValueError(
            f"bounds need inputs and weights of one dtype, float32 or float64, got {x.dtype} and {own}:"
            " use x.to(dtype) and model.to(dtype)"
        )
    if check and not graph.training:
        _check_reading(graph, x.detach(), threat)
    return graph.held(), region(x.detach(), threat, Arithmetic(x.dtype) if rounding else None)


@torch.no_grad()
def _check_reading(graph: Graph, x: Tensor, threat: Threat) -> None:
    """ValueError unless the network itself computes what was read: a trace sees no replaced method of a layer, no
    autocast, no hook on all modules, no state that the forward pass changes, and one draw of what is random.

    Two passes over a few samples must lie within the intervals at the samples themselves, and draw no random numbers.
    """
    few = threat.clamp(x[:FEW])
    if not len(few):
        return
    place = region(few, replace(threat, eps=0.0), Arithmetic(x.dtype))
    with guard(graph.model, mode="as-is"), full_precision(x.device):
        box = _hidden(graph, place, "ibp", CHUNK)[0][graph.output]
        answers, states = [], []
        for seed in (1, 2):
            before = seed_all(seed, x.device)
            answers.append(ask(graph.model, few).to(box.lower))
            states.append((before, random_states(x.device)))
        # A network that draws leaves another state each time; one that seeds the generators itself, the same one.
        if any(a != b and b != d for (a, b), (_, d) in zip(zip(*states[0]), zip(*states[1]))):
            raise ValueError("the network draws random numbers in its forward pass: bounds need a fixed function")
    for answer in answers:
        # Where a sum may overflow the interval is infinite, and the answer may be NaN.
        outside = ~((answer >= box.lower) & (answer <= box.upper) | (box.lower.isinf() & box.upper.isinf()))
        if outside.any():
            low, high, got = (float(t[outside][0]) for t in (box.lower, box.upper, answer))
            raise ValueError(
                f"bounds cannot see all that the network's forward pass does: a logit is {got:.6g} where the code that"
                f" was read gives [{low:.6g}, {high:.6g}]; such as a layer whose method was replaced, autocast, a hook"
                " on all modules, or a buffer that the pass changes"
            )


def _hidden(graph: Graph, place: Region, method: str, chunk: int) -> tuple[list[Box], dict[int, Relaxation]]:
    """The boxes of all nodes, and the relaxations of the curved ones, from the input on."""
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
                method in ("dual", *_KEEPING)
                and source not in tight
                and _improvable(graph, source, boxes, place, method in _KEEPING)
            ):
                boxes[source] = _tighten(graph, node, boxes, relaxations, place, method in _KEEPING, chunk)
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
    if boxes[graph.output].lower.dim() != 2:
        shape = tuple(boxes[graph.output].lower.shape)
        raise ValueError(f"the model must return logits (n, classes), got shape {shape}")
    check_classes(boxes[graph.output].lower.shape[1])
    return boxes, relaxations


def _improvable(graph: Graph, number: int, boxes: list[Box], place: Region, keep: bool) -> bool:
    """Whether a linear bound can beat the node's interval: not right behind a ReLU, and not where that is exact."""
    behind = graph.nodes[number]
    while behind.kind == "affine" and not behind.op.mixes:
        behind = graph.nodes[behind.inputs[0]]
    # In l2 one layer is exact for the ball, not for what the box leaves of it.
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
    """The box of the input of ``node`` by linear bounds; ``keep`` the better of the two, and what is settled."""
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
        for samples, places, unit in _all(n, width, chunk, device) if mask is None else _open(mask.flatten(1), chunk):
            # The part up to the nearest ReLUs is the same for all samples: once for each unit, not for each pair.
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
    old_lower, old_upper = box.lower.flatten(1), box.upper.flatten(1)
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
        # Each sample has its own, unless nothing was rounded.
        error = (error[0, unit] if len(error) == 1 else error[samples, unit])[:, None].expand(-1, 2)
    pending: dict[int, Coefficients] = {k: both(a) for k, a in shared.pending.items() if isinstance(a, Tensor)}
    return Form(pending, both(shared.constant), error)


Pairs = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Chunks of pairs (sample, unit): the samples, the units that occur, and which of these each pair has."""


def _all(n: int, width: int, chunk: int, device: torch.device) -> Pairs:
    """Every unit of every sample; no host sync."""
    for units in torch.arange(width, device=device).split(max(1, chunk // max(n, 1))):
        samples = torch.arange(n, device=device).repeat(len(units))
        yield samples, units, torch.arange(len(units), device=device).repeat_interleave(n)


def _open(mask: Tensor, chunk: int) -> Pairs:
    """The pairs that ``mask`` (n, units) marks, unit by unit."""
    for pairs in mask.T.nonzero().split(chunk):
        if len(pairs):
            units, unit = pairs[:, 0].unique_consecutive(return_inverse=True)
            yield pairs[:, 1], units, unit
