"""ATENT: adversarial training by entropic regularisation (Jagatap et al. 2022, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atent.attacks.base import check_choice, check_number
from atent.attacks.langevin import SAMPLER_FIELDS, Gradient, Projection, Pull, Sampler, Variant, sampler
from atent.attacks.starts import Start
from atent.guard import guard
from atent.losses import cross_entropy
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, warm
from atent.methods.batchnorm import tracked, two_updates
from atent.rng import Batch
from atent.threat import Threat


@dataclass(frozen=True)
class ATENT(Method):
    """Langevin ascent on the inputs, gradient descent on the weights.

    With w fixed, x^0 .. x^K is a Langevin chain for p(x') ~ exp((L(x'; y, w) - gamma/2 ||x' - x||^2) / noise^2), and w
    descends the running average mu^K of the batch loss, mu^k = (1 - alpha) mu^{k-1} + alpha L(x^k), mu^0 = 0. Iterate
    k thus weighs c_k = alpha (1 - alpha)^(K - k), x^0 nothing, and the iterates carry no gradient.

    `sampler` in `atent.attacks.langevin` says what the two variants and each switch do. ``released`` is the authors'
    code without its early break on a small batch gradient and without its unused clean forward; ``published`` is
    Eq. 7, with our reading of the linf step (sign, projection after every step), whose exact text is not at hand. A
    zero gradient moves nothing: no NaN.

    The gradient is a sum over iterates, so it is accumulated as they come: one forward at x^k serves the input
    gradient of the next step and the weight gradient of this iterate. That takes K + 1 forwards instead of 2K and one
    live graph instead of K, with the same gradient to rounding; batch-norm statistics take both updates at once. It
    holds where both passes see the same network: ``mode="train"`` and ``dropout="shared"`` (one mask per iterate).
    ``dropout="fresh"`` draws two masks in two passes, as the authors did; ``mode="eval"`` first runs the chain on the
    network in eval mode. By default the chain sees the network as the loop has it, in train mode, as published.

    What the update descends is the free energy noise^2 log Z(w), ``objective="free-energy"``.
    """

    threat: Threat
    steps: int = 10
    """K: number of Langevin steps."""
    step_size: float | None = None
    """eta': length of a Langevin step; left out: 2 eps / steps (l2), 2.5 eps / steps (linf)."""
    gamma: float | None = None
    """Pull towards the clean input; left out: 0.05 (l2), 0 (linf)."""
    noise: float | None = None
    """Thermal noise, the square root of the temperature; left out: 1e-3."""
    effective_noise: float | None = None
    """Standard deviation of one step's noise, sqrt(2 step_size) * noise; instead of noise."""
    temperature: float | None = None
    """Temperature of the chain, noise^2; instead of noise."""
    alpha: float = 0.9
    """Weight of the newest iterate in the running average of the loss, in (0, 1]."""
    variant: Variant = "released"
    """released (the authors' code) or published (the paper's Eq. 7)."""
    start: Start | None = None
    """Where the chain begins; left out: sphere (l2), corner (linf)."""
    projection: Projection | None = None
    """Projection onto the ball: never, last or every step; left out: as the variant."""
    gradient: Gradient | None = None
    """Gradient in the step: raw, unit (l2 norm 1) or sign; left out: as the variant."""
    pull: Pull | None = None
    """Whether the pull is free of the step size or scaled by it; left out: as the variant."""
    dropout: Literal["shared", "fresh"] = "shared"
    """One dropout mask per iterate (shared), or one for each of its two passes (fresh)."""
    mode: Literal["train", "eval"] = "train"
    """Mode in which the chain sees the model: as the loop trains it (train), or in eval mode."""
    objective: Literal["free-energy"] = "free-energy"
    """What is descended: the free energy, which is the paper's algorithm."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, above=True)
        if self.alpha > 1:
            raise ValueError(f"alpha must lie in (0, 1], got {self.alpha}")
        check_choice("dropout", self.dropout, ("shared", "fresh"))
        check_choice("mode", self.mode, ("train", "eval"))
        check_choice("objective", self.objective, ("free-energy",))
        check_warmup(self.eps_warmup)
        check_budget(self.threat)
        chain = self.chain()
        if chain.gradient != "raw":
            check_reach(self.threat, chain.step_size, f"with steps={self.steps} a step_size of")

    def chain(self, progress: float = 1.0) -> Sampler:
        """The resolved chain at ``progress``: while eps warms up, step size and radius shrink together."""
        fields = {name: getattr(self, name) for name in SAMPLER_FIELDS}
        full = sampler(self.threat, **fields)
        factor = warm(self.eps_warmup, progress)
        if factor == 1.0:
            return full
        fields |= {"step_size": full.step_size * factor, "noise": full.noise}
        fields |= {"effective_noise": None, "temperature": None}
        return sampler(self.threat.scaled(factor), **fields)

    def weights(self) -> list[float]:
        """c_0 .. c_K: the share of each iterate's loss in the running average."""
        return [0.0, *(self.alpha * (1 - self.alpha) ** (self.steps - k) for k in range(1, self.steps + 1))]

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """The iterates [x^1, ..., x^K]; the model comes back as it was found."""
        chain, draws = self.chain(progress), Batch(rng)
        # From a copy of the stream: `backward` must draw the same start and noise.
        inner = int(torch.randint(2**62, (), generator=rng.clone_state(), device=rng.device))
        iterates = []
        with guard(model, mode="eval" if self.mode == "eval" else "as-is", seed=inner):
            z = chain.begin(x, draws)
            for k in range(chain.steps):
                z = chain.move(z, x, _input_gradient(model, z, y), k, draws)
                iterates.append(z)
        return iterates

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """mu^K over the iterates, with their K graphs alive: the definition; `backward` accumulates it instead."""
        mu = x.new_zeros(())
        for z in aux:
            logits = model(z)
            mu = (1 - self.alpha) * mu + self.alpha * cross_entropy(logits, y).mean()
        return mu, self._metrics(logits, aux[-1], x, y)

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """One pass at each iterate that weighs; one live graph at a time."""
        return self._gradient(model, x, y, aux, None, progress=progress, weight=weight)[1]

    def attack_and_descend(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """The accumulating pass: the iterates, and the gradient that they leave on the way."""
        return self._gradient(model, x, y, None, rng, progress=progress, weight=weight)

    def _gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, rng: torch.Generator | None, *, progress: float,
        weight: float,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """The gradient at the iterates ``aux``; without any, at those of a chain drawn from ``rng``."""
        shares = self.weights()
        parameters = [p for p in model.parameters() if p.requires_grad]
        mu = torch.zeros((), device=x.device)

        def descend(k: int, losses: Tensor, grads: Sequence[Tensor | None]) -> None:
            nonlocal mu
            mu = mu + shares[k] * losses.detach().mean()
            _accumulate(parameters, grads, weight * shares[k] / len(x))

        def second_pass(k: int, z: Tensor) -> Tensor:
            logits = model(z)
            losses = cross_entropy(logits, y)
            descend(k, losses, torch.autograd.grad(losses.sum(), parameters, allow_unused=True))
            return logits

        if rng is not None and self.mode == "eval":
            aux = self.adversary(model, x, y, rng=rng, progress=progress)
        if aux is not None or rng is None:
            for k, z in enumerate(aux, 1):
                logits = second_pass(k, z)
            return aux, {"loss": mu, **self._metrics(logits, z, x, y)}

        chain, draws, norms = self.chain(progress), Batch(rng), tracked(model)
        z, iterates = chain.begin(x, draws).detach(), []
        for k in range(chain.steps + 1):
            last = k == chain.steps
            if k:
                iterates.append(z.detach())
            if self.dropout == "fresh":
                # The authors' order: the loss pass at x^k comes before the gradient pass at x^k.
                if k:
                    logits = second_pass(k, z)
                if not last:
                    slope = _input_gradient(model, z, y)
            else:
                # The first iterate has no loss pass and the last no gradient pass; the others stand for both.
                with two_updates(norms) if k > 0 and not last else nullcontext():
                    logits = model(z.requires_grad_(not last))
                losses = cross_entropy(logits, y)
                # Where alpha is 1, or so near that the share underflows, the older iterates weigh nothing.
                wanted = ([] if last else [z]) + (parameters if shares[k] else [])
                grads = list(torch.autograd.grad(losses.sum(), wanted, allow_unused=True))
                if not last:
                    slope = grads.pop(0)
                if shares[k]:
                    descend(k, losses, grads)
            if not last:
                z = chain.move(z.detach(), x, slope, k, draws)
        return iterates, {"loss": mu, **self._metrics(logits, z, x, y)}

    def _metrics(self, logits: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Metrics:
        """Robust training accuracy at the last iterate, and ||x^K - x|| per sample in the threat's norm."""
        return {"robust": correct(logits, y), "distance": self.threat.distance(z.detach(), x)}


def _input_gradient(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(cross_entropy(model(z), y).sum(), z)[0]


def _accumulate(parameters: list[nn.Parameter], grads: Sequence[Tensor | None], share: float) -> None:
    """p.grad += share * g, without a graph; a parameter that the loss does not reach keeps what it has."""
    pairs = [(p, g) for p, g in zip(parameters, grads) if g is not None]
    old = [(p.grad, g) for p, g in pairs if p.grad is not None]
    if old:
        torch._foreach_add_([a for a, _ in old], [g for _, g in old], alpha=share)
    for p, g in pairs:
        if p.grad is None:
            p.grad = g * share
