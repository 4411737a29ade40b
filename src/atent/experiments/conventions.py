"""Checks whether a published network receives the input that it expects."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from atent.guard import guard
from atent.messages import note
from atent.models.convention import Convention, parts
from atent.stats import interval, mcnemar

FIRST, REST = 32, 160
"""Images on which all conventions are compared, and those on which the best of them is tested."""
LEVEL = 0.001
"""The significance at which another convention is named."""

USUAL: dict[int, dict[str, Convention]] = {
    1: {
        "no normalisation": Convention(),
        "MNIST's mean and std": Convention((0.1307,), (0.3081,)),
        "Fashion-MNIST's mean and std": Convention((0.2860,), (0.3530,)),
        "mean and std 0.5": Convention((0.5,), (0.5,)),
        "values in 0..255": Convention(input_range="0..255"),
    },
    3: {
        "no normalisation": Convention(),
        "CIFAR-10's mean and std": Convention((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        "CIFAR-10's mean and smaller stds": Convention((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "CIFAR-100's mean and std": Convention((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "ImageNet's mean and std": Convention((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "mean and std 0.5": Convention((0.5,), (0.5,)),
        "values in 0..255": Convention(input_range="0..255"),
    },
}
"""Usual conventions of published networks, by number of channels."""


def check_convention(name: str, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> str | None:
    """Warn on stderr if a network is more accurate under another usual convention; the convention is not changed.

    The conventions are compared on the first `FIRST` images; where one beats the given there, both are tested on the
    next `REST` by McNemar's exact test. A network near chance under all of them is named as well.

    Parameters
    ----------
    name
        For the message.
    model
        The network behind the layers of the convention that was given, in eval mode.
    x, y
        Images in [0, 1] and their labels.
    classes
        Their number.

    Returns
    -------
    The line, or None without one.
    """
    network, given = parts(model)
    if x.ndim != 4 or x.shape[1] not in USUAL or not len(x):
        return None
    start, labels = x[:FIRST], y[:FIRST]
    base = int(_right(network, given, start, labels).sum())
    rivals = {text: int(_right(network, other, start, labels).sum()) for text, other in _rivals(given, x.shape[1])}
    best = max(rivals, key=lambda text: rivals[text])
    if line := _near_chance(name, max(base, rivals[best]), len(start), classes):
        return line
    if rivals[best] <= base:
        return None
    rival = dict(_rivals(given, x.shape[1]))[best]
    x, y = x[FIRST : FIRST + REST], y[FIRST : FIRST + REST]
    if not len(x):
        return None
    one, two = (_right(network, convention, x, y) for convention in (given, rival))
    gained, lost = int((two & ~one).sum()), int((one & ~two).sum())
    if gained <= lost or mcnemar(gained, lost) >= LEVEL:
        return None
    return _say(
        f"{name}: clean accuracy is {one.float().mean():.1%} with the input as given and {two.float().mean():.1%} with"
        f" {best} ({len(x)} images): the network probably expects {rival.options() or 'no --mean, --std'}"
    )


def _rivals(given: Convention, channels: int) -> Iterable[tuple[str, Convention]]:
    """The usual conventions other than the given one, and the given one with the channels reversed."""
    for text, other in USUAL[channels].items():
        if not _same(other, given, channels):
            yield text, replace(other, bgr=given.bgr)
    if channels == 3:
        order = "red, green, blue" if given.bgr else "blue, green, red"
        yield f"channels in the order {order}", replace(given, bgr=not given.bgr)


def _same(one: Convention, two: Convention, channels: int) -> bool:
    """Whether two conventions normalise alike, to the rounding of float32."""
    pairs = [made.normalisation(channels) or Convention((0.0,), (1.0,)).normalisation(channels) for made in (one, two)]
    flat = [[v for values in pair for v in values] for pair in pairs if pair is not None]
    return all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in zip(*flat, strict=True))


def _right(network: nn.Module, convention: Convention, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image is classified correctly."""
    model = convention.around(network, x.shape[1]).to(x.device, x.dtype).eval()
    with guard(model, mode="eval"), torch.no_grad():
        found = [model(part).argmax(1) for part in x.split(FIRST)]
    return torch.cat(found) == y


def _near_chance(name: str, right: int, n: int, classes: int) -> str | None:
    """A warning if the accuracy is not distinguishable from chance."""
    if n < FIRST or classes < 5 or interval(right, n)[0] > 1 / classes:
        return None
    return _say(
        f"{name}: clean accuracy is {right / n:.0%} on {n} images, near chance, under every usual normalisation: are"
        " --model and --data those of the weights?"
    )


def _say(line: str) -> str:
    note(line)
    return line
