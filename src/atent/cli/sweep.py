"""`atent sweep`: a recipe over a space of its settings."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import show
from atent.cli.parse import Name, Text, arg, read
from atent.experiments.recipe_files import UsageError

if typing.TYPE_CHECKING:
    from atent.experiments.results import SweepFile


def sweep(
    file: Annotated[tyro.conf.Positional[str], arg("FILE")],
    *,
    name: Name = None,
    runs: Annotated[str, arg("PATH")] = "runs",
    jobs: Annotated[int, arg("N")] = 1,
    backend: Annotated[str, arg("{local,ray,slurm}")] = "local",
    address: Text = None,
    cpus: Annotated[int, arg("N")] = 1,
    gpus: Annotated[float, arg("X")] = 0.0,
    slurm: Annotated[tuple[str, ...], arg("NAME=VALUE ...")] = (),
    quiet: bool = False,
    steal_lock: bool = False,
    json: bool = False,
    command: Annotated[str, tyro.conf.Suppress] = "",
) -> int:
    """Try a recipe's settings by trainings that are compared on the validation split, into one table.

    FILE is a .toml file: a recipe, [sweep] (sampler grid, random or tpe, pruner none or asha, trials, seeds, objective,
    epochs), [space] with the settings to try, and [set] with what is fixed. The test set is left alone: `atent evaluate
    RUN` evaluates the trial that you choose. The same command again resumes. Needs the extra: pip install
    'atent[sweep]'. Exit status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    file
        The sweep, as a .toml file.
    name
        Name of the result folder. Default: that of the file.
    runs
        Folder that holds the result folder.
    jobs
        Trainings at once; with one, the same file gives the same trials.
    backend
        Where the trainings run: processes of this machine, Ray tasks, or SLURM jobs (extras of the package).
    address
        With --backend ray: the cluster, such as auto. Default: one on this machine, for this command.
    cpus
        With --backend ray and slurm: CPUs of each training.
    gpus
        With --backend ray and slurm: GPUs of each training.
    slurm
        With --backend slurm: parameters of the jobs by submitit's names, such as partition=gpu timeout_min=240.
    quiet
        No progress: neither bar, lines nor estimate.
    steal_lock
        Take over the lock of a process on another host, which is known to be gone.
    json
        Print the result as JSON to standard output, and nothing else there.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    from atent.experiments import backends
    from atent.experiments.sweep.loop import run_sweep
    from atent.experiments.sweep.spec import read_sweep
    from atent.extras import extra
    from atent.runs import locks

    locks.steal(steal_lock)
    found = read_sweep(file)
    extra("optuna", "sweep", "atent sweep")
    place = backends.make(backend, at_once=jobs, address=address, cpus=cpus, gpus=gpus, slurm=slurm)
    with show.json_alone(json) as emit:
        path, result = run_sweep(
            found, runs=runs, name=name, backend=place, command=command, progress=not quiet,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
        _print(path, result)
        emit(result.to_json())
    return 0


def _print(path: Path, found: SweepFile) -> None:
    """The table, what stands below it, and what may follow."""
    from rich.table import Table

    from atent.experiments.sweep.collect import caption, layout

    headings, rows = layout(found)
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if row[-1] in ("best", "front") else "")
    print()
    show.print_table(table)
    print("\n".join(caption(found)))
    if found.best:
        run = next(trial for trial in found.trials if trial.number == found.best[0]).seeds[0].run
        print(f"next, once: atent evaluate {path / run}")
    print(f"\nresult folder: {path}")


def run(words: list[str]) -> int:
    """`atent sweep` of these words."""
    return sweep(**read(sweep, words, "atent sweep"), command=shlex.join(["atent", "sweep", *words]))
