"""TRADES: cross-entropy of the clean batch, plus the divergence of predictions at clean and perturbed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.checks import check_number
from atent.guard import ask
from atent.losses import check_smoothing, cross_entropy, kl
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, method, warm
from atent.threat import NORMS, Threat


@method
@dataclass(frozen=True)
class TRADES(Method):
    """min over w of the mean of CE(f(x), y) + beta max over the ball of KL(f(x) || f(x')) (Zhang et al. 2019).

    The adversary uses the network in eval mode. It starts at x + start_noise N(0, I), not clamped, and takes ``steps``
    steps x' <- project(x' + step_size * d(g)), g the gradient of the KL with constant clean logits; d is the sign
    (linf) or the unit gradient of each sample (l2). A zero gradient does not move the iterate. The loss uses the
    network in the mode of the training loop (train mode): first the clean batch, then the perturbed one, in two passes,
    so that batch-norm normalises each by its own statistics. The gradient flows through both arguments of the KL.

    Passes: 1 clean and ``steps`` perturbed ones in eval mode, 1 clean and 1 perturbed one in train mode, that is
    ``steps + 3`` forwards and ``steps + 2`` backwards. All are necessary: the adversary takes its gradients at x'_0 ..
    x'_(steps-1), so only the loss evaluates the last iterate; the clean batch passes once in each mode, since logits
    differ between the modes with batch-norm and dropout; and one pass of both batches concatenated, which costs as much
    as two, would mix their batch-norm statistics. For a network with neither, the second clean pass repeats the first.
    The authors' code passes the clean batch again for each KL, ``2 steps + 3`` in all; without dropout the gradient is
    the same, but there the clean batch updates batch-norm statistics twice, before and after the perturbed one, and
    here once. With dropout, the two terms of the loss here share the clean batch's mask.

    Other deviations, in l2: the authors' step is 2 eps / steps; they project onto the box before the ball, here after
    it; they replace a zero gradient by a random one. ``beta = 0`` is `Standard`: there is no adversary, and only the
    clean batch updates batch-norm statistics.

    Metrics: accuracy at clean (``clean``) and perturbed inputs (``robust``), and the two parts of the loss, the
    cross-entropy (``clean_loss``) and the mean KL without its factor (``robust_loss``); without an adversary the
    robust ones are absent.

    References
    ----------
    Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan 2019, "Theoretically principled trade-off between robustness and
    accuracy", ICML, arXiv 1901.08573.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import TRADES
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = TRADES(Threat("linf", 0.1), steps=3, beta=6.0).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'clean_loss', 'loss', 'robust', 'robust_loss']
    """

    shardable = True
    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat
    """Ball of the adversary."""
    steps: int = 10
    """Number of gradient steps on the KL divergence."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps. The authors use 0.007 with 10 steps at linf 0.031
    (CIFAR-10), and 0.01 with 40 steps at linf 0.3 (MNIST)."""
    beta: float = 6.0
    """Weight of the KL divergence, 1/lambda in the paper, at least 0; 0 is standard training. The authors use 6 for
    CIFAR-10 and 1 for MNIST."""
    start_noise: float = 0.001
    """Standard deviation of the Gaussian start around the clean input, in pixel units, above 0."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and a given step size with it, grows linearly from 0."""
    label_smoothing: float = 0.0
    """Label smoothing in the clean batch's cross-entropy, in [0, 1)."""

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0)
        check_warmup(self.eps_warmup)
        check_smoothing(self.label_smoothing)
        check_budget(self.threat)
        # The attack checks its own settings.
        check_reach(self.threat, self.attack(1.0).resolved_step, f"with steps={self.steps} a step_size of")
        # At x the KL is at its minimum: the gradient there is rounding error, and its sign a full step.
        check_reach(self.threat, self.start_noise, "start_noise")

    def attack(self, progress: float) -> PGD:
        """The adversary at ``progress``; a given step size shrinks with eps, the start does not."""
        factor = warm(self.eps_warmup, progress)
        threat = self.threat.scaled(factor)
        step = None if self.step_size is None else self.step_size * factor
        return PGD(threat, self.steps, step, start="gaussian", loss="kl", start_noise=self.start_noise)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor | None:  # fmt: skip
        """x', or None if beta is 0; the state of the model is restored."""
        return self.attack(progress)(model, x, y, rng=rng) if self.beta > 0 else None

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        return combined(
            model, x, y, aux, self.beta, lambda logits: cross_entropy(logits, y, self.label_smoothing).mean()
        )


def combined(
    model: nn.Module, x: Tensor, y: Tensor, perturbed: Tensor | None, beta: float, fit_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Metrics]:
    """``fit_of(f(x))`` + beta mean KL(f(x) || f(x')), and metrics; ``perturbed``, x', is None without an adversary."""
    clean = ask(model, x)
    fit = fit_of(clean)
    metrics = {"clean": correct(clean, y), "clean_loss": fit.detach()}
    if perturbed is None:
        return fit, metrics
    robust = ask(model, perturbed)
    gap = kl(robust, clean).mean()
    metrics |= {"robust": correct(robust, y), "robust_loss": gap.detach()}
    return fit + beta * gap, metrics
