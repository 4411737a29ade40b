"""`atent compare`: several recipes, each trained over several seeds under equal conditions."""

from __future__ import annotations

import itertools
import shlex
import typing
from pathlib import Path
from typing import Annotated

import tyro

from atent.cli import output
from atent.cli.jobs import jobs_of, with_sections
from atent.cli.parse import Flat, Name, Place, Text, arg, read
from atent.cli.trainings import TrainingsOptions
from atent.cli.width import screen
from atent.cli.words import help_wanted, hyphened, options_of, seconds, split_sections
from atent.experiments.recipe_files import SECTIONS, UsageError
from atent.fields import shown
from atent.messages import unknown

if typing.TYPE_CHECKING:
    from rich.table import Table

    from atent.experiments.comparison import Entry
    from atent.experiments.results import ComparisonFile


def compare(
    recipes: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("RECIPE|RUN ...")] = (),
    *,
    seeds: Annotated[int, arg("N")] = 3,
    first_seed: Annotated[int, arg("N")] = 0,
    name: Name = None,
    runs: Annotated[str, arg("PATH")] = "runs",
    trainings: Annotated[TrainingsOptions, Flat],
    budget: Text = None,
    allow_large_eps: bool = False,
    beside: Place = None,
    quiet: bool = False,
    steal_lock: bool = False,
    json: bool = False,
    fields: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
    command: Annotated[str, tyro.conf.Suppress] = "",
) -> int:
    """Train several recipes over several seeds, or compare trained runs; write one table with confidence intervals.

    Any field of a recipe, such as --train.epochs 5 or --data.limit 500, is also an option and applies to all recipes.
    Repeating the command resumes. Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    recipes
        Two or more recipes, by name or as .toml files; or run folders, which are compared on the images of their
        evaluations. Runs that differ only in the seed form one row.
    seeds
        Number of seeds; every recipe is trained once per seed.
    first_seed
        First seed; the others are consecutive.
    name
        Name of the result folder. Default: compare; a number is appended if it exists.
    runs
        Parent folder of the result folder.
    budget
        Train for equal time instead of equal epochs, such as 10m, 90s or 1h30m. Counts the time of training steps;
        schedules are scaled to fit, and the table reports the epochs completed.
    allow_large_eps
        Allow an eps that covers the entire box: linf at least its width, l2 and l1 at least its diagonal, l0 and patch
        at least the number of elements, pixels or patches of a sample.
    beside
        Result folder of an earlier comparison to include in pareto.png.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    json
        Print the comparison to standard output as a single JSON document; an error leaves it empty.
    """
    for option, value, least in (("--seeds", seeds, 1), ("--first-seed", first_seed, 0)):
        if value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
    from atent.experiments.sweep.spec import MOST_SEEDS

    if seeds > MOST_SEEDS:
        raise UsageError(f"--seeds must be at most {MOST_SEEDS:,}, got {shown(seeds)}")
    trainings.check()
    if any(map(_is_run, recipes)):
        return _finished(recipes, name=name, runs=runs, beside=beside, json=json, command=command)
    overrides = list(fields)
    if budget is not None:
        if any(word.partition("=")[0] == "--train.minutes" for word in fields):
            raise UsageError("--budget and --train.minutes are the same option: omit one")
        overrides += ["--train.minutes", f"{seconds(budget, '--budget') / 60:.9g}"]
    if len(recipes) < 2:
        raise UsageError("a comparison needs two or more recipes: write `atent compare RECIPE RECIPE ... [OPTIONS]`")
    made = jobs_of(recipes, overrides, allow_large_eps=allow_large_eps)
    if allow_large_eps:
        overrides.append("--allow_large_eps")
    from atent.experiments import compare as room
    from atent.experiments.plan import Plan
    from atent.experiments.recipes import job
    from atent.runs import locks

    locks.steal(steal_lock)
    place = trainings.place()
    with output.json_alone(json) as emit:
        plan = Plan(made, tuple(range(first_seed, first_seed + seeds)), tuple(overrides), command)
        path, found = room.compare(
            plan, runs=runs, name=name, backend=place, build=job, beside=beside, progress=not quiet,
            say=output.lines(quiet),
        )  # fmt: skip
        _print(path, found)
        emit(found.to_json())
    return 0


def _is_run(word: str) -> bool:
    return (Path(word) / "config.json").is_file()


def _finished(
    given: tuple[str, ...], *, name: str | None, runs: str, beside: str | None, json: bool, command: str
) -> int:
    """Compare run folders."""
    other = next((word for word in given if not _is_run(word)), None)
    if other is not None:
        raise UsageError(f"{other} is not a run folder, but other arguments are: give only recipes or only run folders")
    from atent.experiments.compare import written
    from atent.experiments.finished import compare_runs

    with output.json_alone(json) as emit:
        found = compare_runs(given, command=command)
        path = written(found, runs=runs, name=name, beside=beside)
        _print(path, found)
        emit(found.to_json())
    return 0


