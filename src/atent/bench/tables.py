"""A result as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from atent import markdown
from atent.experiments.results.bench import BenchCase, BenchFile, BenchRow, BenchSection

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
    """Rows under headings, of one section."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(found: BenchFile) -> list[Table]:
    """A table for each section."""
    return [_table(found, name, section) for name, section in found.sections.items()]


def _table(found: BenchFile, name: str, section: BenchSection) -> Table:
    rows = [(case, row) for case in section.cases for row in case.rows]
    ratios = any(row.ratio for _, row in rows)
    robust = any(row.robust for _, row in rows)
    figures = [figure for figure in _HEADS if any(figure in row.figures for _, row in rows)]
    headings = ["case", "what", f"{found.clock} ms", "quartiles", "rounds"]
    headings += ["ratio", "95 %"] if ratios else []
    headings += ["robust (%)"] if robust else []
    headings += [_HEADS[figure] for figure in figures]
    headings += ["of the roof (%)"] if found.roof and name == "roofline" else []
    cells = []
    for case, row in rows:
        line = [case.name, row.name, *_seconds(found, row)]
        line += _ratio(row) if ratios else []
        line += [_robust(row)] if robust else []
        line += [_figure(row, figure) for figure in figures]
        line += [_share(found, row)] if found.roof and name == "roofline" else []
        cells.append(line)
    return Table(section.title, headings, cells, [*_growth(section.cases), *_omitted(section)])


def _seconds(found: BenchFile, row: BenchRow) -> list[str]:
    took = row.cpu if found.clock == "cpu" else row.wall
    return [f"{1e3 * took.median:.3g}", f"{1e3 * took.q25:.3g} to {1e3 * took.q75:.3g}", str(took.n)]


def _ratio(row: BenchRow) -> list[str]:
    if row.ratio is None:
        return ["", ""]
    return [f"{row.ratio.rounds.median:.2f}", f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"]


def _robust(row: BenchRow) -> str:
    return "" if row.robust is None else f"{100 * row.robust.value:.1f}"


def _figure(row: BenchRow, name: str) -> str:
    return f"{row.figures[name] * _SCALES.get(name, 1.0):.3g}" if name in row.figures else ""


def roof_at(found: BenchFile, intensity: float) -> float:
    """FLOP per second that the roof allows at so many FLOP per byte; ValueError without a roof."""
    if found.roof is None:
        raise ValueError("this result has no roof: measure the section roofline")
    return min(found.roof.flops, found.roof.bandwidth * intensity)


def _share(found: BenchFile, row: BenchRow) -> str:
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
    """What was not measured, the same reason once."""
    by: dict[str, list[str]] = {}
    for what, why in section.omitted.items():
        by.setdefault(why, []).append(what)
    for case in section.cases:
        for kind in ("failed", "refused"):
            for what, why in case.settings.get(kind, {}).items():
                by.setdefault(why, []).append(f"{what} in {case.name}")
    return [f"not measured: {', '.join(names)} ({why})" for why, names in by.items()]


def head(found: BenchFile) -> list[str]:
    """What the figures were measured on and how, a line each."""
    about, known = found.provenance, found.machine
    commit = f", commit {about['commit'][:12]}" if about["commit"] else ""
    commit += ", changed since" if about["dirty"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items()) or "none"
    sets = ", ".join(known["instruction_sets"]) or "unknown"
    lines = [
        f"processor {about['device_name']}, {known['cores']} cores, {about['threads']} in use; torch computes with"
        f" {known['torch_uses']}",
        f"instruction sets {sets}",
        f"version atent {about['version']}{commit}; torch {about['torch']}; Python {about['python']}",
        f"attacks of other packages: {packages}",
        f"medians of interleaved rounds by {found.clock} seconds; ratios within a round, with the 95 % interval of"
        " their geometric mean; seed 0",
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
        lines += [*markdown.table(table.headings, table.rows, left=2), ""] if table.rows else []
        lines += [*(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return "\n".join(lines)
