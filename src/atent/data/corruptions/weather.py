"""Weather: snow, frost, fog and brightness. Snow, frost and fog are generated from noise, without image files."""

from __future__ import annotations

import torch
from torch import Tensor

from atent.data.corruptions.registry import corruption
from atent.data.corruptions.sampling import enlarged, luminance, motion_blurred, plasma
from atent.rng import PerSample

_SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)


@corruption("weather", _SNOW, smallest=16)
def snow(x: Tensor, level: tuple[float, float, float, float, int, float, float], streams: PerSample) -> Tensor:
    """Flakes (thresholded Gaussian noise, enlarged and blurred along their fall) over a brightened image."""
    mean, deviation, size, least, radius, sigma, kept = level
    flakes = enlarged(mean + deviation * streams.normal(x[:, :1], use="flakes"), size)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    angle = 90 * streams.uniform(x[:, 0, 0, :1], use="fall").squeeze(1) - 135
    flakes = motion_blurred(flakes, radius, sigma, angle)
    pale = kept * x + (1 - kept) * torch.maximum(x, 1.5 * luminance(x) + 0.5)
    return (pale + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


@corruption("weather", ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), smallest=16)
def frost(x: Tensor, level: tuple[float, float], streams: PerSample) -> Tensor:
    """Ice crystals over the image, bluish on colour images.

    CIFAR-10-C uses crops of photographs of frost; here the crystals are the ridges of diamond-square noise. Weights of
    image and frost are those of CIFAR-10-C.
    """
    kept, weight = level
    ridges = 1 - (2 * plasma(x, streams, 1.35) - 1).abs()
    ice = ridges**1.5
    if x.shape[1] == 3:
        ice = ice * torch.tensor((0.85, 0.93, 1.0), dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (kept * x + weight * ice).clamp(0, 1)


@corruption("weather", ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)))
def fog(x: Tensor, level: tuple[float, float], streams: PerSample) -> Tensor:
    """Adds diamond-square noise and rescales to the range of the image."""
    weight, decay = level
    white = x.flatten(1).amax(1).view(-1, 1, 1, 1)
    return ((x + weight * plasma(x, streams, decay)) * white / (white + weight)).clamp(0, 1)


@corruption("weather", (0.05, 0.1, 0.15, 0.2, 0.3))
def brightness(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Raises the value of the HSV colour; hue and saturation do not change."""
    return brightened(x, level)


def brightened(x: Tensor, by: float) -> Tensor:
    """The value of the HSV colour changed by ``by``, within [0, 1]; a black pixel becomes grey."""
    value = x.amax(1, keepdim=True)
    wanted = (value + by).clamp(0, 1)
    return torch.where(value > 0, x * (wanted / value.clamp_min(torch.finfo(x.dtype).tiny)), wanted).clamp(0, 1)
