"""`check_certifier`: the contracts of smoothing and of bounds as a suite of checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.certify.smoothing import ABSTAIN
from atent.guard import dtype_of
from atent.testing import networks
from atent.testing.contract import Suite, require
from atent.testing.networks import Snapshot, same
from atent.threat import Threat

Bounds = Callable[[nn.Module, Tensor, Threat], tuple[Tensor, Tensor]]
Verified = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]


def check_certifier(
    certifier: Any,
    *,
    verified: Verified | None = None,
    model: nn.Module | None = None,
    x: Tensor | None = None,
    threat: Threat | None = None,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> list[str]:
    """Check that a certifier satisfies the contract of `atent.certify.Smoothed` or of `atent.certify.bounds`.

    The checks find wrong certificates on a few samples; they do not prove that all others are right.

    Parameters
    ----------
    certifier
        An object with a method ``certify(x, n0, n, alpha, *, seed, ids) -> (classes, radii)`` and fields ``model`` and
        ``sigma``, as `Smoothed`; or a function ``(model, x, threat) -> (lower, upper)`` that bounds the logits, as
        `bounds` with its method fixed by `functools.partial`.
    verified
        For bounds: a function ``(model, x, y, threat) -> bool (n,)``. Default: not checked.
    model, x
        For bounds: a network and inputs (n, ...) in float64. For smoothing: inputs of the certifier's own network.
        Default: a small ReLU network, and 6 inputs of shape (1, 6, 6), which the network of a smoothed classifier must
        then take.
    threat
        For bounds. Default: linf with eps 0.05.
    n, alpha, seed
        For smoothing: number of noise samples, probability of a wrong certificate, and seed.

    Returns
    -------
    list of str
        The promises that were checked, in order.

    Raises
    ------
    ContractError
        For the first broken promise: one line with the promise, what was found and what is allowed.
    ValueError
        For something that is neither kind of certifier.

    Examples
    --------
    >>> from functools import partial
    >>> from atent.certify import bounds, verified
    >>> "a sampled point's logits lie between the bounds" in check_certifier(bounds, verified=verified)
    True
    """
    x = networks.inputs(6) if x is None else x
    subject = getattr(certifier, "__name__", type(certifier).__name__)
    if isinstance(certifier, type):
        raise ValueError(f"check_certifier needs an object such as {subject}(model, 0.25), got the class {subject}")
    if hasattr(certifier, "certify"):
        x = x.to(dtype_of(certifier.model) or x.dtype)
        return _smoothing.run(subject, Smoothing(certifier, x, n, alpha, seed))
    if not callable(certifier):
        raise ValueError(f"a certifier has a method certify, or is a function of (model, x, threat), got {subject}")
    network = networks.network(batch_norm=False) if model is None else copy.deepcopy(model)
    network, x = network.double().eval(), x.double()
    against = threat or Threat("linf", 0.05)
    return _bounding.run(subject, Bounding(certifier, verified, network, x, against, model is None))


# ---- randomised smoothing --------------------------------------------------------------------------------


@dataclass
class Smoothing:
    """A smoothed classifier, with the inputs and settings of its certificates."""

    certifier: Any
    x: Tensor
    n: int
    alpha: float
    seed: int

    def certify(self, rows: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor]:
        x = self.x if rows is None else self.x[rows]
        given = {"seed": self.seed, **given}
        found = self.certifier.certify(x.clone(), 100, self.n, self.alpha, **given)
        return found  # type: ignore[no-any-return]

    def largest(self) -> float:
        """The radius that full agreement of n samples certifies."""
        from scipy.special import ndtri

        share: float = self.alpha ** (1 / self.n)
        return float(self.certifier.sigma * ndtri(share)) if share > 0.5 else 0.0


_smoothing: Suite[Smoothing] = Suite()


@_smoothing.promise("certify returns classes (n,) int64 and radii (n,) float64")
def _pairs(case: Smoothing) -> None:
    classes, radii = case.certify()
    for name, value, kind in (("classes", classes, torch.int64), ("radii", radii, torch.float64)):
        require(
            value.shape == (len(case.x),) and value.dtype == kind,
            f"{name} of {value.dtype} and shape {tuple(value.shape)}",
            f"{kind} of shape ({len(case.x)},)",
        )
    low = int(classes.min())
    require(low >= ABSTAIN, f"class {low}", f"a class, or ABSTAIN = {ABSTAIN}")


@_smoothing.promise("a radius is never negative, and 0 where the class is ABSTAIN")
def _radii(case: Smoothing) -> None:
    classes, radii = case.certify()
    require(bool((radii >= 0).all()), f"a radius of {float(radii.min()):.4g}", "0 or more")
    abstained = radii[classes == ABSTAIN]
    require(not abstained.any(), f"radius {float(abstained.max()) if len(abstained) else 0:.4g} for ABSTAIN", "0")


@_smoothing.promise("no radius exceeds what n samples can certify in full agreement")
def _largest_radius(case: Smoothing) -> None:
    most = case.largest()
    for certifier in (case.certifier, _with_network(case.certifier, _One())):
        radius = float(Smoothing(certifier, case.x, case.n, case.alpha, case.seed).certify()[1].max())
        limit = f"at most {most:.4g} at alpha {case.alpha:g} and sigma {certifier.sigma:g}"
        require(radius <= most * (1 + 1e-9), f"radius {radius:.4g} from {case.n} samples", limit)


class _One(nn.Module):
    """Class 0 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, -1.0], dtype=x.dtype).expand(len(x), 2).clone()


