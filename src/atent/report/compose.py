"""The whole page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atent import runs as folder
from atent.report import compared, sections
from atent.report.collect import Run, read
from atent.report.page import Html, page, tag
from atent.report.samples import gallery


def report(
    folders: Sequence[str | Path], *, images: int = 8, model: str | None = None, data: str | None = None,
    root: str | None = None, progress: bool = True,
) -> str:  # fmt: skip
    """The page on one or several run folders, or folders of `atent compare`, as the text of an HTML file.

    ``images`` test images are shown under attack, where the weights and the data (in ``root``, left out: as the run had
    it) are to be had; ``model`` and ``data`` name those of runs that were trained from Python, as
    `atent.experiments.target.load_target` takes them. Nothing is written.
    FileNotFoundError or ValueError in one line for a folder that is neither, and for a damaged file in it.
    """
    if not folders:
        raise ValueError("which run? give the path of one run folder at least")
    if images < 0:
        raise ValueError(f"images must be at least 0, got {images}: 0 leaves them out")
    # All are read before the long work, so that a mistaken path is told at once.
    found = [read(path, model=model, data=data) for path in dict.fromkeys(map(Path, folders))]
    for option in ("model", "data"):
        value = {"model": model, "data": data}[option]
        if value is not None and not any(getattr(each, option, None) for each in found):
            raise ValueError(f"--{option} {value} is of no use: every run brings its own")
    names = [each.name for each in found]
    # Two folders of one name are told apart by their paths.
    titled = {each.name if names.count(each.name) == 1 else str(each.path): each for each in found}
    runs = {title: each for title, each in titled.items() if isinstance(each, Run)}
    alone = next(iter(titled)) if len(titled) == 1 else None
    body: list[Html] = [tag("h1", f"Robustness report: {alone or f'{len(titled)} results'}")]
    if not alone:
        links = [tag("li", tag("a", title, href=f"#part-{i}")) for i, title in enumerate(titled)]
        body.append(tag("nav", tag("ul", links), aria_label="results"))
    if len(runs) > 1:
        body.append(tag("section", compared.several(runs), aria_label="comparison"))
    for i, (title, each) in enumerate(titled.items()):
        if isinstance(each, Run):
            inside = sections.of_run(each, gallery(each, images, root=root, progress=progress))
        else:
            inside = compared.over_seeds(each)
        body.append(tag("section", None if alone else tag("h2", title), inside, id=f"part-{i}", aria_label=title))
    made = folder.provenance()
    commit = f", commit {made['commit'][:12]}" if made["commit"] else ""
    body.append(tag("footer", tag("p", f"Written by atent {made['version']}{commit} on {made['time']}.")))
    return page(f"Robustness report: {', '.join(titled)}", *body)
