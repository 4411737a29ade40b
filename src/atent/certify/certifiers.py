"""The certifiers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from atent.certify.bounds import bounds
from atent.certify.smoothing import Smoothed
from atent.registry import Registry
from atent.threat import Threat

CERTIFIERS: Registry[Callable[..., Any]] = Registry(
    "certifier",
    "atent.certify",
    "atent.certifiers",
    callable,
    "a function of (model, x, threat), or a class with a method certify",
)
"""Name -> class whose objects have ``certify``, as `Smoothed`, or function (model, x, threat) that gives bounds of the
logits, as `bounds`."""

certifier = CERTIFIERS.register
"""Decorator that makes a certifier known by its own name, or ``certifier("name")`` by another."""

certifier("smoothing")(Smoothed)


@certifier("ibp")
def ibp(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Interval arithmetic from layer to layer (Gowal et al. 2018)."""
    return bounds(model, x, threat, "ibp", **given)


@certifier("crown-ibp")
def crown_ibp(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Linear bounds of the logits with relaxations from intervals (Zhang et al. 2019)."""
    return bounds(model, x, threat, "crown-ibp", **given)


@certifier("crown")
def crown(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Linear bounds of every layer, the better of these and intervals (Zhang et al. 2018)."""
    return bounds(model, x, threat, "crown", **given)


@certifier("dual")
def dual(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """The bound of the dual network (Wong and Kolter 2018)."""
    return bounds(model, x, threat, "dual", **given)
