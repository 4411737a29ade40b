"""What our figures say to each of the paper's claims: the result files of a folder, and the judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atent import run as folder
from atent.paper.facts import FACTS, Fact
from atent.paper.published import Figure, published
from atent.train.comparison import measure

NOT_YET: Literal["not measured yet"] = "not measured yet"

Verdict = Literal["true", "false", "partly", "not decided", "not measured yet"]
Cell = Mapping[str, Any]

ALIKE = 0.05
"""Two accuracies that differ by less are alike, where a sentence says about, similar or competitive."""

_TABLES = ("table-s1", "table-s2", "table-s3", "table-s4", "figure-s1", "figure-1", "finetune")


@dataclass(frozen=True)
class Judged:
    """What our figures say to a claim."""

    verdict: Verdict
    ours: str
    """The figures, as text; "not measured yet" where one is missing."""


@dataclass(frozen=True)
class Results:
    """Tables, by name, in the form of the files of `atent reproduce`, and the facts."""

    tables: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Fact]

    def cell(self, table: str, row: str, column: str) -> Cell | None:
        """The figure there, with value, low and high; None where it is not measured."""
        for block in self.tables.get(table, {}).get("blocks", ()):
            for found in block["rows"]:
                if found["key"] == row and column in found["cells"]:
                    return found["cells"][column]["ours"]
        return None

    def cells(self, table: str, *places: tuple[str, str]) -> list[Cell] | None:
        """Several of them, or None where one is missing."""
        found = [self.cell(table, row, column) for row, column in places]
        whole = [c for c in found if c is not None]
        return whole if len(whole) == len(found) else None

    def fact(self, key: str, name: str) -> float:
        """One value of a fact."""
        return self.facts[key].values[name]


def measured(out: str | Path) -> Results:
    """What the files in ``out`` hold, and every fact, computed now."""
    paths = {name: Path(out) / f"{name}.json" for name in _TABLES}
    tables = {name: folder.read_json(path) for name, path in paths.items() if path.is_file()}
    return Results(tables, {key: make() for key, make in FACTS.items()})


def as_printed(facts: Mapping[str, Fact], *, blurred: bool = False) -> Results:
    """The published figures in the same form, so that the same judges say what the paper's own tables show: at face
    value, or ``blurred`` by the binomial interval that 10,000 test images give, which is not printed."""
    tables: dict[str, Any] = {}
    for name, table in published().items():
        rows = []
        for key, row in table.rows.items():
            cells = {}
            for column, figure in row.values.items():
                # Table S1 prints one protocol where we have three.
                place = column if name != "table-s1" or column == "natural" else f"{column}-published"
                cells[place] = {"ours": _printed_cell(figure, name == "table-s4", blurred)}
            rows.append({"key": key, "cells": cells})
        tables[name] = {"blocks": [{"rows": rows}]}
    return Results(tables, facts)


def _printed_cell(figure: Figure, seconds: bool, blurred: bool) -> dict[str, float]:
    scale = 1.0 if seconds else 0.01
    low = high = scale * figure.value
    if blurred and not seconds:
        low, high = folder.interval(round(100 * figure.value), 10_000)
    return {"value": scale * figure.value, "low": low, "high": high}


# ---- how figures are compared ------------------------------------------------------------------------------


def order(a: Cell, b: Cell) -> Literal["above", "below", "level"]:
    """Whether a lies above b, below it, or neither for certain.

    For certain: their intervals are apart; or there are three networks or more of each, and the worst of one side is
    above the best of the other by more than the images leave open. Without a difference that happens to three and three
    networks once in twenty times; an interval over three seeds, of which one has failed, says nothing at all.
    """
    if a["low"] > b["high"] or _all_apart(a, b):
        return "above"
    return "below" if a["high"] < b["low"] or _all_apart(b, a) else "level"


def _all_apart(a: Cell, b: Cell) -> bool:
    """Whether each network of a is above each of b, exact binomial intervals apart."""
    if min(len(a.get("each", ())), len(b.get("each", ()))) < 3:
        return False
    low, high = min(a["each"]), max(b["each"])
    return folder.interval(round(low * a["n"]), a["n"])[0] > folder.interval(round(high * b["n"]), b["n"])[1]


def all_above(ours: Cell, others: Sequence[Cell]) -> Verdict:
    """true: above every other for certain; false: below one for certain; partly: above some; else not decided."""
    found = [order(ours, other) for other in others]
    if "below" in found:
        return "false"
    if all(f == "above" for f in found):
        return "true"
    return "partly" if "above" in found else "not decided"


def percent(cell: Cell) -> str:
    return f"{100 * cell['value']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _missing() -> Judged:
    return Judged(NOT_YET, NOT_YET)


def best_of_s1(found: Results, columns: Sequence[str], rows: Sequence[str], ours: str = "atent") -> Judged:
    verdicts: list[Verdict] = []
    words = []
    for column in columns:
        if column.endswith("autoattack") and found.cell("table-s1", ours, column) is None and verdicts:
            continue
        cells = found.cells("table-s1", *((row, column) for row in (ours, *rows)))
        if cells is None:
            return _missing()
        verdicts.append(all_above(cells[0], cells[1:]))
        others = ", ".join(f"{row} {percent(c)}" for row, c in zip(rows, cells[1:]))
        words.append(f"{column}: ATENT {percent(cells[0])}, {others}")
    return Judged(_together(verdicts), "; ".join(words))


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    if all(v == verdicts[0] for v in verdicts):
        return verdicts[0]
    return "false" if "false" in verdicts else "partly"


def all_of_s1(found: Results) -> Judged:
    first = best_of_s1(found, ("half-published", "full-published"), ("pgdat", "mma"))
    second = best_of_s1(found, ("small-published",), ("trades-smoothing",), "atent-smoothing")
    if NOT_YET in (first.verdict, second.verdict):
        return _missing()
    return Judged(_together([first.verdict, second.verdict]), f"{first.ours}; {second.ours}")


def alike(found: Results) -> Judged:
    cells = found.cells("table-s1", *((row, "half-published") for row in ("pgdat", "mma", "atent")))
    if cells is None:
        return _missing()
    pairs = [order(a, b) for i, a in enumerate(cells) for b in cells[:i]]
    text = ", ".join(f"{name} {percent(c)}" for name, c in zip(("PGD-AT", "MMA", "ATENT"), cells))
    return Judged("true" if all(p == "level" for p in pairs) else "false", text)


def smaller_network(found: Results) -> Judged:
    blocks = found.tables.get("table-s1", {}).get("blocks", ())
    nets = {row["key"]: (row["made"] or {}).get("network") for b in blocks for row in b["rows"] if row.get("made")}
    used = [nets.get(row) for row in ("atent", "pgdat", "mma")]
    if None in used or used[0] in used[1:]:
        return _missing()
    best = best_of_s1(found, ("full-published",), ("pgdat", "mma"))
    return Judged(best.verdict, f"{best.ours} (networks: {', '.join(map(str, used))})")


def smoothing_noise(found: Results) -> Judged:
    step, other = (found.fact("noise", name) for name in ("eta' 0.02175 (0.5 eps2 / 10)", "eta' 0.02"))
    whole = found.fact("accumulated", "standard deviation per value")
    near = [abs(sd / 0.12 - 1) < 0.05 for sd in (step, other, whole)]
    text = f"{step:.4f} for one step at eta' 0.02175, {other:.4f} at 0.02; {whole:.4f} over the 10 steps"
    return Judged("true" if all(near) else "partly" if any(near) else "false", text)


def near_eps(found: Results) -> Judged:
    far = found.fact("distance", "gamma 0.05, gradients aligned")
    least = found.fact("distance", "gamma 0.05, gradients at right angles")
    noisy, times = (
        found.fact("noisy-distance", name) for name in ("with it, values uniform in [0, 1]", "times eps2, with it")
    )
    near = [0.5 <= length <= 2 for length in (least, far, times)]
    text = f"{least:.2f} to {far:.2f} eps2 without noise; with it {noisy:.1f} at eps2 = 0.435, {times:.0f} times eps2"
    return Judged("true" if all(near) else "partly" if any(near) else "false", text)


def clean_or_certified(found: Results) -> Judged:
    cells = found.cells("table-s2", ("atent-smoothing", "natural"), ("atent-smoothing", "certified"))
    if cells is None:
        return _missing()
    clean, proved = cells
    # Of the same networks and images.
    same = clean["value"] == proved["value"]
    return Judged("not decided" if same else "false", f"smoothed {percent(clean)}, certified {percent(proved)}")


def competitive(found: Results) -> Judged:
    rows = ("smoothadv", "trades-smoothing")
    cells = found.cells("table-s2", *((row, "certified") for row in ("atent-smoothing", *rows)))
    if cells is None:
        return _missing()
    ours, *others = cells
    words = f"ATENT {percent(ours)}, " + ", ".join(f"{row} {percent(c)}" for row, c in zip(rows, others))
    below = [order(ours, other) == "below" for other in others]
    if any(below):
        return Judged("false" if all(below) else "partly", words)
    near = all(ours["value"] > other["value"] - ALIKE for other in others)
    return Judged("true" if near else "not decided", words)


def spike(found: Results) -> Judged:
    curve = _curve(found)
    if curve is None:
        return _missing()
    before, after = curve
    jump = 100 * (after["test_robust"] - before["test_robust"])
    sure = after["test_robust_low"] > before["test_robust_high"]
    text = f"{jump:+.1f} points from epoch {before['epoch']} to {after['epoch']}"
    return Judged("true" if sure else "false" if jump < 0 else "not decided", text)


def falls(found: Results) -> Judged:
    if _curve(found) is None:
        return _missing()
    peak, last = (found.tables["figure-s1"][key] for key in ("peak", "last"))
    fall = 100 * (peak["test_robust"] - last["test_robust"])
    text = f"{fall:.1f} points from the peak, epoch {peak['epoch']}, to the last, {last['epoch']}"
    if peak["epoch"] == last["epoch"]:
        return Judged("not decided", text + ": nothing follows the peak")
    return Judged("true" if peak["test_robust_low"] > last["test_robust_high"] else "not decided", text)


def _curve(found: Results) -> tuple[Cell, Cell] | None:
    """Figure S1's last measured epoch before the decay, and the best of the three from it on."""
    table = found.tables.get("figure-s1", {})
    decay, rows = table.get("decay"), [e for e in table.get("epochs", ()) if e.get("test_robust") is not None]
    before = [e for e in rows if decay is not None and e["epoch"] < decay]
    after = [e for e in rows if decay is not None and decay <= e["epoch"] < decay + 3]
    return (before[-1], max(after, key=lambda e: e["test_robust"])) if before and after else None


