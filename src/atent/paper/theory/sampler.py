"""The sampler: its stationary law if known (T14), its mixing, and the conditions of the theory (T12)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.attacks.langevin import Sampler
from atent.guard import ask
from atent.losses import cross_entropy
from atent.paper.theory.chains import Mean, autocorrelation, langevin, mean, metropolis, time_constant
from atent.paper.theory.density import Entropic, loss_field
from atent.paper.theory.network import dense
from atent.paper.theory.rows import Row, Verdict, skipped
from atent.sgld import langevin_step

VARIANCE = "without a loss the chain has variance T/gamma / (1 - eta' gamma/2), T = eps^2: T/gamma but for O(eta')"
RELEASED = "the released code's recursion has variance 2 eta' eps^2 / (1 - (1 - G)^2)"
ERGODIC = "sum eta_t g(x_t) / sum eta_t tends to E_p[g] for falling steps"
MIXING = "the chain has forgotten its start after K steps"
CONVERGES = "the conditions under which Xu et al. (2018, Theorem 3.3) prove convergence"


# ---- where the law is known --------------------------------------------------------------------------------


def stationary(chains: int = 40_000, seed: int = 0) -> list[Row]:
    """T14 on a Gaussian: many chains run until the start is forgotten to 1e-6; sample variance against closed form."""
    out = []
    rng = torch.Generator().manual_seed(seed)
    # sd of a sample variance of n normal numbers is var sqrt(2/n)
    error = 1.96 * math.sqrt(2 / chains)
    for eta, gamma, noise in ((0.1, 1.0, 1.0), (0.5, 1.0, 0.3), (1.5, 1.0, 1.0)):
        var = _variance(chains, eta, eta * gamma, noise, rng)
        exact = noise**2 / gamma / (1 - eta * gamma / 2)
        case = f"{chains:,} chains, eta' {eta:g}, gamma {gamma:g}, eps {noise:g}; T/gamma is {noise**2 / gamma:.4g}"
        out.append(_ratio(VARIANCE, case, var / exact, error, chains, f"variance {var:.5f}, closed form {exact:.5f}"))
    for eta, weight, noise in ((0.02175, 0.05, 0.577), (0.125, 0.05, 1e-2)):
        var = _variance(chains, eta, weight, noise, rng)
        exact = 2 * eta * noise**2 / (1 - (1 - weight) ** 2)
        case = f"{chains:,} chains, eta' {eta:g}, G {weight:g} not scaled by the step, eps {noise:g}"
        out.append(_ratio(RELEASED, case, var / exact, error, chains, f"variance {var:.4g}, closed form {exact:.4g}"))
    return [*out, *_quadratic(chains, rng), _ergodic(seed)]


def _ratio(claim: str, case: str, ratio: float, error: float, n: int, reason: str) -> Row:
    verdict: Verdict = "holds" if abs(ratio - 1) <= error * 3.3 / 1.96 else "fails"
    return Row("T14", claim, case, verdict, "variance / closed form", ratio, error, n, "sampled", reason)


def _variance(chains: int, eta: float, weight: float, noise: float, rng: torch.Generator, slope: float = 0.0) -> float:
    """Variance of z after as many steps as it takes to forget the start; the gradient is slope * z."""
    keep = abs(1 - weight + eta * slope)
    steps = math.ceil(math.log(1e-6) / math.log(max(keep, 1e-6))) + 1
    z, zero = torch.zeros(chains, dtype=torch.float64), torch.zeros(chains, dtype=torch.float64)
    for _ in range(steps):
        normal = torch.randn(chains, generator=rng, dtype=torch.float64)
        z = langevin_step(z, slope * z, zero, step_size=eta, weight=weight, noise=noise, normal=normal)
    return float(z.var())


def _quadratic(chains: int, rng: torch.Generator) -> list[Row]:
    """L(x') = a/2 x'^2, a < gamma: the energy has curvature gamma - a."""
    eta, gamma, a, noise = 0.2, 2.0, 1.2, 0.7
    var = _variance(chains, eta, eta * gamma, noise, rng, slope=a)
    exact = noise**2 / (gamma - a) / (1 - eta * (gamma - a) / 2)
    case = f"{chains:,} chains, L(x') = {a:g}/2 x'^2, eta' {eta:g}, gamma {gamma:g}, eps {noise:g}"
    claim = "with a quadratic loss of curvature a < gamma the same with gamma - a in the place of gamma"
    error = 1.96 * math.sqrt(2 / chains)
    return [_ratio(claim, case, var / exact, error, chains, f"variance {var:.5f}, closed form {exact:.5f}")]


def _ergodic(seed: int, chains: int = 400, steps: int = 3000) -> Row:
    """E[x'^2] on a Gaussian by step-weighted averages over falling steps, one average a chain."""
    rng = torch.Generator().manual_seed(seed + 1)
    gamma, noise, first = 1.0, 0.8, 0.8
    z = torch.zeros(chains, dtype=torch.float64)
    top, below = torch.zeros_like(z), 0.0
    zero = torch.zeros_like(z)
    for t in range(steps):
        eta = first * (1 + t) ** -0.5
        normal = torch.randn(chains, generator=rng, dtype=torch.float64)
        z = langevin_step(z, zero, zero, step_size=eta, weight=eta * gamma, noise=noise, normal=normal)
        if t >= steps // 10:
            top, below = top + eta * z.square(), below + eta
    each = top / below
    value, error = float(each.mean()), 1.96 * float(each.std()) / math.sqrt(chains)
    true = noise**2 / gamma
    # What is left of the steps' bias at these step sizes: their mean is about twice the last one.
    bias = first * steps**-0.5 * gamma
    ok = abs(value - true) <= error * 3.3 / 1.96 + bias * true
    return Row(
        "T14", ERGODIC, f"{chains} chains of {steps} steps eta_t = {first:g} t^-1/2 on a Gaussian: E[x'^2] = {true:g}",
        "holds" if ok else "fails", "ergodic average of x'^2", value, error, chains, "sampled",
        f"off by {value - true:+.4f}; the steps at the end leave a bias of up to {bias * true:.3f}",
    )  # fmt: skip


# ---- how far it mixes --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixing:
    """Chains on images of the data, by the paper's update with raw gradients."""

    images: int
    chains: int
    steps: int
    step_size: float
    means: dict[str, Mean]
    """Diagnostics of the loss, the distance ||x' - x|| and the projection on the loss's gradient, each of the worst
    image."""
    curve: list[float]
    """Autocorrelation of ||x' - x||^2 by lag, the mean over the images."""
    losses: list[float]
    """The same of the loss."""
    time: float
    """Integrated autocorrelation time in steps, the largest of the images' and quantities'."""
    biased: Mean
    """E[L] of the first image by this chain."""
    unbiased: Mean
    """The same by Metropolis-Langevin."""

    @property
    def converged(self) -> bool:
        return all(m.converged for m in self.means.values())


def mix(
    model: nn.Module, x: Tensor, y: Tensor, density: Entropic, *, chains: int = 4, steps: int = 2000,
    curvature: float = 10.0, images: int = 3, seed: int = 0,
) -> Mixing:  # fmt: skip
    """Run ``chains`` >= 3 chains on each of the first ``images`` images from dispersed starts; the first half of the
    steps is discarded. The step is 0.2 / (gamma + curvature), stable where the loss's curvature is as given."""
    if chains < 3:
        raise ValueError(f"R-hat needs at least 3 chains, got {chains}")
    model = dense(model, tuple(x.shape[1:]))
    rng = torch.Generator().manual_seed(seed)
    n = min(images, len(x))
    anchor, labels = (part[:n].repeat_interleave(chains, 0) for part in (x, y))
    wide = 2 * math.sqrt(density.temperature / density.gamma)
    begin = anchor + wide * torch.randn(anchor.shape, generator=rng, dtype=x.dtype)
    field = loss_field(model, labels)
    with torch.enable_grad():
        point = anchor.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(ask(model, point), labels).sum(), point)
    along = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * (x.dim() - 1))
    eta = 0.2 / (density.gamma + curvature)

    def record(z: Tensor, losses: Tensor) -> Tensor:
        away = (z - anchor).flatten(1)
        return torch.stack([losses, away.square().sum(1), (away * along.flatten(1)).sum(1)], 1)

    trace = langevin(field, begin, anchor, density, eta, steps - steps // 2, record, rng=rng, burn=steps // 2)
    kept = trace.kept.view(3, n, chains, -1)
    worst = {
        name: max((mean(kept[q, i]) for i in range(n)), key=lambda m: (m.rhat, -m.size))
        for q, name in enumerate(("loss", "squared distance", "projection on the gradient"))
    }
    lags = min(200, kept.shape[-1] // 4)
    curves = [
        torch.stack([autocorrelation(kept[q, i], lags) for i in range(n)]).mean(0).tolist() for q in (1, 0)
    ]  # fmt: skip
    slowest = max(time_constant(kept[q, i]) for q in range(3) for i in range(n))
    rows = slice(0, chains)
    first = metropolis(
        loss_field(model, labels[rows]), begin[rows], anchor[rows], density, eta, steps - steps // 2,
        lambda _z, losses: losses[:, None], rng=rng, burn=steps // 2,
    )  # fmt: skip
    return Mixing(
        n, chains, steps, eta, worst, curves[0], curves[1], slowest, mean(kept[0, 0]), mean(first.kept[0])
    )  # fmt: skip


def mixing_rows(found: Mixing, steps: int, named: str) -> list[Row]:
    """T12 on the data: what K = ``steps`` leaves of the start; without a figure where the chains disagree."""
    case = (
        f"{named}: {found.images} images, {found.chains} chains of {found.steps} steps (half kept), eta'"
        f" {found.step_size:.4g}, raw gradient, no projection, no box"
    )
    out = []
    why = "; ".join(f"{name}: R-hat {m.rhat:.3f}, effective size {m.size:.0f}" for name, m in found.means.items())
    if not found.converged:
        return [
            skipped("T12", MIXING, case, why, converged=False),
            skipped("T14", "the unadjusted chain's E[L] is that of p but for O(eta')", case, why, converged=False),
        ]
    left = max(found.curve[min(steps, len(found.curve) - 1)], found.losses[min(steps, len(found.losses) - 1)])
    out.append(
        Row(
            "T12", MIXING, f"{case}; K = {steps}", "holds" if left < 0.05 else "fails",
            f"autocorrelation at lag {steps}", left, None, found.images * found.chains * (found.steps // 2), "sampled",
            f"one independent sample takes {found.time:.0f} steps (the slowest quantity and image); {why}",
        )
    )  # fmt: skip
    if found.unbiased.converged:
        away = found.biased.value - found.unbiased.value
        error = math.hypot(found.biased.error, found.unbiased.error)
        out.append(
            Row(
                "T14", "the unadjusted chain's E[L] is that of p but for O(eta')", case,
                "holds" if abs(away) <= error * 1.7 + 0.05 * abs(found.unbiased.value) else "fails",
                "E[L] by Langevin minus E[L] by Metropolis-Langevin", away, error, found.chains * (found.steps // 2),
                "sampled",
                f"{found.biased.value:.4f} and {found.unbiased.value:.4f}, first image; tolerance 5 % for the step",
            )
        )  # fmt: skip
    else:
        out.append(
            skipped(
                "T14", "the unadjusted chain's E[L] is that of p but for O(eta')", case, found.unbiased.why_not,
                converged=False,
            )
        )  # fmt: skip
    return out


# ---- the conditions of the convergence theorem -------------------------------------------------------------


@dataclass(frozen=True)
class Conditions:
    """The conditions of the theorem, and whether a chain meets them."""

    recipe: str
    steps: int
    gamma: float
    """In the paper's scaling: the weight of the anchor term per unit of step size."""
    met: dict[str, bool]
    """Condition -> whether it holds."""
    step_size: float
    allowed: float | None
    """The largest step size that the theorem takes; None without an anchor term, where there is no m."""
    needed: float | None
    """1 / (eta' m), the steps of one relaxation time in the best case; None without an anchor term."""
    kept: float
    """(1 - weight)^K: what is left of the start after K steps where the loss is flat."""


def conditions(
    recipe: str, chain: Sampler, smooth: bool, curvature: float, *, clamped: bool = True
) -> Conditions:  # fmt: skip
    """The conditions for one recipe, with beta = ``curvature`` (a lower estimate flatters it). Every chain of the
    library is ``clamped`` to the box after each step.

    M = beta + gamma and m = gamma/4 by Lemma B.1. The theorem is for the plain recursion x - eta grad F + noise: raw
    gradients, an anchor term scaled by the step, neither projection nor box. It asks for M-smoothness and (m,
    b)-dissipativity, and its moment bounds for a step of at most min(1, m / (4 M^2)) and an inverse temperature of at
    least 2/m (Raginsky et al. 2017, for the same recursion).
    """
    eta = chain.step_size
    gamma = chain.anchor_weight / eta if eta > 0 else 0.0
    temperature = chain.noise**2
    allowed = min(1.0, gamma / 4 / (4 * (curvature + gamma) ** 2)) if gamma > 0 else None
    met = {
        "raw gradient": chain.gradient == "raw",
        "anchor term above 0": gamma > 0,
        "noise above 0": temperature > 0,
        "no projection": chain.projection == "never",
        "no box": not clamped,
        "smooth network": smooth,
        "step size": allowed is not None and eta <= allowed,
        "inverse temperature": gamma > 0 and 0 < temperature <= gamma / 8,
        "steps": gamma > 0 and chain.steps * eta * gamma / 4 >= 1,
    }
    needed = 4 / (eta * gamma) if gamma > 0 and eta > 0 else None
    return Conditions(
        recipe, chain.steps, gamma, met, eta, allowed, needed, abs(1 - chain.anchor_weight) ** chain.steps
    )


def convergence_rows(found: Mapping[str, Conditions]) -> list[Row]:
    """A row a recipe: not applicable where the recursion differs, fails where only numerical conditions are not met."""
    out = []
    for name, c in found.items():
        form = ("raw gradient", "anchor term above 0", "noise above 0", "no projection", "no box", "smooth network")
        wrong = [k for k in form if not c.met[k]]
        numbers = [k for k in ("step size", "inverse temperature", "steps") if not c.met[k]]
        case = f"recipe {name}: K {c.steps}, eta' {c.step_size:.4g}, gamma {c.gamma:.4g} in the paper's scaling"
        parts = []
        if wrong:
            parts.append(f"recursion or premise not met: {', '.join(wrong)}")
        if numbers:
            parts.append(f"numerical conditions not met: {', '.join(numbers)}")
        if c.allowed is not None and not c.met["step size"]:
            parts.append(f"the step size must be at most {c.allowed:.2g}")
        if c.needed is not None and not c.met["steps"]:
            parts.append(f"one relaxation time is {c.needed:.3g} steps in the best case, K = {c.steps}")
        if c.gamma == 0:
            parts.append("without an anchor term there is no density to converge to")
        verdict: Verdict = "not applicable" if wrong else "fails" if numbers else "holds"
        out.append(
            Row(
                "T12", CONVERGES, case, verdict, "conditions met of nine", float(sum(c.met.values())), None, len(c.met),
                "exact", "; ".join(parts),
            )
        )  # fmt: skip
    return out
