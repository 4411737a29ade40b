"""Reads the result files of `atent reproduce` and computes differences between their figures.

Figures are paired wherever both sides were measured on the same images and trained from the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atent import stats
from atent.paper import timing
from atent.paper.facts import FACTS, Fact
from atent.paper.published import published
from atent.paper.result import read_result
from atent.stats import Estimate

Cell = Mapping[str, Any]

_TABLES = ("table-s1", "table-s2", "table-s3", "table-s4", "figure-s1", "figure-1", "finetune")


@dataclass(frozen=True)
class Difference:
    """The difference of two accuracies."""

    found: Estimate | None
    """With its interval; None if nothing is paired."""
    basis: str
    """The sources of variation of the interval, or why there is none."""
    p: float | None = None
    """The exact two-sided test over the images, by those on which the two sides differ; None without outcomes."""

    def inside(self, low: float = float("-inf"), high: float = float("inf")) -> bool | None:
        """`stats.inside`, in shares of 1; None if nothing is paired. Against 0 the test over the images has to
        agree, since it is exact where the interval is not."""
        if self.found is None:
            return None
        answer = stats.inside(self.found, low, high)
        return None if 0 in (low, high) and self.p is not None and self.p > 0.05 else answer

    def __str__(self) -> str:
        if self.found is None:
            return "no interval"
        value, low, high = (100 * v for v in (self.found.value, self.found.low, self.found.high))
        return f"{value:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if low < high else "")


@dataclass(frozen=True)
class Results:
    """Tables, by name, in the form of the files of `atent reproduce`, and the facts."""

    tables: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Fact]
    printed: bool = False
    """Whether these are the published figures, which are taken at face value: no spread of theirs is printed."""

    def cell(self, table: str, row: str, column: str) -> Cell | None:
        """The figure there, with value, low and high; None if it is not measured."""
        for block in self.tables.get(table, {}).get("blocks", ()):
            for found in block["rows"]:
                if found["key"] == row and column in found["cells"]:
                    ours: Cell | None = found["cells"][column]["ours"]
                    return ours
        return None

    def cells(self, table: str, *places: tuple[str, str]) -> list[Cell] | None:
        """Several of them, or None if one is missing."""
        found = [self.cell(table, row, column) for row, column in places]
        whole = [c for c in found if c is not None]
        return whole if len(whole) == len(found) else None

    def fact(self, key: str, name: str) -> float:
        """One value of a fact."""
        return self.facts[key].values[name]

    def less(self, a: Cell, b: Cell, *, same_networks: bool = False) -> Difference:
        """The accuracy ``a`` less the accuracy ``b``, in shares of 1; ``same_networks``: two measures of one network
        for each seed, as of two attacks, in place of two trainings."""
        if self.printed:
            gap = a["value"] - b["value"]
            return Difference(Estimate(gap, gap, gap), "as printed")
        return difference(a, b, same_networks=same_networks)

    def times(self, norm: str, a: str, b: str) -> Estimate | None:
        """The ratio of the cost of an epoch of row ``a`` of Table S4 to that of ``b``: over interleaved rounds, in
        seconds of the process's CPU where it computed on one. None if it is not measured; without rounds an interval
        without ends, which decides nothing."""
        rows, cells = self.rounds(norm), self.cells("table-s4", (a, norm), (b, norm))
        found = timing.times(rows, a, b) if rows else None
        if found is not None or cells is None:
            return found
        value = cells[0]["value"] / cells[1]["value"]
        return Estimate(value, value, value) if self.printed else Estimate(value, 0, math.inf)

    def rounds(self, norm: str) -> dict[str, list[float]] | None:
        """Table S4's seconds per epoch that count, by row, one for each round; None if no rounds are kept."""
        kept = self.tables.get("table-s4", {}).get("timings", {}).get(norm)
        return timing.counted(kept) if kept else None


