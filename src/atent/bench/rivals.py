"""Attacks of the packages that are installed beside this library, called alike, and what their results are worth.

foolbox, pyautoattack, adv-lib, the Adversarial Robustness Toolbox (ART) and torchattacks are imported when used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atent.guard import guard
from atent.threat import Threat

Peer = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> adversarial inputs."""

PACKAGES = {
    "foolbox": ("foolbox", "foolbox"),
    "pyautoattack": ("pyautoattack", "pyautoattack"),
    "adv-lib": ("adv-lib", "adv_lib.attacks"),
    "ART": ("adversarial-robustness-toolbox", "art.attacks.evasion"),
    "torchattacks": ("torchattacks", "torchattacks"),
}
"""Name in tables -> the distribution, and the module that must import."""

_NORMS = {"linf": "Linf", "l2": "L2"}


@cache
def found(package: str) -> tuple[str | None, str]:
    """The version of a package, and why it cannot be used: (None, the reason) where it cannot."""
    distribution, module = PACKAGES[package]
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None, f"not installed: pip install {distribution}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        # torchvision beside a torch that it was not built for raises RuntimeError.
        return None, f"version {version} does not import: {' '.join(str(error).split())}"
    return version, ""


def installed() -> dict[str, str]:
    """The packages that can be used, and their versions."""
    return {name: version for name in PACKAGES if (version := found(name)[0]) is not None}


# ---- adapters ----------------------------------------------------------------------------------------------


def _given(settings: dict[str, Any], threat: Threat) -> dict[str, Any]:
    """Settings of which some are functions of the threat."""
    return {k: v(threat) if callable(v) else v for k, v in settings.items()}


def foolbox(name: str, *, budget: bool, **settings: Any) -> Peer:
    """An attack of foolbox; ``budget``: within eps, otherwise the smallest change."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        fb: Any = importlib.import_module("foolbox")
        attack = getattr(fb.attacks, name.format(norm=_NORMS[threat.norm]))(**_given(settings, threat))
        wrapped = fb.PyTorchModel(model, bounds=threat.box, device=str(x.device))
        epsilons = float(threat.eps) if budget else None
        points: Tensor = attack(wrapped, x, fb.criteria.Misclassification(y), epsilons=epsilons)[1]
        return points

    return run


def art(name: str, **settings: Any) -> Peer:
    """An attack of ART within eps."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        evasion: Any = importlib.import_module("art.attacks.evasion")
        kinds: Any = importlib.import_module("art.estimators.classification")
        classifier = kinds.PyTorchClassifier(
            model=model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]),
            nb_classes=int(model(x[:1]).shape[1]), clip_values=threat.box, device_type="gpu" if x.is_cuda else "cpu",
        )  # fmt: skip
        attack = getattr(evasion, name)(
            classifier, norm=np.inf if threat.norm == "linf" else 2, eps=float(threat.eps), batch_size=len(x),
            verbose=False, **_given(settings, threat),
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return run


def autoattack(part: str) -> Peer:
    """A part of pyautoattack's AutoAttack, or the whole."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        common: dict[str, Any] = {
            "norm": _NORMS[threat.norm], "eps": float(threat.eps), "seed": 0, "device": str(x.device),
        }  # fmt: skip
        if part == "whole":
            whole: Any = importlib.import_module("pyautoattack").AutoAttack(model, version="standard", **common)
            points: Tensor = whole.run_standard_evaluation(x, y, batch_size=len(x))[0]
            return points
        module, name, more = _PARTS[part]
        kind = getattr(importlib.import_module(f"pyautoattack.{module}"), name)
        found: Tensor = kind(model, **more, **common).perturb(x, y)
        return found

    return run


_PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ce": ("autopgd_base", "APGDAttack", {"loss": "ce"}),
    "dlr": ("autopgd_base", "APGDAttack", {"loss": "dlr"}),
    "targeted": ("autopgd_base", "APGDAttack_targeted", {}),
    "fab": ("fab_pt", "FABAttack_PT", {"n_iter": 100, "n_restarts": 1}),
    "fab-targeted": ("fab_pt", "FABAttack_PT", {"n_iter": 100, "n_restarts": 1, "targeted": True}),
    "square": ("square", "SquareAttack", {"n_queries": 5000, "resc_schedule": False}),
}


def torchattacks(name: str, **settings: Any) -> Peer:
    """An attack of torchattacks within eps."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        kind = getattr(importlib.import_module("torchattacks"), name)
        attack = kind(model, eps=float(threat.eps), **_given(settings, threat))
        points: Tensor = attack(x, y)
        return points

    return run


def adv_lib(name: str, **settings: Any) -> Peer:
    """An attack of adv-lib, a function of the model, inputs and labels."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        attack = getattr(importlib.import_module("adv_lib.attacks"), name)
        points: Tensor = attack(model, x, y, **_given(settings, threat))
        return points

    return run


# ---- what they found ---------------------------------------------------------------------------------------


def run(peer: Peer, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The adversarial inputs of a peer, on copies and from a fixed seed; model and random state come back as found."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with guard(model, seed=0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer(model, x.clone(), y.clone(), threat)
    finally:
        logging.disable(before)


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