def as_strong(found: Results) -> Judged:
    radii = _radii(found, "langevin")
    if radii is None:
        return _missing()
    # The same networks and the same images: the difference is of the attacks.
    weaker = [ours["value"] - pgd["value"] > ALIKE for ours, pgd in radii.values()]
    verdict: Verdict = "false" if all(weaker) else "partly" if any(weaker) else "true"
    words = (f"{radius}: {percent(ours)} and {percent(pgd)}" for radius, (ours, pgd) in radii.items())
    return Judged(verdict, "ATENT-20 and PGD-20 at the radii of " + "; ".join(words))


def worst_attack(found: Results) -> Judged:
    radii = _radii(found, "autoattack")
    if radii is None:
        return _missing()
    beaten, words = [], []
    for radius, (auto, pgd) in radii.items():
        same = auto.get("same_images")
        if same is None:
            beaten.append(order(auto, pgd) == "below")
            words.append(f"{radius}: {percent(auto)} and {percent(pgd)}")
        else:
            # An image that stands PGD and not AutoAttack is all that it takes.
            beaten.append(auto["value"] < same["value"])
            words.append(f"{radius}: {percent(auto)} and {100 * same['value']:.1f} on the same {auto['n']} images")
    return Judged(
        "false" if any(beaten) else "true", "AutoAttack and PGD-20 at the radii of " + "; ".join(words)
    )  # fmt: skip


