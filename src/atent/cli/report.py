"""`atent report`: one HTML page on runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import show
from atent.cli.parse import Name, Place, arg
from atent.experiments.recipe_files import UsageError


def report(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("RUN ...")] = (),
    *,
    out: Place = None,
    images: Annotated[int, arg("N")] = 8,
    model: Name = None,
    data: Name = None,
    root: Place = None,
    quiet: bool = False,
) -> int:
    """Write one HTML file on a run, or on several side by side, for a screen, a phone or paper.

    It holds what was trained, the robust accuracy that may be claimed, each attack with its 95 % interval, training
    curves, radii, certificates, images under attack, checks, settings and provenance. The file is complete and connects
    to nothing. Nothing is measured anew: the page names what was not measured, and the command that measures it. Exit
    status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    runs
        Run folders, one or more: the paths that training printed; networks as zoo:NAME or hub:USER/NAME; or result
        folders of `atent compare` and `atent sweep`.
    out
        HTML file to write. Default: report.html in the folder where there is one, in this folder for several, numbered
        where it is taken.
    images
        Test images of each run to show under attack, chosen by its data.subset; 0: none. It needs the run's weights and
        data, and the page says why where they are unavailable.
    model
        For runs that were trained from Python: what builds their network, as module:function or by name.
    data
        For runs that were trained on tensors: module:function that gives their data, as atent.data.from_tensors does.
    root
        Folder that holds the data (npz: the file). Default: as the run had it.
    quiet
        No progress: neither bar, lines nor estimate.
    """
    if not runs:
        raise UsageError("which run? `atent report RUN [RUN ...]` takes the paths that training printed")
    from atent.report import report as page
    from atent.runs.files import write_new
    from atent.runs.places import is_named

    if out is not None:
        show.refuse_taken(Path(out), "--out")
    text = page(runs, images=images, model=model, data=data, root=root, progress=not quiet)
    # The same folder given twice is one.
    place = Path(runs[0]) if len(set(map(Path, runs))) == 1 and not is_named(runs[0]) else Path()
    file = write_new(place / "report.html" if out is None else Path(out), text, numbered=out is None)
    print(f"written: {file}")
    return 0
