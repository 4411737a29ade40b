"""The contexts of the sections on evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from atent import plots
from atent.data import described
from atent.experiments.comparison import caveat_of, radius_remarks
from atent.experiments.results import EvaluationFile, UnionReport
from atent.report import words
from atent.report.collect import Run, title_of
from atent.report.commands import command
from atent.report.render import drawing
from atent.threat import COUNTS


def headline(run: Run) -> dict[str, Any]:
    """The headline robust accuracy, the clean accuracy, and their context."""
    if run.leading is None:
        return {"found": None, "command": command(run, "evaluate"), "interrupted": run.interrupted}
    found = run.evaluations[run.leading]
    others = []
    best = run.evaluations[run.headline or run.leading]
    if best is not found:
        which = "Lowest" if best.worst.value < found.worst.value else "Also"
        others.append(f"{which} measured: {title_of(best)}, robust accuracy {best.worst.text}.")
    caveat = caveat_of(found)
    if caveat:
        stronger = [title_of(f) for f in run.evaluations.values() if f.attacks and not caveat_of(f)]
        others += [
            f"{_short(f)} was found by {title_of(f)}." for f in run.evaluations.values() if title_of(f) in stronger
        ]
        # Where AutoAttack was run, under another threat or with a higher figure, the line above says so.
        alike = any(f.threats == found.threats for f in run.evaluations.values() if title_of(f) in stronger)
        caveat = None if alike else caveat
    under = " and ".join(found.threats) or "no threat"
    lines = {"others": others, "warning": caveat, "interrupted": run.interrupted}
    return {"found": found, "under": under, "worst": _worst(found), **lines}


def _worst(found: EvaluationFile) -> str:
    """The attacks of the worst case, as the end of a sentence; "" without an attack."""
    named = found.attacks
    if len(named) < 2:
        return f"under {next(iter(named))}" if named else ""
    strongest = None
    if not found.cascade:
        strongest = min(named, key=lambda name: named[name].robust.k)
    elif found.cascade is True:
        counts = [found.clean.k, *(a.robust.k for a in named.values())]
        took = [name for name, before, after in zip(named, counts, counts[1:]) if after < before]
        # Later attacks meet fewer images: of several that fool some, none is known to be the strongest.
        strongest = took[0] if len(took) == 1 else None
    return f"under the worst of {len(named)} attacks" + (f", the strongest {strongest}" if strongest else _names(named))


def _names(named: Iterable[str]) -> str:
    """The names of a few attacks in brackets, "" for many."""
    names = list(named)
    return f" ({', '.join(names)})" if len(names) < 4 else ""


def _short(found: EvaluationFile) -> str:
    weights = "" if found.of_best else f", weights {found.weights}"
    return f"{found.worst.text} of {found.data.text} images under {' and '.join(found.threats)}{weights}"


def attacks(run: Run) -> dict[str, Any]:
    """Every evaluation, with a line on it."""
    files = {id(found): name for name, found in run.evaluations.items()}
    return {"evaluations": [(title, found, files[id(found)]) for title, found in run.titled.items()]}


def classes(run: Run) -> dict[str, Any]:
    """The evaluations that recorded accuracies class by class."""
    found = [(title, each) for title, each in run.titled.items() if each.per_class]
    # The most images say most about a class.
    found.sort(key=lambda item: -item[1].n)
    return {"evaluations": found, "command": command(run, "evaluate")}


def epochs(run: Run) -> dict[str, Any]:
    """The accuracies of the best epoch's weights and of the last's: robust overfitting shows in the difference."""
    first = next((each for each in run.evaluations.values() if each.of_best), None)
    last = first.last if first is not None else None
    best = next((r for r in reversed(run.rows) if r.get("best")), None)
    validation: list[tuple[str, list[tuple[float | None, str]]]] = []
    if best is not None:
        for kind in ("clean", "robust"):
            key = f"validation_{kind}"
            cells = [(row.get(key), _validation(row, key)) for row in (best, run.rows[-1])]
            if any(value is not None for value, _ in cells):
                validation.append((kind, cells))
    test: list[tuple[Any, ...]] = []
    if first is not None and last is not None:
        pairs = [(n, a.robust, last.attacks[n].robust if n in last.attacks else None) for n, a in first.attacks.items()]
        test = [("clean", first.clean, last.clean), *pairs, ("worst of these", first.worst, last.worst)]
    end = run.rows[-1]["epoch"] if run.rows else last.epoch if last else None
    alone = [title for title, each in run.titled.items() if each.weights == "last"]
    return {
        "validation": validation, "test": test, "best": run.best_epoch, "end": end, "chosen": _selected(run),
        "alone": alone,
    }  # fmt: skip


def _selected(run: Run) -> str:
    chosen = ((run.config.get("about") or {}).get("subsets") or {}).get("validation")
    return f" ({described.words(chosen)})" if chosen else ""


def _validation(row: dict[str, Any], key: str) -> str:
    if row.get(key) is None:
        return ""
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return words.percent(row[key]) + interval


def unions(run: Run) -> dict[str, Any]:
    """The evaluations under several threats at once."""
    shown = []
    for name, found in run.titled.items():
        if found.union is not None:
            drawn = drawing(plots.union(found.union.to_json(), stacked=True), _union(found.union), name, height=9)
            shown.append((name, found.union, drawn))
    return {"unions": shown, "command": command(run, "evaluate", "--threats", *_threats(run))}


def _union(found: UnionReport) -> str:
    each = ", ".join(f"{words.percent(t.robust.value)} under {name}" for name, t in found.threats.items())
    return (
        f"Robust accuracy: {each}; {words.percent(found.average.value)} on average, {words.percent(found.worst.value)}"
        f" under the union; {words.percent(found.clean.value)} without an attack."
    )


def _threats(run: Run) -> list[str]:
    """Two threats of like size for the command: linf and l2, one of them the run's own where it has such a one."""
    shape = ((run.config.get("about") or {}).get("data") or {}).get("shape") or (1,)
    own = run.config["method"].get("threat") or {}
    # The linf ball reaches to root of dim in l2 in its corners, and to 1 along the axes.
    root = math.sqrt(math.prod(shape)) / 2
    eps = {"linf": 1.0, "l2": 1 / root}.get(own.get("norm", ""), 0.0) * float(own.get("eps", 0)) or 0.1
    return [f"linf {eps:.4g}", f"l2 {eps * root:.4g}"]


