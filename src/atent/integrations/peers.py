"""Attacks of other packages as attacks of this library: ``foolbox:LinfPGD(steps=40)``, usable like any name of an
attack.

The prefix is one of `packages.PACKAGES`, followed by the name of the attack in that package; its settings are the
arguments of its class or function. The threat gives norm, eps and box. The result of the package is checked against the
threat, and success is recomputed, as for every attack.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent.attacks.base import ATTACKS, Attack
from atent.attacks.oracle import GRADIENTS, LOGITS, Oracle, Undefined
from atent.attacks.spec import parse, show
from atent.guard import ask, seed_all
from atent.integrations.packages import (
    CALLS,
    CONTEXT,
    PACKAGES,
    PARTS,
    VERSIONS,
    Case,
    found,
    parameters,
    quiet,
    radius_of,
)  # fmt: skip
from atent.messages import note, unknown
from atent.registry import first_line
from atent.rng import Streams
from atent.threat import Radii, Threat, per_sample

# Parameters that are not settings: the network and the batch, and those that write files or take objects.
_OWN = frozenset({
    *CONTEXT, "model", "estimator", "classifier", "inputs", "images", "labels", "callback", "summary_writer",
    "tensorboard", "init_attack", "estimator_orig", "attacks", "p",
})  # fmt: skip
# The norm of attacks that have neither a parameter for it nor a norm in their name.
_NORM = {
    "torchattacks:CW": "l2", "torchattacks:DeepFool": "l2", "torchattacks:EADL1": "l1", "torchattacks:EADEN": "l1",
    "torchattacks:JSMA": "l0", "torchattacks:OnePixel": "l0", "torchattacks:Pixle": "l0",
    "torchattacks:SparseFool": "l1", "torchattacks:PIFGSM": "linf", "torchattacks:PIFGSMPP": "linf",
    "art:DeepFool": "l2", "art:NewtonFool": "l2", "art:BoundaryAttack": "l2", "art:ElasticNet": "l1",
    "art:ZooAttack": "l2", "adv_lib:ddn": "l2", "adv_lib:sdf": "l2", "adv_lib:sigma_zero": "l0", "adv_lib:fga": "l0",
    "adv_lib:vfga": "l0",
}  # fmt: skip
_STEPS = ("steps", "max_iter", "n_iter", "nb_iter", "num_steps", "max_iterations", "n_queries")
_RESTARTS = ("restarts", "n_restarts", "num_random_init", "nb_random_init", "nb_restarts", "binary_search_steps")
# Estimated passes of an attack without a number of steps, such as AutoAttack.
_UNKNOWN = 10_000


@dataclass(frozen=True)
class Peer(Attack):
    """An attack of another package; `find` creates a class for each, whose fields are the attack's arguments.

    Its samples have no separate random streams: the global random states are seeded for each batch, from ``seed`` and
    the number of the first sample of the batch, so an outcome depends on the batch that a sample is in. A result
    outside the threat does not count: x is returned instead, one line on stderr reports it, and `remarks` counts them.

    Passes are those of the batch, distributed evenly over its samples. ValueError, in one line, for a radius per
    sample, for a box per channel, and if the package raises.
    """

    package: ClassVar[str] = ""
    """Prefix of the package."""
    target: ClassVar[Any] = None
    """Class, function or name in the package."""

    counts_passes: ClassVar[bool] = False

    threat: Threat

    def __post_init__(self) -> None:
        name, box = type(self).__name__, self.threat.box
        if isinstance(self.threat.eps, Radii):
            raise ValueError(f"{name} takes one eps for all samples: evaluate each radius separately")
        if isinstance(box[0], tuple) or (self.package not in ("foolbox", "art") and box != (0.0, 1.0)):
            able = "one box for all channels" if self.package in ("foolbox", "art") else "inputs in [0, 1]"
            raise ValueError(f"{name} takes {able}, got box {box}: use an attack of this library")

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _again, (type(self).__name__, values)

    @cached_property
    def _tally(self) -> list[int]:
        """Number of checked results, and of those outside the threat."""
        return [0, 0]

    @property
    def passes(self) -> int:
        """An estimate, by the attack's steps and restarts, for the order in which attacks run."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "threat"}
        steps = next((given[name] for name in _STEPS if isinstance(given.get(name), int | float)), None)
        restarts = next((given[name] for name in _RESTARTS if isinstance(given.get(name), int)), 1)
        return _UNKNOWN if steps is None else int(2 * steps * max(1, restarts)) + 2

    def remarks(self, classes: int) -> list[str]:
        """The package and its version; the number of results outside the threat."""
        made, out = self._tally
        version = f"run by {PACKAGES[self.package].distribution} {found(self.package)[0]}"
        if not out:
            return [version]
        return [version, f"{out} of {made} results are outside {show(self.threat)} or the box, and do not count"]

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        name = type(self).__name__
        if oracle.samples > 1 or oracle.watch is not None:
            raise ValueError(f"{name} takes no averaged gradients and no callback: use an attack of this library")
        oracle.logits(x, y)  # checked, and counted
        if float(self.threat.eps) == 0:
            return x
        network = _Counted(oracle.model, x.dtype, oracle.undefined)
        seed = int(streams.integers(2**31 - 1, (len(x), 1))[0, 0])
        case = Case(network, x.clone(), y.clone(), self.threat, seed)
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "threat"}
        try:
            with quiet(), torch.enable_grad():
                seed_all(seed, x.device)
                points = CALLS[self.package](self.target, case, settings)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{name} failed: {first_line(error)}") from error
        for counter, total in ((oracle.forwards, network.forwards), (oracle.backwards, network.backwards)):
            counter += _spread(total, oracle)
        return self._counted(self._checked(points, x).detach().to(x), x)

    def _counted(self, points: Tensor, x: Tensor) -> Tensor:
        """The points, with x instead of those outside the ball or, for a minimum-norm attack, outside the box."""
        threat: Threat = self.threat
        # The result of a minimum-norm attack may be farther than eps, and is then not a success.
        within = dataclasses.replace(threat, eps=float("inf")) if self.minimum_norm else threat
        kept = within.contains(points, x)
        tally: list[int] = self._tally
        out = int((~kept).sum())
        if out and not tally[1]:
            note(
                f"{type(self).__name__}: {out} of {len(x)} results are outside {show(threat)} or the box, and do not"
                " count; those of later batches are counted in its remarks"
            )
        tally[0] += len(x)
        tally[1] += out
        return torch.where(per_sample(kept, x), points, x)


