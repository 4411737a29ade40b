"""What happened to each sample, in few characters: one per sample and attack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from atent.data.described import unspan

FOOLED, ROBUST, NOT_TRIED = "f", "s", "-"
_WORDS = {FOOLED: "fooled", ROBUST: "robust", NOT_TRIED: "not tried"}


def flags(tried: Tensor, fooled: Tensor) -> str:
    """One character per sample: f fooled, s robust, - not tried; bool (n,) each."""
    codes = torch.where(tried, torch.where(fooled, 0, 1), 2).tolist()
    return "".join((FOOLED, ROBUST, NOT_TRIED)[code] for code in codes)


def bits(values: Tensor) -> str:
    """One character per sample, 1 or 0."""
    return "".join("1" if v else "0" for v in values.tolist())


def per_sample(outcomes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `outcomes` of an evaluation as one row per sample: its id, whether it is right without an attack, and what
    each attack did: fooled, robust or not tried."""
    rows = []
    for i, number in enumerate(unspan(outcomes["ids"])):
        attacks = {name: _WORDS[text[i]] for name, text in outcomes["attacks"].items()}
        rows.append({"id": number, "right": outcomes["clean"][i] == "1", "attacks": attacks})
    return rows
