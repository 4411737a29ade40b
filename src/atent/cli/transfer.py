"""`atent transfer`: adversarial images of each of several networks, tried on all of them."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import show
from atent.cli.parse import (
    AnyNorm,
    Flat,
    Group,
    Inner,
    Limit,
    Name,
    Number,
    Place,
    Precision,
    Subset,
    Text,
    Threads,
    Tristate,
    arg,
)
from atent.cli.target import InputOptions
from atent.experiments.recipe_files import UsageError


def transfer(
    targets: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("RUN|FILE|MODULE:FUNCTION ...")] = (),
    *,
    inputs: Annotated[InputOptions, Flat],
    attack: Annotated[str, arg("ATTACK")] = "PGD(steps=40)",
    data: Name = None,
    model: Name = None,
    norm: AnyNorm = None,
    eps: Text = None,
    group: Group = None,
    side: Number = None,
    inner: Inner = None,
    inner_eps: Text = None,
    which: typing.Literal["best", "last", "raw", "ema", "swa"] = "best",
    allow_large_eps: bool = False,
    limit: Limit = None,
    subset: Subset = None,
    seed: Number = None,
    batch_size: Number = None,
    precision: Precision = None,
    folding: Tristate = None,
    root: Place = None,
    device: Annotated[str, arg("NAME")] = "auto",
    threads: Threads = None,
    out: Place = None,
    png: Place = None,
    quiet: bool = False,
    steal_lock: bool = False,
    json: bool = False,
) -> int:
    """Attack each of several networks, and evaluate all of them on its adversarial images.

    The networks see the same test images, and the attack has the same random numbers on each. A network robust to its
    own attack and not to one that was made on another is likely to mask its gradients. A run that was killed resumes.
    Exit status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    targets
        Two networks or more: run folders, zoo:NAME, hub:USER/NAME, weights files, or module:function. Those weights
        files that training here did not write are of one --model, and expect the same of their input.
    attack
        The attack on each network, written as a call.
    data
        Data set of networks that bring none: files and module:function. Default: that of the first run.
    model
        Network of the weights files that do not say it, by name or as module:function.
    norm
        Norm of the threat. Default: that of the runs, where it is one.
    eps
        Radius of the threat in pixel units, such as 0.3 or 8/255; l0, patch: how many elements, pixels or patches may
        change. Default: that of the runs, where it is one; needed with another --norm than theirs.
    group
        l0: what --eps counts. Default: that of the runs, or element.
    side
        patch: side of a patch in pixels. Default: that of the runs.
    inner
        patch: what may happen inside a patch, anything (free) or changes of --inner-eps at most (linf). Default: that
        of the runs, or free.
    inner_eps
        patch with --inner linf: largest change of a pixel value. Default: that of the runs.
    which
        Weights of the runs' best epoch or of their last, or of one of the averages.
    allow_large_eps
        Allow an eps that covers the whole box: linf of its width or more, l2 and l1 of its diagonal or more, l0 and
        patch of as many elements, pixels or patches as a sample has.
    limit
        Number of test images; all: every one. Default: as the first run, or 1000.
    subset
        Which images, where they are fewer than all: stratified or first. Default: as the first run, or stratified.
    seed
        Seed of the attack's random numbers. Default: as the first run, or 0.
    batch_size
        Images per batch. Default: as the first run, or 250.
    precision
        In which precision the attack searches, as for `atent evaluate`; auto measures the first network. Default:
        float32.
    folding
        Search on copies of the networks with batch norm folded into the layers beside it; --no-folding: on the networks
        themselves. Default: as the first run, or folded.
    root
        Folder that holds the data (npz: the file). Default: as the runs had it.
    device
        auto, cpu, cuda ...
    threads
        CPU threads: a number, or auto (one where a network gains nothing from more, measured). Default: all cores.
    out
        JSON file to write. Default: transfer.json in the first run folder, or in this folder, numbered where it is
        taken. Until it is whole, a file of that name that ends in .partial.jsonl holds what is done: the same command
        resumes from it.
    png
        Where to draw the matrix. Default: beside the JSON file.
    quiet
        No progress: neither bar, lines nor estimate.
    steal_lock
        Take over the lock of a process on another host, which is known to be gone.
    json
        Print the result as JSON to standard output, and nothing else there.
    """
    if len(targets) < 2:
        raise UsageError("a transfer matrix needs two networks or more: `atent transfer RUN RUN ... [OPTIONS]`")
    from atent import plots
    from atent.cli.studies import print_transfer
    from atent.experiments.evaluation import measured
    from atent.experiments.transfer import TRANSFER, load_targets, transfer_matrix, unfinished_matrix
    from atent.runs import locks
    from atent.runs.manifest import write_new

    locks.steal(steal_lock)
    named = _named(out, png)
    with show.json_alone(json) as emit, show.own(**named):
        found = load_targets(
            targets, attack, data=data, model=model, convention=inputs.convention(), norm=norm, eps=eps, group=group,
            side=side, inner=inner, inner_eps=inner_eps, which=which, allow_large_eps=allow_large_eps, limit=limit,
            subset=subset, seed=seed, batch=batch_size, root=root, device=device, threads=threads, folding=folding,
        )  # fmt: skip
        show.threads(threads)
        first = next(iter(found.values()))
        _, dtype = measured(first, None if precision == "float32" else precision)
        place = Path(out) if out else first.place / f"{first.stem}{TRANSFER}"
        with unfinished_matrix(found, place, dtype) as partial:
            matrix = transfer_matrix(found, search_dtype=dtype, partial=partial, progress=not quiet)
            path = write_new(place, matrix.to_json(), numbered=out is None)
        picture = Path(png) if png else show.free_file(path.with_suffix(".png"))
        plots.save(plots.transfer(matrix.to_json()), picture)
        print_transfer(matrix)
        print(f"\nwritten: {path}, {picture}")
        emit(matrix.to_json())
    return 0


def _named(out: str | None, png: str | None) -> dict[str, Path | None]:
    """The files that the options name; ValueError, before the long work, for a name of another kind of file."""
    for given, option, kind in ((out, "--out", ".json"), (png, "--png", ".png")):
        if given is not None and Path(given).suffix != kind:
            raise ValueError(f"{option} {given}: the name must end in {kind}")
    return {"out": Path(out) if out else None, "png": Path(png) if png else None}
