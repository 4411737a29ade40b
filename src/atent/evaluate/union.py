"""Robustness to several threats at once: which samples are robust to all of them, and which threat fools which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from atent.attacks.spec import show
from atent.docstrings import Documented
from atent.evaluate.evaluation import Evaluation
from atent.evaluate.outcomes import FOOLED
from atent.stats import bounded_mean, share
from atent.threat import Threat

UNION_VERSION = 1
"""Version of the union report, a part of evaluation.json."""


@dataclass(frozen=True)
class Union(metaclass=Documented):
    """Robustness to several threats at once, from one evaluation.

    A share is {"value", "low", "high", "k", "n"} with a 95 % interval.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import evaluate, union
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    >>> attacks = [FGSM(Threat("linf", 0.1)), FGSM(Threat("l2", 0.2))]
    >>> found = union(evaluate(model, x, model(x).argmax(1), attacks, cascade="threat"))
    >>> sum(found.by_count), len(found.by_count)
    (6, 3)
    """

    n: int
    """Number of samples."""
    seed: int
    """Seed of the random numbers."""
    clean: dict[str, Any]
    """Share of the samples classified correctly."""
    worst: dict[str, Any]
    """The union: share of the samples that remain correctly classified under every threat."""
    average: dict[str, float]
    """Mean over the threats of the robust accuracy, {"value", "low", "high"} with a 95 % interval over samples."""
    threats: dict[str, dict[str, Any]]
    """By threat as text: threat, its fields; attacks, by name the result of each (attack as text, attacked, fooled,
    forwards, backwards, seconds); robust, the share that remains correctly classified under all of them; alone, the
    number of samples that this threat alone fools."""
    broken: dict[str, dict[str, int]]
    """By pair of threats: how many correctly classified samples both fool; by a threat twice, how many it fools."""
    by_count: list[int]
    """How many correctly classified samples 0, 1, 2, ... of the threats fool."""
    outcomes: dict[str, Any] = field(default_factory=dict)
    """One character per sample: ids ("0-499"), clean (1 correct, 0 misclassified), and by threat 1 robust, 0 not."""
    schema_version: int = UNION_VERSION
    """Version of the format."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are part of evaluation.json."""
        return asdict(self)


def union(found: Evaluation) -> Union:
    """The union report of an evaluation under two threats or more.

    A sample is robust to a threat if no attack under that threat fools it, and robust to the union if it is robust to
    every threat, so the union is at most the least of the threats' robust accuracies. A sample that is misclassified
    without an attack is robust to none, and counts as broken by none.

    Parameters
    ----------
    found
        The result of `evaluate` with ``cascade="threat"``, or with ``cascade=False`` at a higher cost; both give the
        same verdicts.

    Returns
    -------
    Union
        Robust accuracy for each threat, the union, the average, and which threat fools which samples.

    Raises
    ------
    ValueError
        In one line, for attacks of one threat alone, and for a cascade across threats, in which a sample is not
        attacked after the first threat that fools it.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import evaluate, union
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    >>> attacks = [FGSM(Threat("linf", 0.1)), FGSM(Threat("l2", 0.2))]
    >>> found = union(evaluate(model, x, model(x).argmax(1), attacks, cascade="threat"))
    >>> list(found.threats), found.clean["value"]
    (['linf 0.1', 'l2 0.2'], 1.0)
    """
    groups = _by_threat(found.attacks)
    if len(groups) < 2:
        raise ValueError(
            f"a union needs two threats or more, got {', '.join(groups) or 'no attack'}: add attacks under another one"
        )
    if found.cascade is True:
        raise ValueError(
            "in a cascade across threats a sample is not attacked after the first threat that fools it: evaluate with"
            ' cascade="threat"'
        )
    right = [flag == "1" for flag in found.outcomes["clean"]]
    breaks = {
        name: [any(found.outcomes["attacks"][attack][i] == FOOLED for attack in attacks) for i in range(found.n)]
        for name, attacks in groups.items()
    }
    count = [sum(each) for each in zip(*breaks.values())]
    robust = {name: [ok and not lost for ok, lost in zip(right, each)] for name, each in breaks.items()}
    return Union(
        n=found.n,
        seed=found.seed,
        clean=found.clean,
        worst=share(sum(map(all, zip(*robust.values()))), found.n),
        average=asdict(bounded_mean([sum(each) / len(robust) for each in zip(*robust.values())])),
        threats={
            name: {
                "threat": found.attacks[attacks[0]]["threat"],
                "attacks": {attack: _cost(found.attacks[attack]) for attack in attacks},
                "robust": share(sum(robust[name]), found.n),
                "alone": sum(lost and k == 1 for lost, k in zip(breaks[name], count)),
            }
            for name, attacks in groups.items()
        },
        broken={
            a: {b: sum(map(all, zip(breaks[a], breaks[b]))) for b in breaks} for a in breaks
        },
        by_count=[sum(ok and k == j for ok, k in zip(right, count)) for j in range(len(groups) + 1)],
        outcomes={
            "ids": found.outcomes["ids"],
            "clean": found.outcomes["clean"],
            "threats": {name: "".join("1" if ok else "0" for ok in each) for name, each in robust.items()},
        },
    )  # fmt: skip


def _by_threat(attacks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of the attacks by threat as text, in order; eps in full where two agree in six digits."""
    groups: dict[Threat, list[str]] = {}
    for name, entry in attacks.items():
        groups.setdefault(Threat(**entry["threat"]), []).append(name)
    names = [show(threat) for threat in groups]
    full = [name if names.count(name) == 1 else f"{name} ({t.eps!r})" for name, t in zip(names, groups)]
    return dict(zip(full, groups.values()))


def _cost(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("attack", "attacked", "forwards", "backwards", "seconds")}
    return kept | {"fooled": len(entry["fooled"])}
