"""Regions of an image, and the visibility of a change of each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.threat import Threat

# The superpixels of Fan et al. 2020.
_SEGMENTS, _COMPACTNESS = 150, 10.0


def _images(name: str, x: Tensor) -> tuple[int, int, int]:
    if x.dim() != 4:
        raise ValueError(f"{name} needs images (n, c, h, w), got inputs of shape {tuple(x.shape)}: omit it")
    return x.shape[1], x.shape[2], x.shape[3]


def _per_unit(threat: Threat, pixels: Tensor, x: Tensor) -> Tensor:
    """Values per pixel (n, h, w) for the elements or pixels that the threat counts, (n, u)."""
    every = pixels[:, None].expand_as(x).to(torch.float64)
    blocks = threat.blocks(x.shape[1:])
    return blocks.pool(every) / blocks.pool(torch.ones_like(every))


def grid(threat: Threat, x: Tensor, side: int) -> Tensor:
    """Index of the square of ``side`` pixels that contains each unit, int64 (n, u)."""
    _, h, w = _images("regions 'grid'", x)
    rows, columns = torch.arange(h, device=x.device) // side, torch.arange(w, device=x.device) // side
    numbers = rows[:, None] * (1 + int(columns[-1])) + columns
    return _per_unit(threat, numbers.expand(len(x), h, w), x).round().long()


def superpixels(threat: Threat, x: Tensor) -> Tensor:
    """Index of the SLIC superpixel that contains each unit, int64 (n, u); ImportError without scikit-image."""
    channels, _, _ = _images("regions 'superpixels'", x)
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise ImportError(
            "regions 'superpixels' needs scikit-image: pip install 'atent[superpixels]', or use regions='grid'"
        ) from None
    low, high = threat.edges(x)
    found = []
    for image in ((x - low) / (high - low)).cpu().numpy():
        given = image.transpose(1, 2, 0) if channels in (1, 3) else image.mean(0)[:, :, None]
        found.append(torch.as_tensor(slic(given, _SEGMENTS, _COMPACTNESS, start_label=0, channel_axis=-1)))
    return _per_unit(threat, torch.stack(found).to(x.device), x).round().long()


def visibility(threat: Threat, x: Tensor) -> Tensor:
    """Visibility of a change of each unit, in [0, 1], (n, u): large where the 3 x 3 neighbourhood varies little.

    1 / (standard deviation + 1e-4) of the mean channel in the neighbourhood, in widths of the box, rescaled so that its
    smallest and largest values in the image are 0 and 1.
    """
    _images("visibility", x)
    level = F.pad(x.mean(1, keepdim=True) / threat.width, (1, 1, 1, 1), mode="replicate")
    # Relative to the centre: in float32 the mean of squares less the squared mean rounds to more than 1e-8 where all
    # values are equal, so that flat regions of different levels would differ in weight.
    windows = F.unfold(level, 3)
    weight = 1 / ((windows - windows[:, 4:5]).std(1, correction=0) + 1e-4)
    least, most = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scaled = torch.where(most > least, (weight - least) / (most - least).clamp_min(1e-12), 1.0)
    return _per_unit(threat, scaled.view(len(x), *x.shape[2:]), x).to(x.dtype)
