"""The specification of a sweep, read from its file and validated before training."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atent import trust
from atent.experiments.recipe_files import UsageError, read_recipe, read_toml, with_method
from atent.experiments.recipes import job
from atent.experiments.sweep.space import Choice, Parameter, check_name, parameter, spelled
from atent.fields import shown
from atent.messages import unknown

if TYPE_CHECKING:
    from atent.experiments.job import Job

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "asha")
FIGURES = {
    "validation_robust": "maximize", "validation_clean": "maximize", "validation_certified": "maximize",
    "loss": "minimize", "seconds": "minimize", "memory_mb": "minimize",
}  # fmt: skip
"""Metrics of an epoch that may be an objective, with the direction of improvement."""
_TABLES = ("recipe", "sweep", "space", "set")
_KINDS: dict[str, tuple[type, str]] = {
    "sampler": (str, "a string"), "pruner": (str, "a string"), "trials": (int, "an integer"),
    "seeds": (int, "an integer"), "first_seed": (int, "an integer"), "seed": (int, "an integer"),
    "startup": (int, "an integer"), "rung": (int, "an integer"), "factor": (int, "an integer"),
    "certifier": (str, "a string"), "epochs": (int, "an integer"), "minutes": (float, "a number"),
}  # fmt: skip
_LEAST = {"trials": 1, "seeds": 1, "first_seed": 0, "seed": 0, "startup": 1, "rung": 1, "factor": 2, "epochs": 1}
_MOST_TRIALS = 100_000
MOST_SEEDS = 10_000
"""Largest number of seeds of a sweep or comparison, which lists them."""


@dataclass(frozen=True)
class Sweep:
    """The space and the objectives of one sweep."""

    name: str
    """That of the file."""
    recipe: str
    tables: dict[str, Any]
    """The recipe's, with what it extends and what [set] and the budget change."""
    space: tuple[Parameter, ...]
    objectives: dict[str, str]
    """Figures and their directions."""
    fixed: dict[str, Any]
    """[set], by path."""
    sampler: str = "tpe"
    pruner: str = "none"
    trials: int = 20
    seeds: int = 1
    first_seed: int = 0
    seed: int = 0
    """Seed of the sampler."""
    startup: int = 10
    """tpe: random trials before the model proposes."""
    rung: int = 1
    """asha: epochs before the first comparison; each later one comes after ``factor`` times as many."""
    factor: int = 3
    """asha: one in ``factor`` trials passes a comparison."""
    certifier: str = ""
    """Bounds of validation_certified."""

    @property
    def directions(self) -> list[str]:
        """The directions of the objectives."""
        return list(self.objectives.values())

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Every trial is trained once per seed."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """The settings of each trial of a grid, the last parameter changing fastest; UsageError for too many."""
        axes = [each.values if isinstance(each, Choice) else each.listed() for each in self.space]
        if math.prod(map(len, axes)) > _MOST_TRIALS:
            raise UsageError(f"the grid has {math.prod(map(len, axes)):,} trials, and {_MOST_TRIALS:,} are allowed")
        return [dict(zip((each.name for each in self.space), values)) for values in itertools.product(*axes)]

    def identity(self) -> dict[str, Any]:
        """The identity of the sweep as plain values; more trials may be requested later."""
        own = {key: getattr(self, key) for key in ("sampler", "pruner", "seeds", "first_seed", "seed")}
        own |= {"startup": self.startup} if self.sampler == "tpe" else {}
        own |= {"rung": self.rung, "factor": self.factor} if self.pruner == "asha" else {}
        own |= {"certifier": self.certifier} if self.certifier else {}
        space = {each.name: each.plain() for each in self.space}
        return {"recipe": self.tables, "objectives": self.objectives, "space": space, **own}

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's tables with the values of a trial."""
        return changed(self.tables, values)

    def job(self, values: Mapping[str, Any], name: str) -> Job:
        """The job of a trial; UsageError if the settings do not go together."""
        return job(self.settings(values), name)


