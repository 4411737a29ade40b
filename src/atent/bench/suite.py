"""All sections in the time that is given, into one result."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from atent.bench import attacks, certify, growth, methods, roofline, transcription
from atent.bench.kept import Kept
from atent.bench.machine import machine
from atent.bench.plan import Case, Omitted, Plan, Section
from atent.bench.timing import Effort
from atent.experiments.results.bench import BENCH_VERSION, BenchCase, BenchFile, BenchSection
from atent.progress import Advance, bar
from atent.runs import provenance

_MAKERS: dict[str, Callable[[Plan], Section]] = {
    "methods": methods.section, "atent": transcription.section, "attacks": attacks.section,
    "certify": certify.section, "growth": growth.section, "roofline": roofline.section,
}  # fmt: skip


def run(plan: Plan, *, kept: Kept | None = None, progress: bool = True) -> BenchFile:
    """Measure what the plan asks for.

    The time is shared out by the weights of the cases: what one leaves, the later ones have. A case that cannot be
    measured is omitted with a reason. Cases that are ``kept`` are not measured again, and their seconds count. The
    number of torch's threads is restored.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    kept = kept or Kept()
    begun = time.monotonic() - kept.seconds
    try:
        sections = {name: _MAKERS[name](plan) for name in plan.sections}
        todo = sum(c.weight for name, s in sections.items() for c in s.cases if kept.take(name, c.name) is None)
        found: dict[str, BenchSection] = {}
        with bar(sum(len(s.cases) for s in sections.values()), "bench", enabled=progress) as advance:
            for name, section in sections.items():
                found[name], todo = _measured(plan, name, section, kept, begun, todo, advance)
    finally:
        torch.set_num_threads(before)
    return BenchFile(
        schema_version=BENCH_VERSION, clock=plan.clock, settings=plan.settings, machine=machine(),
        roof=roofline.roof(found["roofline"]) if "roofline" in found else None, sections=found,
        seconds=time.monotonic() - begun,
        provenance={**provenance(seed=0, device=plan.device), "threads": plan.threads},
    )  # fmt: skip


def _measured(
    plan: Plan, name: str, section: Section, kept: Kept, begun: float, todo: float, advance: Advance
) -> tuple[BenchSection, float]:
    """The section, and the weight of what is left after it."""
    cases: list[BenchCase] = []
    omitted = dict(section.omitted)
    total = 0.0
    for case in section.cases:
        done = kept.take(name, case.name)
        if done is None:
            started = time.monotonic()
            effort = Effort(max(0.0, plan.seconds - (started - begun)) * case.weight / todo, plan.clock, plan.device)
            todo -= case.weight
            done = _case(case, effort, advance), time.monotonic() - started
            kept.put(name, case.name, *done)
        found, seconds = done
        total += seconds
        if isinstance(found, Omitted):
            omitted[case.name] = str(found)
        else:
            cases.append(found)
        advance(1, case.name)
    return BenchSection(section.title, cases, omitted, total), todo


def _case(case: Case, effort: Effort, advance: Advance) -> BenchCase | Omitted:
    try:
        return case.measure(effort, lambda amount, text: advance(amount, f"{case.name}: {text}"))
    except Omitted as error:
        return error
