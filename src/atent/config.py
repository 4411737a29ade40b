"""From a recipe and the command line to the plain settings that the rooms define.

Recipes are TOML. Their values are checked by pydantic against the rooms' dataclasses; the command line is made by
tyro from the same dataclasses, with the recipe's values as defaults. Nothing here imports torch until a job is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import re
import sys
import tomllib
import typing
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from atent.run import unknown

if typing.TYPE_CHECKING:
    from atent.train.pipeline import Job

_SECTIONS = ("data", "model", "method", "optimizer", "schedule", "train", "evaluate")
_HEAD = ("about", "aims", "baseline")


class UsageError(ValueError):
    """A recipe or a command line that cannot be used; each line of the message is one error."""


# ---- recipes ---------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(f.name[:-5] for f in resources.files("atent.recipes").iterdir() if f.name.endswith(".toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The tables of a recipe, by name or by the path of a .toml file; UsageError in one line."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no recipe file {name}: give a path that exists, or one of the names of `atent recipes`")
        text = path.read_text()
    elif name in recipe_names():
        text = (resources.files("atent.recipes") / f"{name}.toml").read_text()
    else:
        raise UsageError(unknown("recipe", name, recipe_names()))
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name} is not valid TOML: {error}") from None
    for key in tables:
        if key not in (*_HEAD, *_SECTIONS):
            raise UsageError(f"recipe {name}: {unknown('table', key, (*_SECTIONS, *_HEAD))}")
    return tables


def job(tables: dict[str, Any], recipe: str | None) -> Job:
    """The job that a recipe's tables describe; UsageError with a line for every value that is wrong, by its path."""
    from atent.data import DataSettings
    from atent.methods import METHODS
    from atent.models import ModelSettings
    from atent.optim import Optimizer, Schedule
    from atent.train.pipeline import Job
    from atent.train.settings import TrainSettings
    from atent.train.subject import EvaluateSettings

    types: dict[str, type] = {
        "data": DataSettings, "model": ModelSettings, "optimizer": Optimizer, "schedule": Schedule,
        "train": TrainSettings, "evaluate": EvaluateSettings,
    }  # fmt: skip
    method = dict(tables.get("method", {}))
    name = method.pop("name", None)
    if name is None:
        raise UsageError(f"method.name is missing: use one of {', '.join(METHODS)}")
    if name not in METHODS:
        raise UsageError(f"method.name: {unknown('method', name, METHODS)}")
    types["method"] = _method_type(name)
    built, errors = {}, []
    for section, cls in types.items():
        values = method if section == "method" else tables.get(section, {})
        found = _unknown_fields(cls, values, section)
        if found:
            errors += found
            continue
        built[section], wrong = _validated(cls, values, section)
        errors += wrong
    if errors:
        raise UsageError("\n".join(errors))
    return Job(recipe=recipe, **{**built, "method": _method(built["method"])})


@functools.cache
def _method_type(name: str) -> type:
    """The settings of a method as a recipe has them: with a table ``awp`` where AWP goes around it."""
    from atent.methods import METHODS
    from atent.methods.awp import AROUND, Perturbation

    cls = METHODS[name]
    if name not in AROUND:
        return cls
    awp = ("awp", Perturbation, dataclasses.field(default=Perturbation()))
    space = {"__doc__": cls.__doc__}
    return dataclasses.make_dataclass(name, [awp], bases=(cls,), frozen=True, namespace=space)


def _method(settings: Any) -> Any:
    """The method that such settings ask for."""
    from atent.methods import AWP

    if not hasattr(settings, "awp"):
        return settings
    fields = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "awp"}
    inner = type(settings).__mro__[1](**fields)
    return AWP(inner, settings.awp.gamma, settings.awp.warmup) if settings.awp.gamma else inner


def _method_settings(method: Any) -> Any:
    """The settings that make ``method``."""
    from atent.methods import AWP
    from atent.methods.awp import Perturbation

    inner, awp = method, {}
    if isinstance(method, AWP):
        inner, awp = method.method, {"awp": Perturbation(method.gamma, method.warmup)}
    fields = {f.name: getattr(inner, f.name) for f in dataclasses.fields(inner)}
    return _method_type(type(inner).__name__)(**fields, **awp)