def measured(out: str | Path) -> Results:
    """The results in ``out``, and all facts, computed now."""
    paths = {name: Path(out) / f"{name}.json" for name in _TABLES}
    tables = {name: read_result(path) for name, path in paths.items() if path.is_file()}
    return Results(tables, {key: make() for key, make in FACTS.items()})


def as_printed(facts: Mapping[str, Fact]) -> Results:
    """The published figures in the same form and without intervals, so that the same rules apply to the paper's own
    tables."""
    tables: dict[str, Any] = {}
    for name, table in published().items():
        rows = []
        for key, row in table.rows.items():
            cells = {}
            for column, figure in row.values.items():
                # Table S1 prints one protocol where we have three.
                place = column if name != "table-s1" or column == "clean" else f"{column}-published"
                cells[place] = {"ours": {"value": figure.value if name == "table-s4" else figure.value / 100}}
            rows.append({"key": key, "cells": cells})
        tables[name] = {"blocks": [{"rows": rows}]}
    return Results(tables, facts, printed=True)


# ---- pairing -----------------------------------------------------------------------------------------------


def difference(a: Cell, b: Cell, *, same_networks: bool = False) -> Difference:
    """`Results.less` of two measured cells.

    With outcomes by image the interval is over the seeds and the images, without them over the seeds alone, on the
    images that both sides share. One training of each side decides nothing, since another seed may reverse the result;
    one network under two attacks is decided over the images, where their outcomes are stored. Where a training failed,
    the t-interval over three seeds is uninformative: the exact interval of ranks (`stats.extremes`), widened by the
    binomial intervals of the networks at its ends, then bounds the difference.
    """
    sides = (_by_seed(a), _by_seed(b))
    seeds = sorted(set(sides[0]) & set(sides[1]))
    if not seeds:
        return Difference(None, "no seed in common")
    if a.get("n") != b.get("n") or (_ids(a) and _ids(b) and _ids(a) != _ids(b)):
        return Difference(None, "different images")
    n = a["n"]
    one, other = ([side[seed] for seed in seeds] for side in sides)
    kept = (_outcomes(a), _outcomes(b))
    outcomes = ([kept[0][s] for s in seeds], [kept[1][s] for s in seeds]) if kept[0] and kept[1] else None
    if len(seeds) == 1 and not (same_networks and outcomes):
        why = "one network, outcomes by image not stored" if same_networks else "one training of each"
        return Difference(None, why)
    found = stats.paired(one, other, n, outcomes)
    over = [f"{len(seeds)} seeds"] if len(seeds) > 1 else []
    p = None
    if outcomes:
        over.append(f"{n:,} images")
        p = stats.mcnemar_by_image(*outcomes)
    basis = f"over {' and '.join(over)}" + ("" if outcomes else f", on the same {n:,} images")
    low, high = (-math.inf, math.inf) if same_networks else _ranked(one, other, n)
    if low > found.low or high < found.high:
        basis += ", one limit by ranks"
        found = Estimate(found.value, max(found.low, low), min(found.high, high))
    return Difference(found, basis, p)


def _ranked(a: list[float], b: list[float], n: int) -> tuple[float, float]:
    """The exact interval of ranks (90 % for three seeds of each, more for more) between binomial limits."""
    (low_a, high_a), (low_b, high_b) = (zip(*(stats.interval(round(v * n), n) for v in side)) for side in (a, b))
    return stats.extremes(low_a, high_b)[0], stats.extremes(high_a, low_b)[1]


def _by_seed(cell: Cell) -> dict[int, float]:
    """The accuracy of each seed's network."""
    each = cell.get("each") or [cell["value"]]
    return dict(zip(cell.get("seeds") or range(len(each)), each))


def _outcomes(cell: Cell) -> dict[int, str] | None:
    """The outcomes of each seed's network, one character per image."""
    kept = cell.get("outcomes")
    return dict(zip(cell.get("seeds") or range(len(kept["each"])), kept["each"])) if kept else None


def _ids(cell: Cell) -> str | None:
    """The numbers of the images; without them, cells of as many images are of the first ones."""
    kept = cell.get("outcomes")
    return kept["ids"] if kept else None
