"""Divergences between distributions of samples: the maximum mean discrepancy, and a trained discriminator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, relu, softplus

from atent.distributed import undivided
from atent.methods.base import State
from atent.rng import fold

Kernel = Callable[[Tensor], Tensor]
"""(squared distances) -> values of the kernel."""

CHANCE = 2 * math.log(2)
"""Loss of a discriminator with output one half everywhere, the optimum for two equal distributions."""

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


# ---- maximum mean discrepancy ------------------------------------------------------------------------------


def rbf(bandwidth: float) -> Kernel:
    """k(a, b) = exp(-||a - b||^2 / (2 h^2)) of bandwidth h."""
    return lambda squares: (squares / (-2 * bandwidth**2)).exp()


def multiquadrics(scale: float) -> Kernel:
    """k(a, b) = sum of c / (c + ||a - b||^2) over seven c, from a tenth of ``scale`` to ten times it."""
    return lambda squares: torch.stack([scale * s / (scale * s + squares) for s in _SCALES]).sum(0)


def mmd(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy of two distributions: it may be below 0.

    Parameters
    ----------
    a, b
        Independent samples (n, d) and (m, d) of the two distributions, n and m at least 2.
    kernel
        `rbf` or `multiquadrics`.

    Returns
    -------
    Tensor
        A scalar: mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over pairs of different samples.

    Raises
    ------
    ValueError
        For fewer than 2 samples of a distribution.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schölkopf and Smola 2012, "A kernel two-sample test", Journal of Machine Learning
    Research 13.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"the mmd needs at least 2 samples of each distribution, got {len(a)} and {len(b)}: use larger batches"
        )
    cross = kernel(_squares(a, b)).mean()
    return _within(a, kernel) + _within(b, kernel) - 2 * cross


def _within(a: Tensor, kernel: Kernel) -> Tensor:
    """The mean over pairs of different samples."""
    values = kernel(_squares(a, a))
    return (values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||^2, (n, m)."""
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return squares.clamp_min(0)


# ---- discriminator -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Discriminator:
    """A network from a sample (d,) to the log-odds that it comes from the prior, trained by Adam.

    Its weights and Adam's moments live in a method's state, under names that begin with "discriminator", from the first
    batch on; the weights are initialised by He's rule from a separate random number stream.
    """

    width: int
    """Units of each hidden layer."""
    depth: int
    """Hidden layers; 0: a linear function."""
    lr: float
    """Learning rate of Adam."""
    beta1: float
    """First beta of Adam."""
    beta2: float = 0.999
    """Second beta of Adam."""

    @property
    def _names(self) -> list[str]:
        return [f"discriminator.{i}.{part}" for i in range(self.depth + 1) for part in ("weight", "bias")]

    def begin(self, state: State, like: Tensor) -> None:
        """Initialise the weights for samples of the shape of ``like`` (n, d), if the state has none."""
        if "discriminator.steps" in state:
            return
        sizes = [like.shape[1], *[self.width] * self.depth, 1]
        rng = torch.Generator().manual_seed(fold("discriminator", *sizes) & 0xFFFFFFFF)
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            with undivided():  # no dimension of samples
                weight = torch.randn(outputs, inputs, generator=rng) * (2 / inputs) ** 0.5
            state[f"discriminator.{i}.weight"] = weight.to(like)
            state[f"discriminator.{i}.bias"] = like.new_zeros(outputs)
        for name in self._names:
            for moment in ("first", "second"):
                state[f"{name}.{moment}"] = torch.zeros_like(state[name])
        state["discriminator.steps"] = like.new_zeros((), dtype=torch.float64)
        state["discriminator.loss"] = like.new_full((), CHANCE)

    def logits(self, state: State, z: Tensor) -> Tensor:
        """Log-odds (n,) of samples (n, d)."""
        return self._through([state[name] for name in self._names], z)

    def _through(self, weights: list[Tensor], z: Tensor) -> Tensor:
        for i in range(0, 2 * self.depth, 2):
            z = relu(linear(z, weights[i], weights[i + 1]))
        return linear(z, weights[-2], weights[-1]).squeeze(1)

    def learn(self, state: State, samples: Tensor, prior: Tensor) -> Tensor:
        """One step of Adam on the loss -E log g(prior) - E log(1 - g(samples)); the loss before it.

        Samples that are not finite are ignored: the network that computes them has diverged, not the discriminator.
        """
        names = self._names
        with torch.enable_grad():
            weights = [state[name].detach().requires_grad_() for name in names]
            odds = [self._through(weights, z.detach()) for z in (prior, samples)]
            loss = softplus(-odds[0]).mean() + softplus(odds[1]).mean()
            slopes = torch.autograd.grad(loss, weights)
        sound = torch.isfinite(samples).all()
        with torch.no_grad():
            state["discriminator.loss"].copy_(torch.where(sound, loss, state["discriminator.loss"]))
            steps = state["discriminator.steps"].add_(sound)
            for name, slope in zip(names, slopes):
                first, second = state[f"{name}.first"], state[f"{name}.second"]
                first.copy_(torch.where(sound, first.lerp(slope, 1 - self.beta1), first))
                second.copy_(torch.where(sound, second.lerp(slope.square(), 1 - self.beta2), second))
                step = (first / (1 - self.beta1**steps)) / ((second / (1 - self.beta2**steps)).sqrt() + 1e-8)
                state[name].sub_(torch.where(sound, self.lr * step, torch.zeros_like(step)))
        return loss.detach()