@_smoothing.promise("it abstains, or certifies at radius 0, where the network's prediction is a fair coin toss")
def _toss(case: Smoothing) -> None:
    twin = _with_network(case.certifier, _Coin())
    found = Smoothing(twin, case.x, case.n, case.alpha, case.seed).certify()
    # Each sample is certified with probability at most alpha, two of six with at most 15 alpha^2.
    certified = int(((found[0] != ABSTAIN) | (found[1] > 0)).sum())
    require(certified <= 1, f"{certified} of {len(case.x)} certified for equally likely classes", "at most 1")


@_smoothing.promise("radii on a linear network do not exceed the distance to its boundary")
def _linear(case: Smoothing) -> None:
    network = _Half(case.x)
    twin = _with_network(case.certifier, network)
    _, radii = Smoothing(twin, case.x, case.n, case.alpha, case.seed).certify()
    # The smoothed classifier of a linear network is the network itself, and its exact radius is the distance.
    beyond = int((radii > network.distance(case.x)).sum())
    require(beyond <= 1, f"{beyond} radii beyond the boundary", "at most 1: each errs with probability alpha")


class _Coin(nn.Module):
    """Class 0 or 1, each with probability 1/2 under noise: the sign of a high-frequency wave in the inputs' sum."""

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(1e4 * x.double().flatten(1).sum(1)).to(x.dtype)
        return torch.stack([wave, -wave], 1)


class _Half(nn.Module):
    """Two classes that a plane through the median of the batch separates."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.middle = float(self._mean(x).median()) + 1e-3

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        return x.flatten(1).sum(1) / math.sqrt(x[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        score = self._mean(x) - self.middle
        return torch.stack([score, -score], 1)

    def distance(self, x: Tensor) -> Tensor:
        return (self._mean(x.double()) - self.middle).abs()


def _with_network(certifier: Any, network: nn.Module) -> Any:
    twin = copy.copy(certifier)
    object.__setattr__(twin, "model", network)
    return twin


@_smoothing.promise("the same seed and ids give the same result, whatever the global random states")
def _same_samples(case: Smoothing) -> None:
    first = case.certify()
    networks.move_global_generators()
    require(same(case.certify(), first), "another certificate", "the same bits")
    numbered = case.certify(ids=torch.arange(len(case.x)))
    require(same(numbered, first), "another certificate with ids 0, 1, ..., n-1", "the default's bits")


@_smoothing.promise("batch size, order and shard do not matter: noise depends on seed and id only")
def _shards(case: Smoothing) -> None:
    n = len(case.x)
    ids, order = 100 + torch.arange(n), torch.arange(n).flip(0)
    classes, radii = case.certify(ids=ids)
    for rows, size in ((order, n), (order, 1)):
        parts = [case.certify(r, ids=ids[r]) for r in rows.split(size)]
        found = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        agree = same(found, (classes[rows], radii[rows]))
        require(agree, f"another certificate in batches of {size}", "the same bits")


@_smoothing.promise("the network and the global random states are restored")
def _comes_back(case: Smoothing) -> None:
    model = case.certifier.model
    training = model.training
    try:
        found = Snapshot(model.train())
        case.certify()
        found.check()
    finally:
        model.train(training)


# ---- bounds ------------------------------------------------------------------------------------------------


@dataclass
class Bounding:
    """Bounds, with the network, inputs and threat on which they are checked."""

    bounds: Bounds
    verified: Verified | None
    model: nn.Module
    x: Tensor
    threat: Threat
    general: bool
    """Whether the certifier is for other networks than ``model`` too."""

    found: dict[Threat, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Computed bounds by threat."""

    def __post_init__(self) -> None:
        # Each call may leave the network in another state, which the next one would not change again.
        self.untouched = copy.deepcopy(self.model)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        return self.model(x.clone())  # type: ignore[no-any-return]

    def check(self, points: Tensor, threat: Threat) -> None:
        """`Broken` if logits at ``points`` are outside the bounds."""
        if threat not in self.found:
            self.found[threat] = self.bounds(self.model, self.x.clone(), threat)
        lower, upper = (t.detach() for t in self.found[threat])
        z = self.logits(points)
        beyond = torch.maximum(lower - z, z - upper)
        worst = float(beyond.max())
        row = int(beyond.amax(1).argmax())
        # Many times the network's own rounding error in float64.
        room = 1e-12 * (1 + float(z.abs().max()))
        require(worst <= room, f"a logit of sample {row} that is {worst:.3g} beyond its bounds", f"{room:.1g}")