def _unknown_fields(cls: type, values: Any, path: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{path} must be a table, got {values!r}"]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    errors = []
    for key, value in values.items():
        if key not in names:
            errors.append(f"{path}.{key}: {unknown('field', key, names)}")
        elif dataclasses.is_dataclass(hints[key]):
            errors += _unknown_fields(hints[key], value, f"{path}.{key}")
    return errors


def _validated(cls: type, values: dict[str, Any], path: str) -> tuple[Any, list[str]]:
    """The dataclass, or a line for each value of the wrong type or out of range."""
    import pydantic

    try:
        # As JSON, strictly: "5" is no number and true is no 1, but a list may be a tuple.
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(values), strict=True), []
    except pydantic.ValidationError as error:
        lines: dict[str, str] = {}
        for e in error.errors():
            # The branches of a union each report; the path without their names is the field's.
            where = ".".join(str(p) for p in e["loc"] if not re.search(r"[\[\]-]|^(float|str|int|none)$", str(p)))
            message = e["msg"].removeprefix("Value error, ").removeprefix("Input ")
            got = "" if e["type"] in ("value_error", "missing") else f", got {e['input']!r}"
            lines.setdefault(where, f"{path}{'.' + where if where else ''}: {message}{got}")
        return None, list(lines.values())


# ---- the command line ------------------------------------------------------------------------------------


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
    quiet: bool = False
    """No progress bar."""


@dataclasses.dataclass(frozen=True)
class SubjectOptions:
    """Which model is judged on what: what `atent evaluate` and `atent attack` share."""

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE|MODULE:FUNCTION")]
    """What to judge: a run folder (the path that training printed); a .safetensors file, with --data and, unless
    training wrote it, --model; or your own network as module:function, with --data. The function takes no arguments
    and returns an nn.Module from inputs in [0, 1] to logits."""
    data: str | None = None
    """Data set whose test images are used: digits, mnist, fashion-mnist, cifar10, moons, two-class, npz or folder. Not
    for a run, which brings its own."""
    model: str | None = None
    """Network that a .safetensors file holds the weights of, such as resnet20; or module:function."""
    norm: typing.Literal["linf", "l2"] | None = None
    """Norm of the threat; left out: the run's."""
    eps: str | None = None
    """Radius of the threat in pixel units, such as 0.3 or 8/255; left out: the run's."""
    which: typing.Literal["best", "last", "raw", "ema", "swa"] = "best"
    """Weights of a run's best epoch or of its last; of a run that averages them, raw, ema or swa: the best epoch of
    each kind."""
    weights: str | None = None
    """A .safetensors file of the same network, instead of the run's own weights."""
    limit: int | None = None
    """Number of test images, the first ones; left out: as the recipe, or 1000."""
    seed: int | None = None
    """Seed of the attacks' draws; left out: as the recipe, or 0."""
    batch: int | None = None
    """Images per batch; left out: as the recipe, or 250."""
    channels_last: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Images in the channels-last memory format: often faster for convolutions; left out: as the recipe, or false."""
    root: str | None = None
    """Folder that holds the data (npz: the file); left out: as the run had it."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    quiet: bool = False
    """No progress bar."""

    def subject(self) -> dict[str, Any]:
        """The keywords of `atent.train.subject.subject`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(SubjectOptions) if f.name != "quiet"}


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(SubjectOptions):
    """What `atent evaluate` takes."""

    attacks: tuple[str, ...] | None = None
    """Attacks, each written as a call, such as "PGD(steps=40, step_size=0.01, restarts=5)"; left out: the recipe's, or
    PGD with 20 steps and AutoAttack."""
    cascade: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Run the attacks from cheap to dear, each on what still stands, so that the last figure is the worst case; false:
    each attack alone, on every rightly classified image, as training reports it."""
    radii: tuple[str, ...] = ()
    """Also measure each attack alone at these radii, such as 2/255 4/255 8/255: a table and security.png."""
    checks: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Also look for masked gradients and weak attacks: a table of checks with their figures."""
    strict: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Exit with 1 where a check warns; implies --checks."""
    search_dtype: typing.Literal["bfloat16", "float16"] | None = None
    """Let the attacks search in half precision, faster on an accelerator; verdicts stay in float32."""
    out: str | None = None
    """JSON file to write; left out: evaluation.json in the run folder, beside the file, or in this folder for your own
    network, numbered where it is taken. While it works, the same name with .partial.jsonl holds what is done: after
    Ctrl-C or a kill the same command goes on from it."""


