"""The packages whose attacks this library calls: which are installed, and one function to call each.

foolbox, pyautoattack, adv_lib, the Adversarial Robustness Toolbox (ART) and torchattacks are imported when used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atent.threat import Threat


@dataclass(frozen=True)
class Package:
    """A package with attacks."""

    distribution: str
    """Its name for pip."""
    module: str
    """The module whose attributes are its attacks."""
    hint: str
    """How to install it."""


_EXTRA = "pip install 'atent[peers]'"

PACKAGES = {
    "foolbox": Package("foolbox", "foolbox.attacks", _EXTRA),
    "torchattacks": Package("torchattacks", "torchattacks", "pip install --no-deps torchattacks tqdm requests"),
    "adv_lib": Package("adv-lib", "adv_lib.attacks", "pip install adv-lib"),
    "art": Package("adversarial-robustness-toolbox", "art.attacks.evasion", _EXTRA),
    "pyautoattack": Package("pyautoattack", "pyautoattack", _EXTRA),
}
"""By the prefix in the name of an attack."""


@cache
def found(package: str) -> tuple[str | None, str]:
    """The version of a package and ""; if it cannot be used, None, the reason and what to do."""
    about = PACKAGES[package]
    try:
        version = importlib.metadata.version(about.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None, f"not installed: {about.hint}"
    try:
        with quiet():
            importlib.import_module(about.module)
    except Exception as error:
        # torchvision raises RuntimeError with a torch that it was not built for.
        return None, f"version {version} does not import: {' '.join(str(error).split())}"
    return version, ""


def needed(package: str, module: str) -> Any:
    """A module of a package.

    Raises
    ------
    ValueError
        In one line, if the package cannot be used.
    """
    version, reason = found(package)
    if version is None:
        raise ValueError(f"{module} needs {PACKAGES[package].distribution}, which is {reason}")
    return importlib.import_module(module)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses log lines below errors, warnings, and output to stdout, which is reserved for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- arguments of an attack -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """Model, samples and threat of a call of an attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0

    @cached_property
    def classes(self) -> int:
        """Number of outputs of the model, by a forward pass; some attacks need it as an argument."""
        with torch.no_grad():
            return int(self.model(self.x[:1].clone()).shape[1])


_LENGTH = ("eps", "ε", "max_epsilon")
"""Names of the radius in the packages."""
_WORDS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}

