"""ATENT's step against the structure of the authors' code: time and activation memory.

Three ways to the same gradient, from the same start and the same noise:

authors      per step a forward and a full backward at x^k (weight gradients are made and thrown away), then a second
             forward at x^{k+1} whose mean loss is folded into mu; K graphs live until mu goes backward. Without the
             clean forward that the authors' program makes and never uses.
inputs only  the same, but the inner backward differentiates with respect to the input alone.
atent        `ATENT.backward`: one forward at x^k serves both gradients, K + 1 forwards, one live graph.

Before anything is timed, all run on copies of one network and must agree in loss, weight gradient and batch-norm
statistics: no term is dropped. Dropout is active and shared: the gradient pass at x^k sees the mask of its loss pass,
in the first two by replaying the random state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent.bench.methods import Norm, radius
from atent.bench.passes import passes_of, problem, saved_bytes
from atent.bench.plan import Case, Plan, Section
from atent.bench.timing import Effort, Work, interleaved
from atent.experiments.results.bench import BenchCase
from atent.methods import ATENT
from atent.progress import Advance
from atent.rng import Batch
from atent.threat import Threat

TITLE = "a step of ATENT, and the structure of the authors' code over it"
TOLERANCE = 1e-4
"""Largest relative difference between the ways, in float32."""

Step = Callable[[ATENT, nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def authors(
    method: ATENT, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator, *, full: bool = True
) -> Tensor:
    """mu, its gradient in ``.grad``, by two passes per iterate and K live graphs."""
    chain, streams = method.chain(), Batch(rng)
    reduction = "sum" if chain.gradient == "raw" else "mean"
    z = chain.begin(x, streams)
    mask: Tensor | None = None
    mu = torch.zeros((), device=x.device)
    for k in range(chain.steps):
        zk = z.detach().requires_grad_()
        if mask is not None:
            _replay(mask, x.device)
        loss = F.cross_entropy(model(zk), y, reduction=reduction)
        slope: Tensor | None
        if full:
            loss.backward()
            slope = zk.grad
        else:
            (slope,) = torch.autograd.grad(loss, zk)
        assert slope is not None
        z = chain.move(zk.detach(), x, slope, k, streams)
        mask = _state(x.device)
        mu = (1 - method.alpha) * mu + method.alpha * F.cross_entropy(model(z), y)
    model.zero_grad()
    mu.backward()
    return mu.detach()


def _state(device: torch.device) -> Tensor:
    """The random state that dropout on the device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _replay(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def atent(method: ATENT, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """mu, its gradient in ``.grad``, as this library makes it."""
    return method.backward(model, x, y, rng=rng)["loss"]


STEPS: dict[str, Step] = {"atent": atent, "inputs only": partial(authors, full=False), "authors": authors}


def once(step: Step, method: ATENT, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """The loss of one step from zeroed gradients; the seed fixes start, noise and masks."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    return step(method, model, x, y, torch.Generator(device=x.device).manual_seed(seed))


def differences(method: ATENT, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The largest relative difference of each way from the authors' structure, in loss, gradient and buffers."""
    found = {}
    for name, step in STEPS.items():
        own = copy.deepcopy(model)
        loss = once(step, method, own, x, y, seed=1)
        grads = torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])
        buffers = torch.cat([torch.ones(1).to(x), *(b.flatten() for b in own.buffers() if b.is_floating_point())])
        found[name] = (loss.reshape(1), grads, buffers)
    base = found["authors"]
    return {
        name: max(float((one - other).norm() / other.norm()) for one, other in zip(parts, base, strict=True))
        for name, parts in found.items()
    }


def section(plan: Plan) -> Section:
    """A case for each network, in the norm that the paper trains it in."""
    cases = []
    for name in plan.nets:
        norm: Norm = "linf" if radius(name, "l2") > 1 else "l2"
        cases.append(Case(f"{name}, {norm}", partial(_measure, plan, name, Threat(norm, radius(name, norm)))))
    return Section(TITLE, cases)


def _measure(plan: Plan, name: str, threat: Threat, effort: Effort, advance: Advance) -> BenchCase:
    """ArithmeticError if the ways do not agree."""
    model, x, y = problem(name, plan.size.batch, device=plan.device)
    method = ATENT(threat, steps=plan.size.steps)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        gaps = differences(method, model, x, y)
        worst = max(gaps, key=lambda name: gaps[name])
        if not gaps[worst] <= TOLERANCE:
            raise ArithmeticError(f"{worst} and authors differ by {gaps[worst]:.2g} (relative) on {name}")
        works: dict[str, Work] = {label: partial(once, step, method, model, x, y) for label, step in STEPS.items()}
        found = interleaved(works, effort, pairs={"inputs only": "atent", "authors": "atent"}, advance=advance)
        rows = [
            found.row(label, figures={
                "forwards": float(len(passes_of(work, model))), "saved_bytes": float(saved_bytes(work, model)),
                "difference": gaps[label],
            })
            for label, work in works.items()
        ]  # fmt: skip
    settings = {"network": name, "norm": threat.norm, "eps": float(threat.eps), "batch": len(x), "K": method.steps}
    return BenchCase(f"{name}, {threat.norm}", settings, rows)
