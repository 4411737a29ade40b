"""Natural and robust accuracy of a model on given samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack, check_batch, check_ids, check_logits, check_number
from atent.attacks.spec import labelled, spell
from atent.guard import guard
from atent.progress import Advance
from atent.run import share


@dataclass(frozen=True)
class Evaluation:
    """The content of ``evaluation.json``; each share is {"value", "low", "high", "k", "n"} with a 95 % interval."""

    n: int
    seed: int
    natural: dict[str, Any]
    """Share of the samples classified rightly."""
    worst: dict[str, Any]
    """Share of the samples that are right on the clean input and under every attack."""
    attacks: dict[str, dict[str, Any]]
    """By name: attack, threat, settings, robust (a share), fooled (ids), distance (median), forwards, backwards,
    seconds."""
    wrong: list[int]
    """Ids of the samples that are misclassified without an attack."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 500) -> Tensor:
    """Predicted classes (n,) in eval mode; the model comes back as it was. ValueError where it gives no logits."""
    out = []
    with guard(model, mode="eval"):
        for i in range(0, len(x), batch):
            logits = model(x[i : i + batch])
            check_logits(logits, y[i : i + batch])
            out.append(logits.argmax(1))
    return torch.cat(out) if out else y.new_zeros(0)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack] | Sequence[Attack],
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    advance: Advance | None = None,
) -> Evaluation:
    """Attack the rightly classified samples with every attack and count who stands.

    ``x`` (n, ...) floats in the attacks' box, ``y`` (n,) true labels, ``ids`` (n,) sample numbers (default 0 .. n-1),
    which key the random draws together with ``seed``. A sample that is wrong without an attack counts as fooled by
    all. ``attacks`` maps names to attacks; a list is named by `labelled`. ``advance(samples, text)`` is told of
    progress, n samples per attack. The model is judged in eval mode and comes back as it was. ValueError for inputs,
    labels or outputs that cannot be judged, for no samples, and for one attack twice.
    """
    if not len(x):
        raise ValueError("no samples to evaluate: give at least one")
    check_number("batch", batch, 1, whole=True)
    named = dict(attacks) if isinstance(attacks, Mapping) else labelled(attacks)
    ids = torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device)
    check_ids(ids, len(x))
    boxes = {a.threat.box for a in named.values()} or {(float("-inf"), float("inf"))}  # type: ignore[attr-defined]
    for box in boxes:
        check_batch(x, y, box)
    right = predict(model, x, y, batch=batch) == y
    rows = right.nonzero().squeeze(1)
    standing = right.clone()
    results = {}
    for name, attack in named.items():
        if advance:
            advance(len(x) - len(rows), name)
        begun, fooled, distance, passes = time.perf_counter(), [], [], torch.zeros(2, dtype=torch.int64)
        for part in rows.split(batch):
            outcome = attack.run(model, x[part], y[part], seed=seed, ids=ids[part])
            fooled.append(outcome.success)
            distance.append(outcome.norm)
            passes += torch.stack([outcome.forwards.sum(), outcome.backwards.sum()]).cpu()
            if advance:
                advance(len(part), name)
        hit = torch.cat(fooled) if fooled else right.new_zeros(0)
        standing[rows[hit]] = False
        threat = attack.threat  # type: ignore[attr-defined]
        results[name] = {
            "attack": spell(attack),
            "threat": asdict(threat),
            "settings": {k: v for k, v in asdict(attack).items() if k != "threat"},
            "robust": share(len(rows) - int(hit.sum()), len(x)),
            "fooled": ids[rows[hit]].tolist(),
            "distance_median": float(torch.cat(distance).median()) if len(rows) else None,
            "forwards": int(passes[0]),
            "backwards": int(passes[1]),
            "seconds": round(time.perf_counter() - begun, 3),
        }
    return Evaluation(
        n=len(x),
        seed=seed,
        natural=share(len(rows), len(x)),
        worst=share(int(standing.sum()), len(x)),
        attacks=results,
        wrong=ids[~right].tolist(),
    )
