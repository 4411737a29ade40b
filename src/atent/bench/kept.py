"""Partial results of an interrupted measurement: finished cases, kept in a separate file until all are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from atent.bench.machine import machine
from atent.bench.plan import Omitted, Plan
from atent.bench.write import JSON, NAME, write
from atent.experiments.results.bench import BenchCase, BenchFile
from atent.runs import LOCK, provenance, read_json, write_json
from atent.runs.locks import InUse, claimed, held

PART = "bench.part.json"
_CASE = TypeAdapter(BenchCase)


@dataclass
class Kept:
    """The cases that are measured, by section and name; each is written as it comes."""

    path: Path | None = None
    """The file; None: nothing is kept."""
    made: dict[str, Any] = field(default_factory=dict)
    """With what, see `made_of`."""
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The total time."""
        return float(sum(case["seconds"] for section in self.cases.values() for case in section.values()))

    def take(self, section: str, name: str) -> tuple[BenchCase | Omitted, float] | None:
        """A case, or why it was omitted, and its seconds; None if it is not measured yet."""
        found = self.cases.get(section, {}).get(name)
        if found is None:
            return None
        if "omitted" in found:
            return Omitted(found["omitted"]), found["seconds"]
        return _CASE.validate_python(found["case"]), found["seconds"]

    def put(self, section: str, name: str, found: BenchCase | Omitted, seconds: float) -> None:
        """Keep a case."""
        what = {"omitted": str(found)} if isinstance(found, Omitted) else {"case": _CASE.dump_python(found)}
        self.cases.setdefault(section, {})[name] = {**what, "seconds": seconds}
        if self.path is not None:
            write_json(self.path, {"made": self.made, "cases": self.cases})

    def finished(self, found: BenchFile) -> list[Path]:
        """Write the result into the folder, which needs the cases no longer; what was written."""
        if self.path is None:
            return []
        written = write(self.path.parent, found)
        self.path.unlink(missing_ok=True)
        return written


def made_of(plan: Plan) -> dict[str, Any]:
    """The shared properties of the cases of one file: settings, machine and code."""
    code = provenance(device=plan.device)
    return {"settings": plan.settings, "machine": machine(), **{k: code[k] for k in ("version", "commit", "torch")}}


@contextmanager
def folder_of(out: str | None, plan: Plan) -> Iterator[Kept]:
    """Hold the folder ``out`` (default: bench, numbered where it is taken) for one measurement.

    A folder in which the same one was interrupted is taken up again. Raises as `atent.runs.locks.claimed`.
    """
    made, place = made_of(plan), Path(NAME if out is None else out)
    if place.name in ("", ".."):  # the current folder has a name from above only
        place = place.resolve()
    begun = [place] if out is not None else sorted(place.parent.glob(f"{NAME}*"))
    for path in begun:
        if _is_begun(path, made):
            try:
                with held(path / LOCK, "bench"):
                    if _is_begun(path, made):
                        yield Kept(path / PART, made, read_json(path / PART)["cases"])
                        return
            except InUse:
                if out is not None:
                    raise
    with claimed(place.parent, place.name, "bench", numbered=out is None) as path:
        yield Kept(path / PART, made)


def _is_begun(path: Path, made: dict[str, Any]) -> bool:
    return (path / PART).is_file() and not (path / JSON).exists() and read_json(path / PART)["made"] == made
