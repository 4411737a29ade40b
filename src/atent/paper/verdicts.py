"""Evaluates the paper's claims on the measured figures, by stated margins and intervals.

A rule has three outcomes: true if the entire interval lies within the claimed range, false if the entire interval lies
outside, not decided otherwise (`stats.inside`). Indistinguishable is not the same as equivalent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atent import stats
from atent.paper import timing
from atent.paper.evidence import Cell, Difference, Results
from atent.paper.names import PROTOCOLS, RADII, ROWS, leads
from atent.stats import Estimate, inside

NOT_YET: Literal["not measured yet"] = "not measured yet"

Verdict = Literal["true", "false", "partly", "not decided", "not measured yet"]

ALIKE = 0.02
"""Equivalence margin: accuracies that differ by less are equivalent. The figures that the paper calls similar span 1.7
points."""
ABOUT = 0.05
"""Allowed deficit where a claim contains "about" or "competitive". The paper calls 5 points a loss."""
LOSS = (0.03, 0.07)
"""The range of "roughly 5 points"."""
COST = (0.8, 1.25)
"""Costs with a ratio in this range are equivalent."""
LINEAR = (0.9, 1.1)
"""Exponents of K that are called linear: twice the steps cost 1.87 to 2.14 times as much."""
RARE = 0.01
"""A fraction of images below which an event is regarded as absent."""
_NAMED = "radii by their values in the paper"


@dataclass(frozen=True)
class Finding:
    """The outcome of a claim."""

    verdict: Verdict
    ours: str
    """The figures, as text; "not measured yet" where one is missing."""


def said(answer: bool | None) -> Verdict:
    """The text of one outcome."""
    return "not decided" if answer is None else "true" if answer else "false"


def every(answers: Iterable[bool | None]) -> Verdict:
    """Conjunction: true if all are true, false if one is false, otherwise not decided."""
    found = list(answers)
    return said(False if False in found else None if None in found else True)


def settings(answers: Iterable[bool | None]) -> Verdict:
    """As `every`, for a claim about several settings: partly if some are true and some are false."""
    found = list(answers)
    return "partly" if {True, False} <= set(found) else said(found[0] if len(set(found)) == 1 else None)


def percent(cell: Cell) -> str:
    """An accuracy with its interval, where it has one."""
    value = f"{100 * cell['value']:.1f}"
    return value + (f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" if "low" in cell else "")


def _missing() -> Finding:
    return Finding(NOT_YET, NOT_YET)


def _bases(differences: Iterable[Difference]) -> str:
    """The sources of variation of the intervals, each once."""
    return "; ".join(dict.fromkeys(d.basis for d in differences))


# ---- accuracies --------------------------------------------------------------------------------------------


def best_of_s1(found: Results, columns: Sequence[str], rows: Sequence[str], ours: str = "atent") -> Finding:
    """Whether ATENT is above each of the rows in each of the columns, seed by seed."""
    every_gap: list[Difference] = []
    words = []
    for column in columns:
        if found.printed and column.endswith("autoattack"):
            continue
        cells = found.cells("table-s1", *((row, column) for row in (ours, *rows)))
        if cells is None:
            return _missing()
        gaps = [found.less(cells[0], other) for other in cells[1:]]
        every_gap += gaps
        radius, protocol = column.split("-")
        words.append(f"{RADII[radius]}, {PROTOCOLS[protocol]}: {leads((ours, *rows), [*map(percent, cells)], gaps)}")
    return Finding(every(gap.inside(0) for gap in every_gap), f"{'; '.join(words)}; {_bases(every_gap)}")


def all_of_s1(found: Results) -> Finding:
    """Both blocks of Table S1, under the published attack."""
    first = best_of_s1(found, ("half-published", "full-published"), ("pgdat", "mma"))
    second = best_of_s1(found, ("small-published",), ("trades-smoothing",), "atent-smoothing")
    if NOT_YET in (first.verdict, second.verdict):
        return _missing()
    answers = {"true": True, "false": False}
    return Finding(every(answers.get(j.verdict) for j in (first, second)), f"{first.ours}; {second.ours}")


def alike(found: Results) -> Finding:
    """Whether each pair of the three networks is equivalent within `ALIKE`."""
    cells = found.cells("table-s1", *((row, "half-published") for row in ("pgdat", "mma", "atent")))
    if cells is None:
        return _missing()
    named = dict(zip(("PGD-AT", "MMA", "ATENT"), cells))
    gaps = {(a, b): found.less(named[a], named[b]) for a, b in itertools.combinations(named, 2)}
    words = [f"{name} {percent(c)}" for name, c in named.items()]
    words += [f"{a} minus {b} {gap}" for (a, b), gap in gaps.items()]
    return Finding(
        every(g.inside(-ALIKE, ALIKE) for g in gaps.values()), f"{', '.join(words)}; {_bases(gaps.values())}"
    )


def smaller_network(found: Results) -> Finding:
    """`best_of_s1` where the networks differ."""
    blocks = found.tables.get("table-s1", {}).get("blocks", ())
    nets = {row["key"]: (row["made"] or {}).get("network") for b in blocks for row in b["rows"] if row.get("made")}
    used = [nets.get(row) for row in ("atent", "pgdat", "mma")]
    if None in used or used[0] in used[1:]:
        return _missing()
    best = best_of_s1(found, ("full-published",), ("pgdat", "mma"))
    return Finding(best.verdict, f"{best.ours} (networks: {', '.join(map(str, used))})")


def competitive(found: Results) -> Finding:
    """Whether ATENT's certified accuracy is less than `ABOUT` below those of the others."""
    rows = ("smoothadv", "trades-smoothing")
    cells = found.cells("table-s2", *((row, "certified") for row in ("atent-smoothing", *rows)))
    if cells is None:
        return _missing()
    gaps = [found.less(cells[0], other) for other in cells[1:]]
    text = leads(("atent-smoothing", *rows), [*map(percent, cells)], gaps)
    return Finding(settings(gap.inside(-ABOUT) for gap in gaps), f"{text}; {_bases(gaps)}")