CONTEXT = (
    *_LENGTH, "norm", "distance", "constraint", "n_classes", "num_classes", "seed", "targeted", "verbose", "batch_size",
)  # fmt: skip
"""Parameters that are set by the threat and the batch, not by settings."""


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of an attack, a class or a function, by name."""
    call = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(call).parameters.items() if p.kind in kinds and name != "self"}


def radius_of(target: Any) -> str | None:
    """The parameter of an attack that is its radius; None for a minimum-norm attack."""
    # The eps of adv_lib's trust region is a tolerance; an eps that may be None only bounds the starts.
    own = "p" in parameters(target)
    lengths = (name for name, p in parameters(target).items() if name in _LENGTH and p.default is not None)
    return None if own else next(lengths, None)


def _arguments(target: Any, case: Case, settings: dict[str, Any], **words: Any) -> dict[str, Any]:
    """The settings, and those parameters of the attack that threat and batch set; settings take precedence."""
    taken, radius = parameters(target), radius_of(target)
    decided = {
        "constraint": case.threat.norm, "seed": case.seed, "targeted": False, "verbose": False,
        "batch_size": len(case.x), **words,
    }  # fmt: skip
    decided |= {name: case.classes for name in ("n_classes", "num_classes") if name in taken}
    decided |= {} if radius is None else {radius: float(case.threat.eps)}
    return {name: value for name, value in decided.items() if name in taken} | settings


# ---- calls ----------------------------------------------------------------------------------


def foolbox(target: Any, case: Case, settings: dict[str, Any]) -> Tensor:
    """An attack of foolbox, within eps or of minimum norm, as its class is."""
    fb: Any = importlib.import_module("foolbox")
    distance = {"linf": fb.distances.linf, "l2": fb.distances.l2, "l1": fb.distances.l1, "l0": fb.distances.l0}
    attack = target(**_arguments(target, case, settings, distance=distance.get(case.threat.norm)))
    wrapped = fb.PyTorchModel(case.model, bounds=case.threat.box, device=case.x.device)
    epsilons = float(case.threat.eps) if issubclass(target, fb.attacks.base.FixedEpsilonAttack) else None
    points: Tensor = attack(wrapped, case.x, fb.criteria.Misclassification(case.y), epsilons=epsilons)[1]
    return points


def torchattacks(target: Any, case: Case, settings: dict[str, Any]) -> Tensor:
    """An attack of torchattacks."""
    attack = target(case.model, **_arguments(target, case, settings, norm=_WORDS[case.threat.norm]))
    attack.set_device(case.x.device)
    points: Tensor = attack(case.x, case.y)
    return points


def adv_lib(target: Any, case: Case, settings: dict[str, Any]) -> Tensor:
    """An attack of adv_lib, a function of the model, inputs and labels."""
    norm = _ORDERS[case.threat.norm]
    given = _arguments(target, case, settings, norm=norm, p=norm, distance=case.threat.norm)
    points: Tensor = target(case.model, case.x, case.y, **given)
    return points


def art(target: Any, case: Case, settings: dict[str, Any]) -> Tensor:
    """An attack of ART, in float32 on arrays."""
    kinds: Any = importlib.import_module("art.estimators.classification")
    classifier = kinds.PyTorchClassifier(
        model=case.model, loss=nn.CrossEntropyLoss(), input_shape=tuple(case.x.shape[1:]), nb_classes=case.classes,
        clip_values=case.threat.box, device_type="gpu" if case.x.is_cuda else "cpu",
    )  # fmt: skip
    norm = np.inf if case.threat.norm == "linf" else int(_ORDERS[case.threat.norm])
    attack = target(classifier, **_arguments(target, case, settings, norm=norm))
    images = case.x.detach().cpu().numpy().astype(np.float32)
    return torch.from_numpy(attack.generate(images, case.y.cpu().numpy())).to(case.x)


PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "apgd_ce": ("autopgd_base", "APGDAttack", {"loss": "ce"}),
    "apgd_dlr": ("autopgd_base", "APGDAttack", {"loss": "dlr"}),
    "apgd_t": ("autopgd_base", "APGDAttack_targeted", {}),
    "fab": ("fab_pt", "FABAttack_PT", {"n_iter": 100, "n_restarts": 1}),
    "fab_t": ("fab_pt", "FABAttack_PT", {"n_iter": 100, "n_restarts": 1, "targeted": True}),
    "square": ("square", "SquareAttack", {"n_queries": 5000, "resc_schedule": False}),
}
"""The parts of pyautoattack's AutoAttack: module, class and settings."""
VERSIONS = ("standard", "plus", "rand")
"""Its ensembles."""


def pyautoattack(target: str, case: Case, settings: dict[str, Any]) -> Tensor:
    """An ensemble of pyautoattack, or one part of it."""
    norm, eps = _WORDS[case.threat.norm], float(case.threat.eps)
    common: dict[str, Any] = {"norm": norm, "eps": eps, "seed": case.seed, "device": str(case.x.device)}
    if target in VERSIONS:
        ensemble: Any = importlib.import_module("pyautoattack").AutoAttack(case.model, version=target, **common)
        points: Tensor = ensemble.run_standard_evaluation(case.x, case.y, batch_size=len(case.x))[0]
        return points
    module, name, more = PARTS[target]
    kind = getattr(importlib.import_module(f"pyautoattack.{module}"), name)
    found: Tensor = kind(case.model, **more, **common).perturb(case.x, case.y)
    return found


CALLS: dict[str, Callable[[Any, Case, dict[str, Any]], Tensor]] = {
    "foolbox": foolbox, "torchattacks": torchattacks, "adv_lib": adv_lib, "art": art, "pyautoattack": pyautoattack,
}  # fmt: skip
"""(attack, case, settings) -> the unchecked result of the package, by package."""
