"""`atent certify`: certified accuracy by randomised smoothing, or verified accuracy by bounds."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from atent.cli import show
from atent.cli.parse import Flat, Name, Norm, Number, Place, Real, Subset, Text, Threads, Tristate, arg
from atent.cli.shards import parsed
from atent.cli.target import InputOptions
from atent.experiments.recipe_files import UsageError

if typing.TYPE_CHECKING:
    from atent.experiments.results import CertificateFile

RENAMED = {"--batch": "--batch-size"}
MEANT = {"--eps": "--radius"}


def certify(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("RUN|FILE|MODULE:FUNCTION ...")] = (),
    *,
    inputs: Annotated[InputOptions, Flat],
    data: Name = None,
    model: Name = None,
    key: Name = None,
    method: Annotated[str, arg("NAME")] = "smoothing",
    sigma: Real = None,
    n: Annotated[int, arg("N")] = 100_000,
    n0: Annotated[int, arg("N")] = 100,
    alpha: Annotated[float, arg("X")] = 0.001,
    radius: Annotated[tuple[str, ...] | None, arg("R ...")] = None,
    sequential: Tristate = None,
    norm: Norm = None,
    allow_large_eps: bool = False,
    limit: Annotated[int | typing.Literal["all"], arg("N|all")] = 200,
    subset: Subset = None,
    shard: Text = None,
    merge: bool = False,
    seed: Annotated[int, arg("N")] = 0,
    which: typing.Literal["best", "last"] = "best",
    batch_size: Number = None,
    compile: bool = False,
    channels_last: Tristate = None,
    root: Place = None,
    device: Annotated[str, arg("NAME")] = "auto",
    threads: Threads = None,
    plot: Place = None,
    table: Place = None,
    quiet: bool = False,
    steal_lock: bool = False,
    json: bool = False,
) -> int:
    """Certify the accuracy of models on their test images: by randomised smoothing, or by bounds on the network.

    Exit status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    runs
        What to certify, one or more: run folders (the paths that training printed), weights files (.safetensors, .pt,
        .pth, .th, .ckpt), or your own networks as module:function; the last two with --data.
    data
        Data set whose test images are used, for what is not a run; or module:function. As for `atent evaluate`.
    model
        Network that a weights file is of, or that a run from Python trained; or module:function.
    key
        Place of the network in a weights file that holds several, such as ema or state_dict.
    method
        Randomised smoothing, which certifies the network under noise, or bounds, which verify the network itself:
        smoothing, ibp, crown-ibp, crown, alpha-crown, dual, one of an installed package (`atent list certifiers`), or
        your own as module:Thing.
    sigma
        Standard deviation of the noise in pixel units. Default: what the run was trained with.
    n
        Noise samples that estimate the share of the class; the most that a sequential test takes.
    n0
        Noise samples that choose the class.
    alpha
        Probability, per image, that its certificate is wrong.
    radius
        Radii to report; refused where n samples cannot reach them. Smoothing: l2; one radius is decided by a sequential
        test, several are read from all n samples; default: multiples of sigma. Bounds: in the run's norm, default:
        its eps.
    sequential
        Decide the one --radius by a sequential test, which stops as soon as the noise samples suffice for certified
        or not (smoothing). Default: where one is given. False: all n samples, with the radius of every image.
    norm
        Norm of the bounds. Default: the run's. Smoothing is l2.
    allow_large_eps
        Allow bounds over the whole box: a linf radius of its width or more, an l2 one of its diagonal or more.
    limit
        Number of test images; all: every one.
    subset
        Which images, where they are fewer than all: stratified, every class by its share; or first, the first ones in
        source order. Default: as the run.
    shard
        i/k, with i from 1 to k: certify every k-th group of images only, into a file of their own, on machines that
        need no common network (smoothing). A group is one image, those that share forward passes where --n is at most
        4,000, or the 50 of a sequential test; the rows are bit for bit those of one process, up to the rounding of
        other batches where there are more shards than groups.
    merge
        Join the shards of the same command into one certificate.
    seed
        Seed of the noise.
    which
        Weights of the best epoch or of the last.
    batch_size
        Noisy images per forward pass. Default: 100 on the CPU, 200 for images below 784 values, else 4,000.
    compile
        Fuse the network by torch.compile first: worth its minute for a larger network (smoothing).
    channels_last
        Noisy images in the channels-last memory format, the same up to rounding. Default: where the network's layers
        gain by it on a CPU (smoothing).
    root
        Folder that holds the data. Default: as the run had it.
    device
        auto, cpu, cuda ...
    threads
        CPU threads: a number, or auto (one where the network gains nothing from more, measured). Default: all cores.
    plot
        Draw certified accuracy against radius, one curve per run, into this .png or .svg file.
    table
        Write what was certified, a row per run, into this .md file and the .json beside it; rows that it holds stay, so
        that smoothing and bounds of several commands meet in one table.
    quiet
        No progress: neither bar, lines nor estimate.
    steal_lock
        Take over the lock of a process on another host, which is known to be gone.
    json
        Print the certificate (of several runs: a list) as JSON to standard output, and nothing else there.
    """
    if not runs:
        raise UsageError("which run? `atent certify RUN [RUN ...]` takes the paths that training printed")
    from atent.experiments.certificate import certify_folder
    from atent.runs.locks import steal

    parsed(shard, merge)
    steal(steal_lock)
    _check_written(table, plot, method, sequential is not False and len(radius or ()) == 1)
    with show.json_alone(json) as emit:
        done = {
            run: certify_folder(
                run, model=model, data=data, method=method, sigma=sigma, n0=n0, n=n, alpha=alpha, seed=seed,
                limit=limit, subset=subset, radii=radius, sequential=sequential, norm=norm,
                allow_large_eps=allow_large_eps, shard=shard, merged=merge, which=which, root=root, device=device,
                threads=threads, batch=batch_size, compiled=compile, channels_last=channels_last,
                convention=inputs.convention(), key=key, progress=not quiet,
            )
            for run in dict.fromkeys(runs)
        }  # fmt: skip
        show.threads(threads)
        _show(done, plot, table, radius)
        emit(_plain(done))
    return 0


def _plain(done: dict[str, Any]) -> Any:
    """The certificate; of several runs a list of them."""
    results = [found.to_json() for _, found, _ in done.values()]
    return results[0] if len(results) == 1 else results


def _show(done: dict[str, Any], plot: str | None, table: str | None, radius: tuple[str, ...] | None) -> None:
    """Print the certificates of each run, and write what is asked for of all of them, in one process."""
    from atent.distributed import alone

    alone(lambda: _shown(done, plot, table, radius))


def _shown(done: dict[str, Any], plot: str | None, table: str | None, radius: tuple[str, ...] | None) -> None:
    from atent.experiments.certificate_lines import draw
    from atent.experiments.certified import add, row

    for out, found, _ in done.values():
        _print(out, found)
    if plot:
        draw({run: rows for run, (_, _, rows) in done.items()}, plot, radius)
        print(f"written: {plot}")
    if table:
        beside = add(Path(table), [row(found) for _, found, _ in done.values()])
        print(f"written: {table}, {beside}")


def _check_written(table: str | None, plot: str | None, method: str, one: bool) -> None:
    """ValueError, before the long work, for what cannot be written; ``one``: a single radius is decided."""
    from atent.certify import smooths
    from atent.experiments.certified import check_table

    check_table(table)
    if plot and not smooths(method):
        raise ValueError(f"--plot draws the radii of smoothing, and method {method} verifies single radii: omit --plot")
    if plot and one and method == "smoothing":
        raise ValueError(
            "--plot draws the radius of every image, and the sequential test decides one --radius alone: add"
            " --sequential False, which takes all n samples, or omit --plot"
        )


def _print(out: Path, found: CertificateFile) -> None:
    """A certificate as a table, and the file that holds it."""
    from rich.table import Table

    from atent.experiments.certificate_lines import layout

    title, rows, below = layout(found)
    shown = Table()
    shown.add_column("accuracy, 95 % interval")
    shown.add_column("", justify="right")
    for name, value in rows:
        shown.add_row(name, value.text)
    print(title)
    show.print_table(shown)
    print("\n".join(below))
    print(f"written: {out}\n")
