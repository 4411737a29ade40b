"""Achieved FLOP per second of passes and steps against what the machine gives at most."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent.bench.methods import radius, step_of
from atent.bench.passes import problem, work_of
from atent.bench.plan import Case, Plan, Section
from atent.bench.timing import Effort, Work, interleaved
from atent.experiments.results.bench import BenchCase, BenchSection, Roof
from atent.methods import ATENT
from atent.progress import Advance
from atent.threat import Threat

TITLE = "roofline: achieved FLOP per second against the peak of a matrix product"
PEAK = "peak"
_SUM = "sum of two vectors"
# Far beyond the last cache of a desktop processor: three vectors of 64 MiB.
_LONG = 2**24


def section(plan: Plan) -> Section:
    """The roof first, then a case for each network."""
    edges = plan.size.most
    cases = [Case(PEAK, partial(_peak, plan, edges))]
    cases += [Case(name, partial(_passes, plan, name)) for name in dict.fromkeys(("digits_cnn", *plan.nets))]
    return Section(TITLE, cases)


def roof(section: BenchSection) -> Roof | None:
    """The roof that the section measured."""
    for case in section.cases:
        if case.name == PEAK:
            rows = {row.name: row.figures for row in case.rows}
            return Roof(
                max(f["flops_per_second"] for f in rows.values() if "flops_per_second" in f),
                rows[_SUM]["bytes_per_second"],
            )
    return None


def _peak(plan: Plan, edges: tuple[int, ...], effort: Effort, advance: Advance) -> BenchCase:
    works: dict[str, Work] = {}
    flops: dict[str, float] = {}
    for edge in edges:
        a, b = (torch.rand(edge, edge, device=plan.device) for _ in range(2))
        out = torch.empty_like(a)
        name = f"matrix product, {edge} x {edge}"
        works[name], flops[name] = partial(torch.mm, a, b, out=out), 2.0 * edge**3
    one, two, three = (torch.rand(_LONG, device=plan.device) for _ in range(3))
    works[_SUM] = partial(torch.add, one, two, out=three)
    found = interleaved(works, effort, advance=advance)
    rows = [found.row(name, figures={"flops_per_second": found.per_second(name, flops[name])}) for name in flops]
    moved = 3 * one.element_size() * _LONG
    rows.append(found.row(_SUM, figures={"bytes_per_second": found.per_second(_SUM, moved)}))
    return BenchCase(PEAK, {"dtype": "float32", "vector": _LONG, "edges": list(edges)}, rows)


def _gradient(model: nn.Module, x: Tensor, y: Tensor, *, to_weights: bool) -> Work:
    parameters = list(model.parameters())

    def run() -> None:
        for p in parameters:
            p.requires_grad_(to_weights)
        z = x.detach().requires_grad_(not to_weights)
        torch.autograd.grad(F.cross_entropy(model(z), y), parameters if to_weights else [z])

    return run


def _passes(plan: Plan, name: str, effort: Effort, advance: Advance) -> BenchCase:
    model, x, y = problem(name, plan.size.batch, device=plan.device)
    model.eval()
    threat = Threat("linf", radius(name, "linf"))

    def forward() -> None:
        with torch.no_grad():
            model(x)

    own, *batch = problem(name, plan.size.batch, device=plan.device)
    works: dict[str, Work] = {
        "forward": forward,
        "forward and gradient of the inputs": _gradient(model, x, y, to_weights=False),
        "forward and gradient of the weights": _gradient(model, x, y, to_weights=True),
        f"step of ATENT, K = {plan.size.steps}": step_of(ATENT(threat, steps=plan.size.steps), own, *batch),
    }
    found = interleaved(works, effort, advance=advance)
    rows = []
    for label, work in works.items():
        flops, moved = work_of(work)
        figures = {
            "flops": flops, "bytes": moved, "intensity": flops / moved,
            "flops_per_second": found.per_second(label, flops),
        }  # fmt: skip
        rows.append(found.row(label, figures=figures))
    return BenchCase(name, {"network": name, "batch": len(x)}, rows)
