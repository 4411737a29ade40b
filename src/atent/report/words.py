"""Results as text: training, threats, and alternative texts of figures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atent.attacks.spec import show
from atent.docstrings import field_docs, written
from atent.methods import METHODS
from atent.threat import Threat

if TYPE_CHECKING:
    from atent.experiments.results import AttackResult


def percent(value: float) -> str:
    """A fraction as text: "31.6 %"."""
    return f"{100 * value:.1f} %"


def threat(stored: dict[str, Any]) -> str:
    """The description of a threat, from plain values."""
    t = Threat(**stored)
    if t.eps == math.inf:
        return f"{t.norm} unlimited: the smallest adversarial perturbation is sought"
    low, high = t.span
    inside = "freely" if t.inner_eps is None else f"each pixel value by up to {float(t.inner_eps):.4g}"
    of = {
        "linf": f"each pixel value may change by up to {float(t.eps):.4g}",
        "l2": f"changes of Euclidean length up to {float(t.eps):.4g}",
        "l1": f"changes whose absolute values sum to at most {float(t.eps):.4g}",
        "l0": f"at most {float(t.eps):g} {t.units} may change, freely",
        "patch": f"at most {float(t.eps):g} patches of {t.side} x {t.side} pixels may change, {inside}",
    }[t.norm]
    own = "" if t.box == t.span else ", each channel in its own range"
    return f"{show(t)}: {of}, with pixel values from {low:g} to {high:g}{own}"


def distances(found: Mapping[str, AttackResult]) -> str:
    """The unit of the distances of an evaluation: pixel units, or the counted units."""
    threats = [result.threat.threat() for result in found.values()]
    kinds = dict.fromkeys(f"a number of {t.units}" if t.units else "in pixel units" for t in threats)
    return " or ".join(kinds) or "in pixel units"


def method(name: str) -> str:
    """The description of a training method: the first paragraph of its documentation; empty for an unknown method."""
    try:
        doc = written(METHODS.find(name))
    except ValueError:
        return ""
    return " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split()).replace("`", "").rstrip(":")


def meanings(name: str) -> dict[str, str]:
    """The description of each field of a training method, from its source."""
    try:
        return field_docs(METHODS.find(name))
    except ValueError:
        return {}


def value(v: Any) -> str:
    """A setting as text."""
    if v is None:
        return "default"
    if isinstance(v, bool):
        return "yes" if v else "no"
    if isinstance(v, float):
        return f"{v:.6g}"
    if isinstance(v, list | tuple):
        return ", ".join(map(value, v)) or "none"
    if isinstance(v, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in v.items()) or "none"
    return str(v)


def short(names: Iterable[str], most: int = 40) -> dict[str, str]:
    """Names as figures have room for them: the ends of the longer ones, numbered so that none are alike."""
    return {name: name if len(name) <= most else f"{i}: ...{name[-most:]}" for i, name in enumerate(names, start=1)}


def course(rows: Sequence[dict[str, Any]]) -> str:
    """Training curves as text."""
    parts = []
    for split in ("validation", "train"):
        for kind in ("clean", "robust"):
            known = [row for row in rows if row.get(f"{split}_{kind}") is not None]
            if known:
                first, last = known[0], known[-1]
                parts.append(
                    f"{split} {kind} from {percent(first[f'{split}_{kind}'])} (epoch {first['epoch']}) to"
                    f" {percent(last[f'{split}_{kind}'])} (epoch {last['epoch']})"
                )
    best = next((row for row in reversed(rows) if row.get("best")), None)
    if best:
        at = [f"{k} {percent(best[f'validation_{k}'])}" for k in ("clean", "robust") if f"validation_{k}" in best]
        parts.append(f"best epoch {best['epoch']}, validation " + ", ".join(at))
    return "Accuracy against epoch: " + "; ".join(parts) + "."


def security(rows: Sequence[dict[str, Any]]) -> str:
    """A sweep of radii as text."""
    names = dict.fromkeys(row["attack"] for row in rows)
    lines = [
        f"{name} " + ", ".join(f"{percent(r['robust']['value'])} at {r['threat']}" for r in rows if r["attack"] == name)
        for name in names
    ]
    return (
        f"Robust accuracy against radius, {percent(rows[0]['clean']['value'])} without an attack: "
        + "; ".join(lines)
        + "."
    )
