"""The views of contrastive pre-training: random resized crop, mirroring and colour changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from atent.checks import Settings, check_number
from atent.distributed.batch_rng import sampled
from atent.rng import check_rng

# Luma of ITU-R BT.601, as in torchvision and PIL.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Views(metaclass=Settings):
    """Random resized crop, mirroring, colour jitter and greyscale of a batch, on its device (Chen et al. 2020, SimCLR).

    Each image has its own crop, factors and order of the colour operations. The operations are those of torchvision,
    with three differences: a crop that would exceed the image is clipped to it, where torchvision samples again up to
    ten times; its position is continuous, not an integer number of pixels; and the interpolation at its border takes in
    the pixels next to it, where torchvision repeats the outermost ones. The crop is resized bilinearly (in the code of
    Jiang et al. 2020 bicubically). Saturation, hue and greyscale apply to images of three channels only. Jitter
    keeps pixels in [0, 1], the box for which it is defined. The defaults are the values of Jiang et al. 2020.

    References
    ----------
    Chen, Kornblith, Norouzi and Hinton 2020, "A simple framework for contrastive learning of visual representations",
    ICML, arXiv 2002.05709.

    Jiang, Chen, Chen and Wang 2020, "Robust pre-training by adversarial contrastive learning", NeurIPS, arXiv
    2010.13337.

    Examples
    --------
    >>> import torch
    >>> from atent.data.views import Views
    >>> Views(flip=0.0)(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 3, 32, 32])
    """

    scale: tuple[float, float] = (0.1, 1.0)
    """Smallest and largest share of the image's area that a crop takes, in (0, 1]."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width of a crop divided by its height."""
    flip: float = 0.5
    """Probability that a view is mirrored left to right; 0 if mirroring changes the class, as for digits."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of the changes of brightness, contrast and saturation, at least 0, and of hue, in [0, 0.5]."""
    jitter_probability: float = 0.8
    """Probability that a view is jittered."""
    grey: float = 0.2
    """Probability that a view of three channels is converted to greyscale."""

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            check_number(f"{name} (of views)", low, 0, above=True)
            if high < low or (name == "scale" and high > 1):
                top = " at most 1" if name == "scale" else ""
                raise ValueError(f"{name} (of views) is a smallest and a largest value{top}, got {(low, high)}")
        for name in ("flip", "jitter_probability", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} (of views) is a probability, in [0, 1], got {getattr(self, name)}")
        for value in self.jitter:
            check_number("jitter (of views)", value, 0)
        if len(self.jitter) != 4 or self.jitter[3] > 0.5:
            raise ValueError(
                f"jitter (of views) is brightness, contrast, saturation, and hue of at most 0.5, got {self.jitter}"
            )

    @property
    def recolours(self) -> bool:
        """Whether colours change, which requires pixels in [0, 1]."""
        return self.jitter_probability > 0 and any(self.jitter)

    def __call__(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One view of each image.

        Parameters
        ----------
        x
            Images (n, c, h, w), floats, in [0, 1] if colours change.
        rng
            Generator of the device of ``x``; None: torch's global one.

        Returns
        -------
        Tensor
            Of the shape, type and device of ``x``, within its smallest and largest value, or in [0, 1] if colours
            change. Needs no synchronisation with the device.

        Raises
        ------
        ValueError
            Unless ``x`` is a float batch of images.
        """
        if rng is not None:
            check_rng(rng, x.device)
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                f"views are for images, a float batch (n, c, h, w), got {x.dtype} of shape {tuple(x.shape)}"
            )
        # One call for all numbers: area, ratio, column, row, mirrored, jittered, grey, four factors, four ranks.
        u = sampled((len(x), 15), lambda shape: torch.rand(shape, generator=rng, device=x.device, dtype=x.dtype))
        out = self._crop(x, u[:, :5])
        if self.recolours:
            out = torch.where(_each(u[:, 5] < self.jitter_probability), self._jitter(out, u[:, 7:11], u[:, 11:]), out)
        if self.grey and x.shape[1] == 3:
            out = torch.where(_each(u[:, 6] < self.grey), _luma(out), out)
        return out

    def _crop(self, x: Tensor, u: Tensor) -> Tensor:
        """A resized crop, mirrored or not; ``u`` (n, 5) in [0, 1)."""
        h, w = x.shape[2:]
        low, high = (math.log(side) for side in self.ratio)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 0]
        ratio = (low + (high - low) * u[:, 1]).exp()
        # As shares of the sides; the ratio is in pixels.
        across = (area * ratio * (h / w)).sqrt().clamp(max=1.0)
        down = (area / ratio * (w / h)).sqrt().clamp(max=1.0)
        sign = 1.0 - 2.0 * (u[:, 4] < self.flip).to(x.dtype)
        zero = torch.zeros_like(area)
        # The grid runs from -1 to 1 along both sides.
        column, row = (1 - across) * (2 * u[:, 2] - 1), (1 - down) * (2 * u[:, 3] - 1)
        place = torch.stack([across * sign, zero, column, zero, down, row], dim=1).view(-1, 2, 3)
        grid = affine_grid(place, list(x.shape), align_corners=False)
        out = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).to(x.dtype)
        # Rounding can make the four weights sum to more than 1.
        return out.clamp(x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True))

    def _jitter(self, x: Tensor, u: Tensor, rank: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue, in random order for each image; ``u``, ``rank`` (n, 4)."""
        strength = torch.tensor(self.jitter, dtype=x.dtype, device=x.device)
        factor = (1 - strength).clamp(min=0) + (1 + strength - (1 - strength).clamp(min=0)) * u
        shift = strength[3] * (2 * u[:, 3] - 1)
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda z: z * _each(factor[:, 0]),
            lambda z: _blend(z, _luma(z).mean((1, 2, 3), keepdim=True), factor[:, 1]),
            lambda z: _blend(z, _luma(z), factor[:, 2]),
            lambda z: _hue(z, shift),
        ]
        colours = x.shape[1] == 3
        used = [k for k in range(4) if self.jitter[k] and (k < 2 or colours)]
        order = rank[:, used].argsort(1)
        for place in range(len(used)):
            for position, k in enumerate(used):
                x = torch.where(_each(order[:, place] == position), changes[k](x).clamp(0, 1), x)
        return x


def _each(v: Tensor) -> Tensor:
    return v[:, None, None, None]


def _luma(x: Tensor) -> Tensor:
    """The greyscale image (n, 1, h, w); with other than three channels, their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return other + _each(factor) * (x - other)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """The hue of each image rotated by ``shift`` (n,), a share of the circle; value and saturation do not change."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = x.split(1, dim=1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Red, green and blue are one triangular wave of the hue, a third of the circle apart.
    wave = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    at = torch.remainder(wave + hue + 6 * _each(shift), 6)
    return value - chroma * torch.minimum(at, 4 - at).clamp(0, 1)
