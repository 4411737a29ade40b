"""Sequences of slightly changing images, as in CIFAR-10-P, to count changes of the predicted class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from atent.data.corruptions.noise import shot_noise
from atent.data.corruptions.sampling import pixels, sampled, zoomed
from atent.data.corruptions.weather import brightened
from atent.rng import PerSample

Frame = Callable[[Tensor, float, PerSample], Tensor]
"""``frame(x, amount, streams)``: one frame of images (n, c, h, w) in [0, 1]."""


@dataclass(frozen=True)
class Sequence:
    """The frames of a sequence; a sequence of noise begins with the image itself."""

    frame: Frame
    amounts: tuple[float, ...]
    ordered: bool
    """Each frame is compared with the one before it; otherwise with the image without noise, which is the first."""

    def frames(self, x: Tensor, streams: PerSample) -> Iterator[Tensor]:
        """The frames of the images ``x`` (n, c, h, w) in [0, 1]."""
        if not self.ordered:
            yield x
        for i, amount in enumerate(self.amounts):
            yield self.frame(x, amount, streams.named(str(i))).clamp(0, 1)


def _noisy(x: Tensor, amount: float, streams: PerSample) -> Tensor:
    return x + amount * streams.normal(x)


def _brighter(x: Tensor, amount: float, streams: PerSample) -> Tensor:
    return brightened(x, amount)


def _moved(x: Tensor, amount: float, streams: PerSample) -> Tensor:
    rows, columns = pixels(x)
    return sampled(x, rows, columns - amount * x.shape[3] / 32, "zeros")


def _turned(x: Tensor, amount: float, streams: PerSample) -> Tensor:
    rows, columns = pixels(x)
    top, left = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
    y, across = rows - top, columns - left
    return sampled(x, top + cos * y + sin * across, left + cos * across - sin * y, "zeros")


def _scaled(x: Tensor, amount: float, streams: PerSample) -> Tensor:
    return zoomed(x, amount, "zeros")


SEQUENCES: dict[str, Sequence] = {
    "gaussian_noise": Sequence(_noisy, (0.02,) * 30, ordered=False),
    "shot_noise": Sequence(shot_noise, (700,) * 30, ordered=False),
    "brightness": Sequence(_brighter, tuple((i - 15) * 0.015 for i in range(31)), ordered=True),
    "translate": Sequence(_moved, tuple(float(i - 7) for i in range(16)), ordered=True),
    "rotate": Sequence(_turned, tuple(float(i - 15) for i in range(31)), ordered=True),
    "scale": Sequence(_scaled, tuple((70 + 2 * i) / 100 for i in range(31)), ordered=True),
}
"""Name -> sequence: two of noise and four ordered ones, with the steps of CIFAR-10-P. The translation is
in pixels of a 32-pixel image, and scales with the side of other images."""


def flips(classes: Tensor, *, ordered: bool) -> Tensor:
    """Flip rate: the share of comparisons of each sequence in which the class changes, (n,), float64.

    ``classes`` (n, frames): the predicted classes. In an ordered sequence each frame is compared with the one before
    it, in one of noise with the first (Hendrycks and Dietterich 2019). ValueError for fewer than two frames.
    """
    if classes.dim() != 2 or classes.shape[1] < 2:
        raise ValueError(f"a flip rate needs classes (n, frames) of two frames or more, got {tuple(classes.shape)}")
    before = classes[:, :-1] if ordered else classes[:, :1]
    return (classes[:, 1:] != before).double().mean(1)


def framed(x: Tensor, name: str, *, seed: int, ids: Tensor) -> Iterator[Tensor]:
    """The frames of one of the `SEQUENCES` on images in [0, 1], random numbers keyed by ``seed`` and sample number."""
    streams = PerSample(seed, ids, f"sequence/{name}")
    with torch.no_grad():
        yield from SEQUENCES[name].frames(x, streams)
