"""Detection of catastrophic overfitting: a network that is robust only to the attack of its training."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks import FGSM, PGD, Attack
from atent.attacks.starts import start
from atent.data import Data
from atent.data.described import described
from atent.distributed import current, each
from atent.evaluate.outcomes import ROBUST
from atent.evaluate.subject import gradient
from atent.losses import cross_entropy
from atent.messages import report_idle
from atent.methods import Method
from atent.methods.wrapper import Wrapper
from atent.rng import PerSample
from atent.stats import paired
from atent.threat import Threat
from atent.train.settings import TrainSettings
from atent.train.shares import evaluated

OK, WARNING, STOP = "ok", "warning", "stop"
"""Verdicts: the values of ``watch`` in the row of a watched epoch."""

ALIGNED, MISALIGNED = 0.6, 0.4
"""Warn if the alignment of the gradients has been above the first value and is now below the second."""


class Watch:
    """Three signals on held-out images after each epoch; `assess` turns them into a verdict.

    Wong, Rice and Kolter (2020) found that FGSM training can lose its robustness to PGD within an epoch or two, while
    accuracy under FGSM is constant or grows (Kim, Lee and Lee 2021). All signals are measured on ``watch_limit``
    validation images by `Data.sample`, with the same images and random numbers each time, in eval mode:

    - ``watch_robust``: accuracy under PGD with ``watch_steps`` steps of 2.5 eps / steps from a uniform start.
    - ``watch_training``: accuracy under the training's attack, which is that of the method if it can run separately
      (FGSMRS, PGDAT, TRADES, MART, also inside AWP or embedding regularisation), and FGSM for the others, such as Free.
    - ``watch_gap_low``: lower limit of the paired 95 % interval of the difference of these two.
    - ``watch_alignment``: mean cosine between the gradients of the loss at x and at a uniform point of the ball (the
      quantity that Andriushchenko and Flammarion 2020 regularise); images without a gradient are excluded.

    There are three rules.

    *Fall.* ``watch_robust`` has fallen since its best epoch, and by more than ``watch_training`` has since then: for a
    network that is worse at the end of an epoch, or a training that diverges, both fall. A fall above ``watch_drop``
    stops the training, above half of it is a warning. (Wong et al. stop if the accuracy of a training batch under five
    steps of 2/255 falls by more than 20 points from one epoch to the next; here several smaller decreases count as one
    fall.)

    *Gap.* A network that has been robust only to its training's attack from the start does not show a fall:
    ``watch_gap_low`` above ``watch_gap`` in each of the last ``watch_window`` watched epochs is a warning, unless one
    of them is the best so far by ``watch_robust``: early in a training that accuracy still grows.

    *Alignment.* ``watch_alignment`` below 0.4 after it has been above 0.6 is a warning: the direction of a single step
    differs from that of several.

    A network may recover (Li, Wang, Jana and Carin 2020), and collapse again. The watch does not wait for that. The
    measured rates of false alarms and of detections are on the page *reliability*.
    """

    def __init__(self, method: Method, data: Data, settings: TrainSettings, threat: Threat) -> None:
        self.part, self.threat = data.sample("validation", settings.watch_limit), threat
        self.attacks: dict[str, Attack] = {
            "watch_robust": PGD(threat, settings.watch_steps),
            "watch_training": attack_of(method) or FGSM(threat),
        }
        self.drop, self.seed = settings.watch_drop, settings.seed
        self.gap, self.window = settings.watch_gap, settings.watch_window
        self.best: dict[str, Any] | None = None
        self.wide, self.aligned = 0, False
        self.reasons: list[str] = []

    def fresh(self) -> Watch:
        """A copy in the state before the first epoch."""
        again = copy.copy(self)
        again.best, again.wide, again.aligned, again.reasons = None, 0, False, []
        return again

    def subsets(self, data: Data) -> dict[str, Any]:
        """The measured samples, for the configuration."""
        return {"watch": described(data, "validation", self.part)}

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """The four values of an epoch; ``watch_alignment`` is None if no image has a gradient."""
        found = evaluated(model, self.part, self.attacks, seed=self.seed)
        shares = {name: found.counts[name] / len(self.part) for name in self.attacks}
        robust, training = (
            "".join("1" if flag == ROBUST else "0" for flag in found.flags[name]) for name in self.attacks
        )
        gap = paired([shares["watch_training"]], [shares["watch_robust"]], len(self.part), ([training], [robust]))
        return {**shares, "watch_gap_low": gap.low, "watch_alignment": self._alignment(model)}

    def _alignment(self, model: nn.Module) -> float | None:
        rows = current().rows(len(self.part))

        def own() -> Tensor:
            x, y = self.part.batch(torch.arange(rows.start, rows.stop, device=self.part.x.device))
            return cosines(model, self.threat, x, y, seed=self.seed, ids=self.part.ids[rows]).cpu()

        return _mean(torch.cat(each(own)))

    def assess(self, row: dict[str, Any]) -> str:
        """The verdict on an epoch's row with the values of `measure`; called in the order of epochs."""
        verdict = self._fall(row)
        self.reasons = ["fall"] if verdict != OK else []
        # Rows of earlier versions have no gap and no alignment.
        wide = (row.get("watch_gap_low") or 0.0) > self.gap and self.best is not row
        self.wide = self.wide + 1 if wide else 0
        if self.wide >= self.window:
            self.reasons.append("gap")
        found = row.get("watch_alignment")
        if found is not None:
            self.aligned = self.aligned or found > ALIGNED
            if self.aligned and found < MISALIGNED:
                self.reasons.append("alignment")
        return WARNING if verdict == OK and self.reasons else verdict

    def _fall(self, row: dict[str, Any]) -> str:
        best = self.best
        if best is None or row["watch_robust"] > best["watch_robust"]:
            self.best = row
            return OK
        fall = best["watch_robust"] - row["watch_robust"] - max(0.0, best["watch_training"] - row["watch_training"])
        return STOP if fall > self.drop else WARNING if fall > self.drop / 2 else OK

    def update(self, row: dict[str, Any], model: nn.Module) -> str | None:
        """Add the values of `measure` and ``watch``, the verdict, to the row; returns a line for the user, or None.

        A persistent gap or misalignment is reported once.
        """
        before = set(self.reasons) - {"fall"}
        row |= self.measure(model)
        row["watch"] = self.assess(row)
        return self.line(row) if set(self.reasons) - before else None

    def line(self, row: dict[str, Any]) -> str:
        """The reason of the verdict, in one line."""
        assert self.best is not None
        then, now = ({k: f"{100 * r[k]:.1f} %" for k in self.attacks} for r in (self.best, row))
        if "fall" in self.reasons:
            text = (
                f"at epoch {row['epoch']}: {now['watch_robust']} of {len(self.part)} held-out images are robust to PGD,"
                f" {then['watch_robust']} were after epoch {self.best['epoch']}; under the training's attack"
                f" {then['watch_training']} became {now['watch_training']}"
            )
        elif "gap" in self.reasons:
            text = (
                f"at epoch {row['epoch']}: {now['watch_training']} of {len(self.part)} held-out images are robust to"
                f" the training's attack and {now['watch_robust']} to PGD, a gap above {100 * self.gap:g} points in"
                f" each of the last {self.window} epochs, none of which was the best"
            )
        else:
            text = (
                f"at epoch {row['epoch']}: the gradients at an image and at a random point near it have a mean"
                f" cosine of {row['watch_alignment']:.2f}, after more than {ALIGNED:g}: the direction of one step"
                " differs from that of several"
            )
        if row["watch"] == STOP:
            return f"stopped {text}: catastrophic overfitting; the best epoch's weights are kept"
        return f"warning {text}: this may be catastrophic overfitting"


