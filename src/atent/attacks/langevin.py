"""Langevin ascent on the inputs: the sampler of ATENT, and ATENT as an attack."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, get_args

from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.starts import Start, check_start, check_step, report_path, start
from atent.checks import check_choice, check_number
from atent.docstrings import Documented
from atent.losses import cross_entropy
from atent.messages import report_idle
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
class Sampler(metaclass=Documented):
    """A Langevin chain over inputs with every setting resolved, as `sampler` returns it.

    x^{k+1} = clamp(project(x^k + step_size * d(g_k) + anchor_weight * (x - x^k) + noise * sqrt(2 step_size) * N(0, I)))

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.attacks import sampler
    >>> chain = sampler(Threat("l2", 0.5), steps=10)
    >>> chain.gradient, chain.projection, chain.start
    ('unit', 'never', 'sphere')
    >>> round(chain.step_size, 6), chain.anchor_weight
    (0.1, 0.05)
    """

    threat: Threat
    """The threat model, linf or l2, with one eps."""
    steps: int
    """Number of steps K, at least 1."""
    step_size: float
    """Length of a step in pixel units, at least 0."""
    anchor_weight: float
    """Factor of (x - x^k); it includes the step size where the anchor term is scaled by it."""
    noise: float
    """Square root of the temperature, at least 0."""
    start: Start
    """Where the chain starts, see `atent.attacks.starts.start`."""
    projection: Projection
    """When iterates are projected onto the ball: never, after the last step, or after every step."""
    gradient: Gradient
    """d(g): the raw gradient, the unit gradient (l2), or its sign."""

    def begin(self, x: Tensor, streams: Streams, restart: int = 0) -> Tensor:
        """The start x^0, not clamped to the box, as in the authors' code."""
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

    def report_path(self) -> None:
        """`atent.attacks.starts.report_path`, for steps of a known length."""
        if self.gradient != "raw":
            report_path(self.threat, self.start, self.steps, self.step_size)

    def describe(self) -> dict[str, object]:
        """The settings in use, as plain values."""
        return {**asdict(self), "threat": self.threat.plain(), "effective_noise": self.effective_noise}


def sampler(
    threat: Threat, *, variant: Variant = "released", steps: int = 10, step_size: float | None = None,
    gamma: float | None = None, noise: float | None = None, effective_noise: float | None = None,
    temperature: float | None = None, start: Start | None = None, projection: Projection | None = None,
    gradient: Gradient | None = None, anchor: Anchor | None = None,
) -> Sampler:  # fmt: skip
    """Resolve the settings of ATENT's inner Langevin chain: the variant sets what is None.

    Every variant clamps to the box after each step. The default values hold for a box of width 1; in another box they
    scale with its width, so that the chain is the same in units of the box.

    Parameters
    ----------
    threat
        The threat model, linf or l2, with one eps.
    variant
        released (default), the authors' code: in l2 the unit gradient, the anchor term gamma (x - x^k) not multiplied
        by the step size, no projection and a start on the sphere; in linf the sign, projection after the last step and
        a start in a corner. published, Eq. 7 of the paper: in l2 the raw gradient of each sample's loss, the anchor
        term multiplied by the step size, no projection; in linf, whose exact form the available text does not give,
        the sign with projection after every step.
    steps
        Number of steps K, at least 1. Default: 10.
    step_size
        Length of a step in pixel units, at least 0. Default: 2 eps / steps (l2, supplement A.2), 2.5 eps / steps
        (linf).
    gamma
        Weight of the quadratic penalty gamma/2 ||x' - x||^2, at least 0. Default: 0.05 (l2), 0 (linf).
    noise
        Square root of the temperature, at least 0. Default: 1e-3.
    effective_noise
        sqrt(2 step_size) * noise, in place of ``noise``.
    temperature
        noise^2, in place of ``noise``.
    start, projection, gradient
        As the fields of `Sampler`. Default: those of the variant.
    anchor
        free: the anchor term is gamma (x - x^k); scaled: it is multiplied by the step size. Default: as the variant.

    Returns
    -------
    Sampler
        The chain.

    Raises
    ------
    ValueError
        For more than one of noise, effective_noise and temperature, for values out of range, for a start that is not
        defined in the norm, and for an anchor term above 2 per step, which diverges.

    References
    ----------
    Jagatap, Joshi, Chowdhury, Garg and Hegde 2022, "Adversarially robust learning via entropic regularization",
    Frontiers in Artificial Intelligence 4, Eq. 7 and supplement A.2, arXiv 2008.12338.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.attacks import sampler
    >>> chain = sampler(Threat("linf", 0.1), steps=5, temperature=1e-4)
    >>> chain.gradient, chain.projection, round(chain.noise, 6)
    ('sign', 'last', 0.01)
    """
    check_choice("variant", variant, get_args(Variant))
    check_number("steps", steps, 1, whole=True)
    d_gradient, d_anchor, d_projection, d_start = _VARIANTS[variant, threat.norm]
    gradient = d_gradient if gradient is None else gradient
    anchor = d_anchor if anchor is None else anchor
    projection = d_projection if projection is None else projection
    start = d_start if start is None else start
    check_choice("gradient", gradient, get_args(Gradient))
    check_choice("anchor", anchor, get_args(Anchor))
    check_choice("projection", projection, get_args(Projection))
    check_start(threat, start)
    # The scale of one unit of step size: a raw gradient shrinks as the box widens, a unit gradient or a sign does not.
    scale = threat.width if gradient == "raw" else 1.0
    if step_size is not None and gradient == "sign":
        check_step(threat, step_size)
    if step_size is None:
        step_size = scale * (2.0 if threat.norm == "l2" else 2.5) * float(threat.eps) / steps
    check_number("step_size", step_size, 0)
    if gamma is None:
        gamma = 0.05 if threat.norm == "l2" else 0.0
        gamma /= scale * threat.width if anchor == "scaled" else 1.0
    check_number("gamma", gamma, 0)
    noise = _noise(step_size, noise, effective_noise, temperature)
    noise = 1e-3 * math.sqrt(threat.width / scale) if noise is None else noise
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
    """The given noise level, converted to ``noise``; ValueError for more than one."""
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
"""The keywords of `sampler` that are fields of the attack and of the training method."""


