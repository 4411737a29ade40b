"""The watch for catastrophic overfitting: a network that learns to fool its training's attack and falls to others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atent.attacks import FGSM, PGD, Attack
from atent.data import Data
from atent.data.described import described
from atent.evaluate import evaluate
from atent.methods import Method
from atent.threat import Threat
from atent.train.settings import TrainSettings

OK, WARNING, STOP = "ok", "warning", "stop"
"""What the row of a watched epoch says under ``watch``."""


class Watch:
    """Measures accuracy under PGD on held-out images after each epoch, beside that under the training's attack.

    Wong, Rice and Kolter (2020) found that FGSM training can lose its robustness to PGD within an epoch or two, while
    accuracy under FGSM stays or grows (Kim, Lee and Lee 2021), and stop where the former falls by more than 20 points
    from one epoch to the next. Here the fall is counted from the best epoch so far, so that two smaller steps are one
    fall; it is measured on ``watch_limit`` validation images by `Data.sample` (theirs: a training batch), by PGD
    with ``watch_steps`` steps of 2.5 eps / steps (theirs: 5 of 2/255) from a uniform start; and what the same images
    have lost under the training's attack since that best epoch is taken off: a network that is worse at the end of an
    epoch, or a training that diverges, loses both, and is no such case. A fall above ``watch_drop`` stops the
    training, above half of it is a warning. The training's attack is the method's own where it has one that runs alone
    (FGSMRS, PGDAT, TRADES, MART), and FGSM for the others, such as Free; both attacks see the network in eval mode
    (theirs: in train mode).

    A network may recover by itself (Li, Wang, Jana and Carin 2020), and collapse again. The watch does not wait for
    that.
    """

    def __init__(self, method: Method, data: Data, settings: TrainSettings, threat: Threat) -> None:
        self.part = data.sample("validation", settings.watch_limit)
        own = getattr(method, "attack", None)
        self.attacks: dict[str, Attack] = {
            "watch_robust": PGD(threat, settings.watch_steps),
            "watch_training": own(1.0) if callable(own) else FGSM(threat),
        }
        self.drop, self.seed = settings.watch_drop, settings.seed
        self.best: dict[str, Any] | None = None

    def subsets(self, data: Data) -> dict[str, Any]:
        """Which samples are measured, for the record."""
        return {"watch": described(data, "validation", self.part)}

    def measure(self, model: nn.Module) -> dict[str, float]:
        """``watch_robust`` and ``watch_training``: accuracy under PGD and under the training's attack, with the same
        draws for the same images each time."""
        x, y = self.part.batch(torch.arange(len(self.part), device=self.part.x.device))
        found = evaluate(model, x, y, self.attacks, seed=self.seed, ids=self.part.ids, cascade=False)
        return {name: entry["robust"]["value"] for name, entry in found.attacks.items()}

    def assess(self, row: dict[str, Any]) -> str:
        """The verdict on an epoch's row, from what `measure` found."""
        best = self.best
        if best is None or row["watch_robust"] > best["watch_robust"]:
            self.best = row
            return OK
        fall = best["watch_robust"] - row["watch_robust"] - max(0.0, best["watch_training"] - row["watch_training"])
        return STOP if fall > self.drop else WARNING if fall > self.drop / 2 else OK

    def update(self, row: dict[str, Any], model: nn.Module) -> str | None:
        """Adds what `measure` finds and ``watch``, the verdict, to the row; a line for the user, where there is one."""
        row |= self.measure(model)
        row["watch"] = self.assess(row)
        return None if row["watch"] == OK else self.line(row)

    def line(self, row: dict[str, Any]) -> str:
        """What has happened, in one line."""
        assert self.best is not None
        then, now = ({k: f"{100 * r[k]:.1f} %" for k in self.attacks} for r in (self.best, row))
        text = (
            f"at epoch {row['epoch']}: {now['watch_robust']} of {len(self.part)} held-out images are robust to PGD,"
            f" {then['watch_robust']} did after epoch {self.best['epoch']}; under the training's attack"
            f" {then['watch_training']} became {now['watch_training']}"
        )
        if row["watch"] == STOP:
            return f"stopped {text}: catastrophic overfitting; the best epoch's weights are kept"
        return f"warning {text}: this may be catastrophic overfitting"


def watch(method: Method, data: Data, settings: TrainSettings, threat: Threat | None) -> Watch | None:
    """The watch that the settings ask for: auto watches methods whose adversary takes a single step.

    ValueError where a watch is asked for that has nothing to evaluate: without a threat.
    """
    if settings.watch == "off" or (settings.watch == "auto" and not method.single_step):
        return None
    if threat is None or getattr(method, "threat", None) is None:
        raise ValueError(f"watch needs a method with a threat, got {type(method).__name__}: set train.watch off")
    return Watch(method, data, settings, threat)
