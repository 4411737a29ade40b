"""The l0 "ball": at most k elements of a sample differ, or at most k pixels with all their channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from atent.geometry.blocks import Blocks

Group = Literal["element", "pixel"]


def blocks(shape: Sequence[int], group: Group) -> Blocks:
    """The elements, or the pixels with all their channels, of samples of ``shape`` (no batch dimension).

    ValueError for pixels of samples with a single channel.
    """
    if group == "element":
        return Blocks(math.prod(shape), lambda t: t.flatten(1), lambda m: m.view(-1, *shape))
    if len(shape) < 2 or shape[0] < 2:
        raise ValueError(
            f"group 'pixel' joins the channels of a pixel, and inputs of shape {tuple(shape)} have one: use group"
            " 'element'"
        )
    rest = shape[1:]
    return Blocks(math.prod(rest), lambda t: t.sum(1).flatten(1), lambda m: m.view(-1, 1, *rest))
