"""The plan of a comparison, and its folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.attacks.spec import spell
from atent.data.settings import READING
from atent.experiments.code_named import code_named
from atent.experiments.job import Job
from atent.experiments.recipe_files import SECTIONS, flat
from atent.experiments.target import recipe_attacks, threat_of
from atent.messages import shared_settings
from atent.runs.checkpoint import STATE
from atent.runs.manifest import read_json
from atent.threat import EXTRA, Threat
from atent.train.fingerprint import edited

PLAN = "plan.json"
NAME = "compare"

Build = Callable[[dict[str, Any], str | None], Job]
"""build(tables, recipe): the job that a saved configuration describes."""


@dataclass(frozen=True)
class Plan:
    """The jobs, seeds and overrides of one comparison."""

    jobs: dict[str, Job]
    """Each recipe's job, overrides applied, by the recipe as it was given (a name or a path)."""
    seeds: tuple[int, ...]
    """Every job is trained once with each."""
    overrides: tuple[str, ...] = ()
    """The words that gave the overrides, to be handed on."""
    command: str = ""
    """The command line, for the record."""

    def runs(self, path: Path) -> list[Run]:
        """All runs, in the order in which they are trained: seed by seed."""
        return [
            Run(given, seeded(job, seed), path / f"{job.recipe}-seed{seed}")
            for seed in self.seeds
            for given, job in self.jobs.items()
        ]

    def code(self) -> dict[str, str]:
        """`code_named` by the settings of the trainings. The attacks of the evaluations may change: a finished run is
        evaluated again by them."""
        used = [job.sections() for job in self.jobs.values()]
        return code_named([{key: table for key, table in each.items() if key != "evaluate"} for each in used])


@dataclass(frozen=True)
class Run:
    """One training of a comparison."""

    given: str
    """The recipe as it was given."""
    job: Job
    path: Path

    @property
    def log(self) -> Path:
        """Where its output goes: beside the run folder."""
        return self.path.with_name(self.path.name + ".log")


def agree(jobs: Mapping[str, Job]) -> None:
    """ValueError, in one line with the fix, unless the jobs may be compared.

    Data settings (root and augment aside), network, epochs (or minutes), batch size, and the evaluation's attacks,
    threat, number of images and seed must be the same.
    """
    for name, job in jobs.items():
        _check_radii(name, job)
    (first, one), *others = jobs.items()
    for name, other in others:
        a, b = _common(one), _common(other)
        differ = {key: (a[key], b[key]) for key in a if a[key] != b[key]}
        evaluated = ("evaluate.norm", "evaluate.eps", *(f"evaluate.{name}" for name in EXTRA))
        if not any(key in differ for key in evaluated) and _attacks(one) != _attacks(other):
            differ["evaluate.attacks"] = (one.evaluate.attacks, other.evaluate.attacks)
        if differ:
            differences = ", ".join(f"{key} ({_word(x)} and {_word(y)})" for key, (x, y) in differ.items())
            fix = " ".join(f"--{key} {_word(y if x is None else x)}" for key, (x, y) in differ.items())
            raise ValueError(
                f"recipes {first} and {name} differ in {differences}: give both the same, such as by {fix}"
            )


def _common(job: Job) -> dict[str, Any]:
    """The settings that the jobs of a comparison must share, by option; the attacks are compared by `_attacks`."""
    threat = evaluated_under(job)
    return {
        **{f"data.{k}": v for k, v in asdict(job.data).items() if k not in (*READING, "augment")},
        **{f"model.{k}": v for k, v in asdict(job.model).items()},
        # With a time budget, epochs only define the schedule.
        "train.epochs": job.train.epochs if job.train.minutes is None else None,
        "train.minutes": job.train.minutes,
        "train.batch_size": job.train.batch_size,
        "evaluate.norm": threat and threat.norm,
        "evaluate.eps": threat and threat.eps,
        "evaluate.threats": job.evaluate.threats,
        **{f"evaluate.{name}": threat and threat.extra().get(name) for name in EXTRA},
        "evaluate.limit": job.evaluate.limit,
        "evaluate.seed": job.evaluate.seed,
    }


def evaluated_under(job: Job) -> Threat | None:
    own = getattr(job.method, "threat", None)
    # The box is the data's, which is not loaded yet; a method that has a threat must have that box.
    return threat_of(own, own.box if own else (0.0, 1.0), job.evaluate)


def _check_radii(name: str, job: Job) -> None:
    """ValueError, with the recipe's name, for a linf eps that covers the box, before a folder is made.

    Only if the method defines the box: other boxes are those of the data, which each training checks after loading.
    """
    own = getattr(job.method, "threat", None)
    if own is None or job.data.units == "spread":
        return
    evaluated = threat_of(own, own.box, job.evaluate)
    # Several threats bring attacks of their own.
    attacks = [] if job.evaluate.threats else recipe_attacks(job.evaluate, evaluated)
    for threat in (own, evaluated, *(attack.threat for attack in attacks)):
        if threat is not None and threat.norm == "linf":
            try:
                threat.check_eps((len(own.box[0]),) if isinstance(own.box[0], tuple) else (1,))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def _attacks(job: Job) -> list[str]:
    """The attacks in a canonical spelling, independent of their order."""
    threat = evaluated_under(job)
    return sorted(spell(attack, threat=True) for attack in recipe_attacks(job.evaluate, threat))


