"""Attacks of the packages that are installed beside this library, called alike, and what their results are worth.

They are called as `atent.integrations.packages` calls them, without the checks of `atent.integrations.peers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atent.guard import guard
from atent.integrations import packages
from atent.threat import Threat

Peer = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> adversarial inputs."""

NAMES = {
    "foolbox": "foolbox", "pyautoattack": "pyautoattack", "adv-lib": "adv_lib", "ART": "art",
    "torchattacks": "torchattacks",
}  # fmt: skip
"""Name in tables -> the package."""

_NORMS = {"linf": "Linf", "l2": "L2"}
# The parts of AutoAttack by the names of the benchmarks.
_PARTS = {
    "whole": "standard", "ce": "apgd_ce", "dlr": "apgd_dlr", "targeted": "apgd_t", "fab": "fab",
    "fab-targeted": "fab_t", "square": "square",
}  # fmt: skip


def found(package: str) -> tuple[str | None, str]:
    """The version of a package, and why it cannot be used: (None, the reason) where it cannot."""
    return packages.found(NAMES[package])


def installed() -> dict[str, str]:
    """The packages that can be used, and their versions."""
    return {name: version for name in NAMES if (version := found(name)[0]) is not None}


# ---- attacks at given settings -----------------------------------------------------------------------------


def _peer(package: str, target: Callable[[Threat], Any], settings: dict[str, Any]) -> Peer:
    """The attack ``target(threat)`` of a package; settings may be functions of the threat."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        given = {k: v(threat) if callable(v) else v for k, v in settings.items()}
        return packages.CALLS[package](target(threat), packages.Case(model, x, y, threat), given)

    return run


def _attribute(package: str, name: str) -> Any:
    return getattr(importlib.import_module(packages.PACKAGES[package].module), name)


def foolbox(name: str, **settings: Any) -> Peer:
    """An attack of foolbox: within eps or the smallest change, as its class has it."""
    return _peer("foolbox", lambda threat: _attribute("foolbox", name.format(norm=_NORMS[threat.norm])), settings)


def art(name: str, **settings: Any) -> Peer:
    """An attack of ART within eps."""
    return _peer("art", lambda threat: _attribute("art", name), settings)


def autoattack(part: str) -> Peer:
    """A part of pyautoattack's AutoAttack, or the whole."""
    return _peer("pyautoattack", lambda threat: _PARTS[part], {})


def torchattacks(name: str, **settings: Any) -> Peer:
    """An attack of torchattacks within eps."""
    return _peer("torchattacks", lambda threat: _attribute("torchattacks", name), settings)


def adv_lib(name: str, **settings: Any) -> Peer:
    """An attack of adv-lib, a function of the model, inputs and labels."""
    return _peer("adv_lib", lambda threat: _attribute("adv_lib", name), settings)


# ---- what they found ---------------------------------------------------------------------------------------


def run(peer: Peer, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The adversarial inputs of a peer, on copies and from a fixed seed; model and random state are restored."""
    with guard(model, seed=0), packages.quiet():
        return peer(model, x.clone(), y.clone(), threat)


@torch.no_grad()
def norms_of(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat, slack: float) -> Tensor:
    """Norms (n,) of the points that are adversarial, evaluated here: in the box, within eps and misclassified.

    Infinite where a point is not; 0 where x itself is misclassified. ``slack``: what the radius is exceeded by at most,
    relative and absolute.
    """
    x_adv = x_adv.detach().to(x.dtype)
    norm = threat.distance(x_adv, x)
    low, high = threat.box
    inside = ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1) & (norm <= float(threat.eps) * (1 + slack) + slack)
    fooled = (model(x_adv).argmax(1) != y) & inside
    wrong = model(x).argmax(1) != y
    norm = torch.where(wrong, torch.zeros_like(norm), norm)
    return torch.where(fooled | wrong, norm, torch.full_like(norm, float("inf")))
