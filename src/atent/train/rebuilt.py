"""Whether a run can build its network again: what beside its weights the outputs of a network depend on.

A run stores weights, buffers and the name of what builds the network. Values that are drawn when the network is built,
such as a random projection or a permutation, are others each time; so are those of a builder that gives another network
with the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atent.data import Data
from atent.models import ModelSettings, make
from atent.runs.answers import differ, outputs_of
from atent.runs.weights import differences, hidden, is_dense, put, same, unwrapped, visible, whole
from atent.train.preflight import twin

# The standard deviation of the change of each weight, relative to the mean size of its tensor, and the least.
_CHANGE, _LEAST = 0.1, 0.02


def named(config: Mapping[str, Any], data: Data) -> tuple[nn.Module | None, str]:
    """The user's own network that a run's configuration names, built anew, and its name; None where it names none."""
    settings = config.get("model") or {}
    name = settings.get("name") or ""
    if ":" not in name:
        return None, name
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return make(ModelSettings(**{**known, "weights": None}), classes=data.classes, shape=data.shape), name


def kept(model: nn.Module, made: nn.Module | None, data: Data, name: str, *, itself: bool = False) -> list[str]:
    """The buffers of ``model`` to store though they are not persistent: those that ``made``, which ``name`` gives, has
    with other values; all where it gives none, and where it names a network ``itself``, which the process that imports
    it builds anew.

    ValueError, in one line, unless ``made`` is the network ``model`` once it has its weights and buffers: with the
    present ones and, since the last layer may begin at zero, with other weights.
    """
    # A function may give a network that its module has built.
    if made is None or unwrapped(made) is unwrapped(model):
        return _other(model, {})
    x, _ = data.train.batch(torch.arange(min(2, len(data.train)), device=data.train.x.device))
    device = next((p.device for p in model.parameters()), x.device)
    x, made = x.to(device), made.to(device)
    outputs_of(made, x)  # lazy weights
    found = differences(visible(model), visible(made))
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"{name} returns another architecture: {found[0]}{more}: give the function that built the model, and its"
            " builder_args"
        )
    own = _other(model, {} if itself else hidden(made))
    put(made, whole(model, own), own)
    copy = twin(model)
    if differ(model, made, x) or (copy is not None and _differ_elsewhere(copy, made, x)):
        raise ValueError(
            f"{name} gives a network whose outputs differ from those of the network to train where all weights and"
            " buffers agree, so that a run could not load it: give the function and the arguments that built it, and"
            " make what is drawn at random a buffer, or draw it with a fixed seed"
        )
    return own


def _other(model: nn.Module, again: Mapping[str, Tensor]) -> list[str]:
    """The buffers that are not persistent, and others in ``again``; those that a file cannot hold do not count."""
    aside = {name: buffer for name, buffer in hidden(model).items() if is_dense(buffer)}
    return [name for name, buffer in aside.items() if name not in again or not same(again[name], buffer)]


def _differ_elsewhere(copy: nn.Module, made: nn.Module, x: Tensor) -> bool:
    """Whether the outputs differ where all weights are others. The networks are changed."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in copy.parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=p.dtype if p.is_complex() else torch.float32)
            if p.is_floating_point() or p.is_complex():
                p.add_(noise.to(p.device, p.dtype) * (_CHANGE * p.abs().mean() + _LEAST))
    put(made, visible(copy))
    return differ(copy, made, x)