def _radii(found: Results, row: str) -> dict[str, tuple[Cell, Cell]] | None:
    """Table S3's ``row`` and its PGD-20, by radius, or None where one is missing."""
    pairs = {radius: found.cells("table-s3", (row, radius), ("pgd", radius)) for radius in ("2", "4", "8", "12")}
    whole = {radius: (pair[0], pair[1]) for radius, pair in pairs.items() if pair is not None}
    return whole if len(whole) == len(pairs) else None


def same_cost(found: Results) -> Judged:
    ratios = _ratios(found)
    if ratios is None:
        return _missing()
    text = "; ".join(f"{norm}: {a:.2f} times PGD, {b:.2f} times TRADES" for norm, (a, b) in ratios.items())
    near = [0.8 <= ratio <= 1.25 for pair in ratios.values() for ratio in pair]
    return Judged("true" if all(near) else "partly" if any(near) else "false", text)


def between(found: Results) -> Judged:
    ratios = _ratios(found)
    if ratios is None:
        return _missing()
    inside = [min(1 / b, 1 / a) <= 1 <= max(1 / a, 1 / b) for a, b in ratios.values()]
    text = "; ".join(f"{norm}: {a:.2f} times PGD, {b:.2f} times TRADES" for norm, (a, b) in ratios.items())
    return Judged("true" if all(inside) else "partly" if any(inside) else "false", text)