@dataclasses.dataclass(frozen=True)
class AttackOptions(SubjectOptions):
    """What `atent attack` takes."""

    attack: str = "PGD(steps=40)"
    """The attack, written as a call, such as "PGD(steps=40, restarts=5)" or AutoAttack."""
    out: str = "adversarial.npz"
    """File to write: x_adv, x, y, ids, success, predicted and norm as numpy arrays, and provenance as JSON text."""
    png: str | None = None
    """Also draw the first fooled images into this file: original, adversarial, difference."""


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
    beside: str | None = None
    """Result folder of an earlier comparison, to be drawn beside this one in pareto.png."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("first_seed", 0), ("jobs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def seconds(text: str, option: str) -> float:
    """A time such as 10m, 90s or 1h30m (a bare number is seconds) in seconds, above 0; UsageError in one line."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    total = sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
    if total < 1:
        raise UsageError(f"{option} {text!r} is no time: write it as 10m, 90s or 1h30m")
    return float(total)


def parse_train(args: list[str]) -> tuple[Job | None, TrainOptions]:
    """The job and the options of `atent train ...`; no job with --resume. UsageError in one line."""
    args = _spelled(args)
    if any(a == "--resume" or a.startswith("--resume=") for a in args):
        return None, _cli(TrainOptions, args, "atent train", "Train by a recipe, or go on with a run.")
    name = next((a for a in args if not a.startswith("-")), None) if args and not args[0].startswith("-") else None
    if name is None:
        if args and args[0] in ("-h", "--help"):
            # Without a recipe the fields of the method are not known: show those of the default one.
            name = "digits-linf-atent"
            args = [name, *args]
        else:
            raise UsageError("which recipe? `atent train RECIPE`; `atent recipes` lists them")
    tables = read_recipe(name)
    args = _switched(tables, args[1:])
    default = job(tables, name if not name.endswith(".toml") else Path(name).stem)
    starts = {s: getattr(default, s) for s in _SECTIONS} | {"method": _method_settings(default.method)}
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
    parsed = _cli(command, args, f"atent train {name}", about, start)
    chosen = {section: getattr(parsed, section) for section in _SECTIONS}
    made = dataclasses.replace(default, **{**chosen, "method": _method(parsed.method)})
    return made, TrainOptions(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(TrainOptions)})


def parse_compare(args: list[str]) -> tuple[CompareOptions, dict[str, Job], tuple[str, ...]]:
    """The options of `atent compare ...`, each recipe's job, and the words that override their settings.

    UsageError, in one line, for what `parse_train` refuses, fewer than two recipes, and one recipe twice.
    """
    known = [f"--{f.name}" for f in dataclasses.fields(CompareOptions) if f.name != "recipes"]
    own: list[str] = []
    overrides: list[str] = []
    into = own
    for word in _spelled(args):
        if word.startswith("--") or word == "-h":
            option = word.partition("=")[0]
            into = overrides if "." in option else own
            if option in ("--train.seed", "--train-seed"):
                raise UsageError("--train.seed is given by the comparison: use --first_seed and --seeds")
            plain = option.replace("-", "_").replace("__", "--", 1)
            if into is own and plain not in (*known, "--no_quiet", "--help", "_h"):
                raise UsageError(unknown("option", option, [*known, *(f"--{s}" for s in _SECTIONS)]))
        into.append(word)
    options = _cli(CompareOptions, own, "atent compare", "Train recipes alike, over several seeds, into one table.")
    if options.budget is not None:
        overrides += ["--train.minutes", f"{seconds(options.budget, '--budget') / 60:.9g}"]
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


