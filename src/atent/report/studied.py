"""Measurements in addition to robust accuracy: frequencies, corruptions, transfer."""

from __future__ import annotations

from typing import Any

from atent import plots
from atent.data.corruptions import DEFINITIONS
from atent.experiments.results import BandReport, CorruptionReport, FourierReport, TransferFile
from atent.report import words
from atent.report.collect import Run
from atent.report.commands import command
from atent.report.render import drawing


def has_images(run: Run) -> bool:
    """Whether the run's inputs are images, which alone have frequencies and corruptions."""
    return len(((run.config.get("about") or {}).get("data") or {}).get("shape") or ()) == 3


def frequencies(run: Run) -> dict[str, Any]:
    """The bands of perturbations and the Fourier map of each evaluation that has them."""
    bands, maps = [], []
    for name, found in run.titled.items():
        if found.bands is not None:
            drawn = drawing(plots.bands(found.bands.to_json(), stacked=True), _bands(found.bands), name, height=10)
            bands.append((name, found.bands, drawn))
        if found.fourier is not None:
            drawn = drawing(plots.fourier(found.fourier.to_json()), _fourier(found.fourier), name, height=4.6)
            maps.append((name, found.fourier, drawn))
    return {"bands": bands, "maps": maps, "command": command(run, "evaluate", "--bands", "--fourier")}


def _bands(found: BandReport) -> str:
    parts = ", ".join(
        f"{row.band} {words.percent(row.robust.value)}"
        + ("" if row.energy is None else f" with {words.percent(row.energy.value)} of the energy")
        for row in found.bands
    )
    return (
        f"Accuracy under {found.attack}, {found.threat.text}: {words.percent(found.clean.value)} clean,"
        f" {words.percent(found.full.value)} under the full perturbation; under single bands: {parts}."
    )


def _fourier(found: FourierReport) -> str:
    every = [k / found.n for row in found.errors for k in row]
    return (
        f"Error under noise of one frequency, l2 norm {found.eps:.3g}: from {words.percent(min(every))} to"
        f" {words.percent(max(every))}, {words.percent(found.clean_error.value)} without noise."
    )


def corruptions(run: Run) -> dict[str, Any]:
    """The errors under corruptions and the flip rates of each evaluation that has them."""
    shown = []
    for name, found in run.titled.items():
        if found.corruptions is not None:
            drawn = drawing(
                plots.corruptions(found.corruptions.to_json(), title=f"error (%), n = {found.n:,}"),
                _corruptions(found.corruptions),
                name,
                height=5.6,
            )
            shown.append((name, found.corruptions, drawn))
    flips = [(name, found.flips) for name, found in run.titled.items() if found.flips is not None]
    again = command(run, "evaluate", "--corruptions", "--flips")
    return {"corruptions": shown, "flips": flips, "command": again, "definitions": DEFINITIONS}


def _corruptions(found: CorruptionReport) -> str:
    names = dict.fromkeys(row.corruption for row in found.rows)
    summary = "; ".join(
        f"{name} " + ", ".join(f"{100 * row.error.value:.1f}" for row in found.rows if row.corruption == name)
        for name in names
    )
    return f"Error in % at the severities 1 to 5: {summary}."


def transfers(run: Run) -> dict[str, Any]:
    """The transfer matrices in the folder."""
    return {
        "transfers": [
            (name, found, drawing(plots.transfer(found.to_json()), _transfer(found), name, height=5.2))
            for name, found in run.transfers.items()
        ]
    }


def _transfer(found: TransferFile) -> str:
    summary = "; ".join(
        f"{net.name}: "
        + ", ".join(
            f"{words.percent(share.value)} under the attack on {source.name}"
            for source, share in zip(found.networks, net.robust)
        )
        for net in found.networks
    )
    return f"Robust accuracy under {found.attack}, {found.threat.text}. {summary}."
