"""Hints at mistakes that an evaluation can detect and that raise no error."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atent.data.split import spread
from atent.stats import share

_SAMPLES = 1000
_GAIN = 0.1
# Fewer samples may all get one class from a network that separates classes.
_FEW = 20
_COLLAPSED = ": where its training collapsed, a lower optimizer.lr or a warm-up of eps (method.eps_warmup) may help"
_CLASS = re.compile(r"^((?:the network gives|all \d+ samples are of) class )(\d+)\b")


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
    found = share(int((predict(standard) == y).sum()), len(x))
    if found["low"] < raw["high"] + _GAIN:
        return None
    values = [", ".join(f"{v:.3g}" for v in t.tolist()) for t in (mean, std)]
    return (
        f"the model seems to expect normalised inputs: clean accuracy {100 * raw['value']:.0f} % on raw pixels,"
        f" {100 * found['value']:.0f} % on standardised ones; put atent.models.Normalize(mean, std) in front of it,"
        f" with the mean and std of its training (of this data: [{values[0]}] and [{values[1]}])"
    )


def collapse_hint(predicted: Tensor, y: Tensor) -> str | None:
    """One line where 20 samples or more, of two classes or more, are all given the same class, else None.

    ``predicted`` (n,) classes, ``y`` (n,) labels. Adversarial training with a large radius or learning rate may
    collapse to such a network, whose accuracy under every attack is the share of that class.
    """
    given, n = predicted.unique(), len(y)
    if n < _FEW or len(given) > 1 or len(y.unique()) < 2:
        return None
    return f"the network gives class {int(given)} to all {n} samples{_COLLAPSED}"


def adapted(hint: str | None, names: Sequence[object] | None, advice: str | None = None) -> str | None:
    """A hint with the name of the class in place of its number, and with other advice on a collapse.

    Parameters
    ----------
    hint
        One line of this module, or None.
    names
        The names of the classes; None where the data have none.
    advice
        What to do about a network that gives one class to all samples, "" for nothing. Default: unchanged.
    """
    if hint is None:
        return None
    found = _CLASS.search(hint)
    if found and names and int(found[2]) < len(names) and str(names[int(found[2])]) != found[2]:
        hint = hint.replace(found[0], f"{found[1]}{str(names[int(found[2])])!r}", 1)
    if advice is None or not hint.endswith(_COLLAPSED):
        return hint
    return hint.removesuffix(_COLLAPSED) + (f": {advice}" if advice else "")


def one_class_hint(y: Tensor) -> str | None:
    """One line where several samples, ``y`` (n,) labels, are all of one class, else None.

    A constant classifier is correct on all of them, under every attack.
    """
    if len(y) < 2 or len(y.unique()) > 1:
        return None
    return (
        f"all {len(y)} samples are of class {int(y[0])}, so a network that gives every input that class has 100 %:"
        " evaluate a class-stratified sample (Data.sample, or --subset stratified)"
    )