@dataclasses.dataclass(frozen=True)
class CertifyOptions:
    """What `atent certify` takes."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders to certify, one or more: the paths that training printed."""
    method: typing.Literal["smoothing", "ibp", "crown-ibp", "crown", "dual"] = "smoothing"
    """Randomised smoothing, which certifies the network under noise, or bounds, which verify the network itself."""
    sigma: float | None = None
    """Standard deviation of the noise in pixel units; left out: what the run was trained with."""
    n: int = 100_000
    """Draws that estimate the share of the class."""
    n0: int = 100
    """Draws that choose the class."""
    alpha: float = 0.001
    """Probability, per image, that its certificate is wrong."""
    radius: tuple[str, ...] | None = None
    """Radii to report; refused where n draws cannot reach them. Smoothing: l2, left out: multiples of sigma. Bounds: in
    the run's norm, left out: its eps."""
    norm: typing.Literal["linf", "l2"] | None = None
    """Norm of the bounds; left out: the run's. Smoothing is l2."""
    limit: int | None = 200
    """Number of test images, the first ones; none: all."""
    shard: str | None = None
    """i/k: certify the images i::k only, into a file of their own; i counts from 0."""
    merge: bool = False
    """Join the shards of the same command into one certificate."""
    seed: int = 0
    """Seed of the noise."""
    which: typing.Literal["best", "last"] = "best"
    """Weights of the best epoch or of the last."""
    batch: int | None = None
    """Noisy images per forward; left out: 200 on the CPU, else 4,000."""
    compile: bool = False
    """Fuse the network by torch.compile first: worth its minute for a larger network (smoothing)."""
    root: str | None = None
    """Folder that holds the data; left out: as the run had it."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    plot: str | None = None
    """Draw certified accuracy against radius, one curve per run, into this .png or .svg file."""
    table: str | None = None
    """Write what was proved, a row per run, into this .md file and the .json beside it; rows that it holds stay, so
    that smoothing and bounds of several commands meet in one table."""
    quiet: bool = False
    """No progress bar."""


def parse_certify(args: list[str]) -> CertifyOptions:
    """The options of `atent certify RUN ...`; UsageError in one line."""
    words = ["--method" if a == "--method.name" else a.replace("--method.name=", "--method=") for a in _spelled(args)]
    options = _cli(CertifyOptions, words, "atent certify", "Prove how far a run's test images can be moved.")
    if not options.runs:
        raise UsageError("which run? `atent certify RUN [RUN ...]` takes the paths that training printed")
    return options


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """What `atent reproduce` takes."""

    what: tyro.conf.Positional[str]
    """table-s1, table-s2, table-s3, table-s4, figure-s1, figure-1, finetune, mnist; claims, which judges the paper's
    sentences by the tables that --out holds; or all."""
    scale: typing.Literal["smoke", "laptop", "paper"] = "smoke"
    """smoke: digits, minutes, shows that every part runs; laptop: 5,000 MNIST images and small networks, hours of CPU;
    paper: the paper's networks, data and epochs, which need an accelerator."""
    seeds: int | None = None
    """Trainings of each row; left out: 1, on the laptop 3, for figure-1 its own number."""
    time_limit: str | None = None
    """Stop cleanly after this time, such as 9m, 90s or 1h30m; exit status 1, and the same command goes on."""
    out: str = "results"
    """Folder for the tables and figures; those of one scale only."""
    runs: str = "runs/reproduce"
    """Folder that holds the trained networks and what was measured of them; finished ones are used again."""
    only: tuple[str, ...] = ()
    """Train and measure these rows alone, by the key that table-*.json gives them, such as atent."""
    quiet: bool = False
    """No progress bar."""

    def seconds(self) -> float | None:
        """The time limit; UsageError in one line."""
        if self.time_limit is None:
            return None
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", self.time_limit.strip())
        total = sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
        if total < 1:
            raise UsageError(f"--time-limit {self.time_limit!r} is no time: write it as 9m, 90s or 1h30m")
        return float(total)


