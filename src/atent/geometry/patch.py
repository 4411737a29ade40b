"""Patches: at most K squares of a grid that tiles the image from its upper left corner differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from atent.geometry.blocks import Blocks

Inner = Literal["free", "linf"]


def blocks(shape: Sequence[int], side: int) -> Blocks:
    """The patches of images of ``shape`` (c, h, w), in row-major order; ValueError unless they tile the image."""
    if len(shape) != 3:
        got = ", ".join(map(str, shape))
        raise ValueError(f"a patch threat is for images (n, c, h, w), got inputs of shape (n, {got}): use l0")
    h, w = shape[1:]
    if h % side or w % side:
        fits = ", ".join(str(p) for p in range(1, min(h, w) + 1) if not (h % p or w % p))
        raise ValueError(f"patches of side {side} do not tile images of {h} x {w}: use a side of {fits}")
    down, across = h // side, w // side

    def pool(t: Tensor) -> Tensor:
        return t.sum(1).reshape(-1, down, side, across, side).sum((2, 4)).flatten(1)

    def spread(m: Tensor) -> Tensor:
        grid = m.view(-1, 1, down, 1, across, 1).expand(-1, 1, down, side, across, side)
        return grid.reshape(-1, 1, h, w)

    return Blocks(down * across, pool, spread)
