"""Augmentations of image batches, on their device, with independent random numbers for each image.

Each takes float (n, c, h, w) and a generator of the same device (None: torch's global one) and returns a tensor of the
same shape, type and device, in the same box if the box contains 0, without synchronising with the device. Raises
ValueError if x is not a float image batch.

``within=(rows, total)``: x contains these rows of a batch of ``total`` images. Random numbers are generated for the
complete batch, so that the rows are augmented as in that batch and the generator ends in the same state.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from atent.data.checks import lookup
from atent.rng import check_rng
from atent.threat import Box

PADDING = 4
DEGREES = 5.0

Within = tuple[slice, int] | None
"""The rows of a batch that are given, and the size of that batch; None: the complete batch."""


class Augmentation(Protocol):
    """A random transformation of a batch of images, see the docstring of this module."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None, *, within: Within = None) -> Tensor: ...


def _checked(x: Tensor, generator: torch.Generator | None) -> None:
    if generator is not None:
        check_rng(generator, x.device)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"augmentation got {x.dtype} {tuple(x.shape)}; wanted a float batch (n, c, h, w)")


def _rows(x: Tensor, within: Within) -> tuple[slice, int]:
    """The rows of the batch that x contains, and the size of the batch."""
    rows, total = within or (slice(len(x)), len(x))
    if len(range(total)[rows]) != len(x):
        raise ValueError(f"augmentation got {len(x)} images for rows {rows.start} to {rows.stop} of {total}")
    return rows, total


def _random_bits(x: Tensor, generator: torch.Generator | None, rows: slice, total: int) -> Tensor:
    return torch.randint(2, (total,), generator=generator, device=x.device)[rows].bool()


def none(x: Tensor, generator: torch.Generator | None = None, *, within: Within = None) -> Tensor:
    """x itself; uses no random numbers."""
    return x


def flip(x: Tensor, generator: torch.Generator | None = None, *, within: Within = None) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    _checked(x, generator)
    return torch.where(_random_bits(x, generator, *_rows(x, within))[:, None, None, None], x.flip(3), x)


def crop_flip(x: Tensor, generator: torch.Generator | None = None, *, within: Within = None) -> Tensor:
    """Each image padded with 4 zeros, cropped back at one of 9 x 9 offsets, and mirrored with probability 1/2.

    The standard CIFAR augmentation (He et al., arXiv:1512.03385, section 4.2). Random numbers: offsets (n, 2), row then
    column, then one bit per image for the mirroring (n,).
    """
    _checked(x, generator)
    n, c, h, w = x.shape
    of, total = _rows(x, within)
    offset = torch.randint(2 * PADDING + 1, (total, 2), generator=generator, device=x.device)[of]
    mirrored = _random_bits(x, generator, of, total)[:, None]
    rows = offset[:, :1] + torch.arange(h, device=x.device)
    along = torch.arange(w, device=x.device)
    columns = offset[:, 1:] + torch.where(mirrored, w - 1 - along, along)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[None, :, None, None]
    return pad(x, [PADDING] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def rotate_flip(x: Tensor, generator: torch.Generator | None = None, *, within: Within = None) -> Tensor:
    """Each image rotated about its centre by a uniform angle in [-5, 5) degrees, and mirrored with probability 1/2.

    Bilinear, with zeros outside; torchvision's RandomRotation takes the nearest pixel by default. Random numbers:
    angles (n,), then one bit per image for the mirroring (n,).
    """
    _checked(x, generator)
    n, _, h, w = x.shape
    rows, total = _rows(x, within)
    uniform = torch.rand(total, generator=generator, device=x.device, dtype=x.dtype)[rows]
    mirrored = _random_bits(x, generator, rows, total)[:, None, None, None]
    if not n:
        return x
    angle = (2 * uniform - 1) * math.radians(DEGREES)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The grid runs from -1 to 1 along both sides, so the rotation of an oblong image needs its aspect ratio.
    rotation = torch.stack([cos, -sin * (h / w), zero, sin * (w / h), cos, zero], dim=1).view(n, 2, 3)
    grid = affine_grid(rotation, list(x.shape), align_corners=False)
    rotated = grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).to(x.dtype)
    # Rounding can make the four weights sum to more than 1, and attacks reject values outside the box.
    low = x.amin((1, 2, 3), keepdim=True).clamp(max=0.0)
    high = x.amax((1, 2, 3), keepdim=True).clamp(min=0.0)
    rotated = rotated.clamp(low, high)
    return torch.where(mirrored, rotated.flip(3), rotated)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "flip": flip,
    "crop-flip": crop_flip,
    "rotate-flip": rotate_flip,
}


_PADDED = ("crop-flip", "rotate-flip")
"""Those whose images have zeros at their borders."""


def check(name: str, shape: Sequence[int], box: Box, data: str) -> None:
    """ValueError for an augmentation of samples of ``shape`` in ``box`` that are no images, or would leave the box.

    ``data``: the name of the data set, for the message.
    """
    if name != "none" and len(shape) != 3:
        raise ValueError(f"data.augment is {name!r}; {data} has no images: use 'none'")
    ends = zip(*(side if isinstance(side, tuple) else (side,) for side in box), strict=True)
    if name in _PADDED and not all(low <= 0 <= high for low, high in ends):
        raise ValueError(f"data.augment {name!r} pads images with 0, outside the box of {data}: use 'flip' or 'none'")


def augment(name: str) -> Augmentation:
    """The augmentation of that name.

    Parameters
    ----------
    name
        A name in `AUGMENTATIONS`: none, flip, crop-flip or rotate-flip.

    Returns
    -------
    Augmentation
        A function of a float batch (n, c, h, w) and a generator of its device (default: torch's global one), which
        returns a new batch of the same shape, type and device. "none" returns its input.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the closest one.

    Examples
    --------
    >>> import torch
    >>> from atent.data import augment
    >>> x = torch.rand(8, 1, 28, 28)
    >>> augment("crop-flip")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([8, 1, 28, 28])
    """
    return lookup(AUGMENTATIONS, name, "augmentation")
