"""`atent report`: an HTML report of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import output
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
    """Write an HTML report of one run, or of several side by side.

    The report contains the training setup, the headline robust accuracy, each attack with its 95 % interval, training
    curves, radii, certificates, adversarial images, checks, settings and provenance, in one self-contained file. No new
    measurements are made: the report lists what was not measured, with the command that measures it. Exit status: 0
    success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    runs
        One or more run folders (the paths that training printed), networks as zoo:NAME or hub:USER/NAME, or result
        folders of `atent compare` and `atent sweep`.
    out
        HTML file to write. Default: report.html in the folder of a single run, or in the current folder; a number is
        appended if the file exists.
    images
        Number of adversarial test images to show for each run, chosen by its data.subset; 0: none. Needs the run's
        weights and data; if they are unavailable, the report states why.
    model
        For runs trained from Python: the network, as module:function or by name.
    data
        For runs trained on tensors: module:function that returns their data, as atent.data.from_tensors does.
    root
        Folder of the data (npz: the file). Default: the run's.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    """
    if not runs:
        raise UsageError("no run given: write `atent report RUN [RUN ...]`, with the paths that training printed")
    from atent.report import report as page
    from atent.runs.files import write_new
    from atent.runs.places import is_named

    with output.own(out=Path(out) if out else None):
        text = page(runs, images=images, model=model, data=data, root=root, progress=not quiet)
        # A folder that is given twice counts once.
        place = Path(runs[0]) if len(set(map(Path, runs))) == 1 and not is_named(runs[0]) else Path()
        file = write_new(Path(out) if out else place / "report.html", text, numbered=not out)
    print(f"written: {file}")
    return 0
