"""Comparison of finished runs, trained from recipes or from Python by `atent.train.fit`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent import trust
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.data import Limit
from atent.experiments.collect import Row, assembled, code_of_run, evaluation_of, seed_result
from atent.experiments.evaluation import Request, evaluate_target
from atent.experiments.interrupted import note_unfinished
from atent.experiments.recipe_files import SECTIONS, flat
from atent.experiments.results import ComparisonFile, EvaluationFile
from atent.experiments.target import load_target
from atent.runs.manifest import write_json
from atent.threat import Threat

# Sections of a configuration that identify a run; the place and the seed do not.
_APART = ("train.seed", "train.device", "data.builder", "model.builder")


@dataclass(frozen=True)
class _Made:
    """One finished run."""

    path: Path
    config: dict[str, Any]
    evaluation: EvaluationFile
    unfinished: str | None
    """A line if its training is unfinished."""

    @property
    def seed(self) -> int:
        return int(self.config["train"]["seed"])

    @property
    def title(self) -> str:
        """The method's name, for tables."""
        awp = (self.config["train"].get("awp") or {}).get("gamma")
        return f"{self.config['method']['name']}{'-AWP' if awp else ''}"

    def settings(self) -> dict[str, Any]:
        """The key that groups runs that differ only in the seed."""
        plain = json.loads(folder.dumps({s: self.config[s] for s in SECTIONS if s in self.config}))
        found = {key: value for key, value in flat(plain).items() if not key.startswith(_APART)}
        about = self.config["about"]["data"]
        return {"recipe": self.config.get("recipe"), **found, "data.counts": about["counts"]["train"]}


def compare_runs(
    runs: Sequence[Any] | Mapping[str, Any],
    *,
    attacks: Sequence[str] | None = None,
    limit: Limit = None,
    model: str | None = None,
    data: str | None = None,
    root: str | None = None,
    device: str = "auto",
    progress: bool = False,
    command: str = "compare_runs",
    trust_code: bool = False,
) -> ComparisonFile:
    """Compare finished runs on the test images of their evaluations, as `atent compare` does.

    Parameters
    ----------
    runs
        Run folders, or what `fit` and `run_job` return for one; runs that differ only in the seed form one row,
        named by their recipe or method. Or a mapping from the name of a row to its run, or its runs.
    attacks, limit, model, data, root, device, progress
        How a run without evaluation.json is evaluated, each attack alone, as `load_target` takes them. The result is
        written into its folder. A run that was evaluated by other ``attacks``, or on another number of images than
        ``limit`` asks for, is refused.
    command
        What the result says that it was made by.
    trust_code
        Let runs from other machines import the code that they name; required for those without evaluation.json.

    Returns
    -------
    ComparisonFile
        Means and intervals over the seeds, and in ``pairs`` the differences with their tests; ``differs`` names the
        settings beside the method in which the runs differ, and files of yours that were edited between them.

    Raises
    ------
    FileNotFoundError
        For what is not a run folder.
    ValueError
        For fewer than two rows, a row without runs, rows of different seeds, and evaluations that differ
        in their images, attacks or seed.

    Examples
    --------
    >>> from atent.experiments.finished import compare_runs
    >>> compare_runs({"one": []})
    Traceback (most recent call last):
    ...
    ValueError: a row needs at least one run, got none for one
    """
    how = {
        "attacks": attacks, "limit": limit, "model": model, "data": data, "root": root, "device": device,
    }  # fmt: skip
    if isinstance(runs, str | os.PathLike):
        raise ValueError(
            f"runs must be a list of runs or a mapping from names to runs, got {str(runs)!r} alone: give two or more"
        )
    with trust.fenced(attacks, model, data, trust_code=trust_code):
        return _compared(_groups(runs, how, progress), command)


