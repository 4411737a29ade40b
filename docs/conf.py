"""The documentation's site: `make docs` builds it offline, and a warning is an error."""

import re
from importlib import metadata
from pathlib import Path

from atent.cli.list import known
from atent.experiments.recipe_files import read_recipe, recipe_names

project = "atent"
author = "The atent developers"
release = metadata.version("atent")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_generated", "schemas"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "atent"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Docstrings name code by single backticks.
default_role = "code"

HERE = Path(__file__).parent
# A link from a page to a file of the repository that is not a page of the site.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def recipe_table() -> str:
    """Every recipe, and what it says of itself."""
    rows = [f"| `{name}` | {read_recipe(name)['about']} |" for name in recipe_names()]
    return "\n".join(["| recipe | what it trains |", "|---|---|", *rows, ""])


def known_table(kind: str) -> str:
    """What `atent list` prints of a kind, but for where it comes from: what this library has."""
    rows = [f"| `{name}` | {about} |" for name, about, origin in known(kind) if origin == "built-in"]
    return "\n".join(["| name | what it is |", "|---|---|", *rows, ""])


def _generate(app) -> None:
    (HERE / "_generated").mkdir(exist_ok=True)
    (HERE / "_generated" / "recipes.md").write_text(recipe_table(), encoding="utf-8")
    for kind in ("attacks", "methods", "models", "data", "certifiers", "optimizers"):
        (HERE / "_generated" / f"{kind}.md").write_text(known_table(kind), encoding="utf-8")


def _name_files(app, docname, source) -> None:
    def named(link) -> str:
        text, path = link[1], link[2]
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    source[0] = _OUTSIDE.sub(named, source[0])


def setup(app) -> None:
    app.connect("builder-inited", _generate)
    app.connect("source-read", _name_files)
