"""Every training method against the bare loop of its own passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from atent.bench.passes import bare, passes_of, problem, saved_bytes, units
from atent.bench.plan import Case, Plan, Section
from atent.bench.timing import Effort, Work, interleaved
from atent.experiments.results.bench import BenchCase
from atent.methods import METHODS, Method
from atent.optim import EntropySGD
from atent.progress import Advance
from atent.threat import Threat

Norm = Literal["linf", "l2"]
TITLE = "training methods: seconds of a step, and over those of its passes in a bare loop"
ENTROPY_SGD = "EntropySGD"
_BOUNDS = ("CROWNIBP", "Dual")
_BARE = "{} (bare passes)"


def radius(name: str, norm: Norm) -> float:
    """The radius that the literature trains at: of CIFAR's networks, or of MNIST's."""
    cifar = {"linf": 8 / 255, "l2": 1.0}
    return {"linf": 0.3, "l2": 2.0}[norm] if name in ("small_cnn", "lenet5", "kw_small") else cifar[norm]


def applicable(threat: Threat, steps: int) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods for a threat, with their own defaults otherwise, and the reasons for omitting others."""
    found: dict[str, Method] = {}
    omitted: dict[str, str] = {}
    for label in METHODS:
        kind = METHODS[label]
        if label in _BOUNDS:
            omitted[label] = "trains by bounds, which are no passes of the network"
            continue
        fields = kind.__dataclass_fields__
        if "threat" in fields and threat.norm not in kind.norms:
            omitted[label] = f"no form for {threat.norm}"
            continue
        given = {"threat": threat} if "threat" in fields else {}
        found[label] = kind(**given, **({"steps": steps} if "steps" in fields else {}))
    return found, omitted


def step_of(method: Method, model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """One step of a method up to the gradients, the same random numbers each time."""
    state = method.init(len(x), tuple(x.shape[1:]), x.device)
    ids = torch.arange(len(x), device=x.device)

    def run() -> object:
        model.train().zero_grad()
        rng = torch.Generator(device=x.device).manual_seed(0)
        return method.backward(model, x, y, rng=rng, ids=ids, state=state)

    return run


def _entropy_sgd(model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """One step of the optimizer, whose walk asks for the plain loss several times; the weights hardly move."""
    optimizer = EntropySGD(model.parameters(), 1e-6, scale="none", inner_lr=1e-6)
    plain: Callable[[], object] = step_of(METHODS["Standard"](), model, x, y)
    return lambda: optimizer.step(lambda: plain()["loss"])  # type: ignore[index]


def section(plan: Plan) -> Section:
    """A case for each network and norm."""
    norms: tuple[Norm, ...] = ("linf",) if plan.quick else ("linf", "l2")
    cases: list[Case] = []
    omitted: dict[str, str] = {}
    for name in plan.nets:
        for norm in norms:
            threat = Threat(norm, radius(name, norm))
            steps, left = applicable(threat, plan.size.steps)
            omitted |= left
            cases.append(Case(f"{name}, {norm}", partial(_measure, plan, name, threat, steps), 2.0))
    return Section(TITLE, cases, omitted)


def _measure(
    plan: Plan, name: str, threat: Threat, methods: dict[str, Method], effort: Effort, advance: Advance
) -> BenchCase:
    model, x, y = problem(name, plan.size.batch, device=plan.device)
    steps = {label: step_of(method, model, x, y) for label, method in methods.items()}
    steps[ENTROPY_SGD] = _entropy_sgd(model, x, y)
    passes = {label: passes_of(step, model) for label, step in steps.items()}
    works: dict[str, Work] = {}
    for label, step in steps.items():
        works[label], works[_BARE.format(label)] = step, bare(passes[label], model, x, y)
    pairs = {label: _BARE.format(label) for label in steps}
    found = interleaved(works, effort, pairs=pairs, advance=advance)
    rows = []
    for label, step in steps.items():
        figures = {
            "forwards": sum(p.n for p in passes[label]) / len(x),
            "units": units(passes[label], len(x)),
            "images_per_second": found.per_second(label, len(x)),
            "saved_bytes": float(saved_bytes(step, model)),
        }
        rows += [found.row(label, figures=figures), found.row(_BARE.format(label))]
    settings = {"network": name, "norm": threat.norm, "eps": float(threat.eps), "batch": len(x), "K": plan.size.steps}
    return BenchCase(f"{name}, {threat.norm}", settings, rows)
