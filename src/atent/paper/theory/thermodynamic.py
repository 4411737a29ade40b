"""T log Z and the gradients on images, where no grid reaches: thermodynamic integration over chains (T4, T6).

With the loss switched on by lambda from 0 to 1, d/d lambda T log Z_lambda = E_lambda[L], and at lambda = 0 the density
is a Gaussian whose log Z is known. Chains at Gauss-Legendre nodes of lambda give the integral (Kirkwood 1935; Gelman
and Meng 1998).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.guard import ask
from atent.losses import cross_entropy
from atent.paper.theory.chains import Mean, mean, metropolis
from atent.paper.theory.density import Entropic, loss_field
from atent.paper.theory.gradient import EXACT, PRINTED, UPDATE
from atent.paper.theory.network import dense
from atent.paper.theory.rows import Row, skipped
from atent.progress import Advance


@dataclass(frozen=True)
class Gradients:
    """Along one direction u of the weights, between w - h u and w + h u, for one image."""

    free: tuple[float, float]
    """T log Z(w + h u) - T log Z(w - h u) by thermodynamic integration, and its standard error."""
    entropy: tuple[float, float]
    """The same of L_DE, by the mean loss at both ends."""
    plain: tuple[float, float]
    """Integral of E[grad L] . u from -h to h, and its standard error."""
    exact: tuple[float, float]
    """Integral of (E[grad L] + Cov(L, grad L)/T) . u."""
    printed: tuple[float, float]
    """Integral of E[grad L (1 + L)] . u."""
    level: tuple[float, float]
    """T log Z - T log Z_0 at w, halfway between the ends, and its standard error."""
    losses: tuple[tuple[float, float, float], ...]
    """(lambda, E_lambda[L], standard error) at w + h u."""
    chains: int
    steps: int
    worst: Mean
    """The mean with the largest R-hat."""
    least: float
    """The smallest effective size of all."""


def _legendre(n: int, low: float, high: float) -> tuple[list[float], list[float]]:
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    return [low + half * (1 + float(t)) for t in nodes], [half * float(w) for w in weights]


def compare(
    model: nn.Module, x: Tensor, y: Tensor, density: Entropic, *, chains: int = 16, steps: int = 300, burn: int = 150,
    nodes: int = 6, reach: float = 0.3, curvature: float = 10.0, seed: int = 0, advance: Advance = lambda _n, _t: None,
) -> Gradients:  # fmt: skip
    """The differences of both objectives over a stretch of the weights, and the integrals of the formulas along it.

    ``x`` (1, ...) one image, ``y`` (1,). u is the loss's own gradient at x, normalised; h is such that L(x) moves by
    about ``reach``. The two sides share no samples: they agree only if the formula is correct. The stretch is finite,
    so no difference quotient is truncated; the formulas are integrated over three Gauss-Legendre nodes.
    """
    rng = torch.Generator().manual_seed(seed)
    ahead, norm, size = _steepest(model, x, y)
    # a step small enough to stay near the network
    h = min(reach / (2 * norm), 0.01 * size)
    # The chains need many small passes; the direction goes through the same change of form as the weights.
    shape = tuple(x.shape[1:])
    model, ahead = dense(model, shape), dense(ahead, shape)
    parameters, direction = ({k: v.detach() for k, v in m.named_parameters()} for m in (model, ahead))
    step_size = 0.5 / (density.gamma + curvature) / x.numel() ** (1 / 3)
    line = _Line(
        model, parameters, direction, x, y, density, chains, steps, burn, step_size, rng, advance,
    )  # fmt: skip
    ends, tops, ladder, means = _ends(line, h, nodes)
    formulas, others = _formulas(line, h)
    means += others
    return Gradients(
        _total([ends[1], -ends[0]]), _total([tops[1], -tops[0]]), formulas["plain"], formulas["exact"],
        formulas["printed"], _total([ends[0] / 2, ends[1] / 2]), tuple(ladder), chains, steps,
        max(means, key=lambda m: m.rhat), min(m.size for m in means),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Line:
    """Chains at one image x while the weights move along a direction: w + s u."""

    model: nn.Module
    parameters: dict[str, Tensor]
    """w, by name."""
    direction: dict[str, Tensor]
    """u, by name."""
    x: Tensor
    y: Tensor
    density: Entropic
    chains: int
    steps: int
    burn: int
    step_size: float
    rng: torch.Generator
    advance: Advance

    def run(
        self, s: float, shares: Sequence[float], keep: Callable[[_Moved, Tensor, Tensor], Tensor], thin: int
    ) -> list[Tensor]:
        """For each share the kept quantities, (quantities, chains, steps), at w + s u."""
        x, density = self.x, self.density
        moved = _Moved(self.model, {k: v + s * self.direction[k] for k, v in self.parameters.items()})
        labels = self.y.expand(self.chains * len(shares))
        anchor = x.expand(len(labels), *x.shape[1:])
        spread = math.sqrt(density.temperature / density.gamma)
        begin = anchor + spread * torch.randn(anchor.shape, generator=self.rng, dtype=x.dtype)
        share = torch.tensor(shares, dtype=x.dtype).repeat_interleave(self.chains)
        trace = metropolis(
            loss_field(moved, labels), begin, anchor, density, self.step_size, self.steps,
            lambda z, losses: keep(moved, z, losses), rng=self.rng, burn=self.burn, share=share, thin=thin,
        )  # fmt: skip
        self.advance(1, "")
        return list(trace.kept.split(self.chains, 1))


Ladder = list[tuple[float, float, float]]


def _ends(line: _Line, h: float, nodes: int) -> tuple[list[Tensor], list[Tensor], Ladder, list[Mean]]:
    """At w - h u and w + h u, chain by chain: the integral of E_lambda[L] over lambda, and E[L] at lambda = 1; the
    ladder of E_lambda[L] at w + h u; all means."""
    lambdas, weights = _legendre(nodes, 0.0, 1.0)
    ladder: Ladder = []
    ends, tops, means = [], [], []
    for s in (-h, h):
        kept = [k[0] for k in line.run(s, [*lambdas, 1.0], lambda _m, _z, losses: losses[:, None], 1)]
        means += [mean(k) for k in kept]
        # chain by chain: independent numbers, whose spread is the error
        each = torch.stack([k.mean(1) for k in kept])
        ends.append((torch.tensor(weights, dtype=line.x.dtype)[:, None] * each[:-1]).sum(0))
        tops.append(each[-1])
        ladder = [(lam, *_mean(row)) for lam, row in zip([*lambdas, 1.0], each, strict=True)]
    return ends, tops, ladder, means


def _formulas(line: _Line, h: float) -> tuple[dict[str, tuple[float, float]], list[Mean]]:
    """The integrals of the formulas from w - h u to w + h u with their standard errors, and all means."""

    def slope_too(moved: _Moved, z: Tensor, losses: Tensor) -> Tensor:
        return torch.stack([losses, moved.along(z, line.y.expand(len(z)), line.direction)], 1)

    means: list[Mean] = []
    sums: dict[str, list[Tensor]] = {"plain": [], "exact": [], "printed": []}
    for place, weight in zip(*_legendre(3, -h, h), strict=True):
        ((losses, rates),) = line.run(place, [1.0], slope_too, 3)
        means += [mean(losses), mean(rates)]
        # Around the mean of the other chains: unbiased, and one number for each chain.
        others = (losses.mean(1).sum() - losses.mean(1)) / (line.chains - 1)
        covariance = ((losses - others[:, None]) * rates).mean(1)
        sums["plain"].append(weight * rates.mean(1))
        sums["exact"].append(weight * (rates.mean(1) + covariance / line.density.temperature))
        sums["printed"].append(weight * (rates * (1 + losses)).mean(1))
    return {name: _total(parts) for name, parts in sums.items()}, means


def _steepest(model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, float, float]:
    """The loss's weight gradient at ``x``, normalised, as a network with such weights; its norm; the weights' norm."""
    ahead = copy.deepcopy(model).requires_grad_(True)
    own = list(ahead.parameters())
    with torch.enable_grad():
        slopes = torch.autograd.grad(cross_entropy(ask(ahead, x), y).sum(), own)
    norm, size = (math.sqrt(sum(float(v.detach().square().sum()) for v in part)) for part in (slopes, own))
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"the loss has a weight gradient of norm {norm} at the image: choose another image")
    with torch.no_grad():
        for p, g in zip(own, slopes, strict=True):
            p.copy_(g / norm)
    return ahead.requires_grad_(False), norm, size


def _mean(each: Tensor) -> tuple[float, float]:
    return float(each.mean()), float(each.std()) / math.sqrt(len(each))


def _total(parts: list[Tensor]) -> tuple[float, float]:
    """Sum of the means of independent groups of chains, and its standard error."""
    return sum(float(p.mean()) for p in parts), math.sqrt(sum(float(p.var()) / len(p) for p in parts))


class _Moved(nn.Module):
    """The network at other weights, the same module otherwise."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.call: Callable[[Tensor, dict[str, Tensor]], Tensor] = lambda z, w: torch.func.functional_call(
            model, w, (z.clone(),)
        )
        self.weights = weights

    def forward(self, z: Tensor) -> Tensor:
        return self.call(z, self.weights)

    def along(self, z: Tensor, y: Tensor, direction: dict[str, Tensor]) -> Tensor:
        """The derivative of each sample's loss in the weights along ``direction``, (n,)."""
        with torch.no_grad():
            slope: Tensor = torch.func.jvp(lambda w: cross_entropy(self.call(z, w), y), (self.weights,), (direction,))[
                1
            ]
        return slope


