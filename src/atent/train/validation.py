"""Accuracies on the validation split after an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import parse
from atent.data import Data, Split, everything
from atent.data.described import described
from atent.data.split import Part
from atent.distributed import current
from atent.evaluate.hints import Hints
from atent.progress import bar
from atent.runs.foreign import begins_with_file
from atent.stats import share
from atent.threat import Threat
from atent.train.settings import TrainSettings
from atent.train.shares import evaluated

# A network that has taken fewer steps may not separate classes yet.
_FEW_STEPS = 300
_ADVICE = "a lower optimizer.lr or a warm-up of eps (method.eps_warmup) may help"


def _parsed(spec: str, threat: Threat | None) -> Attack:
    try:
        return parse(spec, threat, ATTACKS)
    except ValueError as error:
        raise ValueError(f"validate_attack: {error}") from None


class Validation:
    """Clean and robust accuracy on the validation split and on as many training samples, without augmentation.

    ``config``: the configuration of a training by a recipe. Only a training that begins with the weights of a file is
    checked for a network that expects normalised inputs.
    """

    def __init__(
        self, data: Data, settings: TrainSettings, threat: Threat | None, *, robust: bool,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        limit = everything(settings.validate_limit) or len(data.validation)
        self.parts: dict[Part, Split] = {name: data.sample(name, limit) for name in ("train", "validation")}
        spec = settings.validate_attack.strip()
        wanted = spec.lower() != "none" and threat is not None
        self.attacks: dict[str, Attack] = {"robust": _parsed(spec, threat)} if wanted else {}
        for attack in self.attacks.values():
            attack.threat.check_eps(data.shape)
        self.seed = settings.seed
        self.hints = Hints(begins_with_file(config or {}), data.about.get("class_names"), "validation images", _ADVICE)
        select = settings.select
        if select == "robust" and not wanted:
            raise ValueError("select robust needs a robust validation: set validate_attack, and a threat")
        self.select = select if select != "auto" else ("robust" if wanted and robust else "clean")

    def subsets(self, data: Data) -> dict[str, Any]:
        """The measured samples, for the configuration."""
        return {name: described(data, name, part) for name, part in self.parts.items()}

    def measure(self, model: nn.Module, steps: int, *, progress: bool) -> tuple[dict[str, float], str | None]:
        """The accuracies, and the hint of the evaluation on the validation split; ``steps``: those taken so far."""
        hints = self.hints
        if steps < _FEW_STEPS:
            advice = f"it has taken only {steps} steps, more epochs or a smaller train.batch_size may help"
            hints = replace(hints, advice=advice)
        row: dict[str, float] = {}
        hint = None
        total = sum(len(range(len(p))[current().rows(len(p))]) for p in self.parts.values()) * len(self.attacks)
        with bar(total, "validation", enabled=progress) as advance:
            for name, part in self.parts.items():
                found = evaluated(model, part, self.attacks, seed=self.seed, hints=hints, advance=advance)
                for kind, count in found.counts.items():
                    measured = share(count, len(part))
                    row[f"{name}_{kind}"] = measured["value"]
                    if name == "validation":
                        row |= {f"{name}_{kind}_low": measured["low"], f"{name}_{kind}_high": measured["high"]}
                if name == "validation":
                    hint = found.hint
        return row, hint

    def score(self, row: dict[str, Any], prefix: str = "") -> tuple[float, float]:
        """The score that the best epoch maximises; ties in robust accuracy are decided by clean accuracy, all others by
        the earlier epoch."""
        if self.select == "last":
            return row["epoch"], 0.0
        kinds = ("robust", "clean") if self.select == "robust" else ("clean", "robust")
        first, second = (row.get(f"{prefix}validation_{kind}", -1.0) for kind in kinds)
        return first, second if self.select == "robust" else 0.0
