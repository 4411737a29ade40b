"""What a training method of the user must define and return."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from atent.checks import plain
from atent.contracts import Member, flaw, kind_of
from atent.fields import shown

Metrics = dict[str, Tensor]
State = dict[str, Tensor]

LOSS = "loss(self, model, x, y, aux, *, progress=1.0, state=None)"
_GIVEN = ("rng", "ids", "progress", "state")
_BACKWARD = "backward(self, model, x, y, *, rng=None, ids=None, progress=1.0, weight=1.0, state=None)"
_MEMBERS = (
    Member("loss", LOSS, 4, ("progress", "state"), needed=True),
    Member("adversary", "adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None)", 3, _GIVEN),
    Member("backward", _BACKWARD, 3, (*_GIVEN, "weight")),
    Member("init", "init(self, n_train, shape, device)", 3),
    Member("prepare", "prepare(self, data)", 1),
    Member("rows", "rows(self, state, x, part)", 3),
    Member("points", "points(self, x, aux)", 2),
    Member("settings_at", "settings_at(self, progress)", 1),
    Member("diverged", "diverged(self, state)", 1),
)


def lacking(cls: type, base: Any) -> str | None:
    """The error for a method that lacks what a training needs; None for a valid class. A method with a `backward` of
    its own needs no `loss`."""
    own = cls.backward is not base.backward or cls._backward is not base._backward  # type: ignore[attr-defined]
    return flaw(cls, base, [member for member in _MEMBERS if not (own and member.name == "loss")])


def check_finite(name: str, value: object) -> None:
    """ValueError unless ``value`` is a finite number, of Python, numpy or torch."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")


def check_trainable(model: nn.Module) -> None:
    """ValueError where no gradient of the weights can be computed: all are frozen, or gradients are disabled."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the network has no trainable parameters: set requires_grad on some of them")
    if not torch.is_grad_enabled():
        raise ValueError("gradients are disabled: call backward outside torch.no_grad and torch.inference_mode")


def checked_loss(method: Any, found: Any, x: Tensor) -> tuple[Tensor, Metrics]:
    """The result of `Method.loss`; ValueError, in one line, unless it is a scalar with a graph, and metrics."""
    name = f"{type(method).__name__}.loss"
    if not isinstance(found, tuple | list) or len(found) != 2:
        got = f"{len(found)} values" if isinstance(found, tuple | list) else kind_of(found)
        raise ValueError(f"{name} must return the loss and a dict of metrics, got {got}: return loss, {{}}")
    loss, metrics = found
    if not isinstance(loss, Tensor) or loss.dim():
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else kind_of(loss)
        raise ValueError(f"{name} must return a scalar tensor, got {got}: return the mean over the batch")
    checked_metrics(name, metrics, len(x))
    return loss, metrics


def checked_metrics(name: str, metrics: Any, n: int) -> Metrics:
    """The metrics of a batch of n samples; ValueError, in one line, unless they are scalars and vectors (n,)."""
    if not isinstance(metrics, dict):
        raise ValueError(f"{name} must return metrics as a dict of tensors, got {kind_of(metrics)}")
    for key, value in metrics.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"metric {key!r} of {name} must be a tensor, got {kind_of(value)}: torch.as_tensor it")
        if value.dim() > 1:
            raise ValueError(
                f"metric {key!r} of {name} must be a scalar or one value per sample, ({n},), got {tuple(value.shape)}"
            )
    return metrics


def checked_backward(method: Any, metrics: Any, n: int) -> Metrics:
    """The result of `Method.backward`; ValueError, in one line, unless it is metrics with the loss."""
    name = f"{type(method).__name__}.backward"
    if "loss" not in checked_metrics(name, metrics, n):
        raise ValueError(f"{name} must return the metric 'loss', got {', '.join(metrics) or 'none'}")
    return metrics  # type: ignore[no-any-return]


def checked_state(name: str, state: Any) -> State:
    """A method's state; ValueError, in one line, unless it is a dict of tensors."""
    if not isinstance(state, dict):
        raise ValueError(f"{name} must return a dict of tensors, got {kind_of(state)}")
    odd = next((key for key, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise ValueError(f"{name} must return a dict of tensors, got {kind_of(state[odd])} for {odd!r}")
    return state
