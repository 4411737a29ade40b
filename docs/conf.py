"""The documentation's site: `make docs` builds it offline, and a warning is an error."""

import re
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path

from atent.cli.list import known
from atent.evaluate.union import UNION_VERSION
from atent.experiments import results
from atent.experiments.recipe_files import read_recipe, recipe_names
from atent.experiments.results import studies, union

project = "atent"
author = "The atent developers"
release = metadata.version("atent")

HERE = Path(__file__).parent
sys.path.append(str(HERE / "_ext"))

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "api",
    "references",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext", "_generated", "schemas"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# A dollar sign before a figure is an amount of money.
myst_dmath_allow_digits = False
html_theme = "furo"
html_title = "atent"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
# Two hyphens begin an option; they are no dash.
smartquotes_action = "qe"
napoleon_google_docstring = False
# A word of a type may be the name of several fields.
suppress_warnings = ["ref.python"]
# torch documents `forward` for all modules.
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# A dataclass has its types at its fields.
autodoc_typehints_description_target = "documented"
# Docstrings name code by single backticks.
default_role = "code"

# Characters of a figure with its unit: "1,004 MB".
WHOLE = 10
# A link from a page to a file of the repository that is not a page of the site.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")

_EVALUATION = "`evaluation.json`"
FORMATS = {
    _EVALUATION: (results.EVALUATION_VERSION, results.EvaluationFile),
    f"`bands` of {_EVALUATION}": (studies.BANDS_VERSION, results.BandReport),
    f"`corruptions` of {_EVALUATION}": (studies.CORRUPTIONS_VERSION, results.CorruptionReport),
    f"`flips` of {_EVALUATION}": (studies.FLIPS_VERSION, results.FlipReport),
    f"`fourier` of {_EVALUATION}": (studies.FOURIER_VERSION, results.FourierReport),
    f"`union` of {_EVALUATION}": (UNION_VERSION, union.UnionReport),
    "`certificate.json`": (
        results.CERTIFICATE_VERSION,
        results.SmoothingFile,
        results.SequentialFile,
        results.BoundsFile,
    ),
    "`TABLE.json` of `atent certify --table`": (results.CERTIFIED_VERSION, results.CertifiedTable),
    "`comparison.json`": (results.COMPARISON_VERSION, results.ComparisonFile),
    "`sweep.json`": (results.SWEEP_VERSION, results.SweepFile),
    "`theory.json`": (results.THEORY_VERSION, results.TheoryFile),
    "`transfer.json`": (results.TRANSFER_VERSION, results.TransferFile),
    "`bench.json`": (results.BENCH_VERSION, results.BenchFile),
}


def recipe_table() -> str:
    """Every recipe, and what it says of itself."""
    rows = [f"| `{name}` | {read_recipe(name)['about']} |" for name in recipe_names()]
    return "\n".join(["| recipe | what it trains |", "|---|---|", *rows, ""])


def known_table(kind: str) -> str:
    """What `atent list` prints of a kind, but for where it comes from: what this library has."""
    rows = [f"| `{name}` | {about} |" for name, about, origin in known(kind) if origin == "built-in"]
    return "\n".join(["| name | what it is |", "|---|---|", *rows, ""])


def format_table() -> str:
    """Each result file and versioned part with its version, its type and its keys."""
    rows = []
    for name, (version, *types) in FORMATS.items():
        keys = [key for key in dict.fromkeys(field.name for kind in types for field in fields(kind))]
        kinds = ", ".join(f"`{kind.__name__}`" for kind in types)
        rows.append(f"| {name} | {version} | {kinds} | {', '.join(f'`{key}`' for key in keys)} |")
    return "\n".join(["| file or part | `schema_version` | type | keys |", "|---|---:|---|---|", *rows, ""])


def _generate(app) -> None:
    (HERE / "_generated").mkdir(exist_ok=True)
    (HERE / "_generated" / "recipes.md").write_text(recipe_table(), encoding="utf-8")
    (HERE / "_generated" / "formats.md").write_text(format_table(), encoding="utf-8")
    for kind in ("attacks", "methods", "models", "data", "certifiers", "optimizers"):
        (HERE / "_generated" / f"{kind}.md").write_text(known_table(kind), encoding="utf-8")


def _name_files(app, docname, source) -> None:
    def named(link) -> str:
        text, path = link[1], link[2]
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    source[0] = _OUTSIDE.sub(named, source[0])


def _keep_figures_whole(app, doctree) -> None:
    """Cells that hold one figure with its unit stay on one line."""
    for cell in doctree.findall(lambda node: node.tagname == "entry"):
        if "text-right" in cell["classes"] and len(cell.astext()) <= WHOLE:
            cell["classes"].append("whole")


def setup(app) -> None:
    app.connect("doctree-read", _keep_figures_whole)
    app.connect("builder-inited", _generate)
    app.connect("source-read", _name_files)
