"""Reads a run folder or a comparison folder into plain data; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.certify.rows import read_rows
from atent.data.described import unspan
from atent.experiments import migrate
from atent.experiments.comparison import caveat_of
from atent.experiments.recorded import names_data, names_model
from atent.experiments.results import (
    CertificateFile,
    ComparisonFile,
    EvaluationFile,
    SmoothingFile,
    SweepFile,
    TheoryFile,
    TransferFile,
)
from atent.messages import quoted
from atent.runs import manifest
from atent.runs.checkpoint import check_best
from atent.runs.foreign import is_weights
from atent.runs.manifest import read_json
from atent.runs.names import results_in

COMPARISON = "comparison.json"
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Certificate:
    """The content of one certificate file."""

    content: CertificateFile
    """The content of certificate.json."""
    radii: tuple[float, ...] | None
    """Smoothing: the certified radius of each image, -1 where its class is wrong; None without the rows."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    name: str
    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """The rows of metrics.jsonl, none where it is absent."""
    evaluations: dict[str, EvaluationFile]
    """Each evaluation*.json by its file name; evaluation.json first."""
    certificates: dict[str, Certificate]
    """Each finished certificate by its file name."""
    unfinished: tuple[str, ...] = ()
    """Unfinished certificates."""
    theories: dict[str, TheoryFile] = field(default_factory=dict)
    """Each theory*.json by its file name."""
    transfers: dict[str, TransferFile] = field(default_factory=dict)
    """Each transfer*.json by its file name."""
    model: str | None = None
    """The network as the user named it, if the run does not record it."""
    data: str | None = None
    """The data as the user named them, likewise."""
    interrupted: str | None = None
    """A line if the training is unfinished."""

    @property
    def headline(self) -> str | None:
        """The file whose robust accuracy says most: the one with the lowest upper limit, as each is an upper bound on
        what a perfect attack would leave; of those that evaluate the best epoch's weights under the first one's
        threat."""
        return headline({name: f for name, f in self.evaluations.items() if f.of_best} or self.evaluations)

    @property
    def leading(self) -> str | None:
        """The file that the page leads with: see `leading`; of those that evaluate the best epoch's weights."""
        return leading({name: f for name, f in self.evaluations.items() if f.of_best} or self.evaluations)

    @property
    def titled(self) -> dict[str, EvaluationFile]:
        """The evaluations by title, the leading one first."""
        files = sorted(self.evaluations, key=lambda name: name != self.leading)
        out: dict[str, EvaluationFile] = {}
        for name in files:
            title = said = title_of(self.evaluations[name])
            number = 1
            while title in out:
                number += 1
                title = f"{said} ({number})"
            out[title] = self.evaluations[name]
        return out

    @property
    def evaluated(self) -> EvaluationFile | None:
        """The content of the headline's file."""
        return self.evaluations[self.headline] if self.headline is not None else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept as the best."""
        best = next((row["epoch"] for row in reversed(self.rows) if row.get("best")), None)
        return best if best is not None or self.evaluated is None else self.evaluated.epoch


def headline(found: dict[str, EvaluationFile]) -> str | None:
    """The name of the evaluation with the lowest upper limit, of those under the threats of the first one that has
    attacks."""
    threats = next((f.threats for f in found.values() if f.attacks), [])
    alike = [name for name, f in found.items() if f.threats == threats]
    return min(alike, key=lambda name: found[name].worst.high, default=None)


def leading(found: dict[str, EvaluationFile]) -> str | None:
    """The name of the evaluation whose robust accuracy is reported: the one by AutoAttack under the threats of the
    headline, unless the headline is lower and the two intervals are disjoint; the headline if there is none."""
    best = headline(found)
    if best is None:
        return None
    low = found[best]
    by_autoattack = {
        name: f for name, f in found.items() if f.attacks and f.threats == low.threats and caveat_of(f) is None
    }
    strongest = headline(by_autoattack)
    return best if strongest is None or low.worst.high < by_autoattack[strongest].worst.low else strongest


def title_of(found: EvaluationFile) -> str:
    """An evaluation as a title: its attacks, its images, its threats, and its weights unless they are the best."""
    names = list(found.attacks) or ["No attack"]
    attacks = ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more attacks"
    under = " and ".join(found.threats)
    images = f"{found.n:,} images" if found.n == found.data.of else f"{found.n:,} of {found.data.of:,} images"
    weights = "" if found.of_best else f", weights {found.weights}"
    return f"{attacks} on {images}{', ' + under if under else ''}{weights}"


@dataclass(frozen=True)
class Comparison:
    """The result folder of a comparison."""

    name: str
    path: Path
    found: ComparisonFile


@dataclass(frozen=True)
class SweepFolder:
    """The result folder of a sweep."""

    name: str
    path: Path
    found: SweepFile


def read(path: str | Path, *, model: str | None = None, data: str | None = None) -> Run | Comparison | SweepFolder:
    """A folder's content; ``model`` and ``data`` name what a run does not record.

    FileNotFoundError if it is not a run, a comparison or a sweep, ValueError for a file in it that is not what
    its name says: one line each.
    """
    path = Path(path)
    # The name of "." is that of the folder it stands for.
    name = path.resolve().name
    if (path / folder.CONFIG).is_file():
        run = _run(path, name)
        named = names_model(run.config), names_data(run.config)
        return replace(run, model=None if named[0] else model, data=None if named[1] else data)
    if (path / COMPARISON).is_file():
        return Comparison(name, path, migrate.read(path / COMPARISON, ComparisonFile))
    if (path / SWEEP).is_file():
        return SweepFolder(name, path, migrate.read(path / SWEEP, SweepFile))
    if path.is_file() and is_weights(path):
        raise FileNotFoundError(
            f"{path} is a weights file, and a report needs a folder: `atent export {quoted(path)} --format hub --out"
            " FOLDER`, with the --model and --data of its evaluation, creates one with its results"
        )
    raise FileNotFoundError(
        f"{folder.no_run(path)}, nor one of atent compare (no {COMPARISON}) or atent sweep"
        f" (no {SWEEP}): give the path that training printed"
    )


def _run(path: Path, name: str) -> Run:
    folder.admit(path)
    config = read_json(path / folder.CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("method"), dict):
        raise ValueError(
            f"{path / folder.CONFIG} has no table 'method', so it is not of a run: give a folder of atent train"
        )
    check_best(path)
    evaluations, certificates, theories, transfers = (
        results_in(path, stem) for stem in ("evaluation", "certificate", "theory", "transfer")
    )
    certified = {file.name: _certificate(file) for file in certificates}
    return Run(
        name, path, config, _metrics(path / folder.METRICS),
        {file.name: migrate.read(file, EvaluationFile) for file in evaluations},
        {name: found for name, found in certified.items() if found is not None},
        tuple(name for name, found in certified.items() if found is None),
        {file.name: migrate.read(file, TheoryFile) for file in theories},
        transfers={file.name: migrate.read(file, TransferFile) for file in transfers},
    )  # fmt: skip


def _certificate(file: Path) -> Certificate | None:
    """None for one that is not finished."""
    plain = read_json(file)
    if isinstance(plain, dict) and plain.get("complete") is False:
        return None
    content = migrate.parsed(plain, CertificateFile, file)
    rows = read_rows(file.with_suffix(".csv")) if isinstance(content, SmoothingFile) else []
    if content.images.ids is not None:  # the table may hold rows of other subsets
        wanted = set(unspan(content.images.ids))
        rows = [row for row in rows if row.idx in wanted]
    return Certificate(content, tuple(r.radius if r.correct else -1.0 for r in rows) or None)


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file() and folder.METRICS in (manifest.sums(path.parent) or {}):
        raise folder.Damaged(f"{path} is missing: `atent train --resume {quoted(path.parent)}` restores it")
    rows = folder.read_rows(path) if path.is_file() else []
    for row in rows:
        if "epoch" not in row:
            raise ValueError(f"{path}: 'epoch' is missing, so it was not made by atent: move it elsewhere")
        if not isinstance(row["epoch"], int):
            raise ValueError(f"{path} is not what its name says (epoch {row['epoch']!r}): move it elsewhere")
    return rows