def _ratios(found: Results) -> dict[str, tuple[float, float]] | None:
    out = {}
    for norm in ("l2", "linf"):
        cells = found.cells("table-s4", *((row, norm) for row in ("atent-10", "pgdat", "trades")))
        if cells is None:
            return None
        a, p, t = (c["value"] for c in cells)
        out[norm] = (a / p, a / t)
    return out


def linear(found: Results) -> Judged:
    fits = found.tables.get("table-s4", {}).get("fit", {})
    if not fits:
        return _missing()
    text = "; ".join(
        f"{norm}: {fit['slope']:.3g} K + {fit['intercept']:.3g} s, R^2 = {fit['r2']:.4f}" for norm, fit in fits.items()
    )
    return Judged("true" if all(fit["r2"] > 0.99 for fit in fits.values()) else "false", text)


def finetune_loss(found: Results) -> Judged:
    cells = found.cells("finetune", ("scratch", "robust"), ("atent", "robust"))
    if cells is None:
        return _missing()
    scratch, tuned = cells
    pairs = list(zip(scratch.get("each", ()), tuned.get("each", ())))
    loss = measure([100 * (a - b) for a, b in pairs or [(scratch["value"], tuned["value"])]])
    text = f"{loss.mean:.1f} points: {percent(scratch)} from scratch, {percent(tuned)} fine-tuned"
    low, high = (loss.mean, loss.mean) if loss.low is None or loss.high is None else (loss.low, loss.high)
    if loss.low is not None:
        text += f"; 95 % interval of the difference over the seeds {low:.1f} to {high:.1f}"
    if low >= 3 and high <= 7:
        return Judged("true", text)
    return Judged("false" if high < 3 or low > 7 else "not decided", text)


def finetuned_better(found: Results) -> Judged:
    cells = found.cells("finetune", ("atent", "robust"), ("pgdat", "robust"))
    if cells is None:
        return _missing()
    text = f"ATENT {percent(cells[0])}, PGD-AT {percent(cells[1])}, both fine-tuned"
    return Judged(all_above(cells[0], cells[1:]), text)


def _gaps(found: Results) -> dict[str, Cell]:
    return {gap["over"]: gap["ours"] for gap in found.tables.get("figure-1", {}).get("gaps", ())}


def in_the_plane(found: Results) -> Judged:
    gaps = _gaps(found)
    if not {"trades", "pgdat", "standard"} <= set(gaps):
        return _missing()
    words, verdicts = [], []
    for name in ("trades", "pgdat", "standard"):
        lead = gaps[name]["grid"]
        if lead["low"] is None:
            return Judged(NOT_YET, "one seed: no interval")
        words.append(f"{lead['mean']:+.1f} [{lead['low']:+.1f}, {lead['high']:+.1f}] over {name}")
        verdicts.append("above" if lead["low"] > 0 else "below" if lead["high"] < 0 else "level")
    verdict: Verdict = "false" if "below" in verdicts else "true" if set(verdicts) == {"above"} else "partly"
    return Judged(verdict if "above" in verdicts or "below" in verdicts else "not decided", "; ".join(words))
