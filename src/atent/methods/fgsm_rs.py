"""FGSM with a random start: adversarial training at the cost of two passes (Wong, Rice and Kolter 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.guard import ask
from atent.losses import cross_entropy
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
class FGSMRS(Method):
    """min over w of the mean of CE(f(x + delta)), delta from one step (Wong, Rice and Kolter 2020).

    delta ~ U(-eps, eps)^d, clamped to the box; then delta <- clip(delta + step_size sign(grad CE(f(x + delta))), -eps,
    eps), clamped to the box again, as in the authors' code for CIFAR-10. Its step is 1.25 eps: 10/255 at eps 8/255.
    Longer steps, and ``start="zero"`` (FGSM), tend to overfit catastrophically: within an epoch or two the network is
    robust only to the single step, and loses its robustness to multi-step attacks. At larger eps this also happens with
    1.25 eps (Andriushchenko and Flammarion 2020); the authors advise a shorter step there. The loop monitors this
    (`atent.train.watch`).

    The adversary uses the network in train mode by default (``mode="train"``), as the authors' code does for CIFAR-10.
    There the adversary's pass also updates batch-norm's running statistics; here, as with all built-in methods, the
    adversary does not change the network, and only the perturbed batch updates them. Passes: one forward and one
    backward for the adversary, as many for the loss.

    References
    ----------
    Wong, Rice and Kolter 2020, "Fast is better than free: revisiting adversarial training", ICLR, arXiv 2001.03994.

    Andriushchenko and Flammarion 2020, "Understanding and improving fast adversarial training", NeurIPS, arXiv
    2007.02617.

    Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", ICLR, arXiv 1412.6572.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import FGSMRS
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = FGSMRS(Threat("linf", "8/255")).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['loss', 'robust']
    """

    single_step = True

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    threat: Threat
    """Ball of the adversary, linf."""
    step_size: float | None = None
    """Length of the step in pixel units; default: 1.25 eps."""
    start: Literal["uniform", "zero"] = "uniform"
    """Start of the adversary: uniform in the ball, or zero, which is FGSM (Goodfellow et al. 2015)."""
    mode: Literal["eval", "train"] = "train"
    """Mode of the network during the attack: eval (stored batch-norm statistics, no dropout), or train."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and the step with it, grows linearly from 0."""

    def __post_init__(self) -> None:
        check_budget(self.threat)
        check_warmup(self.eps_warmup)
        check_reach(self.threat, self.attack(1.0).resolved_step, "a step_size of")

    def attack(self, progress: float) -> PGD:
        """The adversary at ``progress``."""
        factor = warm(self.eps_warmup, progress)
        step = 1.25 * float(self.threat.eps) if self.step_size is None else self.step_size
        return PGD(self.threat.scaled(factor), 1, step * factor, start=self.start)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor:  # fmt: skip
        return self.attack(progress)(model, x, y, rng=rng, mode="eval" if self.mode == "eval" else "as-is")

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = ask(model, aux)
        return cross_entropy(logits, y).mean(), {"robust": correct(logits, y)}