def finetune_loss(found: Results) -> Finding:
    """Whether what fine-tuning loses lies within `LOSS`."""
    cells = found.cells("finetune", ("scratch", "robust"), ("atent", "robust"))
    if cells is None:
        return _missing()
    scratch, tuned = cells
    loss = found.less(scratch, tuned)
    text = f"{loss} points lost: {percent(scratch)} from scratch, {percent(tuned)} fine-tuned; {loss.basis}"
    return Finding(said(loss.inside(*LOSS)), text)


def finetuned_better(found: Results) -> Finding:
    """Whether ATENT's fine-tuned network is above PGD-AT's."""
    cells = found.cells("finetune", ("atent", "robust"), ("pgdat", "robust"))
    if cells is None:
        return _missing()
    lead = found.less(*cells)
    text = f"{lead}: ATENT {percent(cells[0])}, PGD-AT {percent(cells[1])}, both fine-tuned; {lead.basis}"
    return Finding(said(lead.inside(0)), text)


def in_the_plane(found: Results) -> Finding:
    """Whether ATENT is above each of the others by the exhaustive search of Figure 1."""
    rows = {row["name"]: row["seeds"] for row in found.tables.get("figure-1", {}).get("rows", ()) if row["seeds"]}
    others = ("trades", "pgdat", "standard")
    if not {"atent", *others} <= set(rows):
        return _missing()
    cells = {name: _in_the_plane(seeds) for name, seeds in rows.items()}
    gaps = {name: found.less(cells["atent"], cells[name]) for name in others}
    words = ", ".join(f"ATENT minus {ROWS[name]} {gap}" for name, gap in gaps.items())
    return Finding(every(gap.inside(0) for gap in gaps.values()), f"{words}; {_bases(gaps.values())}")


def _in_the_plane(seeds: Sequence[Mapping[str, Any]]) -> Cell:
    grids = [seed["grid"] for seed in seeds]
    cell = {"each": [g["value"] for g in grids], "seeds": [s["seed"] for s in seeds], "n": min(g["n"] for g in grids)}
    if all("outcomes" in g for g in grids):
        cell["outcomes"] = {"ids": "all test points", "each": [g["outcomes"] for g in grids]}
    return cell


# ---- attacks and certificates of the same networks ---------------------------------------------------------


def as_strong(found: Results) -> Finding:
    """Whether less than `ABOUT` more survives ATENT-20 than PGD-20, radius by radius."""
    radii = _radii(found, "langevin")
    if radii is None:
        return _missing()
    gaps = {radius: found.less(ours, pgd, same_networks=True) for radius, (ours, pgd) in radii.items()}
    words = (f"at {r}/255 {percent(a)} and {percent(b)}, difference {gaps[r]}" for r, (a, b) in radii.items())
    text = f"under ATENT-20 and PGD-20, {_NAMED}: {'; '.join(words)}; {_bases(gaps.values())}"
    return Finding(settings(gap.inside(high=ABOUT) for gap in gaps.values()), text)


