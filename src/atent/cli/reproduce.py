"""`atent reproduce`: the paper's tables and figures again."""

from __future__ import annotations

import shlex
import typing
from typing import Annotated

import tyro

from atent.cli.parse import Number, Text, arg, read
from atent.cli.words import seconds
from atent.experiments.recipe_files import UsageError


def reproduce(
    what: Annotated[tyro.conf.Positional[str | None], arg("TABLE")] = None,
    *,
    scale: typing.Literal["smoke", "laptop", "cifar", "paper"] = "smoke",
    seeds: Number = None,
    time_limit: Text = None,
    out: Annotated[str, arg("PATH")] = "results",
    runs: Annotated[str, arg("PATH")] = "runs/reproduce",
    only: Annotated[tuple[str, ...], arg("ROW ...")] = (),
    quiet: bool = False,
    steal_lock: bool = False,
    command: Annotated[str, tyro.conf.Suppress] = "",
) -> int:
    """Train what a table of the paper needs, and write the table: the published figure beside ours.

    Ours is measured under the published protocol and under a sound one, with its interval, protocol, scale, number of
    images, hardware and commit. Finished networks and measurements are used again, so that a long table can be made in
    short sessions. Exit status: 0 done, 1 failed or out of time, 2 not understood.

    Parameters
    ----------
    what
        table-s1, table-s2, table-s3, table-s4, figure-s1, figure-1, finetune, mnist; claims, which evaluates the
        paper's sentences by the tables that --out holds; or all.
    scale
        smoke: digits, minutes, shows that every part runs; laptop: 5,000 MNIST images and small networks, hours of CPU;
        cifar: CIFAR-10 with ResNet-20 and short schedules, hours of CPU for each network; paper: the paper's networks,
        data and epochs, which need an accelerator.
    seeds
        Trainings of each row. Default: 1, at the laptop scale 3, for figure-1 its own number.
    time_limit
        Stop cleanly after this time, such as 9m, 90s or 1h30m; exit status 1, and the same command resumes.
    out
        Folder for the tables and figures; those of one scale only.
    runs
        Folder that holds the trained networks and what was measured of them; finished ones are used again.
    only
        Train and measure these rows alone, by the key that table-*.json gives them, such as atent.
    quiet
        No progress: neither bar, lines nor estimate.
    steal_lock
        Take over the lock of a process on another host, which is known to be gone.
    """
    if what is None:
        raise UsageError(
            "which table? `atent reproduce table-s1`, or figure-1, mnist, all: see `atent reproduce --help`"
        )
    limit = None if time_limit is None else seconds(time_limit, "--time-limit")
    from atent.experiments.recipe_files import read_recipe
    from atent.experiments.recipes import job
    from atent.paper.reproduce import reproduce as make
    from atent.runs import locks

    locks.steal(steal_lock)
    written = make(
        what, scale, build=job, read=read_recipe, seeds=seeds, time_limit=limit, out=out, runs=runs, only=only,
        progress=not quiet, say=lambda line: print(line, flush=True), command=command,
    )  # fmt: skip
    print(f"written: {', '.join(map(str, written))}")
    return 0


def run(words: list[str]) -> int:
    """`atent reproduce` of these words, which the results record."""
    return reproduce(**read(reproduce, words, "atent reproduce"), command=shlex.join(["atent", "reproduce", *words]))
