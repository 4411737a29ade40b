"""Builds a job from a recipe and the fields that the command line changes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atent import trust
from atent.cli.parse import boxes, documented, parsed
from atent.cli.words import help_wanted, hyphened, options_of, spelled
from atent.experiments.recipe_files import SECTIONS, UsageError, read_recipe, with_method
from atent.experiments.recipes import job
from atent.messages import deprecated

if typing.TYPE_CHECKING:
    from atent.experiments.job import Job


# Former spellings of options.
_MOVED = {
    **{f"--method.awp.{name}": f"--train.awp.{name}" for name in ("gamma", "warmup")},
    "--method.pull": "--method.anchor",
}


def _with_present_values(words: list[str]) -> list[str]:
    """Replace the former value natural of --train.select by its current name."""
    out = list(words)
    for i, word in enumerate(words):
        if word == "--train.select=natural" or (word == "natural" and words[i - 1 : i] == ["--train.select"]):
            out[i] = word.replace("natural", "clean")
            deprecated("--train.select natural", "--train.select clean")
    return out


def recipe_job(
    recipe: str, words: list[str], *, prog: str, allow_large_eps: bool = False, shown: tuple[str, ...] = ()
) -> tuple[Job, bool]:
    """The job of a recipe with the fields that ``words`` set (``--train.epochs 5``), and whether the recipe also trains
    a baseline.

    ``shown``: the sections that help describes; default: all. UsageError, with one line per mistake. Raises SystemExit
    after help.
    """
    from atent.experiments.recipe_changes import file_of

    tables = read_recipe(recipe)
    # A recipe given by the user is trusted, together with the recipes that it extends.
    trust.grant(tables)
    file = file_of(recipe, tables)
    words = _switched(tables, words)
    match tables.get("method"):
        case {"threat": dict() as threat} if allow_large_eps:
            threat["allow_large_eps"] = True  # before the method is made, which refuses a step across the box
    default = job(tables, recipe if not recipe.endswith(".toml") else Path(recipe).stem)
    starts = {s: getattr(default, s) for s in shown or SECTIONS}
    sections = _sections(starts)
    known = options_of(sections)
    words = spelled(_with_present_values(words), known, sections=True, renamed=_MOVED)
    about = f"Recipe {recipe}: {tables.get('about', 'no description')}. Other options: `atent train --help`."
    about += " One section: --help optimizer."
    classes = [type(start) for start in starts.values()]

    def parse() -> Any:
        return parsed(sections, words, prog, known, description=about, default=sections(), registry=boxes())

    if help_wanted(words):
        with documented(classes):
            parse()
    found = parse()
    chosen = {section: getattr(found, section) for section in SECTIONS}
    made = dataclasses.replace(default, **chosen, recipe_file=file)
    return (_allowing(made) if allow_large_eps else made), bool(tables.get("baseline", False))


def _sections(starts: dict[str, Any]) -> type:
    """A dataclass of the sections of a recipe, whose options are those of its fields."""
    fields: list[Any] = [(s, type(start), dataclasses.field(default=start)) for s, start in starts.items()]
    return dataclasses.make_dataclass("sections", fields, frozen=True)


def with_sections(words: list[str], known: Iterable[str]) -> dict[str, str]:
    """For options in ``words`` that are not ``known``, the field of the recipe, one of the other words, that has the
    same name in a section: {"--lr": "--optimizer.lr"}. A group of fields, such as --schedule, means the first of
    them."""
    options = ["--" + hyphened(word.partition("=")[0][2:]) for word in words if word.startswith("--")]
    odd = [option for option in options if option not in {*known, "--help"}]
    if not odd:
        return {}
    default = _first_job(word for word in words if not word.startswith("-"))
    fields = list(options_of(_sections({section: getattr(default, section) for section in SECTIONS})))
    found = {}
    for option in odd:
        alike = [field for field in fields if field.endswith(f".{option[2:]}")]
        inside = [field for field in fields if f".{option[2:]}." in f".{field[2:]}"]
        if alike or inside:
            # The evaluation of a training has settings of the same names, by default those of the training.
            found[option] = min(alike or inside[:1], key=lambda f: (f.startswith("--evaluate."), f.count(".")))
    return found


def _first_job(words: Iterable[str]) -> Job:
    """The job of the first word that is a recipe; without one, a job with the fields of most recipes."""
    from atent.experiments.job import Job
    from atent.methods import PGDAT
    from atent.threat import Threat

    for word in words:
        with contextlib.suppress(ValueError, OSError):
            return job(read_recipe(word), None)
    return Job(None, PGDAT(Threat("linf", 0.1)))


def _switched(tables: dict[str, Any], words: list[str]) -> list[str]:
    """Handle --method.name: the new method keeps the recipe's fields that it also has. Returns the other words."""
    places = [i for i, w in enumerate(words) if w.partition("=")[0] in ("--method", "--method.name")]
    if not places:
        return words
    if len(places) > 1:
        raise UsageError(f"--method.name is given {len(places)} times: omit one")
    at = places[0]
    from atent.methods import METHODS
    from atent.methods.awp import may_perturb

    _, equals, name = words[at].partition("=")
    if not equals:
        if at + 1 == len(words):
            raise UsageError(f"--method.name needs a value: one of {', '.join(METHODS)}")
        name = words[at + 1]
    try:
        cls = METHODS.find(name)
    except ValueError as error:
        raise UsageError(f"--method.name: {error}") from None
    if name != tables["method"]["name"]:
        for around in ("awp", "embedding"):
            takes = may_perturb(cls) and (around == "awp" or cls.labelled)
            if not takes and tables.get("train", {}).pop(around, None):
                print(f"atent: {name} takes no {around}: removed from the recipe", file=sys.stderr)
        tables["method"] = with_method(tables["method"], name)
    return words[:at] + words[at + (1 if equals else 2) :]


def _allowing(made: Job) -> Job:
    """The same job, with permission for an eps that covers the entire box."""
    method: Any = made.method
    if getattr(method, "threat", None) is not None:
        method = dataclasses.replace(method, threat=dataclasses.replace(method.threat, allow_large_eps=True))
    evaluate = dataclasses.replace(made.evaluate, allow_large_eps=True)
    return dataclasses.replace(made, method=method, evaluate=evaluate)


def jobs_of(recipes: tuple[str, ...], words: list[str], *, allow_large_eps: bool = False) -> dict[str, Job]:
    """The job of each recipe of a comparison, with the same fields changed; UsageError for a repeated recipe."""
    made: dict[str, Job] = {}
    names: dict[str | None, str] = {}
    for recipe in recipes:
        try:
            each, _ = recipe_job(recipe, list(words), prog="atent compare", allow_large_eps=allow_large_eps)
        except UsageError as error:
            raise UsageError("\n".join(f"{recipe}: {line}" for line in str(error).splitlines())) from None
        if each.recipe in names:
            first = names[each.recipe]
            raise UsageError(
                f"recipe {recipe} is given twice: omit one" if first == recipe else
                f"recipes {first} and {recipe} have the same name: rename one of the files"
            )  # fmt: skip
        names[each.recipe] = recipe
        made[recipe] = each
    return made
