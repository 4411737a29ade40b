"""TRADES on inputs with Gaussian noise, for randomized smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent.checks import check_number
from atent.methods.base import Method, Metrics, State, method
from atent.methods.gaussian import gaussian_noise
from atent.methods.trades import TRADES
from atent.threat import Threat

# This ball contains the linf ball of radius 2/255 for an image of 3072 values.
PUBLISHED = Threat("l2", 0.435)


@method
@dataclass(frozen=True)
class TRADESSmoothing(Method):
    """`TRADES` of the network under noise (Blum et al. 2020, "Random smoothing might be unable to certify linf ..."):

        min over w of E over n ~ N(0, sigma^2 I) of CE(f(x + n), y) + beta max over x' of KL(f(x + n) || f(x' + n)).

    As stated by the authors (README of hongyanz/TRADES-smoothing) and implemented in its trades.py: one sample n per
    input and batch is used in every pass of that batch, including the adversary's; the ball (l2) and the box are those
    of the clean x; x + n and x' + n are not clamped. They train a ResNet-110 with sigma 0.12, eps 0.435 (linf 2/255 in
    3072 dimensions), beta 6 and 10 steps, on images that are not normalised. The authors' mask is all ones and is
    omitted. All else, including deviations, is as in `TRADES`; their l2 step is 2 eps / steps, 0.087 at the defaults,
    which a recipe that reproduces their results should set.

    ``sigma = 0`` samples no noise and is `TRADES`; ``beta = 0`` is `Gaussian`. sigma is constant while eps warms up.
    The metrics are those of `TRADES`, ``clean`` at x + n and ``robust`` at x' + n.

    References
    ----------
    Blum, Dick, Manoj and Zhang 2020, "Random smoothing might be unable to certify l-infinity robustness for
    high-dimensional images", Journal of Machine Learning Research 21, arXiv 2002.03517.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import TRADESSmoothing
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = TRADESSmoothing(Threat("l2", 0.435), steps=2).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'clean_loss', 'loss', 'robust', 'robust_loss']
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    threat: Threat = PUBLISHED
    """Ball of the adversary around the input without noise: norm l2 only."""
    sigma: float = 0.12
    """Standard deviation of the noise in pixel units, at least 0; 0 is TRADES."""
    steps: int = 10
    """Number of gradient steps on the KL divergence."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps."""
    beta: float = 6.0
    """Weight of the KL divergence, 1/lambda in the paper, at least 0; 0 is Gaussian training."""
    start_noise: float = 0.001
    """Standard deviation of the Gaussian start around the clean input, in pixel units, above 0."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and a given step size with it, grows linearly from 0."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0)
        _ = self.trades

    @property
    def trades(self) -> TRADES:
        """The method applied to the noisy network."""
        return TRADES(self.threat, self.steps, self.step_size, self.beta, self.start_noise, self.eps_warmup)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> list[Tensor | None]:  # fmt: skip
        """[x', n], None for an absent one; the state of the model is restored."""
        noise = gaussian_noise(x, self.sigma, rng)
        return [self.trades.adversary(shifted(model, noise), x, y, rng=rng, progress=progress), noise]

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        x_adv, noise = aux
        seen: Tensor = x if x_adv is None else x_adv
        return None if seen is x and noise is None else seen if noise is None else seen + noise

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        x_adv, noise = aux
        return self.trades.loss(shifted(model, noise), x, y, x_adv, progress=progress)


class Shifted(nn.Module):
    """f(. + noise): a network with a given noise added to its inputs."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + self.noise)
        return logits


def shifted(model: nn.Module, noise: Tensor | None) -> nn.Module:
    """`Shifted`, or the model itself without noise."""
    return model if noise is None else Shifted(model, noise)
