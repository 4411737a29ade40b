"""`atent bench`: benchmarks of this library on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro

from atent.cli import output
from atent.cli.parse import arg
from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.experiments.results import BenchFile


def bench(
    sections: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("SECTION ...")] = (),
    *,
    quick: bool = False,
    budget: Annotated[float | None, arg("MINUTES")] = None,
    network: Annotated[tuple[str, ...], arg("NAME ...")] = (),
    device: Annotated[str, arg("NAME")] = "cpu",
    threads: Annotated[int, arg("N")] = 1,
    out: Annotated[str | None, arg("PATH")] = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Benchmark this library on this machine against bare passes, other packages and the machine's peak.

    Measures in interleaved rounds; reports medians, quartiles, and ratios within a round with 95 % intervals, on the
    embedded digits and random images. Sections: methods (training methods relative to a bare loop of the same passes),
    atent (the structure of the authors' code relative to ATENT), attacks (foolbox, pyautoattack, adv-lib, ART and
    torchattacks, if installed, relative to this library), certify (smoothing and bounds relative to bare forward
    passes), growth (scaling exponents in K, batch, width and images), roofline (FLOP/s relative to the measured peak).
    Repeating an interrupted command on the same machine resumes. Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    sections
        Sections to measure. Default: all.
    quick
        Smaller problems; under two minutes for all sections.
    budget
        Wall-clock minutes for all sections; a measurement that exceeds its share takes only two rounds. Default: 20,
        with --quick 1.5.
    network
        Networks to measure; attacks always use digits_cnn. Default: small_cnn and resnet20, with --quick small_cnn.
    device
        cpu, cuda ... Ratios are of CPU seconds with one CPU thread (insensitive to other load), otherwise of wall-clock
        seconds.
    threads
        CPU threads.
    out
        Folder for bench.json, bench.md and bench.png. Default: bench; a number is appended if it exists.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    from atent import bench as room
    from atent.signals import resumed_by
    from atent.train.settings import pick_device

    try:
        plan = room.Plan(
            sections=tuple(dict.fromkeys(sections)) or room.SECTIONS, quick=quick, minutes=budget, networks=network,
            device=str(pick_device(device)), threads=threads,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    with (
        output.json_alone(json) as emit,
        resumed_by("repeat the command to resume"),
        room.folder_of(out, plan) as kept,
    ):
        found = room.run(plan, kept=kept, progress=not quiet)
        written = kept.finished(found)
        _print(found)
        print(f"\nwritten: {', '.join(map(str, written))}")
        emit(found.to_json())
    return 0


def _print(found: BenchFile) -> None:
    """Print a table for each section, with its footnotes."""
    from rich.table import Table

    from atent import bench as room

    print("\n".join(room.head(found)))
    for each in room.tables(found):
        print(f"\n{each.title}")
        for case, rows in each.cases.items():
            # Empty columns belong to other sections.
            used = [i for i, cells in enumerate(zip(*rows)) if any(cells)]
            table = Table(show_edge=False, pad_edge=False)
            for i in used:
                table.add_column(
                    each.headings[i] or case, justify="right" if i else "left", no_wrap=not i, overflow="fold"
                )
            for row in rows:
                table.add_row(*(row[i] for i in used))
            print()
            output.print_table(table)
        print("\n".join(["", *each.notes] if each.notes else []))
