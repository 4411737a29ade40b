"""The options of `atent evaluate` that measure more than robust accuracy, and what they print and draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from atent.cli import show
from atent.cli.parse import Name, Number, Real, arg

if TYPE_CHECKING:
    from atent.experiments.results import (
        BandReport,
        CorruptionReport,
        EvaluationFile,
        FlipReport,
        FourierReport,
        TransferFile,
    )
    from atent.experiments.studies import Studies


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What is measured beside the robust accuracy."""

    bands: bool = False
    """Also split an attack's perturbations into frequency bands, and try each alone: a table and bands.png."""
    band_attack: Annotated[str, arg("ATTACK")] = "PGD(steps=40)"
    """The attack of --bands, written as a call."""
    band_cut: Number = None
    """The first high frequency of --bands. Default: a quarter of the image's side."""
    corruptions: bool = False
    """Also measure the errors under the common corruptions of CIFAR-10-C: a table and corruptions.png."""
    flips: bool = False
    """Also measure how often the class changes along sequences of almost equal images."""
    reference: Name = None
    """A run folder or module:function: the network whose errors and flips those of --corruptions and --flips are
    divided by, into mCE and mFR."""
    fourier: bool = False
    """Also measure the error under noise of each frequency: fourier.png."""
    fourier_eps: Real = None
    """l2 norm of the noise of --fourier in one channel. Default: pixels of a root mean square of 0.1."""

    def studies(self) -> Studies:
        """The request as `atent.experiments.evaluation.evaluate_target` takes it."""
        from atent.experiments.studies import Studies

        return Studies(**dataclasses.asdict(self))


def print_studies(found: EvaluationFile, path: Path, stem: str) -> list[Path]:
    """The tables of the studies that an evaluation has; the pictures that were written beside ``path``."""
    from atent import plots

    written = []
    if found.bands is not None:
        _bands(found.bands)
    if found.corruptions is not None:
        _corruptions(found.corruptions)
    if found.flips is not None:
        _flips(found.flips)
    if found.fourier is not None:
        _fourier(found.fourier)
    for name, report in (("bands", found.bands), ("corruptions", found.corruptions), ("fourier", found.fourier)):
        if report is not None:
            written.append(show.free_file(path.with_name(f"{stem}{name}.png")))
            plots.save(getattr(plots, name)(report.to_json()), written[-1])
    return written


def _bands(found: BandReport) -> None:
    from rich.table import Table

    print(
        f"\nfrequency bands of {found.attack}, {found.threat.text}, first high frequency {found.cut},"
        f" n = {found.n:,}{_took(found.seconds)}"
    )
    table = Table()
    table.add_column("part of the perturbation")
    for heading in ("accuracy under it, 95 % interval", "share of energy, 95 % interval", "white noise"):
        table.add_column(heading, justify="right")
    table.add_row("none", found.clean.text, "", "")
    table.add_row("whole", found.full.text, "", "")
    for row in found.bands:
        energy = "" if row.energy is None else row.energy.percent
        table.add_row(row.band, row.robust.text, energy, f"{100 * row.white:.1f} %")
    show.print_table(table)


def _corruptions(found: CorruptionReport) -> None:
    from rich.table import Table

    print(
        f"\nerror (%) under common corruptions, n = {found.n:,}{_took(found.seconds)}; without one {found.clean.text}"
    )
    table = Table(pad_edge=False)  # with a reference it fills 80 columns
    table.add_column("corruption", no_wrap=True)
    for severity in range(1, 6):
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    if found.reference is not None:
        table.add_column("relative to the reference", justify="right")
    for name in dict.fromkeys(row.corruption for row in found.rows):
        errors = [row.error.value for row in found.rows if row.corruption == name]
        cells = [f"{100 * value:.1f}" for value in (*errors, sum(errors) / len(errors))]
        ratio = found.ratios.get(name)
        cells += ["no error there" if ratio is None else f"{ratio:.3g}"] if found.reference is not None else []
        table.add_row(name, *cells)
    show.print_table(table)
    print(f"mean error {found.mean.percent}")
    if found.reference is not None:
        told = "unknown: the reference makes no error" if found.mce is None else found.mce.text
        print(f"mCE {told}, reference {found.reference}")
    if found.left_out:
        print(f"left out on images of this size: {', '.join(found.left_out)}")


def _flips(found: FlipReport) -> None:
    from rich.table import Table

    print(f"\nflip rates, n = {found.n:,}{_took(found.seconds)}")
    table = Table()
    table.add_column("sequence", no_wrap=True)
    table.add_column("each frame is compared with")
    table.add_column("flip rate, 95 % interval", justify="right")
    if found.reference is not None:
        table.add_column("reference", justify="right")
    for row in found.rows:
        other = [] if row.reference is None else [row.reference.percent]
        table.add_row(row.sequence, "the one before" if row.ordered else "the clean image", row.rate.percent, *other)
    show.print_table(table)
    print(f"mean flip rate {found.mean.percent}")
    if found.reference is not None:
        told = "unknown: the reference never changes its class" if found.mfr is None else found.mfr.text
        print(f"mFR {told}, reference {found.reference}")


def _fourier(found: FourierReport) -> None:
    worst = max((k, i, j) for i, row in enumerate(found.errors) for j, k in enumerate(row))
    h, w = len(found.errors), len(found.errors[0])
    mean = sum(map(sum, found.errors)) / (h * w * found.n)
    place = f"vertical {worst[1] - h // 2}, horizontal {worst[2] - w // 2}"
    print(
        f"\nerror under noise of one frequency, l2 norm {found.eps:.4g} in one channel, n = {found.n:,}"
        f"{_took(found.seconds)}: {100 * mean:.1f} % on average, at most {100 * worst[0] / found.n:.1f} % ({place});"
        f" without noise {found.clean.text}"
    )


def _took(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.1f} s"


def print_transfer(found: TransferFile) -> None:
    """The matrix: a row for each network that was attacked, a column for each that was evaluated."""
    from rich.table import Table

    print(f"{found.data.name}, test images: {found.data.text}, {found.attack}, {found.threat.text}")
    table = Table()
    table.add_column("accuracy, 95 % interval")
    for net in found.networks:
        table.add_column(net.name, justify="right")
    table.add_row("no attack", *(net.clean.text for net in found.networks))
    for i, source in enumerate(found.networks):
        cells = (net.robust[i].text for net in found.networks)
        table.add_row(f"attacked: {source.name}", *cells)
    show.print_table(table)