def worst_attack(found: Results) -> Finding:
    """Whether AutoAttack finds no image that PGD-20 leaves, radius by radius, on the same networks and images."""
    radii = _radii(found, "autoattack")
    if radii is None:
        return _missing()
    answers: list[bool | None] = []
    words = []
    for radius, (auto, pgd) in radii.items():
        same = auto.get("same_images") or (pgd if pgd.get("n") == auto.get("n") else None)
        if same is None:
            answers.append(None)
            words.append(f"at {radius}/255 {percent(auto)} and {percent(pgd)}, of different images")
        else:
            answers.append(never(_taken(auto, same), auto["n"], kept="outcomes" in auto and "outcomes" in same))
            at = f"at {radius}/255 {percent(auto)} and {100 * same['value']:.1f}"
            words.append(f"{at} on the same {auto['n']:,} images")
    return Finding(every(answers), f"under AutoAttack and PGD-20, {_NAMED}: {'; '.join(words)}")


def clean_or_certified(found: Results) -> Finding:
    """Whether the smoothed classifier's clean accuracy and what is certified are one number, network by network."""
    cells = found.cells("table-s2", ("atent-smoothing", "clean"), ("atent-smoothing", "certified"))
    if cells is None:
        return _missing()
    clean, certified = cells
    # What is certified is correct: as many of the same images are the same images.
    answer = never(_taken(certified, clean), clean.get("n", 0), kept=True)
    return Finding(said(answer), f"smoothed {percent(clean)}, certified {percent(certified)}")


def never(happened: bool, n: int, *, kept: bool) -> bool | None:
    """The outcome of a claim that an event occurs for no image: False for a single occurrence; True for none in n
    images, if n suffices to detect a fraction of `RARE` at one-sided 95 % and each image's outcome is ``kept``."""
    if happened:
        return False
    return True if kept and n and stats.interval(0, n, 0.9)[1] < RARE else None


def _taken(weaker: Cell, stronger: Cell) -> bool:
    """Whether an image counts in ``stronger`` that does not in ``weaker``, of one network: by the outcomes where both
    have them, otherwise by the counts of each seed, or of their mean."""
    if "outcomes" in weaker and "outcomes" in stronger:
        pairs = zip(weaker["outcomes"]["each"], stronger["outcomes"]["each"])
        return any(p < q for a, b in pairs for p, q in zip(a, b))
    each = list(zip(weaker.get("each") or (), stronger.get("each") or ()))
    # Means of three shares differ in the last bits though the shares are the same.
    return any(a < b - 1e-9 for a, b in each or [(weaker["value"], stronger["value"])])


def _radii(found: Results, row: str) -> dict[str, tuple[Cell, Cell]] | None:
    """Table S3's ``row`` and its PGD-20, by radius, or None if one is missing."""
    pairs = {radius: found.cells("table-s3", (row, radius), ("pgd", radius)) for radius in ("2", "4", "8", "12")}
    whole = {radius: (pair[0], pair[1]) for radius, pair in pairs.items() if pair is not None}
    return whole if len(whole) == len(pairs) else None


# ---- training curves ---------------------------------------------------------------------------------------


def spike(found: Results) -> Finding:
    """Whether robust accuracy rises by more than `ALIKE` from the last epoch before the decay to the first after it."""
    curve = _curve(found)
    if curve is None:
        return _missing()
    before, after, _ = curve
    rise = _change(found, after, before)
    text = f"{rise} points from epoch {before['epoch']} to {after['epoch']}, the first after the decay; {rise.basis}"
    return Finding(said(rise.inside(ALIKE)), text)


def falls(found: Results) -> Finding:
    """Whether it falls by more than `ALIKE` from there to the last epoch. The epochs are fixed in advance: a peak is
    chosen for being high, and what follows it is lower by chance alone."""
    curve = _curve(found)
    if curve is None:
        return _missing()
    _, after, last = curve
    if after["epoch"] == last["epoch"]:
        return Finding("not decided", f"nothing follows epoch {after['epoch']}")
    fall = _change(found, after, last)
    text = f"{fall} points lost from epoch {after['epoch']}, the first after the decay, to {last['epoch']}"
    return Finding(said(fall.inside(ALIKE)), f"{text}; {fall.basis}")


def _curve(found: Results) -> tuple[Cell, Cell, Cell] | None:
    """Figure S1's last measured epoch before the decay, the first from it on, and the last."""
    table = found.tables.get("figure-s1", {})
    decay, rows = table.get("decay"), [e for e in table.get("epochs", ()) if e.get("test_robust") is not None]
    before = [e for e in rows if decay is not None and e["epoch"] < decay]
    after = [e for e in rows if decay is not None and e["epoch"] >= decay]
    return (before[-1], after[0], after[-1]) if before and after else None


