"""Result files of earlier versions, brought to the current one: one function for each kind of file.

A file without ``schema_version`` was written before versions were recorded; version 1 called clean accuracy natural.
Each function leaves its argument unchanged, and returns a current file unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from atent import runs as folder
from atent.experiments.results import (
    BENCH_VERSION,
    CERTIFICATE_VERSION,
    CERTIFIED_VERSION,
    COMPARISON_VERSION,
    EVALUATION_VERSION,
    SWEEP_VERSION,
    THEORY_VERSION,
    TRANSFER_VERSION,
    BenchFile,
    CertificateFile,
    CertifiedTable,
    ComparisonFile,
    EvaluationFile,
    Result,
    SweepFile,
    TheoryFile,
    TransferFile,
)
from atent.experiments.results.studies import CORRUPTIONS_VERSION, FOURIER_VERSION
from atent.runs.manifest import read_json

# Reports inside an evaluation, each with a version of its own.
_ERRORS = {"corruptions": CORRUPTIONS_VERSION, "fourier": FOURIER_VERSION}

R = TypeVar("R", bound=Result)


class LaterVersion(ValueError):
    """The file was written by a later version of the library."""


def read(path: Path, kind: type[R]) -> R:
    """The result file at ``path``, of any version, as its type.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        In one line that names the file: damaged by its run's manifest, not JSON, of a later version, or not a file of
        this kind.
    """
    return parsed(read_json(path), kind, path)


def parsed(content: Any, kind: type[R], path: Path) -> R:
    """As `read`, from the ``content`` of the file at ``path``, which errors name."""
    migrations: dict[type[Result], Callable[[Any], dict[str, Any]]] = {
        EvaluationFile: evaluation, CertificateFile: certificate, ComparisonFile: comparison, TheoryFile: theory,
        CertifiedTable: certified, TransferFile: transfer, BenchFile: bench, SweepFile: sweep,
    }  # fmt: skip
    try:
        return kind.from_json(migrations[kind](content))
    except LaterVersion as error:
        raise ValueError(f"{path} is {error}") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing, so it was not made by atent: move it elsewhere") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not what its name says ({_first(error)}): move it elsewhere") from None


def _first(error: Exception) -> str:
    """The first of pydantic's errors in one line; another error's own text."""
    import pydantic

    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    found = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


def evaluation(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an evaluation.json of any version, as the current one has it."""
    content = {key: _errors(value, _ERRORS[key]) if key in _ERRORS else value for key, value in content.items()}
    if _current(content, EVALUATION_VERSION, "an evaluation"):
        return content
    content = folder.with_present_keys(content)
    # The first files ran each attack alone, and kept no outcome of each sample.
    blank: dict[str, Any] = {
        "cascade": False,
        "search_dtype": None,
        "hint": None,
        "outcomes": {},
        "per_class": [],
    }
    return {
        **blank,
        **content,
        "schema_version": EVALUATION_VERSION,
        "data": {"class_names": None, **_samples(content["data"])},
        "attacks": {name: _attack(entry, content["clean"]["k"]) for name, entry in content["attacks"].items()},
    }


def _errors(report: Any, version: int) -> Any:
    """A report on errors of any version: the first named its clean error as an evaluation names its clean accuracy, and
    the second still had the first definitions of the corruptions."""
    if report is None or _current(report, version, "a report on errors"):
        return report
    names = dict.fromkeys(("clean", "natural"), "clean_error")
    first = {"definitions": 1} if version == CORRUPTIONS_VERSION else {}
    return first | {names.get(key, key): value for key, value in report.items()} | {"schema_version": version}


def certificate(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a certificate.json of any version; one that is not complete has no version."""
    if _current(content, CERTIFICATE_VERSION, "a certificate") or not content["complete"]:
        return content
    content = folder.with_present_keys(content)
    blank = {"hint": None, "shard": None} if content["method"] == "smoothing" else {}
    if "draws" in content:
        content["sampling"] = content.pop("draws")
    return {**blank, **content, "schema_version": CERTIFICATE_VERSION, "images": _samples(content["images"])}


def certified(content: dict[str, Any]) -> dict[str, Any]:
    """The content of the file beside a table of certificates, of any version."""
    if _current(content, CERTIFIED_VERSION, "a table of certificates"):
        return content
    content = folder.with_present_keys(content)
    rows = [{**row, "images": _samples(row["images"])} for row in content["rows"]]
    return {**content, "schema_version": CERTIFIED_VERSION, "rows": rows}


def comparison(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a comparison.json of any version."""
    if _current(content, COMPARISON_VERSION, "a comparison"):
        return content
    content = folder.with_present_keys(content)
    # The first files had no budget in minutes, and did not count passes.
    rows = [{"passes": None, "minutes": None, "last": None, **row, "seeds": _seeds(row)} for row in content["rows"]]
    head = {"minutes": None, **content, "schema_version": COMPARISON_VERSION}
    return {**head, "data": {"class_names": None, **_samples(content["data"])}, "rows": rows}


def theory(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a theory.json of any version."""
    if _current(content, THEORY_VERSION, "a theory result"):
        return content
    return {**content, "schema_version": THEORY_VERSION, "data": _samples(content["data"])}


def sweep(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a sweep.json of any version; ValueError for an unknown one."""
    if _current({"schema_version": content["schema_version"]}, SWEEP_VERSION, "a sweep"):
        return content
    raise ValueError(f"schema version {content['schema_version']}, which no version of atent wrote")


def transfer(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a transfer.json of any version; ValueError for an unknown one."""
    if _current({"schema_version": content["schema_version"]}, TRANSFER_VERSION, "a transfer matrix"):
        return content
    raise ValueError(f"schema version {content['schema_version']}, which no version of atent wrote")


def bench(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a bench.json of any version; ValueError for an unknown one."""
    if _current({"schema_version": content["schema_version"]}, BENCH_VERSION, "a benchmark"):
        return content
    raise ValueError(f"schema version {content['schema_version']}, which no version of atent wrote")


def _seeds(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"passes": None, "minutes": None, "last": None, **seed} for seed in row["seeds"]]


def _current(content: dict[str, Any], version: int, kind: str) -> bool:
    """Whether ``content`` is of this version; LaterVersion for one of a later version."""
    found = content.get("schema_version", 0)
    if found not in range(version + 1):
        raise LaterVersion(f"{kind} of schema version {found}: this atent reads versions up to {version}, update atent")
    return bool(found == version)


def _samples(samples: dict[str, Any]) -> dict[str, Any]:
    # Before subsets were recorded, the first samples were used.
    return {"subset": "first", "subset_seed": None, "ids": None, **samples}


def _attack(result: dict[str, Any], right: int) -> dict[str, Any]:
    """The result of one attack; the first files have a median distance alone, and no number of attacked samples."""
    result = {"attacked": right, **result}
    if "distance_median" in result:
        median = result.pop("distance_median")
        result["distance"] = None if median is None else {"median": median}
    return result
