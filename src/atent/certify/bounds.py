"""Bounds of a network's logits and margins over a threat, and verification by them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from atent.certify.graph import Graph, read, refuse_training
from atent.certify.hidden import KEEPING, hidden_layers
from atent.certify.interval import Box
from atent.certify.linear import Form, Relaxation, back, form, least
from atent.certify.region import Region, region
from atent.certify.rounding import Arithmetic, down
from atent.certify.slopes import STEPS, ascended, with_slopes
from atent.checks import NotFinite, as_inputs, as_samples, check_batch, check_choice, check_number, check_threat
from atent.contracts import masked_class
from atent.guard import ask, check_weights, guard, random_states, seed_all
from atent.precision import full_precision
from atent.threat import Threat

Method = Literal["ibp", "crown-ibp", "crown", "dual", "alpha-crown"]
METHODS: tuple[str, ...] = get_args(Method)
CHUNK = 1024
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
    """Lower and upper bounds of every logit over all inputs within the threat of ``x``.

    They are bounds of the network in exact arithmetic and of the network as its dtype evaluates it: computed in float64
    and widened by a bound of all rounding (docs/certification.md, which states what is assumed of the hardware). The
    region is the ball cut to the box, with room for the rounding of an attack in the model's dtype. Where a sum may
    overflow the bound is infinite. Differentiable in the weights; use ``torch.no_grad()`` where no gradient is wanted.

    Parameters
    ----------
    model
        Network in eval mode, or the `read` of one, which saves the tracing.
    x
        Inputs (n, ...), float32 or float64, in the threat's box and in the model's dtype.
    threat
        A threat in linf or l2 with a finite eps.
    method
        ``ibp``: interval arithmetic; in l2 the first layer uses the norms of its rows. ``crown-ibp``: linear bounds
        from the logits back to the input, with the relaxation of each activation from intervals; the training of the
        same name mixes this bound with intervals. ``crown``: the relaxations from linear bounds of every layer, and the
        better of the linear bound and the interval for every value; only ReLU inputs whose sign the interval leaves
        open are bounded again, which costs a host sync per ``chunk``. ``dual``: as crown with the lower slope u/(u-l)
        of each ReLU and nothing kept from intervals. ``alpha-crown``: as crown, and for each bound of the logits the
        slopes of the lower lines of undecided ReLUs are optimised; hidden layers keep the bounds of crown. Never looser
        than crown.
    chunk
        At most how many values of hidden layers crown and dual bound at once, summed over samples, 1 or more; it
        determines the memory.
    steps
        Steps of projected Adam of alpha-crown, 0 or more.
    check
        Whether the data are checked, which makes a GPU's host wait.

    Returns
    -------
    tuple of Tensor
        Lower and upper bounds, each (n, classes), in the model's dtype, rounded outwards.

    Raises
    ------
    ValueError
        In one line, for an unknown method, an unsupported layer, a model in train mode, another norm, an infinite eps,
        inputs that the model cannot take, and logits at ``x`` that are NaN or infinite.

    References
    ----------
    ibp: Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models",
    arXiv 1810.12715.

    crown-ibp: Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh 2020, "Towards stable and efficient training of
    verifiably robust neural networks", ICLR, arXiv 1906.06316.

    crown: Zhang, Weng, Chen, Hsieh and Daniel 2018, "Efficient neural network robustness certification with general
    activation functions", NeurIPS, arXiv 1811.00866.

    dual: Wong and Kolter 2018, "Provable defenses against adversarial examples via the convex outer adversarial
    polytope", ICML, arXiv 1711.00851.

    alpha-crown: Xu, Zhang, Wang, Wang, Jana, Lin and Hsieh 2021, "Fast and complete: enabling complete neural network
    verification with rapid and massively parallel incomplete verifiers", ICLR, arXiv 2011.13824.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.certify import bounds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> lower, upper = bounds(model, torch.rand(5, 4), Threat("linf", 0.1))
    >>> lower.shape, bool((lower < upper).all())
    (torch.Size([5, 3]), True)
    """
    x = as_inputs(x, _module(model)) if check else x
    check_number("steps", steps, 0, whole=True)
    graph, place = prepare(model, x, None, threat, method, chunk, check=check)
    with full_precision(x.device):
        boxes, relaxations = hidden_layers(graph, place, method, chunk)
        box = boxes[graph.output]
        if check and not graph.training:
            _check_finite(graph, x, box)
        if method == "ibp":
            return down(box.lower, x.dtype), -down(-box.upper, x.dtype)
        eye = torch.eye(box.lower.shape[1], dtype=box.lower.dtype, device=x.device)
        start = form(graph.output, torch.cat([eye, -eye])[None], rounding=True)
        below = _least(graph, start, boxes, relaxations, place, method, steps)
        lower, minus_upper = below.expand(len(x), -1).chunk(2, 1)
        upper = -minus_upper
        if method in KEEPING:
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
    """Lower bounds of the margins z_y - z_j over the threat, for each class j.

    They are bounded as differences, not as differences of bounds: all affine layers after the last activation are
    merged with e_y - e_j, in ``ibp`` too. ``-margins`` are the worst-case logits of certified training.

    Parameters
    ----------
    model, x
        As in `bounds`.
    y
        True labels (n,), integers.
    threat, method, chunk, steps, check
        As in `bounds`.
    rounding
        False, for training: computed in the model's dtype without a bound of the rounding, at less cost; the result is
        not a certificate.

    Returns
    -------
    Tensor
        (n, classes) in the model's dtype, rounded down; 0 for j = y.

    Raises
    ------
    ValueError
        In one line, as `bounds`, and for labels that are not classes of the model.

    References
    ----------
    Wong and Kolter 2018, "Provable defenses against adversarial examples via the convex outer adversarial polytope",
    ICML, arXiv 1711.00851.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models", arXiv
    1810.12715.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.certify import margins
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.eye(2)
    >>> found = margins(model.eval(), torch.tensor([[0.75, 0.25]]), torch.tensor([0]), Threat("linf", 0.1))
    >>> [round(value, 3) for value in found[0].tolist()]
    [0.0, 0.3]
    """
    if check:
        x, y = as_samples(x, y, _module(model))
    check_number("steps", steps, 0, whole=True)
    graph, place = prepare(model, x, y, threat, method, chunk, check=check, rounding=rounding)
    with full_precision(x.device):
        boxes, relaxations = hidden_layers(graph, place, method, chunk)
        classes = boxes[graph.output].lower.shape[1]
        if check and len(y) and int(y.max()) >= classes:
            raise ValueError(f"label {int(y.max())} is out of range: the model has {classes} outputs")
        if check and not graph.training:
            _check_finite(graph, x, boxes[graph.output])
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
    """The `margins`, from the boxes and relaxations of the hidden layers."""
    like = boxes[graph.output].lower
    eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    own = eye[y.long()]
    start = back(graph, form(graph.output, own[:, None] - eye, rounding=place.arithmetic is not None), boxes)
    found = []
    if method == "ibp" or method in KEEPING:
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
    """A lower bound (n, s) of each function by linear bounds down to the input."""
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
    """Whether each sample is verified: all `margins` against other classes are above 0.

    Parameters
    ----------
    model, x, y, threat, method, chunk, steps
        As in `margins`.

    Returns
    -------
    Tensor
        bool (n,). True: no input within the threat of ``x`` is classified as anything but ``y``, neither by the network
        in exact arithmetic nor as its own dtype evaluates it. False says nothing about the sample.

    Raises
    ------
    ValueError
        In one line, as `margins`.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.certify import verified
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> x = torch.rand(5, 4)
    >>> y = model(x).argmax(1)
    >>> verified(model, x, y, Threat("linf", 0.0)).tolist()
    [True, True, True, True, True]
    """
    below = margins(model, x, y, threat, method, chunk=chunk, steps=steps)
    return (below > 0).sum(1) == below.shape[1] - 1


def prepare(
    model: nn.Module | Graph, x: Tensor, y: Tensor | None, threat: Threat, method: Method, chunk: int, *,
    check: bool = True, rounding: bool = True,
) -> tuple[Graph, Region]:  # fmt: skip
    """The network as a graph and the region of each sample; ValueError for what bounds do not support."""
    check_choice("method", method, METHODS)
    check_number("chunk", chunk, 1, whole=True)
    check_threat(threat)
    if threat.norm not in ("linf", "l2"):
        raise ValueError(f"bounds do not support {threat.norm}: give a threat in linf or l2")
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
    if graph.dtype not in (None, own):
        raise ValueError(
            f"the network's forward pass casts to {graph.dtype}, and its weights are {own}: bounds need one dtype"
        )
    if check and not graph.training:
        _check_reading(graph, x.detach(), threat)
    return graph.cached(), region(x.detach(), threat, Arithmetic(x.dtype) if rounding else None)


@torch.no_grad()
def _check_finite(graph: Graph, x: Tensor, logits: Box) -> None:
    """`NotFinite` where the network's logits at samples without bounds are NaN or infinite, not only where they might
    overflow in the ball."""
    lost = (logits.lower.isneginf() & logits.upper.isposinf()).all(1)
    if lost.any():
        with guard(graph.model, mode="as-is"):
            answer = ask(graph.model, x[lost])
        if not answer.isfinite().all():
            raise NotFinite(answer)


@torch.no_grad()
def _check_reading(graph: Graph, x: Tensor, threat: Threat) -> None:
    """ValueError unless the network itself computes what was read.

    A trace does not show a replaced method of a layer, autocast, a hook on all modules, state that the forward pass
    changes, or random numbers. The logits of two passes over a few samples, and over points of their balls, must lie
    within the intervals at these points, and the passes must not use random numbers.
    """
    few = threat.clamp(x[:FEW])
    if not len(few):
        return
    # A replaced method may agree with the layer's own at the samples, and not around them.
    signs = torch.randint(2, few.shape, generator=torch.Generator().manual_seed(0)).to(few) * 2 - 1
    ends = [threat.project(few + way * float(threat.eps), few) for way in (1, -1, signs)]
    for points in (few, torch.cat(ends)):
        _check_reading_at(graph, points, threat)


def _check_reading_at(graph: Graph, x: Tensor, threat: Threat) -> None:
    """ValueError where the logits at ``x`` (n, ...) are not those of the graph, or random."""
    place = region(x, replace(threat, eps=0.0), Arithmetic(x.dtype))
    with guard(graph.model, mode="as-is"), full_precision(x.device):
        box = hidden_layers(graph, place, "ibp", CHUNK)[0][graph.output]
        answers, states = [], []
        for seed in (1, 2):
            before = seed_all(seed, x.device)
            answers.append(ask(graph.model, x).to(box.lower))
            states.append((before, random_states(x.device)))
        # Random numbers change the generators' state; a network that seeds them itself always leaves the same state.
        if any(a != b and b != d for (a, b), (_, d) in zip(zip(*states[0]), zip(*states[1]))):
            raise ValueError(
                "the network uses random numbers in its forward pass: bounds need a deterministic function"
            )
    for answer in answers:
        if masked_class(answer) is not None:
            raise NotFinite(answer)
        # Where a sum may overflow the interval is infinite, and the logit may be NaN.
        outside = ~((answer >= box.lower) & (answer <= box.upper) | (box.lower.isinf() & box.upper.isinf()))
        if outside.any():
            low, high, got = (float(t[outside][0]) for t in (box.lower, box.upper, answer))
            raise ValueError(
                f"bounds cannot read all of the network's forward pass: a logit is {got:.6g} where the code that was"
                f" read gives [{low:.6g}, {high:.6g}]; possible causes: a replaced method of a layer, autocast, a hook"
                " on all modules, or a buffer that the pass changes"
            )
