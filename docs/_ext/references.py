"""The list of the papers in the References sections of the docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent.parent
_SECTION = re.compile(r"^References\n-+\n(.*?)(?=\n\n\w+\n-+\n|\Z)", re.M | re.S)
# 'Authors year, "Title", where.' A word with a colon before the authors is what the paper is cited for.
PAPER = re.compile(r'(?:[\w-]+: )?(?P<authors>[^"]+) (?P<year>\d{4}), "(?P<title>[^"]+)", (?P<where>.*)')


def cited(source: Path) -> Iterator[tuple[Path, str]]:
    """Each paragraph of each References section below ``source``, on one line, with its file."""
    for path in sorted(source.rglob("*.py")):
        code = path.read_text("utf-8")
        for node in ast.walk(ast.parse(code)) if "References\n" in code else ():
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for section in _SECTION.findall(ast.get_docstring(node) or ""):
                    yield from ((path, " ".join(text.split())) for text in section.split("\n\n"))


def papers(source: Path) -> dict[str, re.Match[str]]:
    """Every paper below ``source`` by its title, from the shortest of its citations."""
    found: dict[str, re.Match[str]] = {}
    for path, text in cited(source):
        paper = PAPER.fullmatch(text)
        if paper is None:
            raise ValueError(f'{path}: a reference is Authors year, "Title", where., got {text!r}')
        known = found.setdefault(paper["title"], paper)
        if len(paper["where"]) < len(known["where"]):
            found[paper["title"]] = paper
    return found


def reference_list(source: Path) -> str:
    """A Markdown list in the order of the authors, with links to arXiv."""
    lines = []
    for paper in sorted(papers(source).values(), key=lambda each: (each["authors"], each["year"])):
        where = re.sub(r", (Section|Algorithm) [^,]+", "", paper["where"])
        where = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", where)
        end = "" if paper["title"].endswith("!") else "."
        lines.append(f"- {paper['authors']} {paper['year']}. *{paper['title']}*{end} {where}")
    return "\n".join([*lines, ""])


def _generate(app) -> None:
    (DOCS / "_generated").mkdir(exist_ok=True)
    text = reference_list(DOCS.parent / "src" / "atent")
    (DOCS / "_generated" / "references.md").write_text(text, encoding="utf-8")


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True}
