"""MART: misclassification-aware adversarial training (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from atent.attacks.pgd import PGD
from atent.attacks.starts import check_step
from atent.checks import check_number
from atent.guard import ask
from atent.losses import boosted_cross_entropy, kl
from atent.methods.base import (
    Method,
    Metrics,
    State,
    check_budget,
    check_reach,
    check_warmup,
    correct,
    method,
    warm,
)
from atent.threat import Threat


@method
@dataclass(frozen=True)
class MART(Method):
    """min over w of the mean of BCE(f(x'), y) + beta KL(f(x) || f(x')) (1 - p_y(x)) (Wang et al. 2020).

    BCE(z, y) = -log p_y - log(1 - max over i != y of p_i) is the boosted cross-entropy; x' is the end of PGD on the
    cross-entropy. The factor 1 - p_y(x) increases the weight of samples that are misclassified without an adversary.
    The gradient flows through all terms: both arguments of the KL, and the factor.

    As in the authors' code, the adversary uses the network in eval mode and starts at x + start_noise N(0, I); the loss
    uses it in the mode of the training loop, with two passes: first the clean batch, then the perturbed one. Their code
    adds 1e-4 and 1e-12 inside logarithms and 1e-7 to the factor, which the exact forms here do not need; so its second
    term of the boosted cross-entropy is at most about 9.2, and the one here is unbounded. Passes: ``steps`` forwards
    and backwards for the adversary, two of each for the loss.

    ``beta`` is lambda in the paper; the authors' code uses 6 for a wide network (and by default), 5 for ResNet-18, and
    10 steps of 0.007 at eps 0.031.

    Metrics: accuracy at clean (``clean``) and perturbed inputs (``robust``), and the two parts of the loss, the
    boosted cross-entropy (``boosted_loss``) and the mean weighted KL without ``beta`` (``robust_loss``).

    References
    ----------
    Wang, Zou, Yi, Bailey, Ma and Gu 2020, "Improving adversarial robustness requires revisiting misclassified
    examples", ICLR.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import MART
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = MART(Threat("linf", 0.1), steps=3).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['boosted_loss', 'clean', 'loss', 'robust', 'robust_loss']
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    threat: Threat
    """Ball of the adversary, linf."""
    steps: int = 10
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps, eps / 4 for ten steps."""
    beta: float = 6.0
    """Weight of the weighted KL divergence, at least 0."""
    start_noise: float = 0.001
    """Standard deviation of the Gaussian start around the clean input, in pixel units, above 0."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and the step with it, grows linearly from 0."""

    def __post_init__(self) -> None:
        check_budget(self.threat)
        check_number("steps", self.steps, 1, whole=True)
        if self.step_size is not None:
            check_step(self.threat, self.step_size)
        check_number("beta", self.beta, 0)
        check_number("start_noise", self.start_noise, 0, above=True)
        check_warmup(self.eps_warmup)
        check_reach(self.threat, self.attack(1.0).resolved_step, f"with steps={self.steps} a step_size of")

    def attack(self, progress: float) -> PGD:
        """The adversary at ``progress``; the start does not shrink with eps."""
        factor = warm(self.eps_warmup, progress)
        step = 2.5 * float(self.threat.eps) / self.steps if self.step_size is None else self.step_size
        threat = self.threat.scaled(factor)
        return PGD(threat, self.steps, step * factor, start="gaussian", start_noise=self.start_noise)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor:  # fmt: skip
        return self.attack(progress)(model, x, y, rng=rng)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        clean, robust = ask(model, x), ask(model, aux)
        boosted = boosted_cross_entropy(robust, y).mean()
        z = clean.to(torch.promote_types(clean.dtype, torch.float32))
        doubt = 1.0 - softmax(z, 1).gather(1, y[:, None]).squeeze(1)
        gap = (kl(robust, clean) * doubt).mean()
        return boosted + self.beta * gap, {
            "clean": correct(clean, y), "robust": correct(robust, y),
            "boosted_loss": boosted.detach(), "robust_loss": gap.detach(),
        }  # fmt: skip
