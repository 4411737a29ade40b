"""Chains that sample the density, and their diagnostics: R-hat, effective sample size, autocorrelation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atent.paper.theory.density import Entropic, Field
from atent.sgld import langevin_step

Record = Callable[[Tensor, Tensor], Tensor]
"""(points (m, ...), losses (m,)) -> the recorded quantities of each step, (m, quantities)."""

RHAT = 1.05
LEAST = 100.0


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of a set of chains."""

    kept: Tensor
    """(quantities, chains, steps), float64."""
    last: Tensor
    """The points where the chains are, (chains, ...)."""
    accepted: float = 1.0
    """Share of the proposals that were taken; 1 for unadjusted chains."""


def langevin(
    field: Field, start: Tensor, x: Tensor, density: Entropic, step_size: float, steps: int, record: Record,
    *, rng: torch.Generator, burn: int = 0,
) -> Trace:  # fmt: skip
    """The paper's chain (Eq. 7) with raw gradients and an anchor term scaled by the step, free of projection and box:
    ``start`` and ``x`` (m, ...), one chain a row. Its stationary law differs from p by a bias of the order of the step
    size."""
    z, kept = start, []
    noise = math.sqrt(density.temperature)
    losses, grad = field(z)
    for k in range(burn + steps):
        normal = torch.randn(z.shape, generator=rng, dtype=z.dtype)
        z = langevin_step(
            z, grad, x, step_size=step_size, weight=step_size * density.gamma, noise=noise, normal=normal
        )  # fmt: skip
        losses, grad = field(z)
        if k >= burn:
            kept.append(record(z, losses))
    return Trace(torch.stack(kept, 2).transpose(0, 1).contiguous(), z)


def metropolis(
    field: Field, start: Tensor, x: Tensor, density: Entropic, step_size: float, steps: int, record: Record,
    *, rng: torch.Generator, burn: int, share: Tensor | None = None, thin: int = 1,
) -> Trace:  # fmt: skip
    """Langevin proposals with Metropolis' correction (Roberts and Tweedie 1996): p itself is stationary, at any step
    size. Each chain tunes its own step in the first ``burn`` steps, towards an acceptance of 0.6, and keeps it after.

    ``share`` (m,) in [0, 1] multiplies the loss: the bridge densities of thermodynamic integration.
    """
    t, gamma = density.temperature, density.gamma
    column = (-1, *[1] * (start.dim() - 1))
    part = torch.ones(len(start), dtype=start.dtype) if share is None else share
    h = torch.full((len(start),), step_size, dtype=start.dtype)

    def fields(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses, grad = field(z)
        return part * losses - density.anchor_term(z, x), part.view(column) * grad - gamma * (z - x), losses

    z = start
    value, slope, losses = fields(z)
    kept, taken, tried = [], 0.0, 0
    for k in range(burn + steps):
        wide = h.view(column)
        normal = torch.randn(z.shape, generator=rng, dtype=z.dtype)
        other = z + wide * slope + (2 * wide * t).sqrt() * normal
        value2, slope2, losses2 = fields(other)
        back = (z - other - wide * slope2).flatten(1).square().sum(1) / (4 * h * t)
        ahead = normal.flatten(1).square().sum(1) / 2
        chance = ((value2 - value) / t - back + ahead).clamp(max=0).exp()
        take = torch.rand(len(z), generator=rng, dtype=z.dtype) < chance
        z, slope = (torch.where(take.view(column), new, old) for new, old in ((other, z), (slope2, slope)))
        value, losses = (torch.where(take, new, old) for new, old in ((value2, value), (losses2, losses)))
        if k < burn:
            h = h * (0.3 * (chance - 0.6)).exp() if k > 0 else h
        else:
            taken, tried = taken + float(chance.mean()), tried + 1
            if (k - burn) % thin == 0:
                kept.append(record(z, losses))
    return Trace(torch.stack(kept, 2).transpose(0, 1).contiguous(), z, taken / max(tried, 1))


# ---- diagnostics -----------------------------------------------------------------------------


def split_rhat(samples: Tensor) -> float:
    """Split R-hat (Gelman et al. 2013, BDA3, 11.4) of samples (chains, steps), at least 3 chains and 4 steps: 1 where
    the chains, each cut in two, agree. infinite if chains are stuck at different points."""
    chains, steps = samples.shape
    if chains < 3 or steps < 4:
        raise ValueError(f"R-hat needs at least 3 chains of 4 steps, got {chains} of {steps}")
    half = steps // 2
    parts = torch.cat([samples[:, :half], samples[:, steps - half :]]).double()
    within = float(parts.var(1).mean())
    between = float(parts.mean(1).var())
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return math.sqrt((half - 1) / half + between / within)


def autocorrelation(samples: Tensor, lags: int | None = None) -> Tensor:
    """Autocorrelation (lags + 1,) of samples (chains, steps), averaged over chains around their common mean."""
    steps = samples.shape[1]
    centred = (samples - samples.mean()).double()
    spectrum = torch.fft.rfft(centred, n=2 * steps).abs().square()
    products = torch.fft.irfft(spectrum, n=2 * steps)[:, :steps].mean(0) / steps
    lags = steps - 1 if lags is None else min(lags, steps - 1)
    return products[: lags + 1] / products[0] if products[0] > 0 else torch.ones(lags + 1, dtype=torch.float64)


def time_constant(samples: Tensor) -> float:
    """Integrated autocorrelation time, 1 + 2 sum rho_k, by Geyer's initial monotone sequence, of samples
    (chains, steps)."""
    chains, steps = samples.shape
    parts = samples.double()
    centred = parts - parts.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * steps).abs().square()
    cov = torch.fft.irfft(spectrum, n=2 * steps)[:, :steps].mean(0) / steps
    within = cov[0] * steps / (steps - 1)
    whole = within * (steps - 1) / steps + parts.mean(1).var()
    if whole <= 0:
        return float(chains * steps)
    rho = 1 - (within - cov) / whole
    pairs = rho[0 : steps - 1 : 2][: steps // 2] + rho[1:steps:2][: steps // 2]
    stop = int((pairs <= 0).double().argmax()) if bool((pairs <= 0).any()) else len(pairs)
    kept = torch.cummin(pairs[: max(stop, 1)], 0).values
    return max(float(2 * kept.sum() - 1), 1 / math.log10(max(chains * steps, 10)))


def effective(samples: Tensor) -> float:
    """Effective sample size of samples (chains, steps): as many independent samples would give the mean as well."""
    return samples.numel() / time_constant(samples)


@dataclass(frozen=True)
class Mean:
    """A mean over chains."""

    value: float
    error: float
    """Half width of its 95 % interval, from the effective sample size."""
    rhat: float
    size: float
    """Effective sample size."""

    @property
    def converged(self) -> bool:
        """Whether R-hat is at most 1.05 and at least 100 independent samples are there."""
        return self.rhat <= RHAT and self.size >= LEAST

    @property
    def why_not(self) -> str:
        """As text."""
        rhat = f"R-hat {self.rhat:.3g} (at most {RHAT} required)"
        return f"{rhat}, effective size {self.size:.0f} (at least {LEAST:.0f} required)"


def mean(samples: Tensor) -> Mean:
    """The mean of samples (chains, steps) with its error."""
    size = effective(samples)
    return Mean(float(samples.mean()), 1.96 * float(samples.std()) / math.sqrt(size), split_rhat(samples), size)
