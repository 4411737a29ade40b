"""`atent transfer`: transfer attacks between several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import output
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
    Which,
    arg,
)
from atent.cli.target import NETWORK, InputOptions
from atent.experiments.recipe_files import UsageError


def transfer(
    targets: Annotated[tyro.conf.Positional[tuple[str, ...]], arg(f"{NETWORK} ...")] = (),
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
    which: Which = "best",
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
    """Attack each of several networks and evaluate all of them on its adversarial images.

    All networks see the same test images, and the attack uses the same random numbers on each. A network that is robust
    to attacks on itself but not to attacks transferred from another network is likely to mask its gradients. Repeating
    the command resumes. Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    targets
        Two or more networks: run folders, zoo:NAME, hub:USER/NAME, weights files, or module:function. External weights
        files share one --model and one input convention.
    attack
        Attack on each network, written as a call.
    data
        Data set of weights files and module:function. Default: that of the first run.
    model
        Architecture of weights files that do not record it, by name or as module:function.
    norm
        Norm of the threat. Default: that of the runs, if they agree.
    eps
        Radius of the threat in pixel units, such as 0.3 or 8/255; l0, patch: how many elements, pixels or patches may
        change. Default: that of the runs, if they agree; required with another --norm than theirs.
    group
        l0: what --eps counts. Default: that of the runs, or element.
    side
        patch: side of a patch in pixels. Default: that of the runs.
    inner
        patch: allowed changes inside a patch: any (free), or at most --inner-eps per value (linf). Default: that of the
        runs, or free.
    inner_eps
        patch with --inner linf: largest change of a pixel value. Default: that of the runs.
    which
        Weights of the runs: of the best or of the last epoch, or one of the averages.
    allow_large_eps
        Allow an eps that covers the entire box: linf at least its width, l2 and l1 at least its diagonal, l0 and patch
        at least the number of elements, pixels or patches of a sample.
    limit
        Number of test images, or all. Default: that of the first run, or 1000.
    subset
        How to select images if not all are used: stratified or first. Default: that of the first run, or stratified.
    seed
        Seed of the attack's random numbers. Default: that of the first run, or 0.
    batch_size
        Images per batch. Default: that of the first run, or 250.
    precision
        Precision of the attack search, as for `atent evaluate`; auto measures on the first network. Default: float32.
    folding
        Attack copies of the networks with batch norm folded into adjacent layers; --no-folding: attack the networks
        themselves. Default: that of the first run, or folded.
    root
        Folder of the data (npz: the file). Default: that of the runs.
    device
        auto, cpu, cuda ...
    threads
        CPU threads: a number, or auto, which measures whether more than one is faster. Default: all cores.
    out
        JSON file to write. Default: transfer.json in the first run folder, or in the current folder; a number is
        appended if it exists. Partial results are kept in a file of that name that ends in .partial.jsonl, from which
        repeating the command resumes.
    png
        Figure file of the matrix. Default: beside the JSON file.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    if len(targets) < 2:
        raise UsageError("a transfer matrix needs two or more networks: write `atent transfer RUN RUN ... [OPTIONS]`")
    from atent import plots
    from atent.cli.studies import print_transfer
    from atent.experiments.evaluation import measured
    from atent.experiments.transfer import TRANSFER, load_targets, transfer_matrix, unfinished_matrix
    from atent.runs import locks
    from atent.runs.manifest import write_new

    locks.steal(steal_lock)
    named = _named(out, png)
    with output.json_alone(json) as emit, output.own(**named):
        found = load_targets(
            targets, attack, data=data, model=model, convention=inputs.convention(), norm=norm, eps=eps, group=group,
            side=side, inner=inner, inner_eps=inner_eps, which=which, allow_large_eps=allow_large_eps, limit=limit,
            subset=subset, seed=seed, batch=batch_size, root=root, device=device, threads=threads, folding=folding,
        )  # fmt: skip
        output.threads(threads)
        first = next(iter(found.values()))
        _, dtype = measured(first, None if precision == "float32" else precision)
        place = named["out"] or first.place / f"{first.stem}{TRANSFER}"
        with unfinished_matrix(found, place, dtype) as partial:
            matrix = transfer_matrix(found, search_dtype=dtype, partial=partial, progress=not quiet)
            print_transfer(matrix)
            emit(matrix.to_json())
            path = write_new(place, matrix.to_json(), numbered=named["out"] is None)
        figure, given = plots.transfer(matrix.to_json()), named["png"]
        picture = output.save_figure(figure, given or path.with_suffix(".png"), reserved=given is not None)
        print(f"\nwritten: {path}, {picture}")
    return 0


def _named(out: str | None, png: str | None) -> dict[str, Path | None]:
    """The files that the options name."""
    named = {"out": Path(out) if out else None, "png": Path(png) if png else None}
    output.check_ending(named["out"], "--out", ".json")
    output.check_ending(named["png"], "--png", ".png")
    return named
