"""Adversarial training of a smoothed classifier (Salman et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.ddn import decoupled
from atent.attacks.oracle import Oracle
from atent.attacks.pgd import PGD
from atent.attacks.starts import Start
from atent.checks import check_number
from atent.distributed import adjacent
from atent.guard import ask
from atent.losses import cross_entropy
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, method, warm
from atent.methods.gaussian import gaussian_noise
from atent.rng import Streams
from atent.threat import Threat


class Averaged(nn.Module):
    """Log of the mean softmax over m noisy copies of each input: an estimate of the smoothed classifier.

    ``noise`` is (n m, ...), with a sample's copies adjacent; from inputs (n, ...) to log-probabilities (n, classes),
    whose cross-entropy is Salman et al.'s J. One batched forward for all copies; computed with logarithms, so that
    small probabilities do not underflow (their code clamps the mean at 1e-20, below which the gradient is 0).
    """

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        copies = len(self.noise) // len(x)
        logits = ask(self.model, x.repeat_interleave(copies, 0) + self.noise)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each: Tensor = F.log_softmax(logits, 1).unflatten(0, (len(x), copies))
        return each.logsumexp(1) - math.log(copies)


@dataclass(frozen=True)
class SmoothDDN(Attack):
    """The decoupled direction and norm attack (Rony et al. 2019) with a maximum norm, as used by Salman et al.

    The norm starts at eps, shrinks by ``shrink`` after a success and grows by it after a failure; the direction takes
    steps along the unit gradient, with a cosine schedule from nearly 1 to 0.01. The result is the smallest adversarial
    perturbation found, projected onto the ball (which may make it fail), and x itself if none was found. ``steps``
    forwards, ``steps - 1`` backwards: the authors' last gradient does not affect the result.
    """

    threat: Threat
    steps: int
    shrink: float

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        eps = float(self.threat.eps)
        found = decoupled(oracle, x, y, threat=self.threat, steps=self.steps, first=eps, gamma=self.shrink)
        return self.threat.project(found, x)


@method
@dataclass(frozen=True)
class SmoothAdv(Method):
    """Cross-entropy under Gaussian noise around an adversarial input of the smoothed classifier (Salman et al. 2019).

    The adversary maximises J(x') = -log( mean over i of softmax(f(x' + delta_i))_y ), delta_i ~ N(0, sigma^2), over the
    l2 ball; the loss is the mean over the m copies of the cross-entropy at x_adv + delta_i. The same m samples are used
    in all steps of the attack and in the loss, as in the paper's pseudocode (``--train-multi-noise`` in its code).
    Noisy copies are not clamped to the box. The adversary uses the model in eval mode, the loss in train mode.

    PGD starts at x with steps of 2 eps / steps, as in the code (which has a random start but ignores it). DDN is Rony
    et al.'s attack on J, with the norm starting at eps and bounded by it.

    Deviations from their code: a batch of n inputs makes one step with n m copies (they split it into m parts and make
    m steps: their batch of m n is ours of n); PGD projects onto the ball, then the box (they clamp first); a zero
    gradient does not move the iterate (they sample a random one); DDN's success criterion is the mean softmax (theirs
    the majority of the copies), and its perturbations are not rounded to 256 levels; eps warms up with the progress,
    from 0 (theirs by epochs, the first of which has eps / warmup).

    References
    ----------
    Salman, Li, Razenshteyn, Zhang, Zhang, Bubeck and Yang 2019, "Provably robust deep learning via adversarially
    trained smoothed classifiers", NeurIPS, arXiv 1906.04584.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger 2019, "Decoupling direction and norm for efficient
    gradient-based L2 adversarial attacks and defenses", CVPR, arXiv 1811.09600.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import SmoothAdv
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = SmoothAdv(Threat("l2", 0.5), sigma=0.25, steps=2).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['distance', 'loss', 'robust']
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    threat: Threat
    """Radius and box of the adversary, before the noise; l2 only."""
    sigma: float = 0.12
    """Standard deviation of the Gaussian noise, in pixel units."""
    samples: int = 2
    """m: number of noise samples per input."""
    attack: Literal["pgd", "ddn"] = "pgd"
    """Adversary: projected gradient descent (pgd), or decoupled direction and norm (ddn)."""
    steps: int = 10
    """Number of steps of the adversary."""
    step_size: float | None = None
    """Length of a PGD step in pixel units; default: 2 eps / steps. DDN sets its own."""
    start: Start = "zero"
    """Start of PGD: zero, uniform, sphere or cube. DDN starts at zero."""
    shrink: float = 0.05
    """Factor by which DDN changes its norm: (1 - shrink) after a success, (1 + shrink) after a failure."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0)
        check_number("samples", self.samples, 1, whole=True)
        # DDN evaluates x first: with one step it would evaluate nothing else.
        check_number("steps", self.steps, 2 if self.attack == "ddn" else 1, whole=True)
        if self.attack == "ddn" and (self.step_size is not None or self.start != "zero"):
            raise ValueError("step_size and start have no effect with attack 'ddn': omit them")
        check_number("shrink", self.shrink, 0, 1, below=True)
        if self.attack == "pgd" and self.shrink != SmoothAdv.shrink:
            raise ValueError("shrink has no effect with attack 'pgd': omit it, or use attack 'ddn'")
        check_warmup(self.eps_warmup)
        check_budget(self.threat)
        adversary = self.adversary_at(1.0)
        if isinstance(adversary, PGD):
            check_reach(self.threat, adversary.resolved_step, f"with steps={self.steps} a step_size of")

    def adversary_at(self, progress: float) -> Attack:
        """The adversary at ``progress``; a given step size shrinks with eps."""
        factor = warm(self.eps_warmup, progress)
        threat = self.threat.scaled(factor)
        if self.attack == "ddn":
            return SmoothDDN(threat, self.steps, self.shrink)
        step = 2 * float(self.threat.eps) / self.steps if self.step_size is None else self.step_size
        return PGD(threat, self.steps, step * factor, 1, self.start)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """[adversarial inputs (n, ...), noise (n m, ...)]; the noise is sampled first, and only if sigma > 0."""
        noise = x.detach().repeat_interleave(self.samples, 0)
        with adjacent():
            sampled = gaussian_noise(noise, self.sigma, rng)
            noise = torch.zeros_like(noise) if sampled is None else sampled
            return [self.adversary_at(progress)(Averaged(model, noise), x, y, rng=rng), noise]

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        """The noisy copies, (m n, ...): one copy of the batch after the other."""
        x_adv, noise = aux
        copies = noise.unflatten(0, (len(x_adv), self.samples)).transpose(0, 1)
        return (x_adv + copies).flatten(0, 1)  # type: ignore[no-any-return]

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        x_adv, noise = aux
        labels = y.repeat_interleave(self.samples)
        with adjacent():
            logits = ask(model, x_adv.repeat_interleave(self.samples, 0) + noise)
        return cross_entropy(logits, labels).mean(), {
            "robust": correct(logits, labels),
            "distance": self.threat.distance(x_adv, x),
        }
