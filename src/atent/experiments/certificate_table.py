"""Several certificates side by side: one table of smoothing and bounds, as Markdown and as JSON."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from atent import runs as folder
from atent.experiments import migrate
from atent.experiments.certificate_lines import at_most, linf_ball
from atent.experiments.results import (
    CERTIFIED_VERSION,
    BoundsFile,
    CertifiedEntry,
    CertifiedRow,
    CertifiedTable,
    Samples,
    SequentialFile,
    Share,
    SmoothingFile,
)
from atent.experiments.results.certificate import Verified
from atent.markdown import table as markdown_table
from atent.runs.files import check_file
from atent.runs.identity import digest
from atent.runs.locks import held, lock_of

# Radii above the smallest of a column by at most this share of it are in the column, which claims the smallest for all
# of them: 0.549 is what l2 smoothing says of linf 5/255, which is 0.54902.
_SAME = 2e-3


def row(found: SmoothingFile | SequentialFile | BoundsFile, file: Path, table: Path) -> CertifiedRow:
    """The line of the certificate in ``file`` in the table at ``table``."""
    size = math.prod(found.images.shape or ())
    if isinstance(found, SmoothingFile):
        smoothed: Share | None = found.smoothed
    else:
        smoothed = None
    if isinstance(found, BoundsFile):
        entries = [_entry(at, size) for at in found.certified]
    else:
        seconds = found.seconds_per_image
        entries = [CertifiedEntry("l2", at.radius, at.radius, at.share, seconds) for at in found.certified]
    return CertifiedRow(
        found.run, found.trained, _how(found), found.images, found.clean, smoothed, entries, found.provenance,
        _folder(file, found.run, table), found.invalid,
    )  # fmt: skip


def _folder(file: Path, run: str, table: Path) -> str:
    """A hash of the place of a run's certificate, which moves with the table and the runs together."""
    place, beside = file.resolve().parent, table.resolve().parent
    with contextlib.suppress(ValueError):  # on another drive
        place = Path(os.path.relpath(place, beside))
    return digest(place.as_posix(), run)


def _entry(at: Verified, size: int) -> CertifiedEntry:
    norm, radius = at.threat.norm, float(at.threat.threat().eps)
    l2 = radius * math.sqrt(size) if norm == "linf" else radius
    return CertifiedEntry(norm, radius, l2, at.share, at.seconds_per_image)


def check_table(path: str | Path | None) -> None:
    """Check that a table can be written to a path, before the certificates; missing folders are made when it is
    written.

    ValueError for another ending, OSError where no file can be made.
    """
    if path is None:
        return
    path = Path(path)
    if path.suffix != ".md":
        raise ValueError(f"--table writes Markdown, got {path}: give a name that ends in .md")
    if path.exists() and not path.with_suffix(".json").exists():
        raise ValueError(f"{path} exists without the .json file that it was made from: give another name")
    with _held(path):
        check_file(path)


def add(path: Path, rows: Mapping[str, CertifiedRow]) -> Path:
    """Write ``rows``, by the paths of their runs, into the table at ``path`` (.md, with a .json of the same name beside
    it); the .json's path.

    Rows that the .json holds already stay; one of the same run folder and certificate is replaced. A row is named by
    its path where the table has runs of its name in other folders. ValueError for another ending, and for images that
    are not those of the table: shares of different images do not compare.
    """
    check_table(path)
    with _held(path):
        return _added(path, rows)


def _held(path: Path) -> AbstractContextManager[None]:
    """The lock of a table, which several commands may fill at once."""
    return held(lock_of(path), "certify", wait=lambda line: None)


