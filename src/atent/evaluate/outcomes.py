"""Outcomes of an evaluation, one character per sample and attack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack, Outcome
from atent.data.described import unspan

FOOLED, ROBUST, NOT_TRIED = "f", "s", "-"
_WORDS = {FOOLED: "fooled", ROBUST: "robust", NOT_TRIED: "not tried"}


def attacked(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, **how: Any) -> Outcome:
    """``attack.run(model, x, y, **how)``; ValueError, in one line, for a result outside the attack's threat.

    Such a result would count as a success under a larger threat. Inputs in half precision are not checked: their
    rounding is larger than the tolerance.
    """
    out = attack.run(model, x, y, **how)
    if not len(out.norm) or out.x_adv.dtype not in (torch.float32, torch.float64):
        return out
    threat = attack.threat
    inside = threat.contains(out.x_adv, threat.clamp(x.detach()))
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        eps = float(threat.take(torch.tensor([row])).radii(torch.zeros(1, dtype=torch.float64)))
        raise ValueError(
            f"{type(attack).__name__} left its threat: a result has {threat.norm} distance"
            f" {float(out.norm[row]):.6g} at eps {eps:g}, or lies outside the box: project it in"
            " `search` (threat.project), and run atent.testing.check_attack"
        )
    return out


def flags(tried: Tensor, fooled: Tensor) -> str:
    """One character per sample: f fooled, s robust, - not tried; bool (n,) each."""
    codes = torch.where(tried, torch.where(fooled, 0, 1), 2).tolist()
    return "".join((FOOLED, ROBUST, NOT_TRIED)[code] for code in codes)


def bits(values: Tensor) -> str:
    """One character per sample, 1 or 0."""
    return "".join("1" if v else "0" for v in values.tolist())


def per_sample(outcomes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `outcomes` of an evaluation as one row per sample: its id, whether it is correctly classified without an
    attack, and the outcome of each attack: fooled, robust or not tried."""
    rows = []
    for i, number in enumerate(unspan(outcomes["ids"])):
        attacks = {name: _WORDS[text[i]] for name, text in outcomes["attacks"].items()}
        rows.append({"id": number, "right": outcomes["clean"][i] == "1", "attacks": attacks})
    return rows
