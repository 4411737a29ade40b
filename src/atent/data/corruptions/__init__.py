"""The fifteen common corruptions of CIFAR-10-C at five severities, computed, without downloads.

Constants are those of Hendrycks and Dietterich (2019) for images of 32 x 32 pixels, unless a corruption says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atent.checks import as_inputs, check_choice, check_seed, numbered
from atent.contracts import float_remedy
from atent.data.corruptions import blur, digital, noise, registry, weather
from atent.data.corruptions.registry import DEFINITIONS, SEVERITIES, Corruption
from atent.rng import PerSample
from atent.threat import Box, Threat

__all__ = ["CORRUPTIONS", "DEFINITIONS", "SEVERITIES", "Corruption", "check_images", "corrupt", "suited"]

_KINDS = (noise, blur, weather, digital)

CORRUPTIONS: dict[str, Corruption] = {
    name: each
    for kind in _KINDS
    for name, each in registry.CORRUPTIONS.items()
    if each.change.__module__ == kind.__name__
}
"""Name -> corruption, in the order of CIFAR-10-C."""


def corrupt(
    x: Tensor, name: str, severity: int, *, seed: int = 0, ids: Tensor | None = None, box: Box = (0.0, 1.0)
) -> Tensor:
    """Images under one of the `CORRUPTIONS`.

    Random numbers are keyed by ``seed``, sample number and corruption, the same at all severities: an image is changed
    in the same way in any batch.

    Parameters
    ----------
    x
        Images (n, c, h, w), floats in ``box``.
    name
        Name of the corruption, such as gaussian_noise.
    severity
        1 to 5.
    seed
        Seed of the random numbers.
    ids
        Sample numbers (n,), int64; default 0 .. n-1.
    box
        Lowest and highest value, or one such value per channel in each place.

    Returns
    -------
    Tensor
        Images of the shape, type and device of ``x``, in the box.

    Raises
    ------
    ValueError
        In one line: for inputs that are not images, an unknown name or severity, and images that are too small.

    References
    ----------
    Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR, arXiv 1903.12261.

    Examples
    --------
    >>> import torch
    >>> from atent.data.corruptions import corrupt
    >>> x = torch.rand(4, 3, 32, 32)
    >>> noisy = corrupt(x, "gaussian_noise", severity=3)
    >>> noisy.shape, torch.equal(noisy, corrupt(x, "gaussian_noise", severity=3))
    (torch.Size([4, 3, 32, 32]), True)
    """
    x = as_inputs(x)
    if x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"images must be numbers, got {x.dtype}: {float_remedy(str(x.dtype))}")
    check_images(x.shape[1:])
    check_choice("corruption", name, tuple(CORRUPTIONS))
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(map(str, SEVERITIES))}, got {severity}")
    chosen = CORRUPTIONS[name]
    if min(x.shape[2:]) < chosen.smallest:
        raise ValueError(
            f"{name} needs images of {chosen.smallest} pixels a side or more, got {x.shape[2]} x {x.shape[3]}: use one"
            f" of {', '.join(suited(x.shape[1:]))}"
        )
    streams = PerSample(check_seed(seed), numbered(ids, len(x), x.device), f"corruption/{name}")
    low, high = Threat("linf", 0.0, box).edges(x)
    with torch.no_grad():
        unit = ((x - low) / (high - low)).clamp(0, 1)
        changed = chosen.change(unit, chosen.levels[severity - 1], streams) if len(x) else unit
        found: Tensor = (low + (high - low) * changed).clamp(low, high)
        return found


def suited(shape: Sequence[int]) -> list[str]:
    """The corruptions that apply to images of ``shape`` (c, h, w): all from 16 pixels a side.

    Blurs, snow, frost and pixelation have lengths in pixels, which would erase a smaller image or not change it.
    """
    check_images(shape)
    return [name for name, each in CORRUPTIONS.items() if min(shape[1:]) >= each.smallest]


def check_images(shape: Sequence[int]) -> None:
    """ValueError, in one line, unless samples of ``shape`` are images (c, h, w) of 4 pixels a side or more."""
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ValueError(
            f"corruptions and frequencies need images (c, h, w) of 4 pixels a side or more, got inputs of shape"
            f" {tuple(shape)}: use data of images"
        )