def _compared(groups: dict[str, list[_Made]], command: str) -> ComparisonFile:
    """The comparison of the rows; ValueError for what cannot be compared."""
    if len(groups) < 2:
        raise ValueError(
            f"a comparison needs two or more rows, got {len(groups)}: runs that differ only in the seed form one row;"
            " give runs of other settings too (in Python a mapping from names to runs makes other rows)"
        )
    _check(groups)
    every = [made for row in groups.values() for made in row]
    networks = dict.fromkeys(str(m.config["model"].get("name") or m.config["model"]["class"]) for m in every)
    return assembled(
        [_row(name, row) for name, row in groups.items()], command=command, at_once=1, model=" and ".join(networks),
        epochs=_common(every, "epochs"), minutes=_common(every, "minutes"), batch_size=_common(every, "batch_size"),
        differs=_differing(groups),
    )  # fmt: skip


def _groups(runs: Sequence[Any] | Mapping[str, Any], how: dict[str, Any], progress: bool) -> dict[str, list[_Made]]:
    """The runs of each row by its name."""
    if isinstance(runs, Mapping):
        named = {name: each if isinstance(each, list | tuple) else [each] for name, each in runs.items()}
        empty = [str(name) for name, row in named.items() if not row]
        if empty:
            raise ValueError(f"a row needs at least one run, got none for {', '.join(empty)}")
        return {name: [_made(run, how, progress) for run in each] for name, each in named.items()}
    return _grouped([_made(run, how, progress) for run in runs])


def _common(runs: list[_Made], key: str) -> Any:
    """A setting of the training, None if the runs differ in it."""
    values = {made.config["train"].get(key) for made in runs}
    return values.pop() if len(values) == 1 else None


