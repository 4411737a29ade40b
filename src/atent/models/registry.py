"""The networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import nn

from atent.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model", "atent.models", "atent.models", callable, "a function that builds an nn.Module",
    page="docs/add-network.md",
)  # fmt: skip
"""Name -> function that builds the network; it takes ``classes`` and ``shape`` (with the native shape as default), and
``dropout``, ``activation`` and ``patch`` if the network has them. A function of a plug-in may take no arguments."""

model = MODELS.register
"""Decorator that registers a network under the name of its function."""


def takes_task(name: str) -> bool:
    """Whether the network is built for given classes and inputs; otherwise it has its own, as that of a function
    without arguments. ValueError for an unknown name."""
    return {"classes", "shape"} <= set(_parameters(name))


def default_shape(name: str) -> tuple[int, ...] | None:
    """The default of ``shape``; None for a network without one."""
    own = _parameters(name).get("shape")
    shape: tuple[int, ...] | None = None if own is None or own.default is own.empty else own.default
    return shape


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(MODELS.find(name)).parameters