def rows(found: Gradients, density: Entropic, named: str, bound: float | None = None) -> list[Row]:
    """The lines of T4 and T6 on images; without a figure where the chains have not converged."""
    case = (
        f"{named}: {found.chains} Metropolis-Langevin chains of {found.steps} steps a node, gamma {density.gamma:.4g},"
        f" T {density.temperature:.4g}; difference of the objective over a stretch of the weights against the integral"
        " of the formula along it"
    )
    cases = (
        ("T6", UPDATE, found.free, found.plain), ("T4", EXACT, found.entropy, found.exact),
        ("T4", PRINTED, found.entropy, found.printed),
    )  # fmt: skip
    ready = found.worst.rhat <= 1.05 and found.least >= 100
    rhat = f"R-hat up to {found.worst.rhat:.4g}"
    why = f"{rhat} (at most 1.05 required), effective size from {found.least:.0f} (at least 100 required)"
    if not ready:
        return [skipped(statement, claim, case, why, converged=False) for statement, claim, _, _ in cases]
    out = []
    for statement, claim, (left, a), (right, b) in cases:
        error = math.hypot(a, b)
        # Three standard errors and 1 % for the nodes: three of the stretch, and those of lambda.
        allowed = 3 * error + 0.01 * abs(left)
        out.append(
            Row(
                statement, claim, case, "holds" if abs(right - left) <= allowed else "fails", "formula minus objective",
                right - left, 1.96 * error, found.chains * found.steps, "sampled",
                f"objective {left:.4f} \u00b1 {1.96 * a:.4f}, formula {right:.4f} \u00b1 {1.96 * b:.4f}; {rhat}",
            )
        )  # fmt: skip
    level, error = found.level
    inside = level >= -3 * error and (bound is None or level <= bound + 3 * error)
    out.append(
        Row(
            "T3", "0 <= T log(Z/Z_0) <= L(x) + L sqrt(dT/gamma) + L^2/(2 gamma)", f"{named}: thermodynamic integration",
            "not applicable" if bound is None else "holds" if inside else "fails", "T log(Z/Z_0)", level, 1.96 * error,
            found.chains * found.steps, "sampled",
            "no certified Lipschitz constant" if bound is None else f"the upper bound is {bound:.4g}",
        )
    )  # fmt: skip
    return out
