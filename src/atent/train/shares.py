"""Evaluations during a training: each rank evaluates its samples, and all ranks get the combined results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from atent.attacks import Attack
from atent.data import Split
from atent.distributed import alone, current, each
from atent.evaluate import evaluate
from atent.evaluate.hints import Hints
from atent.progress import Advance


@dataclass(frozen=True)
class Found:
    """The results on the samples."""

    counts: dict[str, int]
    """Number of correctly classified samples: "clean", and under each attack."""
    flags: dict[str, str]
    """By attack: a character per sample, as in `Evaluation.outcomes`."""
    hint: str | None
    """One line on a mistake indicated by the results, or None."""


def evaluated(
    model: nn.Module, part: Split, attacks: Mapping[str, Attack], *, seed: int, hints: Hints | None = None,
    advance: Advance | None = None,
) -> Found:  # fmt: skip
    """Each attack alone on the samples of ``part``; ``hints`` as in `evaluate`, default: without the check of
    the inputs. Every sample has its own random numbers, so that the results are those of a single process, up to the
    rounding of another batch size; an error of one rank is raised on all."""
    rows, size = current().rows(len(part)), current().size

    def found(some: slice, attacks: Mapping[str, Attack]) -> Found:
        index = torch.arange(some.start, some.stop, device=part.x.device)
        if not len(index):
            return Found(dict.fromkeys(["clean", *attacks], 0), dict.fromkeys(attacks, ""), None)
        x, y = part.batch(index)
        ids = part.ids[some]
        own = evaluate(
            model, x, y, attacks, seed=seed, ids=ids, cascade=False, folding=False,
            hints=hints or Hints(check_inputs=False), advance=advance if attacks else None,
        )  # fmt: skip
        counts = {"clean": own.clean["k"], **{name: entry["robust"]["k"] for name, entry in own.attacks.items()}}
        return Found(counts, own.outcomes["attacks"], own.hint)

    parts = each(lambda: found(rows, attacks))
    hint = parts[0].hint
    if size > 1 and any(one.hint for one in parts):
        # A share may have a single class although all samples have several.
        hint = alone(lambda: found(slice(0, len(part)), {}).hint)
    names = parts[0].counts
    return Found(
        {name: sum(one.counts[name] for one in parts) for name in names},
        {name: "".join(one.flags[name] for one in parts) for name in attacks},
        hint,
    )
