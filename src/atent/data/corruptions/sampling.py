"""Blurs and warps of images (n, c, h, w), each image independent of the others in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from atent.rng import PerSample

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


def luminance(x: Tensor) -> Tensor:
    """The luminance (n, 1, h, w) of colour images; the mean of the channels if there are not three."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(GREY, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def gaussian_blur(x: Tensor, sigma: float, *, truncate: float = 4.0, border: str = "replicate") -> Tensor:
    """Gaussian blur, separable; ``sigma`` in pixels, the kernel cut at ``truncate * sigma``."""
    radius = int(truncate * sigma + 0.5)
    if radius < 1:
        return x
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    weights: list[float] = (kernel / kernel.sum()).tolist()
    return _along(_along(x, weights, 2, border), weights, 3, border)


def _along(x: Tensor, weights: list[float], dim: int, border: str) -> Tensor:
    """Correlation of one dimension with an odd number of weights."""
    radius, size = len(weights) // 2, x.shape[dim]
    wide = padded(x, radius if dim == 2 else 0, radius if dim == 3 else 0, border)
    parts = (weight * wide.narrow(dim, i, size) for i, weight in enumerate(weights))
    return torch.stack(tuple(parts)).sum(0)


def padded(x: Tensor, rows: int, columns: int, border: str) -> Tensor:
    """The image with ``rows`` and ``columns`` added on each side, which may exceed its size.

    ``border``: "replicate" repeats the edge (aaa|abcd|ddd), "reflect" mirrors about it (dcb|abcd|cba), "symmetric"
    mirrors with it (cba|abcd|dcb).
    """
    for dim, more in ((2, rows), (3, columns)):
        if more:
            size = x.shape[dim]
            places = torch.arange(-more, size + more, device=x.device)
            if border == "replicate" or size == 1:
                places = places.clamp(0, size - 1)
            else:
                edge = int(border == "symmetric")
                period = 2 * (size - 1 + edge)
                places = places.remainder(period)
                places = torch.where(places < size, places, period - edge - places)
            x = x.index_select(dim, places)
    return x


def correlate(x: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Correlation of every channel with a kernel (k, k) of odd size."""
    radius = len(kernel) // 2
    wide = padded(x, radius, radius, border)
    h, w = x.shape[2:]
    out = torch.zeros_like(x)
    for i, row in enumerate(kernel.tolist()):
        for j, weight in enumerate(row):
            if weight:
                out += weight * wide[:, :, i : i + h, j : j + w]
    return out


def pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, (1, h, w) each."""
    h, w = x.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=x.dtype, device=x.device), torch.arange(w, dtype=x.dtype, device=x.device), indexing="ij"
    )
    return rows[None], columns[None]


def sampled(x: Tensor, rows: Tensor, columns: Tensor, border: str = "replicate") -> Tensor:
    """The image at ``rows`` and ``columns`` (n or 1, h, w), in pixels, by bilinear interpolation.

    ``border`` is one of `padded`, or zeros.
    """
    h, w = x.shape[2:]
    # Only with corners that are not aligned does torch mirror with the edge.
    corners = border != "symmetric"
    units = ((columns, w), (rows, h))
    grid = [2 * at / max(side - 1, 1) - 1 if corners else (2 * at + 1) / side - 1 for at, side in units]
    places = torch.stack(grid, dim=3).to(x.dtype).expand(len(x), -1, -1, -1)
    mode = {"replicate": "border", "zeros": "zeros"}.get(border, "reflection")
    return F.grid_sample(x, places, mode="bilinear", padding_mode=mode, align_corners=corners)


def zoomed(x: Tensor, factor: float, border: str) -> Tensor:
    """The image enlarged by ``factor`` about its centre; below 1: reduced."""
    rows, columns = pixels(x)
    top, left = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    return sampled(x, top + (rows - top) / factor, left + (columns - left) / factor, border)


def enlarged(x: Tensor, factor: float) -> Tensor:
    """The image enlarged by ``factor`` of 1 or more as in CIFAR-10-C, where sides are whole numbers of pixels.

    The middle of a side, ``ceil(side / factor)`` pixels, becomes ``round(factor * middle)`` pixels, of which the middle
    is the result: the factor differs a little from the given one, and the centre may move by a pixel.
    """

    def places(side: int) -> Tensor:
        middle = math.ceil(side / factor)
        size = round(factor * middle)
        steps = (size - side) // 2 + torch.arange(side, dtype=torch.float64, device=x.device)
        return (side - middle) // 2 + steps * ((middle - 1) / max(size - 1, 1))

    h, w = x.shape[2:]
    return sampled(x, places(h)[None, :, None].expand(1, h, w), places(w)[None, None].expand(1, h, w))


def motion_blurred(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Blur along ``angle`` (n,), in degrees: one half of a Gaussian of ``sigma`` pixels over 2 radius + 1 of them.

    As in ImageMagick, which CIFAR-10-C uses: the places along the line are rounded to whole pixels, halves downwards,
    and the edge is repeated.
    """
    h, w = x.shape[2:]
    turn = angle.double() * (math.pi / 180)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * radius + 1)]
    total = math.fsum(weights)
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        down, right = ((i * f(turn) - 0.5).ceil().long()[:, None] for f in (torch.sin, torch.cos))
        rows = (torch.arange(h, device=x.device) + down).clamp(0, h - 1)
        columns = (torch.arange(w, device=x.device) + right).clamp(0, w - 1)
        moved = x.gather(2, rows[:, None, :, None].expand_as(x)).gather(3, columns[:, None, None].expand_as(x))
        out += (weight / total) * moved
    return out


def plasma(like: Tensor, streams: PerSample, decay: float) -> Tensor:
    """Diamond-square noise in [0, 1], (n, 1, h, w): each halving of the scale divides the amplitude by ``decay**2``."""
    n, h, w = len(like), *like.shape[2:]
    size = 1 << max(1, (max(h, w) - 1).bit_length())
    field = torch.zeros(n, size, size, dtype=like.dtype, device=like.device)
    step, height, level = size, 1.0, 0
    while step >= 2:
        half = step // 2

        def around(a: Tensor, b: Tensor, use: str, height: float = height, level: int = level) -> Tensor:
            jitter = 2 * streams.uniform(a, use=use, step=level) - 1
            return (a + b) / 4 + height * jitter

        corners = field[:, ::step, ::step]
        square = corners + corners.roll(-1, 1)
        centres = around(square, square.roll(-1, 2), "centres")
        field[:, half::step, half::step] = centres
        field[:, ::step, half::step] = around(centres + centres.roll(1, 1), corners + corners.roll(-1, 2), "rows")
        field[:, half::step, ::step] = around(centres + centres.roll(1, 2), corners + corners.roll(-1, 1), "columns")
        step, height, level = half, height / decay**2, level + 1
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low))[:, None, :h, :w]
