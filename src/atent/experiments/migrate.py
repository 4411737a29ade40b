"""Result files of earlier versions, brought to the current one: one function for each kind of file.

A file without ``schema_version`` was written before versions were recorded. Each function leaves what it is given
unchanged, and returns a current file as it is.
"""

from __future__ import annotations

from typing import Any

from atent.experiments.results import CERTIFICATE_VERSION, COMPARISON_VERSION, EVALUATION_VERSION


def evaluation(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an evaluation.json of any version, as the current one has it."""
    if _current(content, EVALUATION_VERSION, "an evaluation"):
        return content
    # The first files ran each attack alone, and kept no outcome of each sample.
    blank: dict[str, Any] = {"cascade": False, "search_dtype": None, "hint": None, "outcomes": {}, "per_class": []}
    return {
        **blank,
        **content,
        "schema_version": EVALUATION_VERSION,
        "data": _samples(content["data"]),
        "attacks": {name: _attack(told, content["natural"]["k"]) for name, told in content["attacks"].items()},
    }


def certificate(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a certificate.json of any version; one that is not complete has no version."""
    if _current(content, CERTIFICATE_VERSION, "a certificate") or not content["complete"]:
        return content
    return {**content, "schema_version": CERTIFICATE_VERSION, "images": _samples(content["images"])}


def comparison(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a comparison.json of any version."""
    if _current(content, COMPARISON_VERSION, "a comparison"):
        return content
    # The first files had no budget in minutes, and did not count passes.
    rows = [{"passes": None, "minutes": None, "last": None, **row, "seeds": _seeds(row)} for row in content["rows"]]
    head = {"minutes": None, **content, "schema_version": COMPARISON_VERSION}
    return {**head, "data": _samples(content["data"]), "rows": rows}


def _seeds(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"passes": None, "minutes": None, "last": None, **seed} for seed in row["seeds"]]


def _current(content: dict[str, Any], version: int, kind: str) -> bool:
    """Whether ``content`` is of this version; ValueError for one of a later version."""
    found = content.get("schema_version", 0)
    if found not in (0, version):
        raise ValueError(f"{kind} of schema version {found}: this atent reads versions up to {version}, update atent")
    return bool(found == version)


def _samples(told: dict[str, Any]) -> dict[str, Any]:
    # Before subsets were recorded, the first samples were measured.
    return {"subset": "first", "subset_seed": None, "ids": None, **told}


def _attack(told: dict[str, Any], right: int) -> dict[str, Any]:
    """The result of one attack; the first files have a median distance alone, and no number of attacked samples."""
    told = {"attacked": right, **told}
    if "distance_median" in told:
        median = told.pop("distance_median")
        told["distance"] = None if median is None else {"median": median}
    return told