def radii(run: Run) -> dict[str, Any]:
    """Security curves."""
    sweeps = []
    for name, found in run.titled.items():
        rows = [asdict(row) for row in found.sweep]
        if rows:
            caption = f"{name}: each attack alone, n = {found.sweep[0].robust.n:,}."
            figure = drawing(plots.security(rows), words.security(rows), caption)
            sweeps.append((name, found.sweep, figure, radius_remarks(found.sweep)))
    known = next((asdict(a.threat) for found in run.evaluations.values() for a in found.attacks.values()), None)
    # The command evaluates under the run's own threat.
    threat = run.config["method"].get("threat") or known or {}
    eps = float(threat.get("eps", "inf"))
    some = [f"{factor * eps:.4g}" for factor in (0.5, 1, 1.5)] if 0 < eps < math.inf else ["0.1", "0.2"]
    if threat.get("norm") in COUNTS:
        most = int(eps) if eps < math.inf else 2
        some = [str(k) for k in sorted({max(1, most // 2), most, most + 1})]
    return {"sweeps": sweeps, "command": command(run, "evaluate", "--radius", *some)}


def checks(run: Run) -> dict[str, Any]:
    """The checks of the evaluations."""
    found = [(name, each.checks) for name, each in run.titled.items() if each.checks]
    return {"evaluations": found, "command": command(run, "evaluate", "--checks")}