class _Counted(nn.Module):
    """The network for a package: converts inputs to the network's type, counts passes per sample, and notes in
    ``undefined`` what they meet that is not finite."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, undefined: Undefined | None = None) -> None:
        super().__init__()
        self.network, self.dtype, self.undefined = model, dtype, undefined
        self.forwards = self.backwards = 0
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        # A tensor of this pass alone, as packages pass one leaf many times, and each would keep its hooks.
        x = x.to(self.dtype).view_as(x)
        logits = ask(self.network, x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        if self.undefined is not None:
            self.undefined.note(logits, LOGITS)
            if x.requires_grad:
                x.register_hook(self._slope)
        return logits

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)

    def _slope(self, grad: Tensor) -> None:
        assert self.undefined is not None
        self.undefined.note(grad, GRADIENTS)


def _spread(total: int, oracle: Oracle) -> Tensor:
    """``total`` passes, distributed as evenly as possible over the samples of the oracle."""
    n = len(oracle.forwards)
    seen = torch.zeros_like(oracle.forwards)
    rows = torch.arange(n, device=seen.device) if oracle.rows is None else oracle.rows
    each, more = divmod(total, max(1, len(rows)))
    shares = torch.full_like(rows, each)
    shares[:more] += 1
    return seen.index_add_(0, rows, shares)


# ---- lookup ------------------------------------------------------------------------------------------


def attack(text: str, threat: Threat | None = None) -> Attack:
    """The attack named by ``text``, such as ``foolbox:LinfPGD(steps=40)``, against ``threat``.

    Parameters
    ----------
    text
        Prefix of the package, name of the attack, and settings in parentheses.
    threat
        The threat; fields of a threat in ``text``, such as ``eps=``, replace its own.

    Returns
    -------
    Attack
        An attack of this library, see `Peer`.

    Raises
    ------
    ValueError
        In one line: for a package that is not installed, and as `atent.attacks.spec.parse`.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.integrations import peers
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> peers.attack("foolbox:LinfPGD(steps=3)", Threat("linf", 0.1)).run(network, x, y).x_adv.shape
    torch.Size([2, 1, 4, 4])
    """
    return parse(text, threat, ATTACKS)


@cache
def find(name: str) -> type[Peer]:
    """The class of ``package:Attack``.

    Raises
    ------
    ValueError
        In one line: if the package cannot be used or has no such attack.
    """
    package, _, attribute = name.partition(":")
    version, reason = found(package)
    if version is None:
        raise ValueError(f"{name} needs {PACKAGES[package].distribution}, which is {reason}")
    if package == "pyautoattack":
        known: tuple[str, ...] = (*VERSIONS, *PARTS)
        if attribute not in known:
            raise ValueError(unknown("attack of pyautoattack", attribute, known))
        return _made(name, attribute, [], norms=("linf", "l2", "l1"), minimum_norm=False)
    targets = _targets(package)
    if attribute not in targets:
        raise ValueError(unknown(f"attack of {package}", attribute, targets))
    target = targets[attribute]
    smallest = _is_smallest(package, target)
    return _made(name, target, _fields(name, target), norms=_norms(name, target), minimum_norm=smallest)


def _again(name: str, values: dict[str, Any]) -> Peer:
    return find(name)(**values)


def _made(name: str, target: Any, fields: list[Any], **about: Any) -> type[Peer]:
    package, _, attribute = name.partition(":")
    inside = {
        "__module__": package, "__qualname__": attribute, "package": package, "__doc__": f"``{name}``, see `Peer`.",
        "target": staticmethod(target) if inspect.isfunction(target) else target, **about,
    }  # fmt: skip
    # The class has the name of its text, for labels and errors.
    made: type[Peer] = dataclasses.make_dataclass(name, fields, bases=(Peer,), namespace=inside, frozen=True)
    return made


def _targets(package: str) -> dict[str, Any]:
    """The attacks of a package, by name."""
    module = importlib.import_module(PACKAGES[package].module)
    here = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    if package == "adv_lib":
        return {name: value for name, value in here.items() if inspect.isfunction(value)}
    base: Any = {
        "foolbox": lambda: importlib.import_module("foolbox.attacks.base").AttackWithDistance,
        "torchattacks": lambda: importlib.import_module("torchattacks.attack").Attack,
        "art": lambda: importlib.import_module("art.attacks").EvasionAttack,
    }[package]()
    return {name: value for name, value in here.items() if isinstance(value, type) and issubclass(value, base)}


def _fields(name: str, target: Any) -> list[Any]:
    """The arguments of an attack that are settings, required ones first."""
    needed: list[Any] = []
    usual: list[Any] = []
    for key, parameter in parameters(target).items():
        if key in _OWN:
            continue
        if parameter.default is inspect.Parameter.empty:
            needed.append((key, Any))
        elif isinstance(parameter.default, bool | int | float | str | tuple | None):
            usual.append((key, _type(parameter.default), dataclasses.field(default=parameter.default)))
    return [*needed, *usual]


def _type(default: Any) -> Any:
    """The type of a value, by the default, since few parameters in packages are annotated."""
    if isinstance(default, bool | str):
        return type(default)
    return float if isinstance(default, int | float) else Any


def _is_smallest(package: str, target: Any) -> bool:
    if package == "foolbox":
        return issubclass(target, importlib.import_module("foolbox.attacks.base").MinimizationAttack)
    return radius_of(target) is None


def _norms(name: str, target: Any) -> tuple[str, ...]:
    """The norms in which an attack can be called: by its parameters, its name, or the table; else all."""
    package, _, attribute = name.partition(":")
    taken = parameters(target)
    if name in _NORM:
        return (_NORM[name],)
    if "norm" in taken or "p" in taken:
        return {"torchattacks": ("linf", "l2"), "art": ("linf", "l2", "l1")}.get(package, ("linf", "l2", "l1", "l0"))
    if "constraint" in taken:
        return ("linf", "l2")
    if "distance" in taken:
        return ("l2", "l1") if package == "adv_lib" else ("linf", "l2", "l1", "l0")
    lower = attribute.lower()
    for norm, words in (("linf", ("linf", "linfinity")), ("l2", ("l2",)), ("l1", ("l1",)), ("l0", ("l0",))):
        if any(word in lower for word in words):
            return (norm,)
    if package == "foolbox":
        return _distance(target)
    return ("linf",) if radius_of(target) else ("linf", "l2", "l1", "l0")


def _distance(target: Any) -> tuple[str, ...]:
    """The norm of an attack of foolbox, if it can be created without arguments."""
    try:
        order = target().distance.p
    except (TypeError, ValueError, AttributeError):  # it needs arguments, rejects its defaults, or has no distance
        return ("linf", "l2", "l1", "l0")
    return ({float("inf"): "linf", 2: "l2", 1: "l1", 0: "l0"}[order],)
