"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from atent.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model", "atent.models", "atent.models", callable, "a function that builds an nn.Module",
    page="docs/add-network.md",
)  # fmt: skip
"""Name -> function that builds the network; it takes ``classes`` and ``shape`` (with the native shape as default), and
``dropout``, ``activation`` and ``patch`` if the network has them."""

model = MODELS.register
"""Decorator that registers a network under the name of its function."""
