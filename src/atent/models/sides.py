"""The smallest images that a network takes."""

from __future__ import annotations


def at_least(least: int, name: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape (c, h, w) of an input of the network ``name``; ValueError for a side below ``least`` pixels."""
    c, h, w = shape
    if min(h, w) < least:
        raise ValueError(f"{name} takes inputs of at least {least} x {least} pixels, got shape {tuple(shape)}")
    return c, h, w