def parse_reproduce(args: list[str]) -> ReproduceOptions:
    """The options of `atent reproduce ...`; UsageError in one line."""
    about = (
        "Train what a table of the paper needs, measure it under the published protocol and a sound one, and write the"
        " table: the paper's figure beside ours with its interval, protocol, scale, number of images, hardware and"
        " commit. Finished networks and measures are used again, so a long table survives short allocations. Exit"
        " status: 0 done, 1 failed or out of time, 2 not understood."
    )
    words = ["--time_limit" + a[12:] if a.startswith("--time-limit") else a for a in args]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        raise UsageError(
            "which table? `atent reproduce table-s1`, or figure-1, mnist, all: see `atent reproduce --help`"
        )
    return _cli(ReproduceOptions, words, "atent reproduce", about)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What `atent report` takes."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, one or more: the paths that training printed; or result folders of atent compare."""
    out: str | None = None
    """HTML file to write; left out: report.html in the folder where there is one, in this folder for several, numbered
    where it is taken."""
    images: int = 8
    """Test images of each run to show under attack, the first ones; 0: none. It needs the run's weights and data, and
    the page says why where they are not to be had."""
    root: str | None = None
    """Folder that holds the data (npz: the file); left out: as the run had it."""
    quiet: bool = False
    """No progress bar."""


def parse_report(args: list[str]) -> ReportOptions:
    """The options of `atent report RUN ...`; UsageError in one line."""
    about = (
        "Write one HTML file on a run, for a screen, a phone or paper: what was trained, the robust accuracy that may"
        " be claimed, each attack with its 95 % interval, training curves, radii, certificates, images under attack,"
        " checks, settings and provenance. Several runs stand side by side. The file holds everything and connects to"
        " nothing. No figure is measured anew: the page names what was not measured, and the command that measures it."
        " Exit status: 0 done, 1 failed, 2 not understood."
    )
    options = _cli(ReportOptions, _spelled(args, {}), "atent report", about)
    if not options.runs:
        raise UsageError("which run? `atent report RUN [RUN ...]` takes the paths that training printed")
    return options


@dataclasses.dataclass(frozen=True)
class TheoryOptions:
    """What `atent theory` takes."""

    target: tyro.conf.Positional[str]
    """A run folder, a .safetensors file, or module:function that builds a network."""
    data: str | None = None
    """Data set, such as digits or mnist; left out: the run's own."""
    model: str | None = None
    """Network that a .safetensors file holds, where it does not say."""
    root: str | None = None
    """Folder that holds the data; left out: as the run had it."""
    which: typing.Literal["best", "last"] = "best"
    """Weights of the best epoch or of the last."""
    limit: int = 50
    """Number of test images, the first ones; at least 4."""
    gamma: float = 10.0
    """Pull of the density on images, in the paper's scaling (per unit of step size); above 0."""
    temperature: float | None = None
    """T of the density; left out: gamma radius^2 / d, at which the Gaussian part alone reaches the radius."""
    radius: float | None = None
    """l2 radius that samples should reach; left out: the run's eps (linf: times sqrt(d)), or 1."""
    chains: int = 12
    """Chains for each mean, at least 3."""
    steps: int = 500
    """Kept steps of each chain with Metropolis' correction; the plain ones take six times as many."""
    samples: int = 20_000
    """Points at which Lemma B.1 is looked at."""
    seed: int = 0
    """Seed of every draw."""
    out: str | None = None
    """File to write; left out: theory.json in the run folder, numbered where it is taken. Pictures go beside it."""
    quiet: bool = False
    """Do not say which part is at work."""


def parse_theory(args: list[str]) -> TheoryOptions:
    """The options of `atent theory RUN ...`; UsageError in one line."""
    about = (
        "Check the statements of the paper's theory on a network and its data, each with the number of samples and an"
        " error bar: the lemma's constants, the normaliser, the gradients of both objectives, the sampler and its"
        " mixing, Entropy-SGD, PGD as ATENT without noise, and chains batch by batch. Statements that the supplement"
        " misprints stand as printed and mended. Sampled checks prove nothing, and say so. Exit status: 0 done, 1"
        " failed, 2 not understood."
    )
    return _cli(TheoryOptions, _spelled(args, {}), "atent theory", about)


def chains() -> dict[str, tuple[Any, bool]]:
    """{recipe: (resolved Langevin chain, whether the network is smooth)} of the package's recipes for ATENT."""
    found = {}
    for name in recipe_names():
        tables = read_recipe(name)
        if tables.get("method", {}).get("name") == "ATENT":
            made = job(tables, name)
            smooth = made.model.activation in ("softplus", "tanh")
            # AWP goes around the method whose chain this is.
            method: Any = getattr(made.method, "method", made.method)
            found[name] = (method.chain(), smooth)
    return found


