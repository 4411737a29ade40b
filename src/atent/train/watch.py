"""The watch for catastrophic overfitting: a network that learns to fool its training's attack and falls to others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atent.attacks import PGD
from atent.data import Data
from atent.evaluate import evaluate
from atent.methods import Method
from atent.threat import Threat
from atent.train.settings import TrainSettings

OK, WARNING, STOP = "ok", "warning", "stop"
"""What the row of a watched epoch says under ``watch``."""


class Watch:
    """Measures accuracy under PGD on held-out images after each epoch, beside that under the training's own attack.

    Wong, Rice and Kolter (2020, section 5.4) found that FGSM training loses its robustness to PGD within an epoch or
    two, while accuracy under FGSM stays or grows, and stop where the former falls by 20 points from one epoch to the
    next. Here the fall is counted from the best epoch so far, so that two smaller steps are one fall; it is measured
    on the first ``watch_limit`` images of the validation split (theirs: a training batch), by PGD with
    ``watch_steps`` steps of 2.5 eps / steps from a uniform start; and what the accuracy under the training's attack
    has lost since that best epoch is taken off: a training that diverges loses both, and is no such case. A fall above
    ``watch_drop`` stops the training, above half of it is a warning.
    """

    def __init__(self, data: Data, settings: TrainSettings, threat: Threat) -> None:
        self.part = data.validation.first(settings.watch_limit)
        self.attack = PGD(threat, settings.watch_steps)
        self.drop, self.seed = settings.watch_drop, settings.seed
        self.best: dict[str, Any] | None = None

    def measure(self, model: nn.Module) -> float:
        """Accuracy under the probe; the same draws for the same images each time."""
        x, y = self.part.batch(torch.arange(len(self.part), device=self.part.x.device))
        found = evaluate(model, x, y, {"pgd": self.attack}, seed=self.seed, ids=self.part.ids)
        return found.attacks["pgd"]["robust"]["value"]

    def judge(self, row: dict[str, Any]) -> str:
        """The verdict on an epoch's row, from its ``watch_robust`` and the ``robust`` of its training batches."""
        best = self.best
        if best is None or row["watch_robust"] > best["watch_robust"]:
            self.best = row
            return OK
        fall = best["watch_robust"] - row["watch_robust"]
        # A method that does not tell its accuracy under its own attack is judged by the probe alone.
        if "robust" in row:
            fall -= max(0.0, best["robust"] - row["robust"])
        return STOP if fall > self.drop else WARNING if fall > self.drop / 2 else OK

    def look(self, row: dict[str, Any], model: nn.Module) -> str | None:
        """Adds ``watch_robust`` and ``watch`` to the epoch's row; a line for the user, where there is one."""
        row["watch_robust"] = self.measure(model)
        row["watch"] = self.judge(row)
        return None if row["watch"] == OK else self.line(row)

    def line(self, row: dict[str, Any]) -> str:
        """What has happened, in one line."""
        assert self.best is not None
        best = self.best
        text = (
            f"at epoch {row['epoch']}: {100 * row['watch_robust']:.1f} % of {len(self.part)} held-out images stand"
            f" PGD-{self.attack.steps}, {100 * best['watch_robust']:.1f} % did after epoch {best['epoch']}"
        )
        if "robust" in row:
            text += f"; under the training's own attack {100 * best['robust']:.1f} % became {100 * row['robust']:.1f} %"
        if row["watch"] == STOP:
            return f"stopped {text}: catastrophic overfitting; the best epoch's weights are kept"
        return f"warning {text}: this may be catastrophic overfitting"


def watch(method: Method, data: Data, settings: TrainSettings, threat: Threat | None) -> Watch | None:
    """The watch that the settings ask for: auto watches methods whose adversary takes a single step.

    ValueError where a watch is asked for that has nothing to look at: without a threat, or an attack in training.
    """
    if settings.watch == "off" or (settings.watch == "auto" and not method.single_step):
        return None
    if threat is None or getattr(method, "threat", None) is None:
        raise ValueError(f"watch needs a method with a threat, got {type(method).__name__}: set train.watch off")
    return Watch(data, settings, threat)
