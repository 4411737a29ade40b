"""All sections in the time that is given, into one result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from atent.bench import attacks, certify, growth, methods, roofline, transcription
from atent.bench.machine import machine
from atent.bench.plan import Omitted, Plan, Section
from atent.bench.timing import Effort
from atent.experiments.results.bench import BENCH_VERSION, BenchCase, BenchFile, BenchSection
from atent.progress import Advance, bar
from atent.runs import provenance

_MAKERS: dict[str, Callable[[Plan], Section]] = {
    "methods": methods.section, "atent": transcription.section, "attacks": attacks.section,
    "certify": certify.section, "growth": growth.section, "roofline": roofline.section,
}  # fmt: skip


def run(plan: Plan, *, progress: bool = True) -> BenchFile:
    """Measure what the plan asks for.

    The time is shared out by the weights of the cases: what one leaves, the later ones have. A case that cannot be
    measured is left out and says why. The number of torch's threads comes back as it was.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    begun = time.monotonic()
    try:
        sections = {name: _MAKERS[name](plan) for name in plan.sections}
        todo = sum(case.weight for section in sections.values() for case in section.cases)
        found: dict[str, BenchSection] = {}
        with bar(sum(len(s.cases) for s in sections.values()), "bench", enabled=progress) as advance:
            for name, section in sections.items():
                found[name], todo = _measured(plan, section, begun, todo, advance)
    finally:
        torch.set_num_threads(before)
    settings: dict[str, Any] = {
        "sections": list(plan.sections), "quick": plan.quick, "minutes": plan.seconds / 60,
        "networks": list(plan.nets), "batch": plan.size.batch, "K": plan.size.steps, "threads": plan.threads,
    }  # fmt: skip
    return BenchFile(
        schema_version=BENCH_VERSION, clock=plan.clock, settings=settings, machine=machine(),
        roof=roofline.roof(found["roofline"]) if "roofline" in found else None, sections=found,
        seconds=time.monotonic() - begun,
        provenance={**provenance(seed=0, device=plan.device), "threads": plan.threads},
    )  # fmt: skip


def _measured(plan: Plan, section: Section, begun: float, todo: float, advance: Advance) -> tuple[BenchSection, float]:
    """The section, and the weight of what is left after it."""
    cases: list[BenchCase] = []
    omitted = dict(section.omitted)
    started = time.monotonic()
    for case in section.cases:
        left = max(0.0, plan.seconds - (time.monotonic() - begun))
        effort = Effort(left * case.weight / todo, plan.clock, plan.device)
        todo -= case.weight
        try:
            cases.append(case.measure(effort, lambda amount, text, name=case.name: advance(amount, f"{name}: {text}")))  # type: ignore[misc]
        except Omitted as error:
            omitted[case.name] = str(error)
        advance(1, case.name)
    return BenchSection(section.title, cases, omitted, time.monotonic() - started), todo
