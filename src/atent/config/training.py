"""The options of `atent train` and `atent compare`: a recipe's own settings, and any of them changed."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from atent.config.recipes import SECTIONS, UsageError, job, method_of, read_recipe, settings_of
from atent.config.words import read_words, seconds, spelled, switched
from atent.messages import unknown

if typing.TYPE_CHECKING:
    from atent.experiments.pipeline import Job


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What `atent train` takes beside the settings of the job."""

    name: str | None = None
    """Name of the run folder; left out: the recipe's name, numbered where it is taken."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    resume: str | None = None
    """Go on with this run folder, with its own settings."""
    baseline: bool = False
    """Train the same network plainly as well, print both, and fail unless the robust model is better for certain."""
    allow_large_eps: bool = False
    """Insist on an eps that covers the whole box: linf of its width or more, l2 of its diagonal or more."""
    quiet: bool = False
    """No progress bar."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions(TrainOptions):
    """What `atent train --resume RUN` takes."""

    model: str | None = None
    """For a run that was trained from Python: what builds its network, as module:function or by name."""
    data: str | None = None
    """For one that was trained on tensors: module:function that gives its data, as atent.data.from_tensors does."""
    root: str | None = None
    """Folder that holds the data; default: as the run had it."""


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """What `atent compare` takes beside the settings of the jobs."""

    recipes: tyro.conf.Positional[tuple[str, ...]]
    """Recipes to compare, two or more, by name or as .toml files. Any setting of `atent train`, such as --train.epochs
    5 or --data.limit 500, may follow and holds for all."""
    seeds: int = 3
    """Number of seeds: every recipe is trained once with each."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    name: str | None = None
    """Name of the result folder; left out: compare, numbered where it is taken. The same command again goes on."""
    runs: str = "runs"
    """Folder that holds the result folder."""
    jobs: int = 1
    """Trainings at once; each then gets its share of the CPU cores."""
    budget: str | None = None
    """Give each training this time, such as 10m, 90s or 1h30m, instead of equal epochs: the time of its steps, with
    schedules stretched to fit. The table says how many epochs each came to."""
    allow_large_eps: bool = False
    """Insist on an eps that covers the whole box: linf of its width or more, l2 of its diagonal or more."""
    beside: str | None = None
    """Result folder of an earlier comparison, to be drawn beside this one in pareto.png."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("first_seed", 0), ("jobs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def parse_train(args: list[str]) -> tuple[Job | None, ResumeOptions]:
    """The job and the options of `atent train ...`; no job with --resume. UsageError in one line."""
    if any(a == "--resume" or a.startswith("--resume=") for a in args):
        about = "Train by a recipe, or resume a run."
        return None, read_words(ResumeOptions, spelled(args, {}), "atent train", about)
    args = spelled(args)
    name = next((a for a in args if not a.startswith("-")), None) if args and not args[0].startswith("-") else None
    if name is None:
        if args and args[0] in ("-h", "--help"):
            # Without a recipe the fields of the method are not known: show those of the default one.
            name = "digits-linf-atent"
            args = [name, *args]
        else:
            raise UsageError("which recipe? `atent train RECIPE`; `atent recipes` lists them")
    tables = read_recipe(name)
    args = switched(tables, args[1:])
    default = job(tables, name if not name.endswith(".toml") else Path(name).stem)
    starts = {s: getattr(default, s) for s in SECTIONS} | {"method": settings_of(default.method)}
    fields: list[Any] = [
        (section, Annotated[type(start), tyro.conf.FlagConversionOff], start) for section, start in starts.items()
    ]
    command = dataclasses.make_dataclass(
        "command",
        [(name, kind, dataclasses.field(default=value)) for name, kind, value in fields],
        bases=(TrainOptions,),
        frozen=True,
    )
    start = command(baseline=bool(tables.get("baseline", False)))
    about = f"Train by the recipe {name}: {tables.get('about', 'no description')}."
    parsed = read_words(command, args, f"atent train {name}", about, start)
    chosen = {section: getattr(parsed, section) for section in SECTIONS}
    made = dataclasses.replace(default, **{**chosen, "method": method_of(parsed.method)})
    if parsed.allow_large_eps:
        made = _insisting(made)
    return made, ResumeOptions(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(TrainOptions)})


def _insisting(job: Job) -> Job:
    """The same job, with permission for an eps that covers the whole box."""

    def allowed(method: Any) -> Any:
        if hasattr(method, "method"):  # AWP goes around the method whose threat this is
            return dataclasses.replace(method, method=allowed(method.method))
        if getattr(method, "threat", None) is None:
            return method
        return dataclasses.replace(method, threat=dataclasses.replace(method.threat, allow_large_eps=True))

    evaluate = dataclasses.replace(job.evaluate, allow_large_eps=True)
    return dataclasses.replace(job, method=allowed(job.method), evaluate=evaluate)


def parse_compare(args: list[str]) -> tuple[CompareOptions, dict[str, Job], tuple[str, ...]]:
    """The options of `atent compare ...`, each recipe's job, and the words that override their settings.

    UsageError, in one line, for what `parse_train` refuses, fewer than two recipes, and one recipe twice.
    """
    known = [f"--{f.name}" for f in dataclasses.fields(CompareOptions) if f.name != "recipes"]
    own: list[str] = []
    overrides: list[str] = []
    into = own
    for word in spelled(args):
        if word.startswith("--") or word == "-h":
            option = word.partition("=")[0]
            into = overrides if "." in option else own
            if option in ("--train.seed", "--train-seed"):
                raise UsageError("--train.seed is given by the comparison: use --first_seed and --seeds")
            plain = option.replace("-", "_").replace("__", "--", 1)
            if into is own and plain not in (*known, "--no_quiet", "--help", "_h"):
                raise UsageError(unknown("option", option, [*known, *(f"--{s}" for s in SECTIONS)]))
        into.append(word)
    options = read_words(
        CompareOptions, own, "atent compare", "Train recipes alike, over several seeds, into one table."
    )
    if options.budget is not None:
        overrides += ["--train.minutes", f"{seconds(options.budget, '--budget') / 60:.9g}"]
    if options.allow_large_eps:
        overrides.append("--allow_large_eps")
    if len(options.recipes) < 2:
        raise UsageError("a comparison needs two recipes or more: `atent compare RECIPE RECIPE ... [OPTIONS]`")
    jobs: dict[str, Job] = {}
    names: dict[str | None, str] = {}
    for recipe in options.recipes:
        try:
            made, _ = parse_train([recipe, *overrides])
        except UsageError as error:
            raise UsageError("\n".join(f"{recipe}: {line}" for line in str(error).splitlines())) from None
        assert made is not None
        if made.recipe in names:
            first = names[made.recipe]
            raise UsageError(
                f"recipe {recipe} is given twice: leave one out" if first == recipe else
                f"recipes {first} and {recipe} have the same name: rename one of the files"
            )  # fmt: skip
        names[made.recipe] = recipe
        jobs[recipe] = made
    return options, jobs, tuple(overrides)
