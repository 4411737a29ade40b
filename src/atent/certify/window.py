"""Coefficients on the receptive field of a unit: a window of the image, instead of rows that are mostly zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.certify.region import Region

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The coefficients of functions of a node's values (channels, rows, columns): zero outside a window of each sample.

    The window of the unit at ``at`` begins at ``stride * at + shift``; each convolution that is substituted widens it.
    """

    values: Tensor
    """(n, s, c, h, w): s functions of each of n units; zero where the window leaves the image."""
    spot: Tensor
    """(n,): the window of each unit, among g different ones: all channels at a position have the same."""
    samples: Tensor
    """(g,): the sample that each window belongs to."""
    at: Tensor
    """(g, 2): row and column of its units in their map."""
    grid: Pair
    """Height and width of that map."""
    stride: Pair = (1, 1)
    shift: Pair = (0, 0)

    def of(self, t: Tensor) -> Tensor:
        """The values in the windows: from ``t`` (samples or 1, c, rows, columns) to (n, c, h, w), zero outside."""
        sides = [
            (max(0, -shift), max(0, stride * (count - 1) + shift + size - whole))
            for count, stride, shift, size, whole in zip(
                self.grid, self.stride, self.shift, self.values.shape[-2:], t.shape[-2:]
            )
        ]
        (up, down), (left, right) = sides
        h, w = self.values.shape[-2:]
        patches = F.pad(t, (left, right, up, down)).unfold(2, h, 1).unfold(3, w, 1)
        top, side = (self.at[:, i] * self.stride[i] + self.shift[i] + before for i, before in enumerate((up, left)))
        rows = self.samples if len(t) > 1 else torch.zeros_like(self.samples)
        found: Tensor = patches[rows, :, top, side]
        return found.index_select(0, self.spot)

    def moved(self, values: Tensor, stride: Pair, padding: Pair, image: Sequence[int]) -> Window:
        """The windows before a convolution with that stride and padding, cut to an ``image``."""
        scaled = _each(int.__mul__, self.shift, stride)
        made = replace(
            self,
            values=values,
            stride=_each(int.__mul__, self.stride, stride),
            shift=_each(int.__sub__, scaled, padding),
        )
        if not made._leaves(image):
            return made
        inside = made.of(values.new_ones(1, 1, *image))
        return replace(made, values=values * inside[:, None])

    def scattered(
        self, parts: Sequence[tuple[Tensor, Tensor]], kernel: Pair, stride: Pair, padding: Pair, image: Sequence[int]
    ) -> Window:
        """The windows before max-pooling.

        Each of the values (n, s, c, h, w) of a part belongs to an entry in its own window of the pooling, given by its
        index (n, c, h, w) in the ``image``; values of the same entry are added.
        """
        h, w = (step * (size - 1) + side for step, size, side in zip(stride, _sizes(self), kernel))
        n, s, c = self.values.shape[:3]
        empty = self.values.new_zeros(n, s, c, h * w)
        made = self.moved(empty.unflatten(3, (h, w)), stride, padding, image)
        at = self.at[self.spot]
        top, left = ((at[:, i] * made.stride[i] + made.shift[i]).view(-1, 1, 1, 1) for i in range(2))
        out = empty
        for values, place in parts:
            cell = (place // image[1] - top) * w + place % image[1] - left
            # Where the window of the units leaves the image values are zero, and indices have no meaning.
            cell = cell.clamp(0, h * w - 1).flatten(2)[:, None].expand(n, s, c, place.shape[-2] * place.shape[-1])
            out = out.scatter_add(3, cell, values.flatten(3))
        return replace(made, values=out.unflatten(3, (h, w)))

    def _leaves(self, image: Sequence[int]) -> bool:
        ends = zip(self.grid, self.stride, self.shift, self.values.shape[-2:], image)
        return any(
            shift < 0 or stride * (count - 1) + shift + size > whole for count, stride, shift, size, whole in ends
        )

    def plus(self, other: Window) -> Window:
        """The sum of the coefficients of the same functions from two paths through the network."""
        low = _each(min, self.shift, other.shift)
        high = _each(max, *(_each(int.__add__, each.shift, _sizes(each)) for each in (self, other)))
        one, two = (each._padded(low, high) for each in (self, other))
        return replace(self, values=one + two, shift=low)

    def _padded(self, low: Pair, high: Pair) -> Tensor:
        (up, left), end = _each(int.__sub__, self.shift, low), _each(int.__add__, self.shift, _sizes(self))
        down, right = _each(int.__sub__, high, end)
        return F.pad(self.values, (left, right, up, down))

    def wide(self, image: Sequence[int]) -> bool:
        """Whether the windows cover most of the ``image``, so that dense rows cost less."""
        h, w = self.values.shape[-2:]
        return 2 * h * w >= image[0] * image[1]

    def dense(self, shape: Sequence[int]) -> Tensor:
        """The coefficients of all entries of the image, (n, s, *shape)."""
        h, w = self.values.shape[-2:]
        at = self.at[self.spot]
        rows, columns = (
            at[:, i, None] * self.stride[i] + self.shift[i] + torch.arange(size, device=at.device)
            for i, size in enumerate((h, w))
        )
        # Entries outside the image are zero: they may be added anywhere.
        cells = rows.clamp(0, shape[1] - 1)[:, :, None] * shape[2] + columns.clamp(0, shape[2] - 1)[:, None]
        n, s, c = self.values.shape[:3]
        out = self.values.new_zeros(n, s, c, shape[1] * shape[2])
        made: Tensor = out.scatter_add(
            3, cells.flatten(1)[:, None, None].expand(n, s, c, h * w), self.values.flatten(3)
        )
        return torch.unflatten(made, 3, tuple(shape[1:]))

    def region(self, region: Region) -> Region:
        """The regions of the windows."""
        centre, lower, upper = (self.of(t) for t in (region.centre, region.lower, region.upper))
        return replace(region, centre=centre, lower=lower, upper=upper)


@dataclass(frozen=True)
class Units:
    """Units of a map (channels, rows, columns), of several samples."""

    samples: Tensor
    """(n,): the sample of each."""
    columns: Tensor
    """(n,): the index of each in the map."""
    spot: Tensor
    """(n,): the index of each unit's pair of sample and position, among g different ones."""
    places: Tensor
    """(g,): these pairs, numbered position by position."""


def all_units(n: int, shape: Sequence[int], chunk: int, device: torch.device) -> Iterator[Units]:
    """Every unit of a map of that ``shape`` for n samples, about ``chunk`` at a time; no host sync."""
    cells = shape[1] * shape[2]
    for places in torch.arange(cells * n, device=device).split(max(1, chunk // shape[0])):
        spot = torch.arange(len(places), device=device).repeat_interleave(shape[0])
        channel = torch.arange(shape[0], device=device).repeat(len(places))
        pair = places[spot]
        yield Units(pair % n, channel * cells + pair // n, spot, places)


def open_units(mask: Tensor, chunk: int) -> Iterator[Units]:
    """The units where ``mask`` (n, channels, rows, columns) is true, ``chunk`` at a time."""
    n, cells = len(mask), mask.shape[2] * mask.shape[3]
    for found in mask.permute(2, 3, 0, 1).flatten(0, 2).nonzero().split(chunk):
        if len(found):
            places, spot = found[:, 0].unique_consecutive(return_inverse=True)
            yield Units(found[:, 0] % n, found[:, 1] * cells + found[:, 0] // n, spot, places)


def windows_of(units: Units, n: int, shape: Sequence[int], dtype: torch.dtype) -> Window:
    """Each unit of a map of that ``shape``, and its negative: two functions each, of n samples."""
    channel = units.columns // (shape[1] * shape[2])
    hot = torch.zeros(len(channel), shape[0], dtype=dtype, device=channel.device)
    hot = hot.scatter(1, channel[:, None], 1.0)
    values = torch.stack([hot, -hot], 1)[..., None, None]
    cell = units.places // n
    at = torch.stack([cell // shape[2], cell % shape[2]], 1)
    return Window(values, units.spot, units.places % n, at, (shape[1], shape[2]))


def _sizes(window: Window) -> Pair:
    h, w = window.values.shape[-2:]
    return h, w


def _each(function: Callable[[int, int], int], a: Pair, b: Pair) -> Pair:
    return function(a[0], b[0]), function(a[1], b[1])