def _change(found: Results, a: Cell, b: Cell) -> Difference:
    """Robust test accuracy at one epoch less that at another, of the same trainings and images.

    Files that keep no figure of each seed have the standard deviations of both epochs: that of the difference is at
    most their sum.
    """
    if "test" in a and "test" in b:
        return found.less(a["test"], b["test"])
    n = len(found.tables["figure-s1"]["seeds"])
    if n < 2:
        return Difference(None, "one training")
    gap, spread = (a["test_robust"] - b["test_robust"]), a["test_robust_sd"] + b["test_robust_sd"]
    half = stats.t_quantile(n - 1) * spread / math.sqrt(n)
    return Difference(
        Estimate(gap, gap - half, gap + half),
        f"over {n} seeds; without values by seed, the sum of both standard deviations as a bound",
    )


# ---- costs -------------------------------------------------------------------------------------------------


def same_cost(found: Results) -> Finding:
    """Whether ATENT's cost by PGD's and by TRADES' lies within `COST`."""
    ratios = _ratios(found)
    if ratios is None:
        return _missing()
    return Finding(settings(inside(r, *COST) for pair in ratios.values() for r in pair), _costs(found, ratios))


def between(found: Results) -> Finding:
    """Whether ATENT's cost lies between theirs: above one and below the other, by their intervals."""
    ratios = _ratios(found)
    if ratios is None:
        return _missing()
    answers: list[bool | None] = []
    for pair in ratios.values():
        above = [inside(r, 1, math.inf) for r in pair]
        answers.append(None if None in above else above[0] != above[1])
    return Finding(settings(answers), _costs(found, ratios))


def _ratios(found: Results) -> dict[str, tuple[Estimate, Estimate]] | None:
    out = {}
    for norm in timing.NORMS:
        by_pgd, by_trades = (found.times(norm, "atent-10", row) for row in ("pgdat", "trades"))
        if by_pgd is None or by_trades is None:
            return None
        out[norm] = (by_pgd, by_trades)
    return out


def _costs(found: Results, ratios: Mapping[str, tuple[Estimate, Estimate]]) -> str:
    def text(r: Estimate) -> str:
        return f"{r.value:.2f}" + (f" [{r.low:.2f}, {r.high:.2f}]" if r.low < r.high < math.inf else "")

    words = [f"{norm}: {text(a)} times PGD, {text(b)} times TRADES" for norm, (a, b) in ratios.items()]
    return "; ".join(words) + _clock(found)


def _clock(found: Results) -> str:
    """The clock of the timings and the number of rounds."""
    kept = found.tables.get("table-s4", {}).get("timings", {})
    listed = dict.fromkeys(
        f"{'CPU seconds' if t['of'] == 'cpu_seconds' else 'seconds'}, {t['rounds']} interleaved rounds"
        for t in kept.values()
    )
    return f"; {'; '.join(listed)}" if listed else ""


def linear(found: Results) -> Finding:
    """Whether the exponent of K lies within `LINEAR`: a straight line fits K^1.3 nearly as well as it fits K."""
    exponents = {}
    for norm in timing.NORMS:
        rows = found.rounds(norm)
        if rows is None:
            return _missing()
        exponents[norm] = timing.exponent(rows)
    words = [f"{norm}: {timing.power(b)}" for norm, b in exponents.items()]
    answers = [inside(b, *LINEAR) if b else None for b in exponents.values()]
    return Finding(settings(answers), "; ".join(words) + _clock(found))


# ---- what follows from the settings ------------------------------------------------------------------------


def smoothing_noise(found: Results) -> Finding:
    step, other = (found.fact("noise", name) for name in ("eta' 0.02175 (0.5 eps2 / 10)", "eta' 0.02"))
    whole = found.fact("accumulated", "standard deviation per value")
    near = [abs(sd / 0.12 - 1) < 0.05 for sd in (step, other, whole)]
    text = f"{step:.4f} for one step at eta' 0.02175, {other:.4f} at 0.02; {whole:.4f} over the 10 steps"
    return Finding(settings(near), text)


def near_eps(found: Results) -> Finding:
    far = found.fact("distance", "gamma 0.05, gradients aligned")
    least = found.fact("distance", "gamma 0.05, orthogonal gradients")
    noisy, times = (
        found.fact("noisy-distance", name) for name in ("clamped, values uniform in [0, 1]", "ratio to eps2, clamped")
    )
    near = [0.5 <= length <= 2 for length in (least, far, times)]
    noise = f"{noisy:.1f} with noise at eps2 = 0.435, {times:.0f} times eps2"
    text = f"{least:.2f} to {far:.2f} eps2 without noise; {noise}"
    return Finding(settings(near), text)
