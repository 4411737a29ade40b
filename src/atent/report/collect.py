"""What lies in a run folder or a comparison folder, as plain data; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.attacks.spec import show
from atent.certify.certificate import read_rows
from atent.data.described import unspan
from atent.experiments import migrate
from atent.experiments.target import names_data, names_model
from atent.threat import Threat

COMPARISON = "comparison.json"

_SHARE = ("value", "low", "high", "k", "n")


@dataclass(frozen=True)
class Certificate:
    """What one certificate file says."""

    content: dict[str, Any]
    """As certificate.json."""
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
    evaluations: dict[str, dict[str, Any]]
    """Each evaluation*.json by its file name; evaluation.json first."""
    certificates: dict[str, Certificate]
    """Each finished certificate by its file name."""
    unfinished: tuple[str, ...] = ()
    """Certificates that were begun."""
    theories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each theory*.json by its file name."""
    model: str | None = None
    """What builds the network, as the user named it, where the run does not say."""
    data: str | None = None
    """What the data are, likewise."""

    @property
    def headline(self) -> str | None:
        """The file whose robust accuracy says most: the one with the lowest upper limit, as each is an upper bound on
        what a perfect attack would leave; of those that judge the best epoch's weights under the first one's threat."""
        best = {name: f for name, f in self.evaluations.items() if f.get("weights", "best") == "best"}
        found = best or self.evaluations
        alike = [name for name, f in found.items() if threats(f) == threats(next(iter(found.values())))]
        return min(alike, key=lambda name: found[name]["worst"]["high"], default=None)

    @property
    def judged(self) -> dict[str, Any] | None:
        """The content of the headline's file."""
        return self.evaluations[self.headline] if self.headline is not None else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept as the best."""
        best = next((row["epoch"] for row in reversed(self.rows) if row.get("best")), None)
        return best if best is not None or self.judged is None else self.judged.get("epoch")


@dataclass(frozen=True)
class Comparison:
    """The result folder of a comparison."""

    name: str
    path: Path
    found: dict[str, Any]
    """As comparison.json."""


def read(path: str | Path, *, model: str | None = None, data: str | None = None) -> Run | Comparison:
    """A folder's content; ``model`` and ``data`` name what a run does not record.

    FileNotFoundError where it is neither a run nor a comparison, ValueError for a file in it that is not what its name
    says: one line each.
    """
    path = Path(path)
    # The name of "." is that of the folder it stands for.
    name = path.resolve().name
    if (path / folder.CONFIG).is_file():
        run = _run(path, name)
        named = names_model(run.config), names_data(run.config)
        return replace(run, model=None if named[0] else model, data=None if named[1] else data)
    if (path / COMPARISON).is_file():
        found = migrate.comparison(_sound(path / COMPARISON, _comparison))
        return Comparison(name, path, found)
    raise FileNotFoundError(
        f"{path} is not a run folder (no {folder.CONFIG}) nor one of atent compare (no {COMPARISON}): give the path"
        " that training printed"
    )


def threats(found: dict[str, Any]) -> list[str]:
    """The different threats of an evaluation's attacks, as people write them."""
    return list(dict.fromkeys(show(Threat(**attack["threat"])) for attack in found["attacks"].values()))


def _run(path: Path, name: str) -> Run:
    config = folder.read_json(path / folder.CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("method"), dict):
        raise ValueError(
            f"{path / folder.CONFIG} has no table 'method', so it is no run's: give a folder of atent train"
        )
    metrics = path / folder.METRICS
    rows = _sound(metrics, _metrics, folder.read_jsonl) if metrics.is_file() else []
    files, proofs, theories = (
        # the plain name first, then by number
        sorted(path.glob(f"{stem}*.json"), key=lambda file: (len(file.name), file.name))
        for stem in ("evaluation", "certificate", "theory")
    )
    # Shards are parts of a certificate, which --merge joins.
    proofs = [file for file in proofs if ".shard-" not in file.name]
    contents = {file: migrate.certificate(_sound(file, _certificate)) for file in proofs}
    return Run(
        name, path, config, rows,
        {file.name: migrate.evaluation(_sound(file, _evaluation)) for file in files},
        {file.name: _proved(file, found) for file, found in contents.items() if found["complete"]},
        tuple(file.name for file, found in contents.items() if not found["complete"]),
        {file.name: _sound(file, _theory) for file in theories},
    )  # fmt: skip