def parse_evaluate(args: list[str]) -> EvaluateOptions:
    """The options of `atent evaluate RUN ...`; UsageError in one line."""
    about = (
        "Measure how a model holds on its test images: natural and robust accuracy with exact 95 % intervals, against"
        " true labels. The attacks run from cheap to dear, each on what the ones before left standing. A killed"
        " evaluation goes on where it was. Exit status: 0 done, 1 failed or, with --strict, a check warns, 2 not"
        " understood."
    )
    return _cli(EvaluateOptions, _spelled(args, {}), "atent evaluate", about)


def parse_attack(args: list[str]) -> AttackOptions:
    """The options of `atent attack RUN ...`; UsageError in one line."""
    about = (
        "Attack a model's test images and keep the results as an .npz file, and as a picture. Every image is attacked,"
        " also one that the model gets wrong by itself; success is judged on the stored image, against its true label."
    )
    return _cli(AttackOptions, _spelled(args, {}), "atent attack", about)


_SHORT = {f"--{s}": f"--{s}.name" for s in ("method", "model", "data", "optimizer")}
# The field cannot have the name of the function that it asks for.
_SHORT["--method.calibrate"] = "--method.calibrated"

# Where "none" is one of the names to choose from.
_NAMED_NONE = ("--train.average", "--optimizer.walk.scale")


def _spelled(args: list[str], short: dict[str, str] = _SHORT) -> list[str]:
    """Bare section names mean their `name`, and values are spelled as Python has them."""
    words = {"true": "True", "false": "False", "none": "None", "null": "None"}
    out: list[str] = []
    for a in args:
        head, eq, tail = a.partition("=") if a.startswith("--") else (a, "", "")
        for word in (head, tail) if eq else (a,):
            named = bool(out) and out[-1] in _NAMED_NONE
            out.append(word if named else words.get(short.get(word, word), short.get(word, word)))
    return out


def _switched(tables: dict[str, Any], args: list[str]) -> list[str]:
    """Handle --method.name: another method keeps the recipe's fields that it knows; returns the other arguments."""
    if "--method.name" not in args:
        return args
    from atent.methods import METHODS

    at = args.index("--method.name")
    if at + 1 == len(args):
        raise UsageError(f"--method.name needs a value: one of {', '.join(METHODS)}")
    name = args[at + 1]
    if name not in METHODS:
        raise UsageError(f"--method.name: {unknown('method', name, METHODS)}")
    known = {f.name for f in dataclasses.fields(_method_type(name))}
    old = tables["method"]
    if name != old["name"]:
        dropped = [k for k in old if k not in known and k != "name"]
        if dropped:
            print(f"atent: {name} has no {', '.join(dropped)}: left out of the recipe's method", file=sys.stderr)
        tables["method"] = {"name": name, **{k: v for k, v in old.items() if k in known}}
    return args[:at] + args[at + 2 :]


def _cli(cls: type, args: list[str], prog: str, description: str, default: Any = None) -> Any:
    """Parse by tyro; what it prints of an error in a box is raised as one line instead."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            parsed, left = tyro.cli(
                cls, args=args, prog=prog, description=description, use_underscores=True,
                return_unknown_args=True, **({} if default is None else {"default": default}),
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(caught.getvalue())) from None
    for word in left:
        if word.startswith("-"):
            raise UsageError(unknown("option", word.partition("=")[0], _options(cls)))
    if left:
        raise UsageError(f"{left[0]!r} is one argument too many: options begin with --")
    return parsed


def _options(cls: type, prefix: str = "--") -> list[str]:
    """Every option of a command, for suggestions."""
    out = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        out += (
            _options(typing.cast(type, kind), f"{prefix}{f.name}.")
            if dataclasses.is_dataclass(kind)
            else [prefix + f.name]
        )
    return out


def _one_line(box: str) -> str:
    """The first sentence of tyro's error box."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯─ \t") for line in text.splitlines()]
    body = [line for line in lines[1:] if line]
    ends = (i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full helptext")))
    return " ".join(body[: next(ends, len(body))]).removeprefix("Error parsing ")
