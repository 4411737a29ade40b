"""`atent reproduce`: reproduces the paper's tables and figures."""

from __future__ import annotations

import shlex
import typing
from typing import Annotated

import tyro

from atent.cli import output
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
    """Train the networks of a table of the paper and write the table, with published and measured figures side by side.

    Accuracies are measured under the published protocol and under a sound one, and reported with interval, protocol,
    scale, number of images, hardware and commit. Finished networks and measurements are reused, so that a long table
    can be completed in short sessions. Exit status: 0 success, 1 failure or time limit reached, 2 invalid usage.

    Parameters
    ----------
    what
        table-s1, table-s2, table-s3, table-s4, figure-s1, figure-1, finetune, mnist; claims, which evaluates the
        paper's claims against the tables in --out; or all.
    scale
        smoke: digits, minutes; checks that every part runs. laptop: 5,000 MNIST images and small networks, hours of
        CPU. cifar: CIFAR-10 with ResNet-20 and short schedules, hours of CPU per network. paper: the paper's networks,
        data and epochs; needs a GPU.
    seeds
        Trainings per row. Default: 1; 3 at the laptop scale; figure-1 has its own number.
    time_limit
        Stop after this time, such as 9m, 90s or 1h30m, with exit status 1; repeating the command resumes.
    out
        Folder for the tables and figures of one scale.
    runs
        Folder of the trained networks and their measurements; finished ones are reused.
    only
        Train and measure only these rows, by their keys in table-*.json, such as atent.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    """
    if what is None:
        raise UsageError(
            "no table given: write `atent reproduce table-s1`, or figure-1, mnist, all; see `atent reproduce --help`"
        )
    limit = None if time_limit is None else seconds(time_limit, "--time-limit")
    from atent.experiments.recipe_files import read_recipe
    from atent.experiments.recipes import job
    from atent.paper.reproduce import reproduce as make
    from atent.runs import locks

    locks.steal(steal_lock)
    written = make(
        what, scale, build=job, read=read_recipe, seeds=seeds, time_limit=limit, out=out, runs=runs, only=only,
        progress=not quiet, say=output.lines(quiet), command=command,
    )  # fmt: skip
    print(f"written: {', '.join(map(str, written))}")
    return 0


def run(words: list[str]) -> int:
    """Run `atent reproduce` with these words, which the results record."""
    return reproduce(**read(reproduce, words, "atent reproduce"), command=shlex.join(["atent", "reproduce", *words]))
