"""The table of a comparison: means, standard deviations and intervals over seeds, and the best row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atent import stats
from atent.attacks import ATTACKS
from atent.attacks.spec import is_standard
from atent.experiments.results import (
    AttackResult,
    ComparisonFile,
    Difference,
    EvaluationFile,
    RecipeResult,
    Spread,
)
from atent.experiments.results.evaluation import SweepRow
from atent.markdown import table as markdown_table
from atent.stats import t_interval
from atent.threat import EXTRA

FIGURE = "comparison.png"
PARETO = "pareto.png"

INTERVAL = (
    "mean \u00b1 standard deviation over the seeds; in brackets 95 % intervals: of the t-interval over the seeds and"
    " the exact binomial interval at the size of one test set, which all seeds share, the wider one at each end"
)


# ---- the numbers -----------------------------------------------------------------------------------------


def measure(values: Sequence[float], *, resolution: float = 0.0) -> Spread:
    """Mean, sample standard deviation (n - 1) and 95 % t-interval of one value per seed; ``resolution`` as of
    `t_interval`."""
    if len(values) == 1:
        return Spread(values[0], None, None, None)
    found = t_interval(values, resolution=resolution)
    return Spread(found.value, statistics.stdev(values), found.low, found.high)


def accuracy(shares: Sequence[Mapping[str, Any]]) -> Spread:
    """The same of one share per seed; the interval is the wider, end by end, of the t- and the binomial one.

    The seeds are evaluated on the same images: counts that agree over seeds say no more of the test set than one of
    them, so the binomial interval is that of the mean count at one seed's n.
    """
    cell = measure([share["value"] for share in shares])
    n = min(share["n"] for share in shares)
    low, high = stats.interval(round(cell.mean * n), n)
    if cell.low is not None and cell.high is not None:
        low, high = max(0.0, min(low, cell.low)), min(1.0, max(high, cell.high))
    return replace(cell, low=low, high=high)


def winner(cells: Sequence[Spread]) -> int | None:
    """The row whose interval lies above every other row's, or None."""
    for i, cell in enumerate(cells):
        others = [c.high for j, c in enumerate(cells) if j != i]
        if cell.low is not None and all(high is not None and cell.low > high for high in others):
            return i
    return None


def caveat(attacks: Mapping[str, Mapping[str, Any]], search_dtype: str | None = None) -> str | None:
    """The caveat for robust accuracies (the `attacks` of an evaluation) that AutoAttack did not measure.

    None only where AutoAttack ran at its standard settings, in the model's own precision, against every finite threat
    of the evaluation in a norm that it has.
    """
    weaker = "a stronger attack may lower these figures."
    under = {against(a) for a in attacks.values()}
    norms = {norm for norm, *_ in under} - {""}
    others = norms - set(ATTACKS.find("AutoAttack").norms)
    impossible = f"There is no AutoAttack for {' and '.join(sorted(others))}: {weaker}" if others else None
    if others and others == norms:
        return impossible
    standard = {against(a) for a in attacks.values() if is_standard(a["attack"])}
    if not standard:
        other = any(a["attack"].startswith("AutoAttack(") for a in attacks.values())
        return f"Not measured by AutoAttack{' at its standard settings' if other else ''}: {weaker}"
    if search_dtype is not None:
        return f"AutoAttack searched in {search_dtype}, not in the model's own precision: {weaker}"
    # A minimum-norm attack without a limit has no radius that AutoAttack could be run at.
    left = under - standard
    missing = sorted({f"{norm} {eps:g}" for norm, eps, *_ in left if math.isfinite(eps) and norm not in others})
    return f"Not measured by AutoAttack at {' and '.join(missing)}: {weaker}" if missing else impossible


def caveat_of(found: EvaluationFile) -> str | None:
    """`caveat` of an evaluation."""
    named = {name: {"attack": a.attack, "threat": asdict(a.threat)} for name, a in found.attacks.items()}
    return caveat(named, found.search_dtype)


def against(attack: Mapping[str, Any]) -> tuple[Any, ...]:
    """The norm, the radius and the further fields of the threat of an entry of `attacks`."""
    threat = attack.get("threat") or {"norm": "", "eps": math.inf}
    return threat["norm"], float(threat["eps"]), *(threat.get(name) for name in EXTRA)


def remarks(attacks: Mapping[str, AttackResult]) -> list[str]:
    """Deviations of attacks from their definitions, and what their searches met, one line each."""
    return [f"{name}: {'; '.join(found.remarks)}." for name, found in attacks.items() if found.remarks]


