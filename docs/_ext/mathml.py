"""Formulas of the site as MathML, which browsers render without scripts or downloads."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

_log = logging.getLogger(__name__)


def mathml(text: str, display: str = "inline") -> str:
    """A formula in LaTeX as a `math` element; a command that has no MathML keeps its backslash."""
    code = convert(text, display=display)
    # Browsers take a bar between letters for an infix operator, as they do a name, and put space on both sides.
    code = re.sub(r"<mo[^>]*>(&#x02016;|&#x0007C;)</mo>", r"<mi>\1</mi>", code)
    return re.sub(r"<mo>([a-z]{2,})</mo>", r'<mo lspace="0.17em" rspace="0">\1</mo>', code)


def _checked(node, display: str) -> str:
    code = mathml(node.astext(), display)
    if "\\" in code:
        _log.warning("a command of this formula has no MathML: %s", node.astext(), location=node)
    return code


def _inline(self, node) -> None:
    self.body.append(_checked(node, "inline"))
    raise nodes.SkipNode


def _block(self, node) -> None:
    number = f'<span class="eqno">({get_node_equation_number(self, node)})</span>' if node["number"] else ""
    self.body.append(self.starttag(node, "div", CLASS="math") + number + _checked(node, "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