_bounding: Suite[Bounding] = Suite()


@_bounding.promise("it returns (lower, upper), each (n, classes), with lower at most upper")
def _ordered(case: Bounding) -> None:
    lower, upper = case.bounds(case.model, case.x.clone(), case.threat)
    shape = case.logits(case.x).shape
    for name, value in (("lower", lower), ("upper", upper)):
        require(value.shape == shape, f"{name} of shape {tuple(value.shape)}", f"{tuple(shape)}")
        require(not value.isnan().any(), f"NaN in {name}", "numbers, infinite where there is no bound")
    crossed = float((lower - upper).detach().max())
    require(crossed <= 0, f"a lower bound that is {crossed:.3g} above the upper one", "at most the upper one")


@_bounding.promise("the logits of x lie between the bounds, at eps 0 too")
def _centre(case: Bounding) -> None:
    case.check(case.x, case.threat)
    case.check(case.x, case.threat.scaled(0.0))


@_bounding.promise("a sampled point's logits lie between the bounds")
def _sampled(case: Bounding) -> None:
    rng = torch.Generator().manual_seed(0)
    threat, eps = case.threat, float(case.threat.eps)
    for _ in range(50):
        noise = torch.randn(case.x.shape, generator=rng, dtype=torch.float64)
        # Corners of the cube or points of the sphere, and points between them and x.
        step = noise.sign() if threat.norm == "linf" else threat.ascent(noise)
        length = eps * torch.rand(len(case.x), *[1] * (case.x.dim() - 1), generator=rng, dtype=torch.float64).sqrt()
        case.check(threat.project(case.x + eps * step, case.x), threat)
        case.check(threat.project(case.x + length * step, case.x), threat)


@_bounding.promise("logits maximised or minimised by gradient steps lie between the bounds")
def _extremes(case: Bounding) -> None:
    threat, eps = case.threat, float(case.threat.eps)
    classes = case.logits(case.x).shape[1]
    for k in range(classes):
        for sign in (1.0, -1.0):
            z = case.x.clone()
            for _ in range(10):
                z = z.detach().requires_grad_()
                (slope,) = torch.autograd.grad(sign * case.model(z.clone())[:, k].sum(), z)
                z = threat.project(z.detach() + 0.5 * eps * threat.ascent(slope), case.x)
            case.check(z, threat)


@_bounding.promise("the range of a linear network lies between the bounds", lambda case: case.general)
def _linear_range(case: Bounding) -> None:
    # On other networks loose bounds of a smaller ball may contain the range over the entire one.
    rng, layer = torch.Generator().manual_seed(0), nn.Linear(case.x[0].numel(), 3).double()
    layer.weight.data.normal_(generator=rng)
    twin = replace(case, model=nn.Sequential(nn.Flatten(), layer).eval(), found={})
    for row in layer.weight.detach():
        step = float(case.threat.eps) * case.threat.ascent(row.expand(len(case.x), -1).view_as(case.x))
        for sign in (1, -1):
            twin.check(case.threat.project(case.x + sign * step, case.x), case.threat)


@_bounding.promise("the network, x and the global random states are restored")
def _returned(case: Bounding) -> None:
    model = copy.deepcopy(case.untouched)
    found, x = Snapshot(model), case.x.clone()
    case.bounds(model, x, case.threat)
    found.check()
    require(same(x, case.x), "another x after the bounds", "x as it was given")


@_bounding.promise("verified is never True where an attack finds an example", lambda case: case.verified is not None)
def _verified(case: Bounding) -> None:
    assert case.verified is not None
    y = case.logits(case.x).argmax(1)
    wrong = (y + 1) % case.logits(case.x).shape[1]
    require(
        not case.verified(case.model, case.x.clone(), wrong, case.threat).any(),
        "True for a sample that the network misclassifies",
        "False",
    )
    for factor in (0.5, 1.0, 4.0):
        threat = case.threat.scaled(factor)
        said = case.verified(case.model, case.x.clone(), y, threat)
        require(
            said.shape == y.shape and said.dtype == torch.bool,
            f"{said.dtype} of shape {tuple(said.shape)}",
            f"torch.bool of shape ({len(y)},)",
        )
        broken = PGD(threat, steps=20, restarts=2).run(case.model, case.x, y).success
        both = (said & broken).nonzero().flatten().tolist()
        if both:
            require(False, f"True for sample {both[0]}, which PGD fools at eps {float(threat.eps):g}", "False")
