"""`atent recipes`: the built-in recipes."""

from __future__ import annotations

from typing import Annotated

import tyro

from atent.cli import output
from atent.cli.parse import arg
from atent.cli.width import screen

_WIDE = 120
"""Least width of the terminal for three columns."""


def recipes(
    name: Annotated[tyro.conf.Positional[str | None], arg("RECIPE")] = None,
    *,
    resolved: bool = False,
    names: bool = False,
) -> int:
    """List the recipes, or print one as TOML.

    Parameters
    ----------
    name
        Recipe to print: a name or a .toml file.
    resolved
        Print all values, including those of the recipes that it extends.
    names
        List only the names, one per line.
    """
    from atent.experiments.recipe_files import as_toml, heads, read_recipe, recipe_file, recipe_names

    if name is not None:
        tables = read_recipe(name)
        print(as_toml(tables) if resolved else recipe_file(name).read_text(encoding="utf-8"), end="")
        return 0
    if names:
        print("\n".join(recipe_names()))
        return 0
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    # Three columns leave too little room for sentences on a narrow terminal.
    wide = screen() >= _WIDE
    for heading in ("recipe", "description", "published figures") if wide else ("recipe", "description"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for each, head in heads().items():
        aims = "; ".join(head.get("aims", []))
        if wide:
            table.add_row(each, head["about"], aims or "-")
        else:
            table.add_row(each, head["about"] + (f"; published: {aims}" if aims else ""))
    output.print_table(table)
    return 0
