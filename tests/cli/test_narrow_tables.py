"""Printed tables in narrow terminals: no interval is broken, and nothing is lost."""

import re

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atent.cli import output
from atent.cli.narrow import fitted

NAMES = ["digits-linf-atent", "digits-linf-standard", "cifar10-l2-trades-wide", "small"]
ROWS = ["clean", "after its APGD-CE of AutoAttack", "PGD-100 x 5 margin (step_size 0.01)", "AutoAttack"]


def figure(i, k):
    low = 91.25 - 10 * i - k
    return f"{low + 2:.1f} % [{low:.1f}, {low + 4 + (i + k == 0) * 4.8:.1f}]"


def table(count, style=str):
    made = Table(title="each attack alone", title_justify="left")
    made.add_column("accuracy, 95 % interval")
    for name in NAMES[:count]:
        made.add_column(name, justify="right")
    made.add_column("seconds", justify="right")
    for i, row in enumerate(ROWS):
        made.add_row(row, *(style(figure(i, k)) for k in range(count)), f"{1000 * i:,.1f}", style="bold" if i else "")
    return made


def printed(parts, width):
    console = Console(width=width)
    with console.capture() as held:
        for part in parts:
            console.print(part)
    return held.get()


@pytest.mark.parametrize("style", [str, Text], ids=["text", "styled"])
@pytest.mark.parametrize("width", [40, 48, 60, 70, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_interval_is_broken_and_none_is_lost(count, width, style):
    text = printed(fitted(table(count, style), width), width)
    assert max(map(len, text.splitlines())) <= width
    words = "".join(re.split(r"[\s│┃]+", text))
    for i, row in enumerate(ROWS):
        assert all(word in text or word in words for word in row.split())
        for k in range(count):
            share, interval = figure(i, k).split(" [")
            assert f"[{interval}" in text
            assert share in text
    assert text.count("each attack alone") == 1
    assert all(f"{1000 * i:,.1f}" in text for i in range(4))


def test_a_table_that_fits_is_left_as_it_is():
    made = table(2)
    assert fitted(made, 200) == [made]
    wide = Table()
    wide.add_column("name")
    wide.add_row("x" * 100)
    assert fitted(wide, 60) == [wide]


def test_the_interval_stays_beside_its_figure_where_the_first_column_can_fold():
    text = printed(fitted(table(1), 60), 60)
    assert figure(0, 0) in text


def test_text_around_an_interval_is_folded_beside_it():
    made = Table()
    made.add_column("check", overflow="fold")
    made.add_column("figure", overflow="fold")
    made.add_row("step-budget", "97 of 98 robust, in [0.945, 0.999], and 81 of 98 in [0.741, 0.895] of the rest")
    text = printed(fitted(made, 50), 50)
    assert "[0.945, 0.999]" in text
    assert "[0.741, 0.895]" in text
    assert max(map(len, text.splitlines())) <= 50


def test_the_commands_print_through_it(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    output.print_table(table(4))
    out = capsys.readouterr().out
    assert all(f"[{figure(i, k).split(' [')[1]}" in out for i in range(4) for k in range(4))
    assert max(map(len, out.splitlines())) <= 60


def test_a_name_in_brackets_is_shown_as_it_is(capsys):
    """A class may be called tabby [cat], and a run :x:."""
    made = Table(title="runs of [red]")
    made.add_column("class [bold]")
    made.add_column("robust (%)", justify="right")
    for name in ("tabby [cat]", "[/b]", ":x:"):
        made.add_row(name, "50.0 [40.0, 60.0]")
    output.print_table(made)
    text = capsys.readouterr().out
    assert all(name in text for name in ("runs of [red]", "class [bold]", "tabby [cat]", "[/b]", ":x:"))