def radius_remarks(rows: Sequence[SweepRow], *, hints: bool = True) -> list[str]:
    """`remarks` of the rows of a sweep, with the radii that each concerns, and with ``hints`` its hint."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row.threat, []).extend([f"{row.attack}: {'; '.join(row.remarks)}."] if row.remarks else [])
    said = dict.fromkeys(f"hint: {row.hint}" for row in rows if hints and row.hint)
    return [*attributed(lines), *said]


def attributed(lines: Mapping[str, Iterable[str]]) -> list[str]:
    """The lines of several runs or rows, each once, with the names of those that it concerns unless it concerns all."""
    about: dict[str, list[str]] = {}
    for name, own in lines.items():
        for line in dict.fromkeys(own):
            about.setdefault(line, []).append(name)
    return [line if len(of) == len(lines) else f"{', '.join(of)}: {line}" for line, of in about.items()]


# ---- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A cell as it is shown."""

    text: str
    interval: str = ""
    best: bool = False


def layout(found: ComparisonFile) -> tuple[list[str], list[tuple[str, list[Entry]]]]:
    """Headings, and for each recipe its entries."""
    attacks = list(found.rows[0].attacks)
    # With one attack, or over several threats, there is no worst one that says more.
    worst = len(attacks) > 1 and len(found.threats) == 1
    last = _has_last(found)
    shares = ["clean", *attacks, *(["worst of these"] if worst else []), *(["at the last epoch"] if last else [])]
    timed = found.minutes is not None
    headings = [*(f"{name} (%)" for name in shares), "s / epoch", "peak MiB", "best epoch"]
    headings += ["epochs"] if timed else []
    rows = []
    for row in found.rows:
        best = row.best
        entries = [_entry(row.clean, 100, best=best["clean"])]
        entries += [_entry(row.attacks[a], 100, best=best["attacks"][a]) for a in attacks]
        if worst:
            entries.append(_entry(row.worst, 100, best=best["worst"]))
        if last:
            entries.append(_entry(row.last, 100, best=False))
        entries += [_entry(row.seconds_per_epoch, digits=2), _entry(row.memory_mb, digits=0)]
        entries.append(_entry(row.best_epoch, digits=int(row.best_epoch.sd is not None)))
        if timed:
            entries.append(_entry(row.passes))
        # Rows that have one recipe are named with the method already.
        method = f" ({row.method})"
        rows.append((row.recipe if row.recipe.endswith(method) else row.recipe + method, entries))
    return headings, rows


def _has_last(found: ComparisonFile) -> bool:
    """Whether the last epoch is shown beside the best: their difference is the overfitting of Rice et al. 2020."""
    return len(found.threats) == 1 and any(row.last for row in found.rows)


def _entry(cell: Spread | None, scale: float = 1, *, digits: int = 1, best: bool | None = None) -> Entry:
    """``best`` is None for a column that is not an accuracy: no interval is shown there."""
    if cell is None:
        return Entry("-")
    text = f"{scale * cell.mean:.{digits}f}"
    if cell.sd is not None:
        text += f" \u00b1 {scale * cell.sd:.{digits}f}"
    if best is None or cell.low is None or cell.high is None:
        return Entry(text)
    return Entry(text, f"[{scale * cell.low:.{digits}f}, {scale * cell.high:.{digits}f}]", best)


def caption(found: ComparisonFile) -> list[str]:
    """The caption of the table, one sentence per line."""
    data, seeds = found.data, found.seeds
    made = [seed.provenance for row in found.rows for seed in row.seeds]
    machines = dict.fromkeys(f"{p['device_name']} ({p['device']}, {p['threads']} threads)" for p in made)
    commits = dict.fromkeys(f"{p['commit'] or 'unknown'}{' with changes' if p['dirty'] else ''}" for p in made)
    several = f", {found.at_once} runs at once" if found.at_once > 1 else ""
    batches = "" if found.batch_size is None else f", batches of {found.batch_size}"
    lines = [
        f"{data.name}, test images: {data.text}; {found.model}, {_length(found)}{batches};"
        f" {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))});"
        f" evaluated under {', '.join(found.threats)}.",
        f"Figures: {found.interval}. Bold: above the interval of every other row.",
        f"Hardware: {'; '.join(machines)}{several}. Seconds: median over the epochs. Commit: {', '.join(commits)}.",
    ]
    if found.cascade:
        lines.append("Each attack met the images that remained correctly classified after those before it.")
    if found.differs:
        lines.append(f"Beside the method the runs differ in {', '.join(found.differs)}.")
    lines += found.remarks
    return [*lines, found.caveat] if found.caveat else lines


