"""An attack on a network and a batch, as the checks of `check_attack` use it, and how they measure."""

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
from atent.testing.contract import require
from atent.threat import Threat


@dataclass
class Case:
    """An attack, and the network and batch on which it is checked."""

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
        """The attack's outcome in each precision, with what it was given."""
        found = {}
        for dtype in (torch.float64, torch.float32):
            model, x = self.at(dtype)
            found[dtype] = model, x, self.run(model, x)
        return found

    @functools.cached_property
    def harmless(self) -> Attack | None:
        """The attack with eps 0; None where its settings have no meaning there."""
        try:
            return under(self.attack, dataclasses.replace(self.threat, eps=0.0))
        except ValueError:
            return None


def under(attack: Attack, threat: Threat) -> Attack:
    """The same attack under another threat."""
    return dataclasses.replace(attack, threat=threat)


def within(threat: Threat, x_adv: Tensor, x: Tensor, eps: float, where: str = "") -> None:
    """`Broken` for a sample further from x than eps and the contract's tolerance, in float64."""
    size, top = lengths(threat.norm, x_adv, x), max(map(abs, threat.box))
    room = 6e-8 * top
    limit = eps + room if threat.norm == "linf" else eps * (1 + 1e-6) + room * math.sqrt(x[0].numel())
    worst = int(size.argmax())
    found = f"{threat.norm} distance {float(size[worst]):.9g} of sample {worst}{where}"
    require(bool((size <= limit).all()), found, f"at most {limit:.9g} at eps {eps:g}")


def lengths(norm: str, x_adv: Tensor, x: Tensor) -> Tensor:
    """The norm of each perturbation, in float64."""
    d = (x_adv.double() - x.double()).flatten(1)
    return d.abs().amax(1) if norm == "linf" else (d * d).sum(1).sqrt()
