"""An attack with a network and a batch, for the checks of `check_attack`, and their distances."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack, Outcome
from atent.geometry.values import rounding
from atent.testing.contract import require
from atent.threat import Threat


@dataclass
class Case:
    """An attack, with the network and batch on which it is checked."""

    attack: Attack
    model: nn.Module
    """float64, in eval mode; no check changes it."""
    x: Tensor
    """float64 (n, ...), in the box."""
    y: Tensor
    seed: int

    @property
    def threat(self) -> Threat:
        return self.attack.threat

    def at(self, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        """A copy of the network, and the inputs, in another precision."""
        return copy.deepcopy(self.model).to(dtype), self.x.to(dtype)

    def run(self, model: nn.Module, x: Tensor, y: Tensor | None = None, **given: Any) -> Outcome:
        """The attack on copies of x and y, with the case's seed."""
        y = self.y if y is None else y
        return self.attack.run(model, x.clone(), y.clone(), **{"seed": self.seed, **given})

    @functools.cached_property
    def outcomes(self) -> dict[torch.dtype, tuple[nn.Module, Tensor, Outcome]]:
        """The attack's outcome in each precision, with its network and inputs."""
        found = {}
        for dtype in (torch.float64, torch.float32):
            model, x = self.at(dtype)
            found[dtype] = model, x, self.run(model, x)
        return found

    @functools.cached_property
    def harmless(self) -> Attack | None:
        """The attack with eps 0; None if its settings are invalid there."""
        try:
            return under(self.attack, dataclasses.replace(self.threat, eps=0.0))
        except ValueError:
            return None


def under(attack: Attack, threat: Threat) -> Attack:
    """The same attack under another threat."""
    return dataclasses.replace(attack, threat=threat)


def within(threat: Threat, x_adv: Tensor, x: Tensor, eps: float, where: str = "") -> None:
    """`Broken` for a sample further from x than eps and the contract's tolerance, in float64."""
    size, (share, room) = lengths(threat, x_adv, x), rounding(threat.span, x_adv, x)
    d = (x_adv.double() - x.double()).flatten(1)
    limit: Tensor = torch.full_like(size, eps)
    if threat.norm == "linf":
        limit = limit * (1 + share) + room
    elif threat.norm == "l2":
        limit = limit * (1 + 1e-6) + room * math.sqrt(d.shape[1])
    elif threat.norm == "l1":
        limit = limit * (1 + 1e-6) + room * (d != 0).sum(1)
    worst = int((size - limit).argmax())
    found = f"{threat.norm} distance {float(size[worst]):.9g} of sample {worst}{where}"
    require(bool((size <= limit).all()), found, f"at most {float(limit[worst]):.9g} at eps {eps:g}")
    if threat.inner_eps is not None:
        change, inner = d.abs().amax(1), float(threat.inner_eps)
        found = f"a change of {float(change.max()):.9g} inside a patch{where}"
        require(bool((change <= inner * (1 + share) + room).all()), found, f"inner_eps {inner:g}")


def lengths(threat: Threat, x_adv: Tensor, x: Tensor) -> Tensor:
    """The distance of each sample to x in the threat's norm, in float64."""
    d = x_adv.double() - x.double()
    if threat.norm == "linf":
        return d.flatten(1).abs().amax(1)
    if threat.norm in ("l2", "l1"):
        return (d * d).flatten(1).sum(1).sqrt() if threat.norm == "l2" else d.flatten(1).abs().sum(1)
    changed = d != 0
    if threat.norm == "patch":
        side = threat.side or 1
        changed = changed.any(1).unfold(1, side, side).unfold(2, side, side).flatten(3).any(3)
    elif threat.group == "pixel":
        changed = changed.any(1)
    return changed.flatten(1).sum(1).double()
