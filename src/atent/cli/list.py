"""`atent list`: registered names and their origin."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Any

import tyro

from atent.cli import output
from atent.cli.parse import arg
from atent.docstrings import written
from atent.experiments.recipe_files import UsageError
from atent.messages import unknown

# The registry of each kind, imported on demand, because most registries import torch.
_REGISTRIES = {
    "attacks": "atent.attacks:ATTACKS",
    "methods": "atent.methods:METHODS",
    "models": "atent.models:MODELS",
    "data": "atent.data:SOURCES",
    "optimizers": "atent.optim.settings:OPTIMIZERS",
    "certifiers": "atent.certify:CERTIFIERS",
}
KINDS = (*_REGISTRIES, "recipes", "zoo")


def list(kind: Annotated[tyro.conf.Positional[str | None], arg("KIND")] = None, *, json: bool = False) -> int:
    """List registered names: built-in, or provided by an installed package.

    Each row has the name, a one-line description, and the origin: built-in, or the package and its version. Classes in
    your own files are used as module:Class and are not listed.

    Parameters
    ----------
    kind
        attacks, methods, models, data, recipes, certifiers, optimizers or zoo (trained networks).
    json
        Print the rows to standard output as a single JSON document; an error leaves it empty.
    """
    if kind is None:
        raise UsageError(f"no kind given: use one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UsageError(unknown("kind", kind, KINDS))
    with output.json_alone(json) as emit:
        rows = [{"name": name, "about": about, "origin": origin} for name, about, origin in known(kind)]
        emit(rows)
        if not json:
            _print(kind, rows)
    return 0


def known(kind: str) -> Iterator[tuple[str, str, str]]:
    """Name, description and origin of all entries of a kind."""
    if kind == "recipes":
        from atent.experiments.recipe_files import heads

        for name, head in heads().items():
            yield name, head["about"], "built-in"
        return
    if kind == "zoo":
        from atent import zoo

        for name in zoo.networks():
            yield f"zoo:{name}", zoo.facts(name), zoo.origin(name)
        return
    module, _, name = _REGISTRIES[kind].partition(":")
    registry = getattr(import_module(module), name)
    with warnings.catch_warnings():
        # A one-line warning on standard error for a package that cannot be imported, without a line number.
        warnings.showwarning = lambda message, *_args, **_given: output.warn(str(message))
        for each in registry:
            entry = registry[each]
            # Without the section of the fields, which takes reading the source.
            doc = written(entry) if isinstance(entry, type) else inspect.getdoc(entry)
            yield each, sentence(inspect.cleandoc(doc or "")), registry.origin(each)


def sentence(text: str | None) -> str:
    """The first sentence of a docstring, in one line; "-" where there is none."""
    first = " ".join((text or "").split("\n\n")[0].replace("`", "").split())
    # A full stop within "et al. 2019" or "sec. 3" is followed by no capital letter.
    found = re.match(r"(.*?[^.])\.(?=\s+[A-Z]|$)", first)
    return (found.group(1) if found else first.rstrip(":")) or "-"


def _print(kind: str, rows: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("name", "description", "from"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for row in rows:
        table.add_row(*(Text(row[key]) for key in ("name", "about", "origin")))
    output.print_table(table)
