"""The target density of ATENT's chain, p(x') ~ exp((L(x') - gamma/2 ||x' - x||^2) / T), and its energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.guard import ask
from atent.losses import cross_entropy

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A scalar function of inputs with its gradient: points (n, ...) to values (n,) and gradients (n, ...)."""


@dataclass(frozen=True)
class Entropic:
    """gamma and T of the density. Its energy is F(x') = gamma/2 ||x' - x||^2 - L(x'); p ~ exp(-F / T)."""

    gamma: float
    """gamma of the anchor term gamma/2 ||x' - x||^2, above 0."""
    temperature: float
    """T = noise^2, above 0."""

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: at 0 there is no density, only a mode"
            )

    def anchor_term(self, z: Tensor, x: Tensor) -> Tensor:
        """gamma/2 ||z - x||^2, (n,)."""
        return 0.5 * self.gamma * (z - x).flatten(1).square().sum(1)


def check_gamma(gamma: float) -> None:
    """ValueError unless gamma > 0."""
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(
            f"gamma must be above 0, got {gamma}: cross-entropy is at least 0, so without an anchor term exp(L / T) is"
            " at least 1 everywhere, its integral is infinite, and there is no density to normalise"
        )


def loss_field(model: nn.Module, y: Tensor) -> Field:
    """x' -> cross-entropy of each sample (n,) and its input gradient; ``model`` must not couple samples."""

    def field(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            losses = cross_entropy(ask(model, z), y)
            (grad,) = torch.autograd.grad(losses.sum(), z)
        return losses.detach(), grad

    return field


def gradients(model: nn.Module, z: Tensor, y: Tensor, chunk: int = 500) -> Tensor:
    """The input gradient of each sample's cross-entropy at ``z``, ``chunk`` samples at a time; ValueError if it is not
    finite."""
    out = torch.cat([loss_field(model, y[i : i + chunk])(z[i : i + chunk])[1] for i in range(0, len(z), chunk)])
    if not bool(torch.isfinite(out).all()):
        raise ValueError("the loss has a gradient that is not finite: check for infinite weights or inputs")
    return out
