"""Langevin ascent on the inputs: the sampler of ATENT, and ATENT as an attack."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.starts import Start, check_start, start
from atent.checks import check_choice, check_number
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.sgld import effective_noise, langevin_step, noise_for
from atent.threat import Radii, Threat, unit

Variant = Literal["released", "published"]
Projection = Literal["never", "last", "every"]
Gradient = Literal["raw", "unit", "sign"]
Anchor = Literal["free", "scaled"]

# (gradient, scaling of the anchor term, projection, start) by variant and norm; see `sampler`.
_VARIANTS: dict[tuple[str, str], tuple[Gradient, Anchor, Projection, Start]] = {
    ("released", "l2"): ("unit", "free", "never", "sphere"),
    ("released", "linf"): ("sign", "free", "last", "corner"),
    ("published", "l2"): ("raw", "scaled", "never", "sphere"),
    ("published", "linf"): ("sign", "scaled", "every", "corner"),
}


@dataclass(frozen=True)
class Sampler:
    """A fully resolved Langevin chain over inputs: nothing left to default.

    x^{k+1} = clamp(project(x^k + step_size * d(g_k) + anchor_weight * (x - x^k) + noise * sqrt(2 step_size) * N(0, I)))
    """

    threat: Threat
    steps: int
    step_size: float
    anchor_weight: float
    """Factor of (x - x^k), the step size included where the variant scales by it."""
    noise: float
    start: Start
    projection: Projection
    gradient: Gradient

    def begin(self, x: Tensor, streams: Streams, restart: int = 0) -> Tensor:
        """x^0, not clamped to the box, as in the authors' code."""
        return start(self.threat, self.start, x, streams, restart)

    def move(self, z: Tensor, x: Tensor, grad: Tensor, k: int, streams: Streams, restart: int = 0) -> Tensor:
        """x^{k+1} from x^k = ``z``, the anchor ``x`` and the gradient of each sample's own loss at ``z``."""
        direction = unit(grad) if self.gradient == "unit" else grad.sign() if self.gradient == "sign" else grad
        normal = streams.normal(z, use="noise", restart=restart, step=k) if self.noise else None
        z = langevin_step(
            z, direction, x, step_size=self.step_size, weight=self.anchor_weight, noise=self.noise, normal=normal
        )
        if self.projection == "every" or (self.projection == "last" and k == self.steps - 1):
            z = self.threat.project_ball(z, x)
        return self.threat.clamp(z)

    @property
    def effective_noise(self) -> float:
        """Standard deviation per pixel of the noise that one step adds."""
        return effective_noise(self.step_size, self.noise)

    def describe(self) -> dict[str, object]:
        """The settings in use, as plain values."""
        return {**asdict(self), "threat": self.threat.plain(), "effective_noise": self.effective_noise}


def sampler(
    threat: Threat, *, variant: Variant = "released", steps: int = 10, step_size: float | None = None,
    gamma: float | None = None, noise: float | None = None, effective_noise: float | None = None,
    temperature: float | None = None, start: Start | None = None, projection: Projection | None = None,
    gradient: Gradient | None = None, anchor: Anchor | None = None,
) -> Sampler:  # fmt: skip
    """Resolve the settings of ATENT's inner chain; a variant fills what is None, any field overrides it.

    ``released`` (the authors' code): l2 has the unit gradient, the anchor term gamma (x - x^k) not multiplied by the
    step size, no projection, a start on the sphere; linf has the sign, no anchor term, projection after the last step,
    a start in a corner. ``published`` (Eq. 7): l2 has the raw gradient of each sample's loss and the anchor term
    multiplied by the step size, no projection; linf, whose exact text is not at hand, is read here as the sign with
    projection after every step. Every variant clamps to the box after each step.

    Defaults: step size 2 eps / steps (l2, supplement A.2) or 2.5 eps / steps (linf), gamma 0.05 (l2) or 0 (linf),
    noise 1e-3, for a box of width 1; in another box they follow its width, so that the chain is the same in its units.
    In the place of ``noise``, ``effective_noise`` gives sqrt(2 step_size) * noise, or ``temperature``
    gives noise^2. ValueError for more than one of the three, for values out of range, or for a start or a projection
    that the norm does not know.
    """
    check_choice("variant", variant, ("released", "published"))
    check_number("steps", steps, 1, whole=True)
    d_gradient, d_anchor, d_projection, d_start = _VARIANTS[variant, threat.norm]
    gradient = d_gradient if gradient is None else gradient
    anchor = d_anchor if anchor is None else anchor
    projection = d_projection if projection is None else projection
    start = d_start if start is None else start
    check_choice("gradient", gradient, ("raw", "unit", "sign"))
    check_choice("anchor", anchor, ("free", "scaled"))
    check_choice("projection", projection, ("never", "last", "every"))
    check_start(threat, start)
    # What one unit of step size is worth: a raw gradient shrinks as the box widens, a unit gradient or a sign does not.
    reach = threat.width if gradient == "raw" else 1.0
    if step_size is None:
        step_size = reach * (2.0 if threat.norm == "l2" else 2.5) * float(threat.eps) / steps
    check_number("step_size", step_size, 0)
    if gamma is None:
        gamma = 0.05 if threat.norm == "l2" else 0.0
        gamma /= reach * threat.width if anchor == "scaled" else 1.0
    check_number("gamma", gamma, 0)
    noise = _noise(step_size, noise, effective_noise, temperature)
    noise = 1e-3 * math.sqrt(threat.width / reach) if noise is None else noise
    check_number("noise", noise, 0)
    factor = gamma * (step_size if anchor == "scaled" else 1.0)
    if factor > 2:
        raise ValueError(
            f"an anchor term of weight {factor:g} per step makes the chain diverge: it must be at most 2, lower gamma"
        )
    return Sampler(threat, steps, step_size, factor, noise, start, projection, gradient)