def _word(value: Any) -> str:
    """A value in the spelling of the command line."""
    if isinstance(value, tuple | list):
        return shlex.join(map(str, value))
    return "none" if value is None else shlex.quote(str(value))


def seeded(job: Job, seed: int) -> Job:
    return replace(job, train=replace(job.train, seed=seed))


# ---- the folder ------------------------------------------------------------------------------------------


def place(runs: str | Path, name: str | None, plan: Plan, build: Build) -> Path:
    """The folder to work in: a free one, or that of an earlier comparison that ``plan`` resumes.

    Without a name: that of the same comparison, else the first free one of compare, compare-2 ... A folder that is
    named may be widened by recipes and seeds. ValueError if it holds anything else. Runs that the user's code trained
    before an edit are another comparison.
    """
    free = folder.free_name(runs, name or NAME)
    if name is None:
        own = re.compile(rf"{NAME}(-\d+)?")
        for path in sorted(p.parent for p in Path(runs).glob(f"{NAME}*/{PLAN}")):
            saved = folder.read_json(path / PLAN)
            same = saved["seeds"] == list(plan.seeds) and set(saved["jobs"]) == {j.recipe for j in plan.jobs.values()}
            if own.fullmatch(path.name) and same and not (_plan_differs(saved, plan, build) or _edited(saved, plan)):
                return path
        return free
    path = Path(runs) / name
    if path == free:
        return path
    if not (path / PLAN).is_file():
        raise FileExistsError(f"{path} exists and is not a comparison: choose another --name")
    saved = folder.read_json(path / PLAN)
    differs = _plan_differs(saved, plan, build)
    if differs:
        raise ValueError(f"{path} is a comparison with other settings ({differs}): choose another --name")
    if changed := _edited(saved, plan):
        raise ValueError(f"{path} has runs of other code ({changed}): restore it, or choose another --name")
    missing = [r for r in saved["jobs"] if r not in {j.recipe for j in plan.jobs.values()}]
    missing += [f"seed {k}" for k in saved["seeds"] if k not in plan.seeds]
    if missing:
        raise ValueError(
            f"{path} is a comparison with {', '.join(missing)}, which this command omits:"
            " choose another --name, or add what is missing"
        )
    return path


def _plan_differs(saved: dict[str, Any], plan: Plan, build: Build) -> str:
    for job in plan.jobs.values():
        if job.recipe in saved["jobs"]:
            differs = _differs(saved["jobs"][job.recipe], seeded(job, saved["seeds"][0]), build)
            if differs:
                return f"{job.recipe}: {differs}"
    return ""


def _edited(saved: dict[str, Any], plan: Plan) -> str | None:
    """The user's modules whose source is not that of the trainings; None if there is none."""
    # Plans of earlier versions record no code.
    return edited(saved.get("code") or {}, plan.code())


def _differs(saved: dict[str, Any], job: Job, build: Build, aside: tuple[str, ...] = ()) -> str:
    """The first setting in which a saved configuration differs from ``job``: "train.epochs 1, not 2"; "" for none.

    The sections ``aside`` do not count.
    """
    try:
        with shared_settings():
            before = build({s: folder.completed(saved)[s] for s in SECTIONS}, saved["recipe"])
    except (KeyError, ValueError) as error:
        return f"not to be read: {str(error).splitlines()[0]}"
    own = getattr(before.method, "threat", None)
    old, new = _flat(before), _flat(job.within(own.box) if own else job)
    for key in [*new, *(k for k in old if k not in new)]:
        if key.partition(".")[0] not in aside and old.get(key) != new.get(key):
            return f"{key} {_word(old.get(key))}, not {_word(new.get(key))}"
    return ""


def _flat(job: Job) -> dict[str, Any]:
    """A job's settings by their options, as JSON has them, without those that only say where it runs."""
    return flat(json.loads(folder.dumps(job.sections())))


def state(run: Run, build: Build, aside: tuple[str, ...] = ()) -> str:
    """new, started or finished; ValueError if the folder holds something else.

    Settings of the sections ``aside`` may differ.
    """
    path = run.path
    if not path.exists():
        return "new"
    if not (path / folder.CONFIG).is_file():
        if folder.is_free(path):
            return "new"
        raise FileExistsError(f"{path} exists and is not a run folder: choose another --name")
    differs = _differs(read_json(path / folder.CONFIG), run.job, build, aside)
    if differs:
        raise ValueError(f"{path} was trained with other settings ({differs}): choose another --name")
    if (path / folder.EVALUATION).is_file():
        return "finished"
    return "started" if (path / folder.LAST / STATE).is_file() else "new"
