"""The file from which an interrupted evaluation resumes: a line for every attacked batch."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atent import __version__
from atent.attacks.base import Attack
from atent.attacks.spec import spell
from atent.attacks.transfer import Transfer, load_source
from atent.attacks.wrapper import nest
from atent.data.described import spans, unspan
from atent.distributed import SINGLE, World
from atent.evaluate.lines import Lines, Values
from atent.evaluate.outcomes import bits
from atent.origins import code_of
from atent.runs.identity import digest, function_of, identity_of
from atent.threat import Box


class Result(NamedTuple):
    """Results of an attack, or of a part of one, on m samples; on the CPU."""

    rows: Tensor
    """int64 (m,): positions of the samples in the evaluation."""
    fooled: Tensor
    """bool (m,): misclassified after the attack."""
    distance: Tensor
    """float64 (m,): in the norm of the attack's threat."""
    predicted: Tensor
    """int64 (m,): class of the adversarial input where the sample is fooled, else -1."""
    forwards: int
    """Forward passes of samples."""
    backwards: int
    """Backward passes of samples."""
    seconds: float
    """Wall-clock time."""
    remarks: tuple[str, ...] = ()
    """Clauses on what the search met, such as NaN or infinite input gradients; each once."""

    def then(self, more: Result) -> Result:
        """Both, concatenated."""
        tensors = [torch.cat([a, b]) for a, b in zip(self[:4], more[:4])]
        counts = self.forwards + more.forwards, self.backwards + more.backwards, self.seconds + more.seconds
        remarks = tuple(dict.fromkeys(self.remarks + more.remarks))
        return Result(tensors[0], tensors[1], tensors[2], tensors[3], *counts, remarks)

    def of_part(self, part: str) -> Result:
        """The result of that part of an attack, with remarks that name it."""
        return self._replace(remarks=tuple(f"{part} {clause}" for clause in self.remarks))

    @staticmethod
    def joined(several: Iterable[Result]) -> Result:
        """All of them, in the order of their samples."""
        return functools.reduce(Result.then, sorted(several, key=lambda result: int(result.rows[0])), NO_RESULT)


NO_RESULT = Result(
    torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0).double(), torch.zeros(0).long(), 0, 0, 0.0
)


class Ledger:
    """The results so far, in memory and, with a path, in a file that survives an interruption.

    ``fingerprint`` identifies what is evaluated, on ``n`` samples, by the ``attacks``. Each rank of ``world`` writes a
    file of its own, and reads all of them. Raises as `Lines`.
    """

    def __init__(
        self, path: str | Path | None = None, fingerprint: Mapping[str, Any] | None = None, *,
        attacks: Mapping[str, Attack] | None = None, n: int = 0, world: World = SINGLE,
    ) -> None:  # fmt: skip
        names = {(name, part) for name, a in (attacks or {}).items() for part in (a.parts() or [None])}

        def valid(row: dict[str, Any]) -> bool:
            known = row.keys() | _LATER == _KEYS and _is_result(row, n)
            return known and (row["attack"], row["part"]) in names

        self._lines = Lines(path, "evaluation", fingerprint, valid=valid, rank=world.rank)
        self._results: dict[tuple[str, str | None], dict[int, Result]] = {}
        for row in self._known(world):
            result = Result(
                torch.tensor(unspan(row["rows"])).long(),
                torch.tensor([flag == "1" for flag in row["fooled"]]),
                torch.tensor(row["distance"], dtype=torch.float64),
                _classes(row),
                row["forwards"],
                row["backwards"],
                row["seconds"],
                tuple(row.get("remarks", ())),
            )
            # Where a row was damaged, its new measurement comes after later rows.
            self._results.setdefault((row["attack"], row["part"]), {})[int(result.rows[0])] = result

    def _known(self, world: World) -> list[dict[str, Any]]:
        """The rows of all ranks."""
        world.wait()
        return [row for rows in world.gather(self._lines.rows) for row in rows]

    def divided(
        self, attack: str, part: str | None, groups: Sequence[Tensor], batch: int
    ) -> tuple[list[Result], list[Tensor]]:
        """Known results on the ``groups`` of samples, each attacked in batches of that size, and runs of the others."""
        known, found, runs = self._results.get((attack, part), {}), [], []
        for rows in groups:
            begin = end = 0
            while end < len(rows):
                result = known.get(int(rows[end]))
                if result is None or not torch.equal(result.rows, rows[end : end + len(result.rows)]):
                    end = min(end + batch, len(rows))
                    continue
                found.append(result)
                runs.append(rows[begin:end])
                begin = end = end + len(result.rows)
            runs.append(rows[begin:end])
        return found, [run for run in runs if len(run)]

    def add(self, attack: str, part: str | None, result: Result) -> None:
        """Write the result of one more batch."""
        row = result._asdict() | {"rows": spans(result.rows.tolist()), "fooled": bits(result.fooled)}
        row["predicted"] = result.predicted[result.fooled]
        if not row["remarks"]:
            del row["remarks"]
        self._lines.add({"attack": attack, "part": part, **row})


