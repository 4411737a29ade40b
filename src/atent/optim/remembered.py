"""What an optimizer of the user remembers outside its state, which no checkpoint contains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_STORED = ("state", "param_groups", "defaults")
_PACKAGES = ("atent", "torch")


def outside(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[str]:
    """The attributes that change with every step of an optimizer and are not in its `state_dict`, by name; [] for an
    optimizer of torch.

    Three steps on two small parameters are tried. What the first step creates and later ones leave, such as a cache,
    does not count, nor do the parameters themselves.

    Parameters
    ----------
    make
        Returns the optimizer of a list of parameters.
    """
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    try:
        with torch.random.fork_rng(devices=[]):
            made = make(parameters)
            if type(made).__module__.partition(".")[0] in _PACKAGES:
                return []
            seen = []
            for step in range(3):
                for p in parameters:
                    p.grad = torch.full_like(p, 0.1 * (step + 1))
                made.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
                seen.append({k: _value(v, parameters) for k, v in vars(made).items() if k not in _STORED})
    except Exception:  # the code of the user may raise anything; its first step in the training reports it
        return []
    first, second, third = seen
    return sorted(name for name in third if third[name] != second.get(name) and second.get(name) != first.get(name))


def _value(value: Any, parameters: list[nn.Parameter]) -> Any:
    """A value for a comparison: numbers, texts, tensors, generators and collections of these; None for others."""
    if isinstance(value, Tensor):
        own = any(value is p or value is p.grad for p in parameters)
        return None if own else value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return [(_value(k, parameters), _value(v, parameters)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque):
        return [_value(each, parameters) for each in value]
    return value if isinstance(value, int | float | str) else None
