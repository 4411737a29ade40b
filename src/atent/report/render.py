"""Renders the templates with their style and script: text is escaped, and a page is self-contained."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from atent import plots
from atent.attacks.spec import show
from atent.experiments.comparison import caveat_of
from atent.report import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atent.experiments.results import Share


@dataclass(frozen=True)
class Drawing:
    """A figure as the page shows it."""

    svg: bytes
    alt: str
    """Its content as text."""
    caption: str | None


def drawing(figure: Figure, alt: str, caption: str | None = None, *, height: float = 4.2) -> Drawing:
    """The figure in a size whose text a phone can show; ``height`` in inches."""
    return Drawing(plots.svg(plots.narrow(figure, height)), alt, caption)


def render(template: str, **context: Any) -> Markup:
    """The markup of one of the templates."""
    return Markup(_environment().get_template(template).render(context))


def page(**context: Any) -> str:
    """The whole document. Its content security policy forbids connections and all scripts except the one that sorts
    tables."""
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return str(render("page.html", style=Markup(_source("page.css")), script=Markup(script), policy=policy, **context))


def _source(name: str) -> str:
    """A file beside the templates that is included verbatim."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("atent.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "caveat": caveat_of,
        "code": lambda text: Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text)))),
        "distances": words.distances,
        "form": lambda value, spec="": "" if value is None else format(value, spec),
        "interval": interval,
        "key": lambda value: repr(float(value)),
        "labelled": labelled,
        "limits": limits,
        "plus_minus": lambda text: str(text).replace("+-", "±"),
        "numeric": numeric,
        "rate": words.percent,
        "shell": shlex.join,
        "threat": show,
    }
    return made


def limits(share: Share) -> str:
    """The interval of a share, in percent: "[27.5, 35.9]"."""
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def interval(share: Share) -> Markup:
    """The same, its two numbers aligned on the decimal point below those of other rows."""
    made = Markup('<span class="interval">[<span>{}</span>, <span>{}</span>]</span>')
    return made.format(f"{100 * share.low:.1f}", f"{100 * share.high:.1f}")


def labelled(body: str, headings: Sequence[str]) -> Markup:
    """The rows of a table, each cell with the heading of its column, which a narrow screen shows beside it."""

    def row(text: str) -> str:
        names = iter(headings)
        return re.sub(r"<t[dh](?=[ >])", lambda cell: f'{cell[0]} data-label="{escape(next(names, ""))}"', text)

    return Markup("".join(map(row, re.split(r"(?=<tr[ >])", str(body)))))


def numeric(body: str) -> set[int]:
    """The columns of a table's rows that have numbers, by their place from 0."""
    rows = [re.findall(r"<t[dh]([^>]*)>", row) for row in str(body).split("<tr")]
    return {i for row in rows for i, attributes in enumerate(row) if 'class="number"' in attributes}


def number_of(text: str) -> float | None:
    """The number that a cell begins with, which sorts it; None if there is none."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None
