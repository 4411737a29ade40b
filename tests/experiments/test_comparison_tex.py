"""comparison.tex has the figures of comparison.md, in a table that LaTeX reads."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from atent.experiments import migrate
from atent.experiments.comparison import layout
from atent.experiments.comparison_tex import as_tex, escaped
from atent.experiments.results import ComparisonFile

FILES = sorted((Path(__file__).parents[2] / "results").glob("*/comparison.json"))
BARE = re.compile(r"(?<!\\)[%#_^~<>|]")


def cells_of(text):
    """The rows of the table, by cell."""
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\) & ", row.removesuffix(r" \\").removeprefix("{}")) for row in rows]


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.parent.name)
def test_the_figures_are_those_of_the_table(path):
    found = migrate.read(path, ComparisonFile)
    head, *rows = cells_of(as_tex(found))
    headings, wanted = layout(found)
    assert head == ["recipe", *map(escaped, headings)]
    assert len(rows) == len(wanted)
    for row, (name, entries) in zip(rows, wanted):
        assert row[0] == escaped(name)
        for cell, entry in zip(row[1:], entries, strict=True):
            text = escaped(entry.text)
            text = rf"\textbf{{{text}}}" if entry.best else text
            assert cell == f"{text} {entry.interval}".rstrip()


@pytest.mark.parametrize("path", FILES[:1], ids=lambda path: path.parent.name)
def test_names_and_captions_are_escaped(path):
    found = migrate.read(path, ComparisonFile)
    odd = r"[a_b] 50% & #1 \x {y} $z^~|<>"
    text = as_tex(replace(found, rows=[replace(found.rows[0], recipe=odd), *found.rows[1:]], command="a\nb"))
    assert not BARE.search("\n".join(line for line in text.splitlines() if not line.startswith("%")))
    head, first, *_ = cells_of(text)
    assert len(first) == len(head)
    assert first[0].startswith(r"[a\_b] 50\% \& \#1 \textbackslash{}x \{y\} \$z\textasciicircum{}\textasciitilde{}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    if found.caveat:
        assert escaped(found.caveat) in text.partition(r"\caption{")[2].partition("\n")[0]
    assert all(line.isascii() for line in text.splitlines() if not line.startswith("%"))
