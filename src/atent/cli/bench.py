"""`atent bench`: how fast this library is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro

from atent.cli import show
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
    """Measure how fast this library is on this machine, beside bare passes, other packages and the machine's peak.

    Interleaved rounds, medians and quartiles, ratios within a round with their 95 % intervals. The embedded digits and
    random images serve; nothing is downloaded. Sections: methods (each training method over the bare loop of its
    passes), atent (the structure of the authors' code over ATENT), attacks (those of foolbox, pyautoattack, adv-lib,
    ART and torchattacks, where installed, over this library's), certify (smoothing and bounds over bare forwards),
    growth (exponents in K, batch, width and images), roofline (FLOP/s of passes below the measured peak). What is
    measured when it is interrupted is kept: the same command, on the same machine, resumes. Exit status: 0 done, 1
    failed, 2 not understood.

    Parameters
    ----------
    sections
        What to measure. Default: all.
    quick
        Smaller problems, and under two minutes for all sections.
    budget
        Minutes by the clock for all sections; what is longer than its share is measured in two rounds. Default: 20,
        with --quick 1.5.
    network
        Networks to measure, but for attacks, which have digits_cnn. Default: small_cnn and resnet20, with --quick
        small_cnn.
    device
        cpu, cuda ... On the CPU with one thread ratios are of CPU seconds, which other work hardly stretches;
        otherwise of wall seconds.
    threads
        CPU threads.
    out
        Folder to write bench.json, bench.md and bench.png to. Default: bench, numbered where it is taken.
    quiet
        No progress: neither bar, lines nor estimate.
    json
        Print the result as JSON to standard output, and nothing else there.
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
        show.json_alone(json) as emit,
        resumed_by("the same command resumes"),
        room.folder_of(out, plan) as kept,
    ):
        found = room.run(plan, kept=kept, progress=not quiet)
        written = kept.finished(found)
        _print(found)
        print(f"\nwritten: {', '.join(map(str, written))}")
        emit(found.to_json())
    return 0


def _print(found: BenchFile) -> None:
    """A table for each section, and what stands below it."""
    from rich.table import Table

    from atent import bench as room

    print("\n".join(room.head(found)))
    for each in room.tables(found):
        print(f"\n{each.title}")
        for case, rows in each.cases.items():
            # Columns that are empty in this case are another's.
            used = [i for i, cells in enumerate(zip(*rows)) if any(cells)]
            table = Table(show_edge=False, pad_edge=False)
            for i in used:
                table.add_column(
                    each.headings[i] or case, justify="right" if i else "left", no_wrap=not i, overflow="fold"
                )
            for row in rows:
                table.add_row(*(row[i] for i in used))
            print()
            show.print_table(table)
        print("\n".join(["", *each.notes] if each.notes else []))
