"""Networks that are part of the package, one folder each, and in a checkout those of `results/`.

A folder contains what `atent export --format hub` writes: configuration, float16 weights, the evaluation of these
float16 weights, the card, and the SHA-256 sums by which damaged files are rejected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atent.messages import unknown

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[2] / "results"
_FILES = ("model.safetensors", "best.safetensors")


def networks() -> dict[str, Path]:
    """The folder of every network by name: those of the package first."""
    found: dict[str, Path] = {}
    for place in (_HERE, _CHECKOUT):
        for config in sorted(place.glob("*/config.json")):
            if any((config.parent / name).is_file() for name in _FILES):
                found.setdefault(config.parent.name, config.parent)
    return found


def find(name: str) -> Path:
    """The folder of a network; ValueError, in one line, for an unknown name."""
    found = networks()
    if name not in found:
        raise ValueError(unknown("network of the zoo", name, found, "atent list zoo"))
    return found[name]


def origin(name: str) -> str:
    """Where a network comes from: built-in, or checkout."""
    return "built-in" if find(name).parent == _HERE else "checkout"


def facts(name: str) -> str:
    """A network in one line: data, threat and the accuracies of its card, with their intervals and attacks; for one of
    `results/` its recipe."""
    path = find(name)
    if not (path / "card.json").is_file():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return f"recipe {config.get('recipe') or 'unknown'}, without a card"
    card: dict[str, Any] = json.loads((path / "card.json").read_text(encoding="utf-8"))
    measured: dict[str, str] = {}
    for each in card["figures"]:
        value, low, high = (f"{100 * each['share'][key]:.1f}" for key in ("value", "low", "high"))
        attacks = each["under"].rpartition("; ")[0]
        under = f" {'under' if each['name'].startswith('robust') else 'by'} {attacks}" if attacks else ""
        text = f"{each['name']} {value} % [{low}, {high}]{under}, n = {each['share']['n']:,}"
        measured.setdefault(each["name"], text)
    return "; ".join([f"{card['data']}, {card['threat'] or 'no threat'}", *measured.values()])
