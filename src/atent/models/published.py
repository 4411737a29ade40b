"""Weights that another library published, in the names of a network of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def translated(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict in the names of ``model``, where the class of a network inside it knows the names that it has.

    Such a class has a method ``published_state(state)`` that gives the state in its own names, or None for one that is
    not of a layout that it knows. What lies outside that network, such as the layer that normalises, stays as it is in
    ``model``. Any other state is given back unchanged.
    """
    for path, module in model.named_modules():
        translate = getattr(module, "published_state", None)
        if not callable(translate):
            continue
        renamed = translate(state)
        if renamed is None:
            break
        prefix = f"{path}." if path else ""
        around = {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}
        return {**around, **{prefix + name: value for name, value in renamed.items()}}
    return dict(state)