def changed(tables: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with other values by their paths; another method keeps the fields that it has."""
    made: dict[str, Any] = {key: _copied(value) for key, value in tables.items()}
    for path in sorted(values, key=lambda each: each != "method.name"):
        if path == "method.name" and values[path] != made["method"]["name"]:
            with contextlib.redirect_stderr(io.StringIO()):
                # An unknown name is kept; the job reports it.
                made["method"] = {**with_method(made["method"], str(values[path])), "name": values[path]}
            continue
        section, *keys = path.split(".")
        inner = made.setdefault(section, {})
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{path}: {key} is not a table")
        inner[keys[-1]] = values[path]
    return made


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


# ---- reading -----------------------------------------------------------------------------------------------


def read_sweep(file: str) -> Sweep:
    """The sweep of a .toml file; UsageError, which names the file, if it is invalid."""
    path = Path(file)
    if path.suffix != ".toml" or not path.is_file():
        raise UsageError(f"no sweep file {file}: give the path of a .toml file that exists")
    try:
        return _read(read_toml("it", path), path.stem)
    except UsageError as error:
        raise UsageError("\n".join(f"sweep {file}: {line}" for line in str(error).splitlines())) from None


def _read(content: dict[str, Any], name: str) -> Sweep:
    for key in content:
        if key not in _TABLES:
            raise UsageError(unknown("table", key, _TABLES))
        if key != "recipe" and not isinstance(content[key], dict):
            raise UsageError(f"{key} must be a table, got {shown(content[key])}: write [{key}]")
    recipe = content.get("recipe")
    if not isinstance(recipe, str):
        raise UsageError('recipe is missing: give recipe = "NAME", or the path of a .toml file, as the first line')
    tables = read_recipe(recipe)
    own = _settings(content.get("sweep", {}))
    fixed = {spelled(key): value for key, value in _flat(content.get("set", {}))}
    for key in fixed:
        check_name(key)
    for key in ("epochs", "minutes"):
        if key in own:
            if f"train.{key}" in fixed:
                raise UsageError(f"[sweep] {key} and train.{key} in [set] set the same field: use one")
            fixed[f"train.{key}"] = own.pop(key)
    tables = {key: value for key, value in tables.items() if key not in ("about", "aims", "baseline")}
    tables = changed(tables, fixed)
    trust.grant(tables, own.get("certifier", ""))
    space = _space(content.get("space", {}), fixed)
    found = Sweep(name, recipe, tables, space, _objectives(own), fixed, **own)
    _check(found)
    if found.sampler == "grid":
        if own.get("trials", len(found.grid)) != len(found.grid):
            raise UsageError(f"the grid has {len(found.grid)} trials, not {own['trials']}: omit trials")
        return Sweep(name, recipe, tables, space, found.objectives, fixed, **{**own, "trials": len(found.grid)})
    return found


def _flat(table: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Nested tables by dotted path; "method.steps" = 5 and [set.method] steps = 5 are the same."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        whole = f"{path}.{key}" if path else key
        found += _flat(value, whole) if isinstance(value, dict) else [(whole, value)]
    return found


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """[sweep], its types and ranges checked; with objective and direction as they are."""
    names = (*_KINDS, "objective", "direction")
    for key, value in given.items():
        if key not in names:
            raise UsageError(f"[sweep]: {unknown('setting', key, names)}")
        if key not in _KINDS:
            continue
        kind, words = _KINDS[key]
        kinds = (int, float) if kind is float else (kind,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UsageError(f"[sweep] {key} must be {words}, got {shown(value)}")
        if key in _LEAST and given[key] < _LEAST[key]:
            raise UsageError(f"[sweep] {key} must be at least {_LEAST[key]}, got {value}")
    for key, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if key in given and given[key] not in allowed:
            raise UsageError(f"[sweep] {unknown(key, given[key], allowed)}")
    if given.get("trials", 1) > _MOST_TRIALS:
        raise UsageError(f"[sweep] trials must be at most {_MOST_TRIALS:,}, got {given['trials']:,}")
    if given.get("seeds", 1) > MOST_SEEDS:
        raise UsageError(f"[sweep] seeds must be at most {MOST_SEEDS:,}, got {shown(given['seeds'])}")
    if "epochs" in given and "minutes" in given:
        raise UsageError("[sweep] epochs and minutes exclude each other: use one")
    return dict(given)


def _objectives(own: dict[str, Any]) -> dict[str, str]:
    """The figures with their directions; takes both out of ``own``."""
    names = _texts("objective", own.pop("objective", "validation_robust"))
    ways = own.pop("direction", None)
    directions = [FIGURES.get(name, "") for name in names] if ways is None else _texts("direction", ways)
    for name in names:
        if name not in FIGURES:
            raise UsageError(f"[sweep] {unknown('objective', name, FIGURES)}")
        if names.count(name) > 1:
            raise UsageError(f"[sweep] objective lists {name} twice: omit one")
    if len(directions) != len(names):
        raise UsageError(f"[sweep] {len(names)} objectives and {len(directions)} directions: give one for each")
    for way in directions:
        if way not in ("maximize", "minimize"):
            raise UsageError(f"[sweep] {unknown('direction', way, ('maximize', 'minimize'))}")
    return dict(zip(names, directions))


def _texts(key: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise UsageError(f"[sweep] {key} must be a string, or a list of strings, got {shown(value)}")
    return found


def _space(given: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[Parameter, ...]:
    names = [spelled(key) for key in given]
    if not names:
        raise UsageError('[space] is empty: give a setting to try, such as "method.steps" = [5, 10]')
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"[space] has {name} twice: omit one")
        if name in fixed:
            raise UsageError(f"{name} is in [space] and also fixed by [set] or the budget: use one")
    return tuple(parameter(name, value) for name, value in zip(names, given.values()))


# ---- checking ----------------------------------------------------------------------------------------------


def _check(found: Sweep) -> None:
    """UsageError for settings that no trial could be trained or compared with."""
    jobs = [_tried(found, each, value) for each in found.space for value in each.ends]
    one = jobs[0]
    if any(type(each.method).__name__ == "ACL" for each in jobs):
        raise UsageError("ACL trains without labels and has no validation accuracy to compare: sweep another method")
    if found.pruner == "asha":
        if len(found.objectives) > 1:
            raise UsageError("pruner asha needs a single objective, got several: use pruner none")
        if one.train.minutes is not None:
            raise UsageError("pruner asha counts epochs: use [sweep] epochs instead of minutes")
        if found.rung >= min(each.train.epochs for each in jobs):
            raise UsageError(
                f"pruner asha compares first after {found.rung} epochs, and a training has {one.train.epochs}: give"
                " more epochs, or a smaller rung"
            )
    _check_certifier(found)
    if "validation_robust" in found.objectives or found.certifier:
        _check_threats(jobs, found)


def _check_certifier(found: Sweep) -> None:
    asked = "validation_certified" in found.objectives
    if asked != bool(found.certifier):
        raise UsageError(
            'objective validation_certified needs bounds: give [sweep] certifier = "crown-ibp", ibp, crown or dual'
            if asked else "[sweep] certifier needs objective validation_certified: omit it"
        )  # fmt: skip
    if asked:
        from atent.experiments.validated import check_certifier

        if found.pruner == "asha":
            raise UsageError("pruner asha compares epochs, and validation_certified is measured at the end: use none")
        try:
            check_certifier(found.certifier)
        except ValueError as error:
            raise UsageError(f"[sweep] {error}") from None


def _tried(found: Sweep, each: Parameter, value: Any) -> Job:
    """The job with one value, beside the first or the last values of the others: settings that exclude each other may
    both be in a space, and a trial of both fails."""
    first, last = ({other.name: other.ends[i] for other in found.space} for i in (0, -1))
    try:
        return found.job({**first, each.name: value}, found.name)
    except UsageError:
        with contextlib.suppress(UsageError):
            return found.job({**last, each.name: value}, found.name)
        raise


def _check_threats(jobs: list[Job], found: Sweep) -> None:
    """Raise UsageError if robust or certified accuracies would have no threat, or several."""
    from atent.experiments.plan import evaluated_under

    seen = {}
    for each in jobs:
        threat = getattr(each.method, "threat", None) or evaluated_under(each)
        unattacked = "validation_robust" in found.objectives and each.train.validate_attack.strip().lower() == "none"
        if threat is None or unattacked:
            raise UsageError(
                "validation_robust is not measured without a threat and train.validate_attack: set evaluate.norm and"
                " evaluate.eps in [set], or use objective validation_clean"
            )
        seen[repr(threat.plain())] = threat
    if len(seen) > 1:
        one, other = list(seen.values())[:2]
        raise UsageError(
            f"validation_robust would be under {one.norm} {one.eps} and {other.norm} {other.eps}, which are not"
            " comparable: remove the threat from [space], and run one sweep per threat"
        )