def paired_lines(found: ComparisonFile) -> list[str]:
    """The row with the highest robust accuracy less each other one, in points; last, what the intervals cover."""
    if not found.pairs:
        return []
    first = max(found.rows, key=lambda row: row.worst.mean).recipe
    lines = []
    for pair in found.pairs:
        if first in (pair.one, pair.other):
            sign = 1 if pair.one == first else -1
            both = [f"{name} {_points(each, sign)}" for name, each in (("clean", pair.clean), ("robust", pair.worst))]
            lines.append(f"{first} less {pair.other if sign > 0 else pair.one}: {', '.join(both)}")
    each = f", without correction for multiple comparisons ({len(lines)} differences)" if len(lines) > 1 else ""
    test = "; p: McNemar's exact test over the images" if found.pairs[0].clean.p is not None else ""
    return [*lines, f"Points, with 95 % intervals {found.pairs[0].basis}{each}{test}."]


def _points(found: Difference, sign: int) -> str:
    low, high = sorted((100 * sign * found.low, 100 * sign * found.high))
    p = "" if found.p is None else f", p {found.p:.2g}"
    return f"{100 * sign * found.value:+z.1f} [{low:+z.1f}, {high:+z.1f}]{p}"  # z: never -0.0


def _length(found: ComparisonFile) -> str:
    if found.minutes is None:
        return "different numbers of epochs" if found.epochs is None else f"{found.epochs} epochs"
    return f"{_time(found.minutes)} of training each (its steps alone; validation and checkpoints are not counted)"


def _time(minutes: float) -> str:
    return f"{60 * minutes:.3g} s" if minutes < 2 else f"{minutes:g} minutes"


def markdown(found: ComparisonFile) -> str:
    """The table and its caption."""
    headings, rows = layout(found)
    shown = []
    for name, entries in rows:
        cells = [(f"**{e.text}**" if e.best else e.text) + (f" {e.interval}" if e.interval else "") for e in entries]
        shown.append([name, *cells])
    lines = markdown_table(["recipe", *headings], shown)
    between = [*(f"- {line}" for line in paired_lines(found)), ""] if found.pairs else []
    return "\n".join([*lines, "", *caption(found), "", *between, f"`{found.command}`", ""])


def draw(path: Path, found: ComparisonFile) -> None:
    """comparison.png: each accuracy with its interval, by recipe; the worst one at the best and at the last epoch."""
    from atent import plots

    last = _has_last(found)

    def shown(row: RecipeResult) -> dict[str, Spread]:
        cells: dict[str, Spread | None] = {"clean": row.clean, **row.attacks}
        if last:
            cells |= {"worst,\nbest epoch": row.worst, "worst,\nlast epoch": row.last}
        return {name: cell for name, cell in cells.items() if cell}

    table = {row.recipe: {name: _limits(cell) for name, cell in shown(row).items()} for row in found.rows}
    seeds = len(found.seeds)
    title = f"{found.data.name}, {found.data.n} test images, {', '.join(found.threats)}"
    title += f", mean of {seeds} seeds" if seeds > 1 else ", one seed"
    plots.save(plots.accuracies(table, title=title), path / FIGURE)


def draw_pareto(path: Path, comparisons: Sequence[ComparisonFile]) -> None:
    """pareto.png: clean against worst-case accuracy, a panel for each comparison; none for several threats."""
    from atent import plots

    panels: dict[str, dict[str, Any]] = {}
    for found in comparisons:
        if len(found.threats) != 1:
            return
        names = list(found.rows[0].attacks)
        length = f"{_length(found)} each" if found.minutes is None else f"{_time(found.minutes)} each"
        title = f"{found.data.name}, {found.threats[0]}, {length}"
        while title in panels:
            title += " "
        panels[title] = {row.recipe: {"clean": _limits(row.clean), "robust": _limits(row.worst)} for row in found.rows}
    measured_by = names[0] if len(names) == 1 else f"worst of {len(names)} attacks"
    plots.save(plots.pareto(panels, robust=f"robust accuracy (%), {measured_by}"), path / PARETO)


def _limits(cell: Spread) -> dict[str, float | None]:
    return {"value": cell.mean, "low": cell.low, "high": cell.high}
