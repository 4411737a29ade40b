"""The tables of docs/reproduce.md from the files of `atent reproduce`: python -m atent.paper.summary PAGE."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.paper.result import grid, read_result
from atent.paper.scales import SCALES
from atent.paper.tables import NAMES

BEGIN = "<!-- results: made by python -m atent.paper.summary docs/reproduce.md, do not edit -->"
END = "<!-- end of results -->"

_PROTOCOLS = ("published", "weak", "autoattack")

# One line each on the page: the complete tables are in the files that it names.
_SHOWN = {
    "table-s1": ("clean", "full-published", "full-weak", "full-autoattack", *(f"small-{k}" for k in _PROTOCOLS)),
    "table-s2": ("clean", "certified"),
    "table-s3": None,
    "table-s4": None,
    "finetune": None,
    "mnist": None,
}


def block(results: Path, beside: Path) -> str:
    """The generated block of a page in the folder ``beside``, from results/SCALE/*.json without smoke, which evaluates
    no claim."""
    lines = [BEGIN, ""]
    for scale in (s for s in SCALES if s != "smoke"):
        found = [p for p in (results / scale / f"{name}.json" for name in NAMES) if p.is_file()]
        contents = {p: read_result(p) for p in found}
        tables = {p: c for p, c in contents.items() if "blocks" in c and c["name"] in _SHOWN}
        if not tables:
            continue
        first = next(iter(tables.values()))
        about = first["about"]
        lines += [f"### Scale {scale}", "", f"{about[:1].upper()}{about[1:]}.", ""]
        for path, content in tables.items():
            lines += _table(Path(os.path.relpath(path, beside)), content)
    return "\n".join([*lines, END])


def refresh(text: str, results: Path, beside: Path) -> str:
    """A page in the folder ``beside`` with its block regenerated; ValueError if it has no markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page needs one line {BEGIN!r} and, below it, one line {END!r}")
    head, _, rest = text.partition(BEGIN)
    return head + block(results, beside) + rest.partition(END)[2]


def _table(path: Path, content: Mapping[str, Any]) -> list[str]:
    seeds, n = content["seeds"], _images(content)
    scope = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}" + (f", {n} test images" if n else "")
    state = "" if content["complete"] else "; not complete"
    lines = [f"**{content['title']}** ({scope}{state}; [full table]({path.with_suffix('.md').as_posix()}))", ""]
    for part in content["blocks"]:
        keep = _SHOWN[content["name"]]
        lines += [*([f"*{part['title']}*", ""] if part["title"] else []), *grid(_only(part, keep)), ""]
    return lines


def _only(part: Mapping[str, Any], keep: Sequence[str] | None) -> dict[str, Any]:
    columns = [c for c in part["columns"] if keep is None or c["key"] in keep]
    return {**part, "columns": columns}


def _images(content: Mapping[str, Any]) -> str:
    counts = {
        c["ours"]["n"]
        for part in content["blocks"]
        for row in part["rows"]
        for c in row["cells"].values()
        if c["ours"] and c["ours"]["n"]
    }
    return " or ".join(f"{n:,}" for n in sorted(counts))


def main(args: Sequence[str]) -> int:
    """Rewrite the block of the page that is named."""
    if len(args) != 1:
        print("usage: python -m atent.paper.summary docs/reproduce.md", file=sys.stderr)
        return 2
    path = Path(args[0])
    results = path.resolve().parents[1] / "results"
    folder.write_atomic(path, refresh(path.read_text(), results, path.resolve().parent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
