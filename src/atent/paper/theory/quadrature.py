"""Integrals over the density in one and two dimensions: exact to many digits, where images are far too large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atent.paper.theory.density import Entropic

Loss = Callable[[Tensor, Tensor], Tensor]
"""(weights (p,), points (m, d)) -> losses (m,), differentiable."""


@dataclass(frozen=True, eq=False)
class Grid:
    """An equally spaced grid around x that holds all of the density's mass; the sum over it converges faster than any
    power of the spacing, since the density falls as a Gaussian does (Trefethen and Weideman 2014)."""

    x: Tensor
    """The clean input (d,)."""
    points: Tensor
    """(m, d)."""
    cell: float
    """Volume of a cell."""

    @classmethod
    def around(cls, x: Tensor, density: Entropic, lipschitz: float, *, points: int | None = None) -> Grid:
        """Half width L / gamma + 12 sqrt(T / gamma), beyond which exp(-F / T) is below e^-72 of its peak.

        ``points`` per axis, odd; default: 4,001 on the line, and in the plane four to a standard deviation
        sqrt(T / gamma). ValueError beyond the plane.
        """
        dim = x.numel()
        if dim > 2:
            raise ValueError(
                f"quadrature is for inputs of 1 or 2 numbers, got {dim}: a grid of 100 points per axis would have"
                f" 100^{dim} points; use thermodynamic integration (`atent.paper.theory.thermodynamic`)"
            )
        width = math.sqrt(density.temperature / density.gamma)
        half = lipschitz / density.gamma + 12 * width
        count = (4001 if dim == 1 else 2 * math.ceil(4 * half / width) + 1) if points is None else points
        axis = torch.linspace(-half, half, count, dtype=torch.float64)
        axes = torch.meshgrid(*[axis] * dim, indexing="ij")
        return cls(x, torch.stack(axes, -1).view(-1, dim) + x, (2 * half / (count - 1)) ** dim)


def log_normaliser(loss: Loss, w: Tensor, density: Entropic, grid: Grid) -> Tensor:
    """log Z_T(w), a scalar that can be differentiated in ``w``."""
    exponent = (loss(w, grid.points) - density.anchor_term(grid.points, grid.x)) / density.temperature
    return exponent.logsumexp(0) + math.log(grid.cell)


def probabilities(loss: Loss, w: Tensor, density: Entropic, grid: Grid) -> Tensor:
    """p at the grid points, summing to 1."""
    return ((loss(w, grid.points) - density.anchor_term(grid.points, grid.x)) / density.temperature).softmax(0)


def free_energy(loss: Loss, w: Tensor, density: Entropic, grid: Grid) -> Tensor:
    """T log Z_T(w): what ATENT descends."""
    return density.temperature * log_normaliser(loss, w, density, grid)


def data_entropy(loss: Loss, w: Tensor, density: Entropic, grid: Grid) -> Tensor:
    """L_DE(w) = E_p[L] (Eq. 6 of the paper)."""
    return (probabilities(loss, w, density, grid) * loss(w, grid.points)).sum()


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments behind the gradients, at one w."""

    mean: Tensor
    """E_p[L], a scalar."""
    slope: Tensor
    """E_p[grad L] (p,)."""
    product: Tensor
    """E_p[L grad L] (p,)."""
    steepest: float
    """Largest ||grad L|| over the grid."""
    highest: float
    """Range of L over the grid, its largest less its smallest value."""

    def plain(self) -> Tensor:
        """E_p[grad L]: the gradient of the free energy, and what ATENT's update is in expectation."""
        return self.slope

    def exact(self, temperature: float) -> Tensor:
        """grad L_DE = E_p[grad L] + Cov_p(L, grad L) / T."""
        return self.slope + (self.product - self.mean * self.slope) / temperature

    def printed(self) -> Tensor:
        """E_p[grad L (1 + L)], as the supplement has it: without the normaliser's gradient, and at T = 1."""
        return self.slope + self.product


def moments(loss: Loss, w: Tensor, density: Entropic, grid: Grid, shift: float = 0.0) -> Moments:
    """The moments; ``shift`` is added to every loss."""
    p = probabilities(loss, w, density, grid)
    values = loss(w, grid.points) + shift
    slopes = torch.func.jacfwd(lambda v: loss(v, grid.points))(w)
    return Moments(
        (p * values).sum(), p @ slopes, (p * values) @ slopes, float(slopes.norm(dim=1).max()),
        float(values.max() - values.min()),
    )  # fmt: skip


def central(f: Callable[[Tensor], Tensor], w: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of ``f`` at ``w`` (p,) by central differences: an error of the order of step^2 and 1e-16 / step."""
    eye = torch.eye(len(w), dtype=w.dtype) * step
    return torch.stack([(f(w + e) - f(w - e)) / (2 * step) for e in eye])