def attack_of(method: Method) -> Attack | None:
    """The attack of a training at its full eps; None if it cannot run separately."""
    while isinstance(method, Wrapper):
        method = method.method
    own = getattr(method, "attack", None)
    # A method of the user may use the name for something else.
    if not callable(own) or [*inspect.signature(own).parameters] != ["progress"]:
        return None
    found: Attack = own(1.0)
    return found


def alignment(model: nn.Module, threat: Threat, x: Tensor, y: Tensor, *, seed: int, ids: Tensor) -> float | None:
    """Mean of `cosines`; None if there are none."""
    return _mean(cosines(model, threat, x, y, seed=seed, ids=ids))


def cosines(model: nn.Module, threat: Threat, x: Tensor, y: Tensor, *, seed: int, ids: Tensor) -> Tensor:
    """The cosine between the input gradients of the cross-entropy at each image of ``x`` (n, ...) and at a uniform
    point of its ball, with the model in eval mode; for the images with both gradients, float64."""
    if not len(x):
        return x.new_zeros(0, dtype=torch.float64)
    near = threat.clamp(start(threat, "uniform", x, PerSample(seed, ids, "watch")))
    here, there = (gradient(model, z, y, cross_entropy, seed=seed, batch=250).flatten(1).double() for z in (x, near))
    lengths = here.norm(dim=1) * there.norm(dim=1)
    known = (lengths > 0) & lengths.isfinite()
    found: Tensor = (here * there).sum(1)[known] / lengths[known]
    return found


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def watch(method: Method, data: Data, settings: TrainSettings, threat: Threat | None) -> Watch | None:
    """The watch of the settings: auto watches methods with a single-step adversary.

    ValueError for a watch of a method without a threat.
    """
    if settings.watch == "off" or (settings.watch == "auto" and not method.single_step):
        names = ("watch_limit", "watch_steps", "watch_drop", "watch_gap", "watch_window")
        report_idle(settings, "train.", [(name, "set watch to on", False) for name in names])
        return None
    if threat is None or getattr(method, "threat", None) is None:
        raise ValueError(f"watch needs a method with a threat, got {type(method).__name__}: set train.watch off")
    return Watch(method, data, settings, threat)
