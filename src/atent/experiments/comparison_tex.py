"""comparison.tex: the table of a comparison for LaTeX with booktabs."""

from __future__ import annotations

import re

from atent.experiments.comparison import Entry, caption, layout, paired_lines
from atent.experiments.results import ComparisonFile

TABLE_TEX = "comparison.tex"

_ESCAPED = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\u00b1": r"$\pm$", **{each: f"\\{each}" for each in "&%$#_{}"},
}  # fmt: skip


def as_tex(found: ComparisonFile) -> str:
    """A table environment with the figures and intervals of comparison.md, which needs the package booktabs; hardware,
    commits, differences between recipes and the command are comments above it."""
    headings, rows = layout(found)
    lines = caption(found)
    machines = [line for line in lines if line.startswith("Hardware: ")]
    notes = ["\\usepackage{booktabs}", *machines, *paired_lines(found), found.command]
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in notes),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(' '.join(line for line in lines if line not in machines))}}}",
            r"\label{tab:comparison}",
            rf"\begin{{tabular}}{{l{'r' * len(headings)}}}",
            r"\toprule",
            _row(["recipe", *headings]),
            r"\midrule",
            *(_row([name], [_cell(entry) for entry in entries]) for name, entries in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """The text for LaTeX: its special characters appear as they are."""
    return re.sub("[" + re.escape("".join(_ESCAPED)) + "]", lambda found: _ESCAPED[found[0]], " ".join(text.split()))


def _row(names: list[str], cells: list[str] | None = None) -> str:
    # After a line break LaTeX reads a bracket as its argument.
    return "{}" + " & ".join([*map(escaped, names), *(cells or [])]) + r" \\"


def _cell(entry: Entry) -> str:
    text = escaped(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return f"{text} {entry.interval}".rstrip()
