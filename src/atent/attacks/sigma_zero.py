"""sigma-zero: a sparse minimum-norm attack by gradient descent on a smooth approximation of the l0 norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import adam, annealed, beyond, keep_smaller
from atent.checks import check_number
from atent.geometry.blocks import Blocks
from atent.rng import Streams
from atent.threat import Threat, per_sample, unit


@attack
@dataclass(frozen=True)
class SigmaZero(Attack):
    """The smallest number of changed elements (or pixels) by gradient descent on a smooth l0 norm (sigma-zero).

    Minimises mean_i d_i^2 / (d_i^2 + sigma) + max(0, z_y - max other logit) over the perturbation d, by Adam on the
    gradient divided by its largest entry. After each step the point is clamped to the box, and entries below a
    threshold tau are set to 0; tau increases by ``threshold_rate`` times the step size if the point is adversarial, and
    otherwise decreases by it. The step size is annealed by a cosine to a tenth. The adversarial iterate with the fewest
    changes is returned. ``steps`` forwards and ``steps - 1`` backwards; deterministic.

    The perturbation is measured in widths of the box. With ``Threat("l0", k, group="pixel")`` d_i is the l2 norm of a
    pixel over its channels, and the threshold applies to its largest channel.

    References
    ----------
    Cinà et al. 2025, "sigma-zero: gradient-based optimization of l0-norm adversarial examples", ICLR, arXiv 2402.01879.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import SigmaZero
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = SigmaZero(Threat("l0", 3), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 3)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l0",)

    threat: Threat
    """l0 only; a perturbation of more than eps units is not returned."""
    steps: int = 1000
    """Number of evaluated points, including x."""
    step_size: float = 1.0
    """The first step of Adam, in widths of the box."""
    sigma: float = 1e-3
    """Smoothing of the l0 norm, in squared widths of the box: smaller is closer to a count; above 0."""
    threshold: float = 0.3
    """Initial threshold tau, in widths of the box, in [0, 1]."""
    threshold_rate: float = 0.01
    """Change of tau per step, in units of the step size."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("step_size", self.step_size, 0, above=True)
        check_number("sigma", self.sigma, 0, above=True)
        check_number("threshold (in widths of the box)", self.threshold, 0, 1)
        check_number("threshold_rate", self.threshold_rate, 0)

    @property
    def passes(self) -> int:
        return 2 * self.steps

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        blocks, width, z, best = self.threat.blocks(x.shape[1:]), self.threat.width, x, x
        fewest = torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        tau = torch.full_like(fewest, self.threshold)

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            return (-oracle.margin(logits, y)).clamp_min(0)

        for k in range(self.steps):
            if k + 1 == self.steps:
                _, logits = oracle.value(z, y, hinge)
            else:
                grad, _, logits = oracle.gradient(z, y, hinge)
            if not k:
                oracle = oracle.doubting(logits, y)
            fooled = beyond(oracle, logits, y) if k else oracle.fooled(logits, y)
            best, fewest = keep_smaller(best, fewest, z, blocks.changed(z, x).to(x.dtype), fooled)
            if k + 1 == self.steps:
                break
            d = (z - x) / width
            grad = unit(grad * width + count_slope(blocks, d, self.sigma), math.inf)
            mean, square, direction, scale = adam(mean, square, grad, k)
            step = annealed(self.step_size, 0.1 * self.step_size, max(0, k - 1) / self.steps)
            z = self.threat.clamp(x + width * (d - step * direction / scale))
            change = self.threshold_rate * annealed(self.step_size, 0.1 * self.step_size, k / self.steps)
            # Not where() of two numbers, which would have torch's default dtype.
            tau = torch.where(fooled, tau + change, tau - change).clamp(0, 1)
            # A block is kept if its largest entry reaches the threshold.
            d = (z - x).abs() / width
            kept = blocks.pool((d >= per_sample(tau, d)).to(x.dtype)) > 0
            z = torch.where(blocks.spread(kept), z, x)
        return best


def count_slope(blocks: Blocks, d: Tensor, sigma: float) -> Tensor:
    """Gradient of mean_b |d_b|^2 / (|d_b|^2 + sigma) over the blocks b of perturbations ``d`` (n, ...)."""
    squares = blocks.spread(blocks.pool(d**2))
    return 2 * sigma * d / (squares + sigma) ** 2 / blocks.count
