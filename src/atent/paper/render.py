"""The Markdown files of `atent reproduce` from its JSON files: python -m atent.paper.render results/laptop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from atent import runs as folder
from atent.paper import claims, figure_1, result, timing, training_curves
from atent.paper.statements import NAME
from atent.paper.tables import NAMES


def rendered(path: Path) -> str:
    """The Markdown of a result file. Raises as `read_result`."""
    content = result.read_result(path)
    if path.stem == NAME:
        return claims.markdown(content)
    if path.stem == figure_1.NAME:
        return figure_1.markdown(content)
    if path.stem == training_curves.NAME:
        return training_curves.markdown(content)
    return result.markdown(content, timing.growth(content) if "timings" in content else ())


def main(args: Sequence[str]) -> int:
    """Rewrite the Markdown beside each result file of the folder."""
    if len(args) != 1:
        print("usage: python -m atent.paper.render RESULTS", file=sys.stderr)
        return 2
    for path in (Path(args[0]) / f"{name}.json" for name in (*NAMES, NAME)):
        if path.is_file():
            folder.write_atomic(path.with_suffix(".md"), rendered(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