_KEYS = {"attack", "part", *Result._fields}
# Rows of earlier versions have no classes, and rows without remarks have no such key.
_LATER = {"predicted", "remarks"}


def _classes(row: dict[str, Any]) -> Tensor:
    """`Result.predicted` of a row; -1 for all in a row of an earlier version, which has no classes."""
    found = torch.full((len(row["fooled"]),), -1)
    if "predicted" in row:
        found[torch.tensor([flag == "1" for flag in row["fooled"]])] = torch.tensor(row["predicted"]).long()
    return found


def _is_result(row: dict[str, Any], n: int) -> bool:
    """Whether the values of a row can be the result of an attack on some of n samples."""
    m = _places(row["rows"], n)
    if not m or not isinstance(row["attack"], str) or not isinstance(row["part"], str | None):
        return False
    fooled, counts, remarks = row["fooled"], Values("count"), row.get("remarks", [])
    return (
        isinstance(fooled, str)
        and len(fooled) == m
        and set(fooled) <= {"0", "1"}
        and Values("real", (m,)).fit(row["distance"])
        and ("predicted" not in row or Values("count", (fooled.count("1"),)).fit(row["predicted"]))
        and counts.fit(row["forwards"])
        and counts.fit(row["backwards"])
        and Values("real").fit(row["seconds"])
        and isinstance(remarks, list)
        and all(isinstance(clause, str) for clause in remarks)
    )


def _places(text: Any, n: int) -> int:
    """The number of positions, ascending and below n, in a string of `spans`; 0 for any other string."""
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,18}(-\d{1,18})?( \d{1,18}(-\d{1,18})?)*", text):
        return 0
    end, count = -1, 0
    for word in text.split():
        low, _, high = word.partition("-")
        first, last = int(low), int(high or low)
        if not end < first <= last < n:
            return 0
        end, count = last, count + last - first + 1
    return count


def fingerprint(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, attacks: Mapping[str, Attack], **settings: Any
) -> dict[str, Any]:
    """What an evaluation depends on, as short hashes and plain values, without batch size and device."""
    return {
        "model": identity_of(model),
        "inputs": digest(x),
        "labels": digest(y),
        "ids": digest(ids),
        "attacks": [[name, *_settings(a)] for name, a in attacks.items()],
        **settings,
        "version": __version__,
    }


def _settings(attack: Attack) -> list[Any]:
    """All that the results of an attack depend on; it, or one that it runs, may contain a model, such as the source of
    a transfer, or a function."""
    # The text of a composite attack does not say what its parts are, which another version may have set otherwise.
    every = list(nest(attack))
    texts = [spell(each, threat=True) for each in every]
    models = [identity_of(model) for each in every for model in _models(each)]
    values = [getattr(each, field.name) for each in every for field in dataclasses.fields(each)]
    functions = [text for value in values for text in function_of(value)]
    return [*texts, list(_box(attack)), *models, *functions, *code_of_attack(attack)]


def code_of_attack(attack: Attack) -> list[str]:
    """`code_of` of an attack and, at every depth, of its parts and of the attack that it repeats or transfers."""
    return code_of(map(type, nest(attack)))


def _models(attack: Attack) -> list[nn.Module]:
    values = [getattr(attack, f.name) for f in dataclasses.fields(attack)]
    # Loaded anew: a search moves the model of the attack to the device and dtype of its inputs.
    if isinstance(attack, Transfer) and isinstance(attack.source, str):
        values.append(load_source(attack.source))
    return [value for value in values if isinstance(value, nn.Module)]


def _box(attack: Attack) -> Box:
    return attack.threat.box
