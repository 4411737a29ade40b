"""`atent recipes`: what can be trained by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import show
from atent.cli.parse import arg


def recipes(name: Annotated[tyro.conf.Positional[str | None], arg("RECIPE")] = None, *, names: bool = False) -> int:
    """List the recipes, or print one as TOML to copy and change.

    Parameters
    ----------
    name
        The recipe to print: a name, or a .toml file.
    names
        List the names alone, one a line.
    """
    from importlib import resources

    from atent.experiments.recipes import read_recipe, recipe_names

    if name is not None:
        read_recipe(name)
        text = resources.files("atent.recipes") / f"{name}.toml" if name in recipe_names() else Path(name)
        print(text.read_text(), end="")
        return 0
    if names:
        print("\n".join(recipe_names()))
        return 0
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("recipe", "what it trains", "published figures that it aims at"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for each in recipe_names():
        tables = read_recipe(each)
        table.add_row(each, tables["about"], "; ".join(tables.get("aims", [])) or "-")
    show.print_table(table)
    return 0