def _made(run: Any, how: dict[str, Any], progress: bool) -> _Made:
    path = _path(run)
    if not (path / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{folder.no_run(path)}: give a folder that training wrote")
    folder.admit(path)
    config = folder.read_config(path / folder.CONFIG)
    unfinished = note_unfinished(path)
    if not (path / folder.EVALUATION).is_file():
        found = evaluate_target(load_target(str(path), **how), Request(cascade=False), progress=progress)
        write_json(path / folder.EVALUATION, found.to_json())
    made = _Made(path, config, evaluation_of(path), unfinished)
    _check_attacks(made, how["attacks"])
    _check_limit(made, how["limit"])
    return made


def _check_limit(made: _Made, limit: Limit) -> None:
    """Raise ValueError for a run that was evaluated on another number of images than requested."""
    data = made.evaluation.data
    wanted = data.of if limit == "all" else data.n if limit is None else min(limit, data.of)
    if data.n != wanted:
        raise ValueError(
            f"{made.path} was evaluated already, on {data.n:,} images, got limit {limit}: omit limit, or move its"
            f" {folder.EVALUATION} away"
        )


def _check_attacks(made: _Made, wanted: Sequence[str] | None) -> None:
    """Raise ValueError for a run that was evaluated by other attacks than requested."""
    found = {attack.attack: attack.threat.threat() for attack in made.evaluation.attacks.values()}
    if wanted is None or set(wanted) == set(found):
        return
    threat = next(iter(found.values()), None)
    if {spell(parse(text, threat, ATTACKS)) for text in wanted} != set(found):
        raise ValueError(
            f"{made.path} was evaluated already, by {', '.join(found) or 'no attack'}, got attacks {', '.join(wanted)}:"
            f" omit attacks, or move its {folder.EVALUATION} away"
        )


def _path(run: Any) -> Path:
    """The folder of a run: its path, or that of what training gave back."""
    if isinstance(run, str | os.PathLike):
        return Path(run)
    path = getattr(run, "path", None) or getattr(run, "run", None)
    if path is None:
        raise ValueError(
            f"a run must be a folder or a training result with a folder, got a {type(run).__name__}: train with"
            " fit(..., run='runs/NAME')"
        )
    return Path(path)


def _grouped(made: list[_Made]) -> dict[str, list[_Made]]:
    """Rows by name; where two have the same, with their methods, or else with the settings in which they differ."""
    alike: dict[str, list[_Made]] = {}
    for run in made:
        alike.setdefault(json.dumps(run.settings(), sort_keys=True), []).append(run)
    rows = list(alike.values())
    names = [str(row[0].config.get("recipe") or row[0].title) for row in rows]
    labels = [_label(name, row[0], [r[0] for r, n in zip(rows, names) if n == name]) for name, row in zip(names, rows)]
    # Of two rows with the same label one would be lost; their folders always differ.
    return {label if labels.count(label) == 1 else f"{label} ({row[0].path})": row for label, row in zip(labels, rows)}


def _label(name: str, run: _Made, alikes: list[_Made]) -> str:
    """The name of the row of ``run`` among all ``alikes`` of the same name."""
    same = [other.settings() for other in alikes if other.title == run.title]
    own = run.settings()
    keys = [key for key in own if any(other.get(key) != own[key] for other in same)]
    more = ", ".join(f"{key.partition('.')[2]} {own[key]}" for key in keys[:3])
    return f"{name}{f' ({more})' if more else ''}{f' ({run.title})' if len(same) < len(alikes) else ''}"


def _check(groups: dict[str, list[_Made]]) -> None:
    """ValueError unless the runs were evaluated alike and each row has the same seeds."""
    (first, one), *_ = groups.items()
    seeds = sorted(made.seed for made in one)
    for name, row in groups.items():
        own = sorted(made.seed for made in row)
        if len(set(own)) < len(own):
            twice = [str(made.path) for made in row if own.count(made.seed) > 1]
            raise ValueError(f"{' and '.join(twice)} have the same seed: give one of them, or names for both")
        if own != seeds:
            raise ValueError(
                f"{first} was trained with the seeds {_list(seeds)}, {name} with {_list(own)}: give the same seeds of"
                " each"
            )
        for made in row:
            for what, value in _evaluated(made).items():
                if value != _evaluated(one[0])[what]:
                    raise ValueError(f"{one[0].path} and {made.path} differ in {_difference(one[0], made, what)}")


def _difference(a: _Made, b: _Made, what: str) -> str:
    """In what two evaluations differ, and what to do: a clause each."""
    data = [str(made.config["data"].get("name") or made.config["about"]["data"].get("source")) for made in (a, b)]
    if what == "images" and data[0] != data[1]:
        return f"their data ({', '.join(data)}): give runs of the same data"
    threats = [", ".join(dict.fromkeys(t.threat.text for t in made.evaluation.attacks.values())) for made in (a, b)]
    if what == "attacks" and threats[0] != threats[1]:
        return (
            f"the threat of their evaluations ({' and '.join(threats)}): evaluate both in one, by"
            " `atent evaluate RUN --norm NORM --eps EPS`"
        )
    return f"the {what} of their evaluations: move {folder.EVALUATION} away in both, and evaluate them alike"


def _evaluated(made: _Made) -> dict[str, Any]:
    """The settings that the evaluations of a comparison must share."""
    found, about = made.evaluation, made.config["about"]["data"]
    # Tensors of two trainings may be different ones under the same numbers.
    digest = about.get("digest") if about.get("source") == "tensors" else None
    attacks = {name: (a.attack, a.threat) for name, a in found.attacks.items()}
    return {
        "images": (found.data, digest), "attacks": attacks, "cascade": found.cascade, "precision": found.search_dtype,
        "seed": found.seed,
    }  # fmt: skip


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _row(name: str, row: list[_Made]) -> Row:
    row = sorted(row, key=lambda made: made.seed)
    last = all((made.config.get("evaluate") or {}).get("last", False) for made in row)
    seeds = [seed_result(made.path, made.seed, made.evaluation, last=last) for made in row]
    threat = row[0].config["method"].get("threat")
    plain = Threat(**threat).plain() if threat else None
    unfinished = [made.unfinished for made in row if made.unfinished]
    code = [code_of_run(made.config) for made in row]
    return Row(name, row[0].title, plain, seeds, [made.evaluation for made in row], unfinished, code)


def _differing(groups: dict[str, list[_Made]]) -> list[str]:
    """The settings beside the method in which the rows differ, with their values."""
    settings = [row[0].settings() for row in groups.values()]
    out = []
    for key in dict.fromkeys(key for each in settings for key in each):
        values = list(dict.fromkeys(json.dumps(each.get(key)) for each in settings))
        if len(values) > 1 and not key.startswith(("method.", "recipe", "evaluate.")):
            out.append(f"{key} ({', '.join(value.strip(chr(34)) for value in values)})")
    return out
