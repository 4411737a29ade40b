"""Digital corruptions: contrast, elastic transform, pixelation and JPEG compression."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from atent.data.corruptions.registry import corruption
from atent.data.corruptions.sampling import gaussian_blur, padded, pixels, sampled
from atent.rng import PerSample


@corruption("digital", (0.75, 0.5, 0.4, 0.3, 0.15))
def contrast(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Differences from the mean of each channel are reduced."""
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * level + mean).clamp(0, 1)


@corruption("digital", ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)))
def elastic_transform(x: Tensor, level: tuple[float, float, float], streams: PerSample) -> Tensor:
    """A random affine map and a smooth random displacement, in shares of the side."""
    side = min(x.shape[2:])
    amount, sigma, corners = (side * part for part in level)
    rows, columns = pixels(x)
    a = _jittered(x, corners, streams)
    down, right = (
        a[:, i, 0, None, None] * rows + a[:, i, 1, None, None] * columns + a[:, i, 2, None, None] for i in (0, 1)
    )
    x = sampled(x, down, right, "reflect")
    if amount == 0:
        return x.clamp(0, 1)
    shifts = (
        amount * gaussian_blur(2 * streams.uniform(x[:, :1], use=use) - 1, sigma, truncate=3, border="symmetric")[:, 0]
        for use in ("down", "right")
    )
    moved = sampled(x, rows + next(shifts), columns + next(shifts), "symmetric")
    return moved.clamp(0, 1)


def _jittered(x: Tensor, reach: float, streams: PerSample) -> Tensor:
    """The affine maps (n, 2, 3) to each pixel's origin, where three points move by up to ``reach`` pixels each way."""
    h, w = x.shape[2:]
    half = min(h, w) // 3
    top, left = h // 2, w // 2
    points = [(top + half, left + half), (top - half, left + half), (top - half, left - half)]
    corners = torch.tensor(points, dtype=torch.float64, device=x.device).expand(len(x), -1, -1)
    moved = corners + reach * (2 * streams.uniform(corners, use="corners") - 1)
    found: Tensor = torch.linalg.solve(torch.cat((moved, torch.ones_like(moved[..., :1])), 2), corners)
    return found.transpose(1, 2).to(x.dtype)


@corruption("digital", (0.95, 0.9, 0.85, 0.75, 0.65), smallest=16)
def pixelate(x: Tensor, level: float, streams: PerSample) -> Tensor:
    """Downsampled by box means, then resized to the original size."""
    h, w = x.shape[2:]
    rows, columns = _boxes(int(h * level), h).to(x), _boxes(int(w * level), w).to(x)
    small = (rows @ x) @ columns.T
    up, across = _boxes(h, int(h * level)).to(x), _boxes(w, int(w * level)).to(x)
    return ((up @ small) @ across.T).clamp(0, 1)


def _boxes(out: int, of: int) -> Tensor:
    """Weights (out, of), float64, that resize a line of pixels: each is the mean of those whose centre it contains."""
    scale = of / out
    reach = max(scale, 1.0) / 2
    centres = (torch.arange(out, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(of, dtype=torch.float64) + 0.5
    inside = (places >= centres[:, None] - reach) & (places < centres[:, None] + reach)
    return inside / inside.sum(1, keepdim=True)


# ---- JPEG --------------------------------------------------------------------------------------------------

# Quantisation of luminance and of chrominance at quality 50: ITU-T T.81, annex K.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Rows: Y, Cb and Cr of red, green and blue (JFIF).
_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


@corruption("digital", (80, 65, 58, 50, 40))
def jpeg_compression(x: Tensor, level: int, streams: PerSample) -> Tensor:
    """Quantisation of baseline JPEG at a given quality, the only lossy part of such a file.

    Colour is stored as luminance and, at half the resolution, chrominance; with other than three channels, each is a
    greyscale image.
    """
    levels = (255 * x.double()).round()
    if x.shape[1] != 3:
        return (_quantised(levels - 128, _LUMINANCE, level) + 128).round().clamp(0, 255).div(255).to(x.dtype)
    h, w = x.shape[2:]
    transform = torch.tensor(_YCC, dtype=torch.float64, device=x.device)
    ycc = torch.einsum("ij,njhw->nihw", transform, levels).round()
    light = _quantised(ycc[:, :1] - 128, _LUMINANCE, level) + 128
    # Encoders round the mean of four to an integer, and ties alternately up and down.
    sums = 4 * F.avg_pool2d(_padded_to(ycc[:, 1:], 2), 2)
    half = ((sums + 1 + torch.arange(sums.shape[3], device=x.device) % 2) / 4).floor()
    tint = F.interpolate(_quantised(half, _CHROMINANCE, level), scale_factor=2, mode="bilinear")[:, :, :h, :w]
    rgb = torch.einsum("ij,njhw->nihw", transform.inverse(), torch.cat((light, tint), 1))
    return rgb.round().clamp(0, 255).div(255).to(x.dtype)


def _quantised(x: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Blocks of 8 x 8 through the DCT, quantised as at ``quality``, and back."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor(table, dtype=torch.float64, device=x.device)
    steps = ((steps * scale + 50) / 100).floor().clamp(1, 255)
    n, c, h, w = x.shape
    wide = _padded_to(x, 8)
    rows, columns = wide.shape[2] // 8, wide.shape[3] // 8
    blocks = wide.view(n, c, rows, 8, columns, 8).transpose(3, 4)
    transform = dct_matrix(8).to(x)
    scaled = (transform @ blocks @ transform.T) / steps
    kept = (scaled.abs() + 0.5).floor() * scaled.sign() * steps
    back = (transform.T @ kept @ transform).transpose(3, 4).reshape_as(wide)
    return back[:, :, :h, :w].round()


def _padded_to(x: Tensor, unit: int) -> Tensor:
    """The image with its last row and column repeated until both sides are multiples of ``unit``."""
    h, w = x.shape[2:]
    more = (-h % unit, -w % unit)
    return padded(x, *more, "replicate")[:, :, more[0] :, more[1] :]


def dct_matrix(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II) of a line of pixels, (size, size), float64."""
    k = torch.arange(size, dtype=torch.float64)
    transform = torch.cos(math.pi / size * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / size)
    transform[0] = math.sqrt(1 / size)
    return transform
