"""`atent show`: the files of a run with their checksums, or the contents of a weights file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atent.cli import output
from atent.cli.parse import Place, arg

if TYPE_CHECKING:
    from atent.experiments.weights_file import WeightsFile


def show(
    run: Annotated[tyro.conf.Positional[str], arg("RUN|FILE|zoo:NAME|hub:USER/NAME")],
    *,
    root: Place = None,
    accept: Annotated[tuple[str, ...], arg("FILE ...")] = (),
    json: bool = False,
) -> int:
    """List the files of a run and of its data and verify their SHA-256 checksums; for a weights file, show its
    checksum, architecture and tensors.

    A file of a run is whole (its checksum is the recorded one), damaged (it differs), missing, or not covered by the
    run's manifest. Exit status: 0 no file is damaged or missing, 1 at least one is, 2 invalid usage.

    Parameters
    ----------
    run
        A run folder, a network as zoo:NAME or hub:USER/NAME, or a weights file.
    root
        Folder of the data (npz: the file), as --data.root. Default: the run's.
    accept
        Record the current state of these files as correct, such as config.json after an edit, or a file that was moved
        away on purpose.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    from rich.table import Table

    from atent.experiments.inventory import accept_files, inventory
    from atent.runs.foreign import is_weights

    with output.json_alone(json) as emit:
        if is_weights(run) and not Path(run).is_dir():
            emit(_weights(Path(run), root, accept))
            return 0
        accept_files(run, accept)
        found = inventory(run, root)
        counts = Counter(entry.state for entry in (*found.files, *found.data))
        print(f"{found.run}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
        table = Table(title=f"{found.run}, run {found.id or 'without id'}", title_justify="left")
        for heading in ("file", "state", "SHA-256"):
            table.add_column(heading, overflow="fold")
        for place, entries in (("", found.files), ("data: ", found.data)):
            for entry in entries:
                table.add_row(f"{place}{entry.name}", entry.state, entry.sha256 or "")
        output.print_table(table)
        emit(found)
    return 0 if found.whole else 1


def _weights(path: Path, root: str | None, accept: tuple[str, ...]) -> WeightsFile:
    """Print the contents of a weights file; ValueError for options of run folders."""
    from rich.table import Table

    from atent.experiments.weights_file import described

    for option, given in (("--root", root), ("--accept", accept)):
        if given:
            raise ValueError(f"{option} has no effect on {path}, a weights file: omit it")
    found = described(path)
    print(f"{found.file}, {found.bytes:,} bytes, {found.format}\nSHA-256  {found.sha256}")
    print(f"network  {found.architecture}")
    if found.normalisation is not None:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in found.normalisation)
        print(f"inputs   normalised inside, mean {mean}, std {std}")
    for network in found.networks:
        where = f"at {network.place}: " if network.place else ""
        table = Table(title=f"{where}{len(network.keys)} tensors, {network.numbers:,} numbers", title_justify="left")
        for heading in ("key", "shape", "dtype"):
            table.add_column(heading, overflow="fold")
        for key in network.keys:
            table.add_row(key.name, " x ".join(map(str, key.shape)), key.dtype)
        output.print_table(table)
    return found
