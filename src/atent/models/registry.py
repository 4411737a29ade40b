"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from atent.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model", "atent.models", "atent.models", callable, "a function that builds an nn.Module"
)
"""Name -> function that builds the network; it takes ``classes`` and ``shape`` (whose default is the native one), and
``dropout``, ``activation`` and ``patch`` where it has them."""

model = MODELS.register
"""Decorator that makes a network known by its function's name."""