def _noise(
    step_size: float, noise: float | None, effective_noise: float | None, temperature: float | None
) -> float | None:
    """The one noise level that is given, as ``noise``; ValueError for more than one."""
    levels = {"noise": noise, "effective_noise": effective_noise, "temperature": temperature}
    given = [f"{name} {value}" for name, value in levels.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(given)} exclude each other: give one of them"
            " (effective_noise = sqrt(2 step_size) * noise, temperature = noise^2)"
        )
    if temperature is not None:
        check_number("temperature", temperature, 0)
        noise = math.sqrt(temperature)
    if effective_noise is not None:
        check_number("effective_noise", effective_noise, 0)
        noise = noise_for(step_size, effective_noise)
        check_number(f"the noise of effective_noise {effective_noise:g}", noise, 0)
    return noise


SAMPLER_FIELDS = (
    "variant", "steps", "step_size", "gamma", "noise", "effective_noise", "temperature",
    "start", "projection", "gradient", "anchor",
)  # fmt: skip
"""The keywords of `sampler`, which the attack and the method have as fields."""


@attack
@dataclass(frozen=True)
class Langevin(Attack):
    """ATENT as an attack (supplement A.3): the training chain, evaluated at its last iterate.

    The chain is the one that `sampler` describes; as an attack it always projects at its last step, also where the
    variant never does. ``steps`` forwards and backwards per restart.
    """

    FORMER: ClassVar[dict[str, str]] = {"pull": "anchor"}

    threat: Threat
    steps: int = 20
    """Number of Langevin steps."""
    step_size: float | None = None
    """eta': length of a step. Default: 2 eps / steps (l2), 2.5 eps / steps (linf); see `sampler` for other boxes."""
    gamma: float | None = None
    """gamma of the quadratic penalty gamma/2 ||x' - x||^2. Default: 0.05 (l2), 0 (linf); see `sampler` for other
    boxes."""
    noise: float | None = None
    """Thermal noise, the square root of the temperature. Default: 1e-3; see `sampler` for other boxes."""
    effective_noise: float | None = None
    """sqrt(2 step_size) * noise, instead of noise."""
    temperature: float | None = None
    """T = noise^2 of exp(loss / T), instead of noise."""
    variant: Variant = "released"
    """released (the authors' code) or published (the paper's Eq. 7)."""
    start: Start | None = None
    projection: Literal["last", "every"] | None = None
    gradient: Gradient | None = None
    anchor: Anchor | None = None
    """Whether the anchor term is free of the step size or scaled by it; default: as the variant."""
    restarts: int = 1
    """Number of chains; the worst result counts."""

    def __post_init__(self) -> None:
        check_number("restarts", self.restarts, 1, whole=True)
        if str(self.projection) == "never":
            raise ValueError("an attack must end in the ball: use projection 'last' or 'every'")
        some = self.threat.eps
        _ = (replace(self, threat=replace(self.threat, eps=max(some))) if isinstance(some, Radii) else self).sampler

    @property
    def sampler(self) -> Sampler:
        """The resolved chain."""
        chain = sampler(self.threat, **{name: getattr(self, name) for name in SAMPLER_FIELDS})
        return replace(chain, projection="last") if chain.projection == "never" else chain

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps, self.restarts)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        threat = self.threat.take(oracle.rows)
        if isinstance(threat.eps, Radii):
            # A chain is resolved for one radius: noise and the anchor term follow from it.
            found = x.clone()
            for eps in sorted(set(threat.eps)):
                rows = (threat.eps.tensor == eps).nonzero().squeeze(1).to(x.device)
                one = replace(self, threat=replace(threat, eps=eps))
                found[rows] = one.search(oracle.take(rows), x[rows], y[rows], streams.take(rows))
            return found
        chain = self.sampler

        def once(oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int) -> Tensor:
            z = chain.begin(x, streams, restart)
            for k in range(chain.steps):
                grad, _, _ = oracle.gradient(z, y, cross_entropy)
                z = chain.move(z, x, grad, k, streams, restart)
            return z

        return worst_of(self.restarts, once, oracle, x, y, streams)