def _print(path: Path, found: ComparisonFile) -> None:
    """Print the table of a comparison, its footnotes and its folder."""
    from atent.experiments.comparison import caption, layout, paired_lines

    print()
    for table in tables(*layout(found), screen()):
        output.print_table(table)
    print("\n".join([*caption(found), *paired_lines(found)]))
    print(f"\nresult folder: {path}")


def tables(headings: list[str], rows: list[tuple[str, list[Entry]]], width: int) -> list[Table]:
    """A row per recipe if that fits into ``width`` columns; otherwise a column per recipe, in several tables if needed:
    a table that is too wide loses its figures."""
    from rich.table import Table
    from rich.text import Text as Cell

    from atent.cli.narrow import natural_width

    upright = Table()
    upright.add_column("recipe", no_wrap=True)
    for heading in headings:
        upright.add_column(heading, justify="right")
    for name, entries in rows:
        cells = (Cell(f"{e.text}\n{e.interval}".rstrip(), style="bold" if e.best else "") for e in entries)
        upright.add_row(name, *cells)
    if natural_width(upright) <= width:
        return [upright]
    # Borders and padding: 4 characters for the first column, 3 for every other one.
    room = width - 4 - max(map(len, headings))
    parts: list[list[tuple[str, list[Entry]]]] = [[]]
    for row in rows:
        if parts[-1] and sum(_columns(*other) + 3 for other in (*parts[-1], row)) > room:
            parts.append([])
        parts[-1].append(row)
    return [_by_recipe(headings, part) for part in parts]


def _columns(name: str, entries: list[Entry]) -> int:
    """Width of a recipe's column: its widest figure, or word of its name."""
    return max(map(len, [*(f"{e.text} {e.interval}".rstrip() for e in entries), *name.split()]))


def _by_recipe(headings: list[str], rows: list[tuple[str, list[Entry]]]) -> Table:
    """A column per recipe."""
    from rich.table import Table
    from rich.text import Text as Cell

    table = Table()
    table.add_column("recipe", no_wrap=True)
    for name, entries in rows:
        table.add_column(Cell(name), justify="right", width=_columns(name, entries))
    for heading, across in zip(headings, zip(*(entries for _, entries in rows))):
        cells = (Cell(f"{e.text} {e.interval}".rstrip(), style="bold" if e.best else "") for e in across)
        table.add_row(heading, *cells)
    return table


# Options of training, which do not apply to run folders.
_TRAINING = ("--seeds", "--first-seed", "--budget", "--allow-large-eps", *options_of(TrainingsOptions))


def _check_seeds(words: list[str]) -> None:
    """Raise UsageError for a list of seeds: the option is their number."""
    if "--seeds" not in words:
        return
    at = words.index("--seeds") + 1
    listed = list(itertools.takewhile(str.isdigit, words[at:]))
    if len(listed) > 1:
        first = min(map(int, listed))
        raise UsageError(
            f"--seeds must be the number of seeds, got {' '.join(listed)}: for the seeds from {first} on, write --seeds"
            f" {len(listed)} --first-seed {first}"
        )


def run(words: list[str]) -> int:
    """Run `atent compare` with these words, some of which set fields of all recipes."""
    own, fields = split_sections(words)
    if help_wanted(fields):
        own, fields = ["--help"], []
    seed = next((w for w in fields if hyphened(w.partition("=")[0]) in ("--train.seed", "--train-seed")), None)
    if seed or "--train-seed" in map(hyphened, own):
        raise UsageError("--train.seed is set by the comparison: use --first-seed and --seeds")
    _check_seeds(own)
    known = options_of(compare)
    if any(map(_is_run, own)):
        odd = [word.partition("=")[0] for word in (*own, *fields) if word.startswith("--")]
        idle = next((o for o in odd if "." in o or "--" + hyphened(o[2:]) in _TRAINING), None)
        if idle:
            raise UsageError(f"{idle} has no effect on run folders, which are trained: omit it, or give recipes")
    for word in own:
        option = "--" + hyphened(word.partition("=")[0][2:])
        if word.startswith("--") and option not in (*known, "--help", "--no-quiet", "--run"):
            if found := with_sections(own, known).get(option):
                raise UsageError(f"unknown option {option!r}: did you mean {found!r}?")
            raise UsageError(unknown("option", word.partition("=")[0], [*known, *(f"--{s}" for s in SECTIONS)]))
    command = shlex.join(["atent", "compare", *words])
    return compare(**read(compare, own, "atent compare"), fields=tuple(fields), command=command)
