"""The whole page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from atent import runs as folder
from atent import trust
from atent.experiments.interrupted import note_unfinished
from atent.report import compared, sections, swept
from atent.report.collect import Comparison, Run, read
from atent.report.render import page
from atent.report.samples import gallery
from atent.runs.places import place_of


def report(
    folders: Sequence[str | Path], *, images: int = 8, model: str | None = None, data: str | None = None,
    root: str | None = None, progress: bool = True, trust_code: bool = False,
) -> str:  # fmt: skip
    """The page on one or several folders of runs, of `atent compare` and of `atent sweep`, as the text of an HTML file.

    ``images`` test images are shown under attack, where the weights and the data (in ``root``; default: as the run had
    it) are available; ``model`` and ``data`` name those of runs that were trained from Python, as
    `atent.experiments.target.load_target` takes them. Of a run that you did not make on this machine the names are
    shown, and nothing that they name is imported without ``trust_code``. Nothing is written.
    FileNotFoundError or ValueError for a folder of another kind, and for a damaged file in it.
    """
    if not folders:
        raise ValueError("no run given: give the path of at least one run folder")
    if images < 0:
        raise ValueError(f"images must be at least 0, got {images}: use 0 for none")
    with trust.fenced(model, data, trust_code=trust_code):
        return _page(folders, images, model, data, root, progress)


def _page(
    folders: Sequence[str | Path], images: int, model: str | None, data: str | None, root: str | None, progress: bool
) -> str:
    # All are read before the computation, so that an invalid path is reported immediately.
    found = [read(path, model=model, data=data) for path in dict.fromkeys(map(place_of, folders))]
    for option in ("model", "data"):
        value = {"model": model, "data": data}[option]
        if value is not None and not any(getattr(each, option, None) for each in found):
            raise ValueError(f"--{option} {value} has no effect: every run records its own")
    names = [each.name for each in found]
    # Two folders of one name are distinguished by their paths.
    titled = {each.name if names.count(each.name) == 1 else str(each.path): each for each in found}
    runs = {title: each for title, each in titled.items() if isinstance(each, Run)}
    parts = []
    alone = len(titled) == 1
    for number, (title, each) in enumerate(titled.items()):
        if isinstance(each, Run):
            run = replace(each, interrupted=note_unfinished(each.path))
            pictures = gallery(run, images, root=root, progress=progress)
            content = sections.of_run(run, pictures, level=2 if alone else 3, prefix="" if alone else f"{number}-")
        else:
            content = compared.over_seeds(each) if isinstance(each, Comparison) else swept.of_sweep(each)
        parts.append({"title": title, "content": content})
    together = compared.several(runs) if len(runs) > 1 else None
    return page(parts=parts, together=together, made=folder.provenance())
