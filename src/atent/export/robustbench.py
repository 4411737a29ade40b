"""A model entry of RobustBench: the JSON file of a network in its list of models."""

from __future__ import annotations

import math
from typing import Any

from atent.attacks.spec import is_standard, show
from atent.experiments.comparison import caveat_of
from atent.experiments.results import EvaluationFile, Share
from atent.experiments.target import Target
from atent.export.card import Results
from atent.threat import Threat

DATA = ("cifar10", "cifar100", "imagenet")
NORMS = {"linf": "Linf", "l2": "L2"}
BY_HAND = ("link", "name", "authors", "venue", "reported", "additional_data")
"""Fields that only the authors know."""


def entry(target: Target, found: Results) -> tuple[dict[str, Any], str]:
    """The entry, and its path in RobustBench's folder of models.

    Accuracies are the measured ones in percent. RobustBench lists figures of the standard AutoAttack on all test
    images: ``autoattack_acc`` is None if there is no such evaluation. ValueError, in one line, for data or a threat
    that RobustBench does not have.
    """
    threat = target.threat
    if target.data.name not in DATA or threat is None or threat.norm not in NORMS:
        raise ValueError(
            f"RobustBench has {', '.join(DATA)} under linf and l2, not {target.data.name} under"
            f" {'no threat' if threat is None else threat.norm}"
        )
    complete = [
        f for f in found.evaluations.values()
        if caveat_of(f) is None and f.n == f.data.of and f.threats == [show(threat)]
    ]  # fmt: skip
    clean = next((f.clean for f in found.evaluations.values() if f.n == f.data.of), None)
    made = {
        "link": "", "name": "", "authors": "", "additional_data": None, "number_forward_passes": 1,
        "dataset": target.data.name, "venue": "", "architecture": _architecture(target), "eps": _eps(threat),
        "clean_acc": None if clean is None else f"{100 * clean.value:.2f}", "reported": "",
        "autoattack_acc": f"{100 * _standard(complete[0]).value:.2f}" if complete else None,
    }  # fmt: skip
    return made, f"model_info/{target.data.name}/{NORMS[threat.norm]}/{target.name}.json"


def _standard(found: EvaluationFile) -> Share:
    """The robust accuracy under AutoAttack; other attacks of the evaluation may leave less."""
    return next(a.robust for a in found.attacks.values() if is_standard(a.attack))


def _architecture(target: Target) -> str:
    return str((target.config.get("model") or {}).get("name") or target.about.get("model") or "")


def _eps(threat: Threat) -> str:
    """A radius as RobustBench writes it: in linf in units of 1/255."""
    eps = float(threat.eps)
    levels = round(255 * eps) if threat.norm == "linf" else 0
    return f"{levels}/255" if levels and math.isclose(levels / 255, eps, rel_tol=1e-6) else f"{eps:g}"
