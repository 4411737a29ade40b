"""HTML by functions: every text is escaped unless it was made here, and a page needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import html
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VOID = ("meta", "img", "br")


class Html(str):
    """Markup that `tag` made; any other text is escaped where it is put into a page."""

    __slots__ = ()


Inside = str | int | float | Iterable["Inside"] | None
"""What an element may hold: markup, text, numbers, several of them, or nothing."""


def markup(inside: Inside) -> Html:
    """Whatever it is as markup: text is escaped, None is empty, several are put one after the other."""
    if inside is None:
        return Html("")
    if isinstance(inside, Html):
        return inside
    if isinstance(inside, str | int | float):
        return Html(html.escape(str(inside)))
    return Html("".join(map(markup, inside)))


def tag(name: str, /, *inside: Inside, **attributes: str | int | float | bool | None) -> Html:
    """An element. ``class_`` gives class and ``data_value`` data-value; None and False leave an attribute out."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Html(start) if name in _VOID else Html(f"{start}{markup(inside)}</{name}>")


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and the number it is sorted by; without one, its text."""

    inside: Inside
    value: float | None = None


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell | Inside]],
    *,
    label: str,
    foot: Sequence[Cell | Inside] | None = None,
    sortable: bool = True,
) -> Html:
    """A table that scrolls by itself where the screen is narrow; the first cell of a row is its heading.

    ``label`` says what it is to those who hear the page; ``foot`` is a last row that stays the last when sorted.
    """

    def row(cells: Sequence[Cell | Inside]) -> Html:
        out = []
        for i, cell in enumerate(cells):
            cell = cell if isinstance(cell, Cell) else Cell(cell)
            number = None if cell.value is None else repr(float(cell.value))
            kind = {"scope": "row"} if i == 0 else {"class_": None if cell.value is None else "number"}
            out.append(tag("th" if i == 0 else "td", cell.inside, data_value=number, **kind))
        return tag("tr", out)

    sortable = sortable and len(rows) > 1
    heads = [tag("th", tag("button", h, type="button") if sortable and h else h, scope="col") for h in headings]
    body = [tag("thead", tag("tr", heads)), tag("tbody", map(row, rows)), tag("tfoot", row(foot)) if foot else None]
    kinds = [*(["sortable"] if sortable else []), *(["wide"] if len(headings) > 7 else [])]
    whole = tag("table", body, class_=" ".join(kinds) or None)
    return tag("div", whole, class_="scroll", role="region", aria_label=label, tabindex=0)


def facts(pairs: Iterable[tuple[str, Inside]]) -> Html:
    """Names and values, one pair a line; pairs without a value are left out."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs if value not in (None, "")])


def command(*words: str) -> Html:
    """A command line to copy."""
    return tag("code", shlex.join(words), class_="command")


def picture(data: bytes, alt: str, *, kind: str = "png", class_: str | None = None) -> Html:
    """An image within the page; ``alt`` says what it shows, in numbers. ``kind``: png or svg+xml."""
    return tag("img", src=f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt=alt, class_=class_)


def figure(drawn: Figure, alt: str, caption: Inside = None, *, height: float = 4.2) -> Html:
    """A figure in a size whose text a phone can show; ``height`` in inches."""
    from atent import plots

    image = picture(plots.svg(plots.narrow(drawn, height)), alt, kind="svg+xml")
    return tag("figure", image, tag("figcaption", caption) if caption else None)


def page(title: str, *body: Inside) -> str:
    """The whole document. Its own policy forbids every connection, and every script but the one that sorts tables."""
    style, script = (Html((resources.files("atent.report") / f"page.{kind}").read_text()) for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', body), tag('script', script)), lang='en')}\n"
