"""Training on inputs with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.checks import check_number
from atent.guard import ask
from atent.losses import cross_entropy
from atent.methods.base import Method, Metrics, State, correct, method
from atent.rng import Batch, check_rng


@method
@dataclass(frozen=True)
class Gaussian(Method):
    """Mean cross-entropy at x + sigma N(0, I), one noise sample per input (Cohen et al. 2019).

    The noisy input is not clamped to the box: Cohen et al. train and certify without clamping, and the certificate
    requires Gaussian noise. ``sigma = 0`` samples no noise and is `Standard`. Without an adversary, the only pass is
    that of the loss. The metric ``noisy`` is the accuracy at the noisy inputs.

    References
    ----------
    Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing", ICML, arXiv
    1902.02918.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import Gaussian
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = Gaussian(sigma=0.25).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['loss', 'noisy']
    """

    sigma: float = 0.12
    """Standard deviation of the noise in pixel units, at least 0; 0 is standard training."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor | None:  # fmt: skip
        """The noise, or None; the model is not evaluated."""
        return gaussian_noise(x, self.sigma, rng)

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        return None if aux is None else x + aux

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = ask(model, x if aux is None else x + aux)
        return cross_entropy(logits, y).mean(), {"noisy": correct(logits, y)}


def gaussian_noise(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor | None:
    """sigma N(0, I) of the shape of ``x``; None, without using ``rng``, if sigma is 0."""
    check_rng(rng, x.device)
    return sigma * Batch(rng).normal(x) if sigma > 0 else None
