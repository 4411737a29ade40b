"""`atent certify`: certified accuracy by randomised smoothing, or verified accuracy by bounds."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from atent.cli import output
from atent.cli.parse import Flat, Name, Norm, Number, Place, Real, Subset, Text, Threads, Tristate, arg
from atent.cli.shards import parsed
from atent.cli.target import NETWORK, InputOptions
from atent.experiments.recipe_files import UsageError

if typing.TYPE_CHECKING:
    from atent.experiments.results import CertificateFile

RENAMED = {"--batch": "--batch-size"}
MEANT = {"--eps": "--radius"}


def certify(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], arg(f"{NETWORK} ...")] = (),
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
    """Certify the accuracy of models on test images, by randomised smoothing or by bounds on the network.

    Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    runs
        One or more run folders (the paths that training printed), networks as zoo:NAME or hub:USER/NAME, weights files
        (.safetensors, .pt, .pth, .th, .ckpt), or your own networks as module:function; the last two need --data.
    data
        Data set for networks other than runs, by name or as module:function; its test images are certified.
    model
        Architecture of a weights file or of a run trained from Python, by name or as module:function.
    key
        Key of the network in a weights file with several, such as ema or state_dict.
    method
        smoothing: randomised smoothing, which certifies the smoothed network; ibp, crown-ibp, crown, alpha-crown, dual:
        bounds, which verify the network itself; a certifier of an installed package (`atent list certifiers`); or your
        own as module:Class.
    sigma
        Standard deviation of the noise in pixel units. Default: that of the run's training.
    n
        Smoothing: noise samples that estimate the probability of the class; the maximum of a sequential test.
    n0
        Smoothing: noise samples that select the class.
    alpha
        Smoothing: failure probability of the certificate, per image.
    radius
        Radii to report; an error if n samples cannot certify them. Smoothing: l2; a single radius is decided by a
        sequential test, several use all n samples; default: multiples of sigma. Bounds: in the run's norm; default: its
        eps.
    sequential
        Smoothing: decide a single --radius by a sequential test, which stops as soon as the noise samples suffice.
        Default: if one radius is given. False: use all n samples and record the radius of every image.
    norm
        Norm of the bounds. Default: the run's. Smoothing always uses l2.
    allow_large_eps
        Allow a radius that covers the entire box: linf at least its width, l2 at least its diagonal.
    limit
        Number of test images, or all.
    subset
        How to select images if not all are used: stratified (in proportion to the classes) or first (in source order).
        Default: the run's.
    shard
        Smoothing: i/k, with i from 1 to k: certify only the i-th of k shards, into a separate file; the machines need
        no connection. A shard is every k-th group of images: one image, the images that share forward passes if --n is
        at most 4,000, or the 50 of a sequential test. The merged rows equal those of one process bit for bit; with more
        shards than groups, up to rounding.
    merge
        Merge the shards of the same command into one certificate.
    seed
        Seed of the noise.
    which
        Weights to load: of the best or of the last epoch.
    batch_size
        Noisy images per forward pass. Default: 100 on the CPU, 200 for images below 784 values, else 4,000.
    compile
        Smoothing: compile the network with torch.compile, which takes about a minute and speeds up larger networks.
    channels_last
        Smoothing: use the channels-last memory format; equal up to rounding. Default: on a CPU, if the network's layers
        are faster with it.
    root
        Folder of the data. Default: the run's.
    device
        auto, cpu, cuda ...
    threads
        CPU threads: a number, or auto, which measures whether more than one is faster. Default: all cores.
    plot
        Plot certified accuracy against radius, one curve per run, to this new .png or .svg file.
    table
        Write a table with one row per run to this .md file and to a .json file beside it. Existing rows are kept, so
        that several commands, with smoothing or bounds, can fill one table.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    json
        Print the certificate (for several runs, a list) to standard output as a single JSON document; an error leaves
        it empty.
    """
    if not runs:
        raise UsageError("no run given: write `atent certify RUN [RUN ...]`, with the paths that training printed")
    from atent.distributed import entered
    from atent.experiments.certificate import certify_folder
    from atent.runs.locks import steal

    parsed(shard, merge, {"plot": plot, "table": table})
    steal(steal_lock)
    _check_written(table, plot, method, sequential is not False and len(radius or ()) == 1)
    picture = Path(plot) if plot else None
    output.check_ending(picture, "--plot", ".png", ".svg")
    with output.json_alone(json) as emit, entered(lambda: output.own(plot=picture)):
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
        output.threads(threads)
        _show(done, plot, table, radius)
        emit(_plain(done))
    return 0


def _plain(done: dict[str, Any]) -> Any:
    """The certificate, or a list of certificates for several runs."""
    results = [found.to_json() for _, found, _ in done.values()]
    return results[0] if len(results) == 1 else results


def _show(done: dict[str, Any], plot: str | None, table: str | None, radius: tuple[str, ...] | None) -> None:
    """Print the certificates of each run, and write the requested files, in one process."""
    from atent.distributed import alone

    alone(lambda: _shown(done, plot, table, radius))


def _shown(done: dict[str, Any], plot: str | None, table: str | None, radius: tuple[str, ...] | None) -> None:
    from atent.experiments.certificate_lines import draw
    from atent.experiments.certificate_table import add, row

    for out, found, _ in done.values():
        print_certificate(found)
        print(f"written: {out}")
    if plot:
        draw({run: rows for run, (_, _, rows) in done.items()}, plot, radius)
        print(f"written: {plot}")
    if table:
        rows = {run: row(found, out, Path(table)) for run, (out, found, _) in done.items()}
        beside = add(Path(table), rows)
        print(f"written: {table}, {beside}")


def _check_written(table: str | None, plot: str | None, method: str, one: bool) -> None:
    """Raise ValueError, before the computation, for output that cannot be written; ``one``: a single radius is
    decided."""
    from atent.certify import smooths
    from atent.experiments.certificate_table import check_table

    check_table(table)
    if plot and not smooths(method):
        raise ValueError(f"--plot needs the radii of smoothing, but method {method} verifies single radii: omit --plot")
    if plot and one and method == "smoothing":
        raise ValueError(
            "--plot needs the radius of every image, but the sequential test decides only one --radius: add"
            " --sequential False, which uses all n samples, or omit --plot"
        )


def print_certificate(found: CertificateFile) -> None:
    """Print a certificate as a table."""
    from rich.table import Table

    from atent.experiments.certificate_lines import layout

    title, rows, below = layout(found)
    shown = Table()
    shown.add_column("accuracy, 95 % interval")
    shown.add_column("", justify="right")
    for name, value in rows:
        shown.add_row(name, value.text)
    print(title)
    output.print_table(shown)
    print("\n".join(below))