def _added(path: Path, rows: Mapping[str, CertifiedRow]) -> Path:
    """`add`, while no other process does."""
    beside = path.with_suffix(".json")
    table = list(migrate.read(beside, CertifiedTable).rows) if beside.exists() else []
    for given, new in rows.items():
        place = next((i for i, known in enumerate(table) if _is_same(known, new, given)), len(table))
        table[place : place + 1] = [new]
    for given, new in rows.items():
        # In either file system, of a row that was added under its path.
        if any(PureWindowsPath(r.run).name == new.run and r.folder != new.folder for r in table):
            table[table.index(new)] = replace(new, run=given)
    first = table[0].images
    for found in table:
        if _which(found.images) != _which(first):
            raise ValueError(
                f"{found.run} was certified on {_images(found.images)}, the table holds {_images(first)}: give"
                " another --table, or the same --limit and --subset"
            )
    whole = CertifiedTable(CERTIFIED_VERSION, table)
    folder.write_json(beside, whole.to_json())
    folder.write_atomic(path, markdown(whole.rows))
    return beside


def _is_same(known: CertifiedRow, new: CertifiedRow, given: str) -> bool:
    """Whether a row is of the same run folder and certificate; of earlier versions the name of the run is known."""
    if known.folder is None:
        return known.how == new.how and known.run in (new.run, given)
    return (known.folder, known.how) == (new.folder, new.how)


def markdown(rows: Sequence[CertifiedRow]) -> str:
    """The table as Markdown, a column per radius in ascending order, and what it rests on below."""
    radii: list[float] = []
    for l2 in sorted(entry.l2 for r in rows for entry in r.certified):
        if not radii or not _belongs(l2, radii[-1]):
            radii.append(l2)
    shape = rows[0].images.shape
    dim = math.prod(shape or ())
    headings = [f"l2 {at_most(r)} = {linf_ball(r / math.sqrt(dim), shape)} (%)" for r in radii]
    head = ["run", "certificate", "clean, network (%)", "clean, smoothed (%)", *headings, "s / image"]
    shown = []
    for r in rows:
        cells = [_cell(next((e for e in r.certified if _belongs(e.l2, x)), None)) for x in radii]
        seconds = max(entry.seconds for entry in r.certified)
        base = [f"{r.run} ({r.trained})", r.how, _figure(r.clean), _figure(r.smoothed)]
        shown.append([*base, *cells, f"{seconds:.3g}"])
    lines = markdown_table(head, shown, left=2)
    about = rows[0].provenance
    lines += [
        "",
        f"{_images(rows[0].images)}. In brackets: 95 % intervals over the choice of test images.",
        "A column's linf ball lies within its l2 ball: smoothing and bounds in l2 certify both, bounds in linf the linf"
        " ball alone.",
        "Clean, smoothed: accuracy of the smoothed network, abstentions wrong; it certifies no radius.",
        f"Hardware: {about['device_name']}, {about['threads']} threads; seconds of wall time. Commit:"
        f" {', '.join(dict.fromkeys(str(r.provenance['commit']) for r in rows))}.",
    ]
    lines += [f"Warning: {r.run}, {r.how}: {r.hint}." for r in rows if r.hint]
    return "\n".join(lines) + "\n"


def _belongs(l2: float, column: float) -> bool:
    return column <= l2 <= column * (1 + _SAME)


def _how(found: SmoothingFile | SequentialFile | BoundsFile) -> str:
    if isinstance(found, BoundsFile):
        return f"{found.method}, {' and '.join(dict.fromkeys(at.threat.norm for at in found.certified))}"
    sampling = found.sampling
    n = f"n {sampling['n']:,}"
    if isinstance(found, SequentialFile):
        n = f"sequential at {at_most(sampling['radius'])}, n {sampling['n']:,} at most"
    return f"{found.method}, sigma {sampling['sigma']:.3g}, {n}, alpha {sampling['alpha']:g}"


def _images(images: Samples) -> str:
    return f"{images.name}, {images.split} images: {images.text}"


def _which(images: Samples) -> tuple[Any, ...]:
    """The key that identifies the images of a certificate, in all versions of the file."""
    return _images(images), images.shape


def _figure(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _cell(entry: CertifiedEntry | None) -> str:
    if entry is None:
        return "-"
    return _figure(entry.share) + (" linf only" if entry.norm == "linf" else "")
