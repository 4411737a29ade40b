"""`atent sweep`: searches a space of settings of a recipe."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import output
from atent.cli.parse import Flat, Name, arg, read
from atent.cli.trainings import TrainingsOptions
from atent.messages import quoted

if typing.TYPE_CHECKING:
    from atent.experiments.results import SweepFile


def sweep(
    file: Annotated[tyro.conf.Positional[str], arg("FILE")],
    *,
    name: Name = None,
    runs: Annotated[str, arg("PATH")] = "runs",
    trainings: Annotated[TrainingsOptions, Flat],
    quiet: bool = False,
    steal_lock: bool = False,
    json: bool = False,
    command: Annotated[str, tyro.conf.Suppress] = "",
) -> int:
    """Search the settings of a recipe by trainings that are compared on the validation split.

    FILE is a .toml file: a recipe, [sweep] (sampler grid, random or tpe, pruner none or asha, trials, seeds, objective,
    epochs), [space] with the settings to search, and [set] with fixed settings. The test set is not used: `atent
    evaluate RUN` evaluates the chosen trial. Repeating the command resumes. Needs an extra: pip install 'atent[sweep]'.
    Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    file
        The sweep as a .toml file.
    name
        Name of the result folder. Default: that of the file.
    runs
        Parent folder of the result folder.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    trainings.check()
    from atent.experiments.sweep.loop import run_sweep
    from atent.experiments.sweep.spec import read_sweep
    from atent.extras import extra
    from atent.runs import locks

    locks.steal(steal_lock)
    found = read_sweep(file)
    extra("optuna", "sweep", "atent sweep")
    place = trainings.place()
    with output.json_alone(json) as emit:
        path, result = run_sweep(
            found, runs=runs, name=name, backend=place, command=command, progress=not quiet,
            say=output.lines(quiet),
        )  # fmt: skip
        _print(path, result)
        emit(result.to_json())
    return 0


def _print(path: Path, found: SweepFile) -> None:
    """Print the table, its footnotes and the next command."""
    from rich.table import Table

    from atent.experiments.sweep.collect import caption, layout

    headings, rows = layout(found)
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if row[-1] in ("best", "front") else "")
    print()
    output.print_table(table)
    print("\n".join(caption(found)))
    if found.best:
        run = next(trial for trial in found.trials if trial.number == found.best[0]).seeds[0].run
        print(f"next: atent evaluate {quoted(path / run)}")
    print(f"\nresult folder: {path}")


def run(words: list[str]) -> int:
    """Run `atent sweep` with these words."""
    return sweep(**read(sweep, words, "atent sweep"), command=shlex.join(["atent", "sweep", *words]))
