"""The options of `atent evaluate` that measure more than robust accuracy, with their tables and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from atent.cli import output
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
    """Measurements in addition to robust accuracy."""

    bands: bool = False
    """Also split an attack's perturbations into frequency bands and evaluate each band alone; writes a table and
    bands.png."""
    band_attack: Annotated[str, arg("ATTACK")] = "PGD(steps=40)"
    """Attack for --bands, written as a call."""
    band_cut: Number = None
    """First high frequency of --bands. Default: a quarter of the image's side."""
    corruptions: bool = False
    """Also measure the error under the common corruptions of CIFAR-10-C; writes a table and corruptions.png."""
    flips: bool = False
    """Also measure the flip rate: how often the predicted class changes along sequences of slightly perturbed
    images."""
    reference: Name = None
    """Reference network for mCE and mFR, a run folder or module:function: the errors of --corruptions and the flip
    rates of --flips are divided by its own."""
    fourier: bool = False
    """Also measure the error under noise of each frequency; writes fourier.png."""
    fourier_eps: Real = None
    """l2 norm of the noise of --fourier in each channel. Default: a root mean square of 0.1 per pixel."""

    def studies(self) -> Studies:
        """Return the request in the form that `atent.experiments.evaluation.evaluate_target` takes."""
        from atent.experiments.studies import Studies

        return Studies(**dataclasses.asdict(self))


def print_studies(found: EvaluationFile, path: Path, stem: str) -> list[Path]:
    """Print the tables of the studies of an evaluation; return the figures written beside ``path``."""
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
            figure = getattr(plots, name)(report.to_json())
            written.append(output.save_figure(figure, path.with_name(f"{stem}{name}.png")))
    return written


def _bands(found: BandReport) -> None:
    from rich.table import Table

    print(
        f"\nfrequency bands of {found.attack}, {found.threat.text}, first high frequency {found.cut},"
        f" n = {found.n:,}{_took(found.seconds)}"
    )
    table = Table()
    table.add_column("part of the perturbation")
    for heading in ("accuracy, 95 % interval", "share of energy, 95 % interval", "white noise"):
        table.add_column(heading, justify="right")
    table.add_row("none", found.clean.text, "", "")
    table.add_row("full perturbation", found.full.text, "", "")
    for row in found.bands:
        energy = "" if row.energy is None else row.energy.percent
        table.add_row(row.band, row.robust.text, energy, f"{100 * row.white:.1f} %")
    output.print_table(table)


def _corruptions(found: CorruptionReport) -> None:
    from rich.table import Table

    head = f"error (%) under common corruptions, n = {found.n:,}{_took(found.seconds)}"
    print(f"\n{head}; without one {found.clean_error.text}")
    table = Table(pad_edge=False)  # With a reference the table fills 80 columns.
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
        cells += ["reference error 0" if ratio is None else f"{ratio:.3g}"] if found.reference is not None else []
        table.add_row(name, *cells)
    output.print_table(table)
    print(f"mean error {found.mean.percent}")
    if found.reference is not None:
        summary = "undefined: the reference has no errors" if found.mce is None else found.mce.text
        print(f"mCE {summary}, reference {found.reference}")
    if found.left_out:
        print(f"not defined for images of this size: {', '.join(found.left_out)}")


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
        table.add_row(row.sequence, "previous frame" if row.ordered else "clean image", row.rate.percent, *other)
    output.print_table(table)
    print(f"mean flip rate {found.mean.percent}")
    if found.reference is not None:
        summary = "undefined: the reference never changes its class" if found.mfr is None else found.mfr.text
        print(f"mFR {summary}, reference {found.reference}")


def _fourier(found: FourierReport) -> None:
    worst = max((k, i, j) for i, row in enumerate(found.errors) for j, k in enumerate(row))
    h, w = len(found.errors), len(found.errors[0])
    mean = sum(map(sum, found.errors)) / (h * w * found.n)
    place = f"vertical {worst[1] - h // 2}, horizontal {worst[2] - w // 2}"
    print(
        f"\nerror under noise of one frequency, l2 norm {found.eps:.4g} in one channel, n = {found.n:,}"
        f"{_took(found.seconds)}: {100 * mean:.1f} % on average, at most {100 * worst[0] / found.n:.1f} % ({place});"
        f" without noise {found.clean_error.text}"
    )


def _took(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.1f} s"


def print_transfer(found: TransferFile) -> None:
    """Print the matrix: one row per attacked network, one column per evaluated network."""
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
    output.print_table(table)
