"""Hints at mistakes that an evaluation can detect and that raise no error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atent.attacks.base import Attack
from atent.attacks.wrapper import inside, nest
from atent.data.split import spread
from atent.losses import cross_entropy, margin
from atent.stats import share

_SAMPLES = 1000
_GAIN = 0.1
# Fewer samples may all get one class from a network that separates classes.
_FEW = 20


@dataclass(frozen=True)
class Hints:
    """What the hint of an evaluation considers, and its words."""

    check_inputs: bool = True
    """Whether to consider a model that expects normalised inputs. False for a network that was trained on inputs like
    those of the evaluation: one that is half trained may be more accurate on standardised ones."""
    class_names: Sequence[object] | None = None
    """Names of the classes. Default: their numbers."""
    samples: str = "samples"
    """What the samples are."""
    advice: str = "where its training collapsed, a lower optimizer.lr or a warm-up of eps (method.eps_warmup) may help"
    """What to do about a network that gives all samples one class; "": nothing."""

    def class_of(self, number: int) -> str:
        """A class by its name, in quotes unless that is its number."""
        names = self.class_names or ()
        name = str(names[number] if number < len(names) else number)
        return name if name == str(number) else repr(name)


def normalisation_hint(right: Tensor, x: Tensor, predict: Callable[[Tensor], Tensor], y: Tensor) -> str | None:
    """One line where the model classifies standardised images far better than raw ones, else None.

    ``right`` (n,) bool: correctly classified as raw images ``x`` (n, c, h, w); ``predict`` gives classes. Images are
    standardised by their own mean and standard deviation per channel; of more than 1000, a class-stratified sample of
    1000 is used. Far better: the 95 % intervals are ten points apart or more.
    """
    if x.dim() != 4:
        return None
    if len(x) > _SAMPLES:
        some = torch.from_numpy(spread(y.cpu().numpy(), (0,))[:_SAMPLES])
        x, y, right = x[some.to(x.device)], y[some.to(y.device)], right[some.to(right.device)]
    raw = share(int(right.sum()), len(x))
    if raw["high"] > 1 - _GAIN:
        return None
    std, mean = torch.std_mean(x.double(), (0, 2, 3), correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    standard = ((x - mean.to(x)[:, None, None]) / std.to(x)[:, None, None]).to(x.dtype)
    try:
        found = share(int((predict(standard) == y).sum()), len(x))
    except Exception:  # a network that checks the range of its inputs, or looks values up in a table
        return None
    if found["low"] < raw["high"] + _GAIN:
        return None
    values = [", ".join(f"{v:.3g}" for v in t.tolist()) for t in (mean, std)]
    return (
        f"the model seems to expect normalised inputs: clean accuracy {100 * raw['value']:.0f} % on raw pixels,"
        f" {100 * found['value']:.0f} % on standardised ones; put atent.models.Normalize(mean, std) in front of it,"
        f" with the mean and std of its training (of this data: [{values[0]}] and [{values[1]}])"
    )


def collapse_hint(predicted: Tensor, y: Tensor, hints: Hints) -> str | None:
    """One line where 20 samples or more, of two classes or more, are all given the same class, else None.

    ``predicted`` (n,) classes, ``y`` (n,) labels. Adversarial training with a large radius or learning rate may
    collapse to such a network, whose accuracy under every attack is the share of that class.
    """
    given, n = predicted.unique(), len(y)
    if n < _FEW or len(given) > 1 or len(y.unique()) < 2:
        return None
    advice = f": {hints.advice}" if hints.advice else ""
    return f"the network gives class {hints.class_of(int(given))} to all {n} {hints.samples}{advice}"


def one_class_hint(y: Tensor, hints: Hints) -> str | None:
    """One line where several samples, ``y`` (n,) labels, are all of one class, else None.

    A constant classifier is correct on all of them, under every attack.
    """
    if len(y) < 2 or len(y.unique()) > 1:
        return None
    return (
        f"all {len(y)} {hints.samples} are of class {hints.class_of(int(y[0]))}, so a network that gives every input"
        " that class has 100 %: evaluate a class-stratified sample (Data.sample, or --subset stratified)"
    )


def gradient_hint(
    attacks: Sequence[Attack], flat: Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor]
) -> str | None:
    """One line where at least a tenth of the samples that remain correctly classified have an input gradient of exactly
    zero and all ``attacks`` need gradients, else None.

    ``flat(loss)`` (n,) bool: which samples have a zero gradient of the loss. Rounding layers have a gradient of zero,
    and the cross-entropy of a network whose logits are far apart is constant in float32.
    """
    each = [run for attack in attacks for run in nest(attack)]
    if not each or not all(run.needs_gradient for run in each):
        return None
    # A sample stays where it is only if no search has a gradient there.
    entropy = all(run.saturates for run in each if not inside(run))
    name, loss = ("cross-entropy", cross_entropy) if entropy else ("margin", margin)
    try:
        found = flat(loss)
    except Exception:  # the attacks report what the network lacks
        return None
    k, n = int(found.sum()), len(found)
    if not k or k < _GAIN * n:
        return None
    return (
        f"the input gradient of the {name} is exactly zero at {k} of {n} samples that remain correctly classified,"
        " where gradient-based attacks do not move, so their failures do not show robustness: use AutoAttack or Square"
    )
