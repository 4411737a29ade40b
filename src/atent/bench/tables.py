"""A result as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from atent import markdown
from atent.experiments.results.bench import BenchCase, BenchFile, BenchRow, BenchSection, Quartiles
from atent.runs.origin import commit_of

_HEADS = {
    "forwards": "forwards",
    "units": "passes",
    "images_per_second": "images / s",
    "samples_per_second": "samples / s",
    "saved_bytes": "saved MB",
    "difference": "difference",
    "median_norm": "median norm",
    "intensity": "FLOP / byte",
    "flops_per_second": "GFLOP / s",
    "bytes_per_second": "GB / s",
}
"""Figure -> its heading; what is not here stays in the JSON file alone."""
_SCALES = {"saved_bytes": 1e-6, "flops_per_second": 1e-9, "bytes_per_second": 1e-9}


@dataclass(frozen=True)
class Table:
    """Rows under headings, of one section; each case begins with its name."""

    title: str
    headings: list[str]
    cases: dict[str, list[list[str]]]
    notes: list[str]


def tables(found: BenchFile) -> list[Table]:
    """A table for each section."""
    return [_table(found, name, section) for name, section in found.sections.items()]


def _table(found: BenchFile, name: str, section: BenchSection) -> Table:
    shown = {case.name: _shown(case) for case in section.cases}
    every = [row for rows in shown.values() for row in rows]
    figures = [figure for figure in _HEADS if any(figure in row.figures for row in every)]
    columns: dict[str, Callable[[BenchRow], str]] = {"ms": lambda row: f"{1e3 * _took(found, row).median:.3g}"}
    columns["quartiles"] = lambda row: f"[{1e3 * _took(found, row).q25:.3g}, {1e3 * _took(found, row).q75:.3g}]"
    columns["n"] = lambda row: str(_took(found, row).n)
    if any(row.ratio for row in every):
        columns["ratio"] = lambda row: f"{row.ratio.rounds.median:.2f}" if row.ratio else ""
        columns["95 %"] = lambda row: f"[{row.ratio.low:.2f}, {row.ratio.high:.2f}]" if row.ratio else ""
    if any(row.robust for row in every):
        columns["robust (%)"] = lambda row: f"{100 * row.robust.value:.1f}" if row.robust else ""
    columns |= {_HEADS[figure]: partial(_figure, figure) for figure in figures}
    if found.roof is not None and name == "roofline":
        columns["of the roof (%)"] = partial(_of_the_roof, found)
    cases = {
        case: [[row.name, *(column(row) for column in columns.values())] for row in rows]
        for case, rows in shown.items()
    }  # fmt: skip
    return Table(section.title, ["", *columns], cases, [*_growth(section.cases), *_omitted(section)])


def _shown(case: BenchCase) -> list[BenchRow]:
    """The rows of a case, without those that are there for another's ratio alone."""
    bases = [row.ratio.base for row in case.rows if row.ratio is not None]
    return [row for row in case.rows if row.figures or bases.count(row.name) != 1]


def _took(found: BenchFile, row: BenchRow) -> Quartiles:
    """Seconds by the clock of the ratios."""
    return row.cpu if found.clock == "cpu" else row.wall


def _figure(name: str, row: BenchRow) -> str:
    return f"{row.figures[name] * _SCALES.get(name, 1.0):.3g}" if name in row.figures else ""


def roof_at(found: BenchFile, intensity: float) -> float:
    """FLOP per second that the roof allows at so many FLOP per byte; ValueError without a roof."""
    if found.roof is None:
        raise ValueError("this result has no roof: measure the section roofline")
    return min(found.roof.flops, found.roof.bandwidth * intensity)


def _of_the_roof(found: BenchFile, row: BenchRow) -> str:
    if "intensity" not in row.figures:
        return ""
    return f"{100 * row.figures['flops_per_second'] / roof_at(found, row.figures['intensity']):.0f}"


def _growth(cases: list[BenchCase]) -> list[str]:
    return [
        f"{case.name}: exponent {case.growth.exponent:.2f} [{case.growth.low:.2f}, {case.growth.high:.2f}],"
        f" {case.settings['of']}"
        for case in cases
        if case.growth is not None
    ]


def _omitted(section: BenchSection) -> list[str]:
    """Omitted measurements, grouped by reason."""
    by: dict[str, list[str]] = {}
    for what, why in section.omitted.items():
        by.setdefault(why, []).append(what)
    for case in section.cases:
        for kind in ("failed", "refused"):
            for what, why in case.settings.get(kind, {}).items():
                by.setdefault(why, []).append(f"{what} in {case.name}")
    return [f"not measured: {', '.join(names)} ({why})" for why, names in by.items()]


def head(found: BenchFile) -> list[str]:
    """How and on which machine the measurements were made, one line each."""
    about, known = found.provenance, found.machine
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items()) or "none"
    sets = ", ".join(known["instruction_sets"]) or "unknown"
    lines = [
        f"processor {about['device_name']}, {known['cores']} cores, {about['threads']} in use; torch computes with"
        f" {known['torch_uses']}",
        f"instruction sets {sets}",
        f"version atent {about['version']}{commit_of(about)}; torch {about['torch']}; Python {about['python']}",
        f"attacks of other packages: {packages}",
        f"medians and quartiles of n interleaved rounds, in {'CPU' if found.clock == 'cpu' else 'wall'} milliseconds;"
        " ratios within a round, with the 95 % interval of their geometric mean",
    ]
    if found.roof is not None:
        lines.append(
            f"peak {found.roof.flops / 1e9:.3g} GFLOP/s of a matrix product, {found.roof.bandwidth / 1e9:.3g} GB/s of a"
            " sum of vectors"
        )
    return lines


def as_markdown(found: BenchFile) -> str:
    """The whole result as a page."""
    lines = ["# atent bench", "", *(f"- {line}" for line in head(found)), ""]
    for table in tables(found):
        lines += [f"## {table.title[0].upper()}{table.title[1:]}", ""]
        rows = [[case, *cells] for case, some in table.cases.items() for cells in some]
        lines += [*markdown.table(["case", "what", *table.headings[1:]], rows, left=2), ""] if rows else []
        lines += [*(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return "\n".join(lines)