def _proved(file: Path, content: dict[str, Any]) -> Certificate:
    rows = read_rows(file.with_suffix(".csv")) if content["method"] == "smoothing" else []
    if content["images"]["ids"] is not None:  # the table may hold rows of other subsets
        wanted = set(unspan(content["images"]["ids"]))
        rows = [row for row in rows if row.idx in wanted]
    return Certificate(content, tuple(r.radius if r.correct else -1.0 for r in rows) or None)


# ---- whether a file is what its name says ----------------------------------------------------------------


def _sound(file: Path, look: Callable[[Any], object], load: Callable[[Path], Any] = folder.read_json) -> Any:
    """The file's content, once ``look`` has found in it what the page will show."""
    content = load(file)
    try:
        look(content)
    except KeyError as error:
        raise ValueError(f"{file}: {error} is missing, so it was not made by atent: move it elsewhere") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is not what its name says ({error}): move it elsewhere") from None
    return content


def _share(share: Any) -> None:
    for key in _SHARE:
        if not isinstance(share[key], int | float) or isinstance(share[key], bool):
            raise ValueError(f"{key} {share[key]!r} is not a number")


def _evaluation(found: Any) -> None:
    _share(found["natural"])
    _share(found["worst"])
    for attack in found["attacks"].values():
        _share(attack["robust"])
        attack["attack"].split()
        float(attack["backwards"])
        Threat(**attack["threat"])
    for part in ("name", "n", "of"):
        found["data"][part]
    found["provenance"]["version"]
    for row in found.get("sweep", ()):
        _share(row["robust"])
        _share(row["monotone"])
        row["attack"], row["norm"], float(row["radius"]), row["threat"], row["natural"]
    for row in found.get("per_class", ()):
        _share(row["natural"])
        _share(row["worst"])
        row["class"], row["n"]
    for check in found.get("checks", ()):
        check["name"], check["passed"], check["figure"], check["why"]
    if found.get("last"):
        _share(found["last"]["worst"])
        _share(found["last"]["natural"])


def _metrics(rows: Any) -> None:
    for row in rows:
        if not isinstance(row["epoch"], int):
            raise ValueError(f"epoch {row['epoch']!r} is not a whole number")


def _certificate(found: Any) -> None:
    if found["complete"]:
        _share(found["natural"])
        for row in found["certified"]:
            _share(row["share"])
        found["method"], found["images"]["of"]


def _theory(found: Any) -> None:
    for row in found["rows"]:
        row["statement"], row["claim"], row["checked"], row["verdict"], row["reason"], row["note"], row["what"]
        for key in ("value", "error", "n"):
            if not isinstance(row[key], int | float | None):
                raise ValueError(f"{key} {row[key]!r} is not a number")
    for curve in found["curves"].values():
        curve["title"], curve["x"], curve["y"], curve["log"]
        for xs, ys in curve["lines"].values():
            len(xs), len(ys)
    found["n"], found["dim"], found["settings"], found["seconds"].values(), found["data"]["name"]
    found["provenance"]["version"], found["provenance"]["dirty"], found["warnings"]


def _comparison(found: Any) -> None:
    for row in found["rows"]:
        for cell in (row["natural"], row["worst"], *row["attacks"].values()):
            float(cell["mean"])
        for seed in row["seeds"]:
            _share(seed["worst"])
            _share(seed["natural"])
    found["caveat"], found["provenance"]["version"]