@attack
@dataclass(frozen=True)
class Langevin(Attack):
    """ATENT as an attack: the Langevin chain of its training, evaluated at the last iterate.

    The chain is the one of `sampler`; the attack always projects after its last step, also where the variant does not.
    ``steps`` forwards and backwards per restart. ValueError as `sampler`.

    References
    ----------
    Jagatap, Joshi, Chowdhury, Garg and Hegde 2022, "Adversarially robust learning via entropic regularization",
    Frontiers in Artificial Intelligence 4, Eq. 7 and supplement A.3, arXiv 2008.12338.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import Langevin
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> attack = Langevin(Threat("l2", 0.5), steps=5)
    >>> attack.threat.contains(attack(model, x, y), x)
    tensor([True, True])
    """

    FORMER: ClassVar[dict[str, str]] = {"pull": "anchor"}

    threat: Threat
    steps: int = 20
    """Number of Langevin steps."""
    step_size: float | None = None
    """eta', length of a step. Default: 2 eps / steps (l2), 2.5 eps / steps (linf); see `sampler` for other boxes."""
    gamma: float | None = None
    """Weight of the quadratic penalty gamma/2 ||x' - x||^2. Default: 0.05 (l2), 0 (linf); see `sampler` for other
    boxes."""
    noise: float | None = None
    """Square root of the temperature. Default: 1e-3; see `sampler` for other boxes."""
    effective_noise: float | None = None
    """sqrt(2 step_size) * noise, instead of noise."""
    temperature: float | None = None
    """T = noise^2 in exp(loss / T), instead of noise."""
    variant: Variant = "released"
    """released (the authors' code) or published (the paper's Eq. 7)."""
    start: Start | None = None
    """Where a chain starts: zero, uniform, corner (linf), sphere (l2), boundary or cube. Default: corner, sphere."""
    projection: Literal["last", "every"] | None = None
    """Project onto the ball after the last or after every step. Default: as the variant, last where it never does."""
    gradient: Gradient | None = None
    """Direction of a step: the raw gradient, the unit gradient or its sign. Default: as the variant."""
    anchor: Anchor | None = None
    """Whether the anchor term is free of the step size or scaled by it. Default: as the variant."""
    restarts: int = 1
    """Number of chains; the worst result counts."""

    def __post_init__(self) -> None:
        check_number("restarts", self.restarts, 1, whole=True)
        if str(self.projection) == "never":
            raise ValueError("an attack must end in the ball: use projection 'last' or 'every'")
        some = self.threat.eps
        full = replace(self, threat=replace(self.threat, eps=max(some))) if isinstance(some, Radii) else self
        report_idle(self, "Langevin.", [("anchor", "set gamma above 0", full.sampler.anchor_weight > 0)])
        full.sampler.report_path()

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
            # A chain is resolved for one radius, which its default step size depends on. Its step is checked for the
            # largest of them.
            found = x.clone()
            for eps in sorted(set(threat.eps)):
                rows = (threat.eps.tensor == eps).nonzero().squeeze(1).to(x.device)
                one = replace(self, threat=replace(threat, eps=eps, allow_large_eps=True))
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
