"""Adversarial training with projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.attacks.starts import Start
from atent.guard import ask
from atent.losses import check_smoothing, cross_entropy
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, method, warm
from atent.threat import NORMS, Threat


@method
@dataclass(frozen=True)
class PGDAT(Method):
    """min over w of the mean of max over the ball of the cross-entropy (Madry et al. 2018; supplement, Algorithm 2).

    The inner maximum is PGD with a gradient per sample: the supplement's Algorithm 2 has a batch average, which moves
    every sample in the same direction. The adversary uses the model in ``mode``, eval by default, the loss in train
    mode.

    Implementations differ in that mode. In the training loops of Rice et al. 2020 (locuslab/robust_overfitting) and
    Wong et al. 2020 (locuslab/fast_adversarial) the attack uses the network in train mode: ``mode="train"``. There each
    of its passes also updates batch-norm's running statistics, and in Rice et al.'s two more do: one after the attack,
    which chooses between restarts, and a clean one at the new weights, for logging. Here the adversary does not change
    the network in either mode, and only the perturbed batch updates the statistics. At eps 8/255 they use ten and seven
    steps of 2/255, from a uniform start clamped to the box.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu 2018, "Towards deep learning models resistant to adversarial attacks",
    ICLR, arXiv 1706.06083.

    Rice, Wong and Kolter 2020, "Overfitting in adversarially robust deep learning", ICML, arXiv 2002.11569.

    Wong, Rice and Kolter 2020, "Fast is better than free: revisiting adversarial training", ICLR, arXiv 2001.03994.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import PGDAT
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> method = PGDAT(Threat("linf", 0.1), steps=3)
    >>> metrics = method.backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['loss', 'robust']
    >>> loss, _ = method(net, x, y)  # for a loop that calls loss.backward() itself
    >>> loss.requires_grad
    True
    """

    shardable = True
    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat
    """Ball of the adversary."""
    steps: int = 10
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps."""
    start: Start = "uniform"
    """Start of the adversary: zero, uniform, corner (linf), sphere (l2) or cube."""
    keep: Literal["last", "best"] = "last"
    """Iterate to train on: the last, or the one with the highest loss."""
    mode: Literal["eval", "train"] = "eval"
    """Mode of the network during the attack: eval (stored batch-norm statistics, no dropout), or train."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""
    label_smoothing: float = 0.0
    """Label smoothing in the loss, in [0, 1); the adversary uses hard labels."""

    def __post_init__(self) -> None:
        check_warmup(self.eps_warmup)
        check_smoothing(self.label_smoothing)
        check_budget(self.threat)
        check_reach(self.threat, self.attack(1.0).resolved_step, f"with steps={self.steps} a step_size of")

    def attack(self, progress: float) -> PGD:
        """The adversary at ``progress``; a given step size shrinks with eps."""
        factor = warm(self.eps_warmup, progress)
        step = None if self.step_size is None else self.step_size * factor
        return PGD(self.threat.scaled(factor), self.steps, step, 1, self.start, keep=self.keep)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor:  # fmt: skip
        return self.attack(progress)(model, x, y, rng=rng, mode="eval" if self.mode == "eval" else "as-is")

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = ask(model, aux)
        return cross_entropy(logits, y, self.label_smoothing).mean(), {"robust": correct(logits, y)}
