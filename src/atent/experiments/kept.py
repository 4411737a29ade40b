"""The evaluation of a finished run, which a resume does not repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from atent import runs as folder
from atent.attacks import Attack
from atent.attacks.spec import spell
from atent.data import Data
from atent.data.described import described
from atent.evaluate.ledger import code_of_attack
from atent.experiments import migrate
from atent.experiments.results import Adversary, EvaluationFile
from atent.experiments.target import EvaluateSettings
from atent.runs import manifest
from atent.train.result import Fitted


def best_sum(run: Path) -> manifest.Sum | None:
    """The recorded sum of the best weights, which a training that resumes may change; None without a record."""
    return (manifest.sums(run) or {}).get(folder.BEST)


def outdated(run: Path, attacks: Iterable[Attack]) -> bool:
    """Whether the evaluation.json of a run is by another version of the user's code than that of ``attacks``."""
    present = [code_of_attack(attack) for attack in attacks]
    found = manifest.read_json(run / folder.EVALUATION).get("attacks", {}).values()
    return any(result["code"] not in present for result in found if result.get("code"))


def kept(
    run: Path, fitted: Fitted, data: Data, attacks: Mapping[str, Attack], settings: EvaluateSettings
) -> EvaluationFile | None:
    """The evaluation.json of a run, if it is all that its training would write now; None if it must be made (again).

    It must be of the best and the last epoch, by these attacks, in the present version of the user's code, against
    these threats on these test images, with the parts that ``settings`` ask for. A damaged file is not used.
    """
    file = run / folder.EVALUATION
    if not file.is_file():
        return None
    try:
        found = migrate.read(file, EvaluationFile)
    except ValueError:
        return None
    samples = described(data, "test", data.sample("test", settings.limit))
    last = found.epoch if found.last is None else found.last.epoch
    complete = (
        found.weights is None
        and found.epoch == fitted.best["epoch"]
        and found.seed == settings.seed
        and found.data.ids == samples["ids"]
        and {name: (result.attack, result.threat) for name, result in found.attacks.items()}
        == {name: (spell(attack), Adversary.of(attack.threat)) for name, attack in attacks.items()}
        # Evaluations of earlier versions record no code.
        and all(result.code in ([], code_of_attack(attacks[name])) for name, result in found.attacks.items())
        and (last == fitted.history[-1]["epoch"] or not settings.last)
        and (bool(found.checks) or not settings.checks)
        and (found.union is not None or not settings.threats)
    )
    return found if complete else None
