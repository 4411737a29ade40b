"""The gradients of ATENT's objectives on a Langevin chain x^0 .. x^K, each with its formula.

c_k is the share of iterate k, L the loss of chain and average, mu^K = sum_k c_k mean_i L(x_i^k).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from atent.attacks.langevin import Sampler
from atent.guard import ask
from atent.losses import cross_entropy, wide
from atent.methods.base import Metrics, correct
from atent.methods.contract import check_trainable
from atent.rng import Streams
from atent.sgld import data_entropy_coefficients

Losses = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits, labels, clean logits or None) -> L per sample."""


class Samples(NamedTuple):
    """The adversary of the data-entropy objective: iterates and their losses in the chain."""

    iterates: list[Tensor]
    """[x^1, ..., x^K], each (chains n, ...)."""
    losses: list[Tensor]
    """Their losses per sample, each (chains n,)."""

    def by_image(self, skipped: int, images: int) -> Tensor:
        """Losses after the first ``skipped`` iterates, (samples of an image, images)."""
        return torch.stack(self.losses[skipped:]).view(-1, images)

    def factors(self, skipped: int, images: int, temperature: float) -> Tensor:
        """1 + (L - mean L) / T, unbiased, of the iterates after ``skipped``, (K - skipped, chains n)."""
        losses = self.by_image(skipped, images)
        scaled = data_entropy_coefficients(losses, temperature) * len(losses)
        return scaled.view(len(self.iterates) - skipped, -1)


class Found(NamedTuple):
    """The result of an objective's body."""

    iterates: list[Tensor]
    """[x^1, ..., x^K], each (chains n, ...)."""
    logits: Tensor
    """The network's logits at x^K."""


class Step:
    """The sums of a body over the iterates of one batch: mu^K, and the gradient in each parameter's ``.grad``."""

    def __init__(
        self, model: nn.Module, x: Tensor, labels: Tensor, losses: Losses, shares: list[float], skipped: int,
        weight: float, keep: bool,
    ) -> None:  # fmt: skip
        """``x`` and ``labels`` contain the batch once for each chain; ``weight`` multiplies the gradient; with ``keep``
        a body returns all iterates, else only the last."""
        self.iterates: deque[Tensor] = deque(maxlen=None if keep else 1)
        self.model, self.x, self.labels = model, x, labels
        self.shares, self.skipped, self.weight = shares, skipped, weight
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters or not torch.is_grad_enabled():
            check_trainable(model)
        self.targets: list[Tensor] = list(self.parameters)
        # `sharding.is_sharded`, evaluated once.
        self.by_backward = hasattr(self.parameters[0], "full_tensor") if self.parameters else False
        self.mu = self.fit = torch.zeros((), device=x.device)
        self.clean: Tensor | None = None
        self.reference: Tensor | None = None
        self.losses = losses

    def input_gradient(self, z: Tensor) -> Tensor:
        """The gradient of each sample's loss at ``z``, in a separate pass; the clean logits are constant in it."""
        z = z.detach().requires_grad_()
        reference = None if self.reference is None else self.reference.detach()
        losses = self.losses(ask(self.model, z), self.labels, reference)
        return torch.autograd.grad(losses, z, torch.ones_like(losses))[0]

    def add_at(self, z: Tensor, share: float, factors: Tensor | None = None) -> Tensor:
        """Add the iterate ``z`` in a separate pass, each sample's gradient times its factor; returns the logits."""
        logits = ask(self.model, z)
        losses = self.losses(logits, self.labels, self.reference)
        factors = torch.ones_like(losses) if factors is None else factors.to(losses.dtype)
        self.descend(share, losses, factors)
        return logits

    def descend(self, share: float, losses: Tensor, factors: Tensor, z: Tensor | None = None) -> Tensor | None:
        """Add an iterate, each sample's gradient times its factor; returns the gradient at its input ``z``, if given.

        With ``z``, a share of 0 omits the backward pass to the weights. ``torch.autograd.grad`` does not reach the
        weights of a sharded network: there one ``backward()`` computes both gradients, times the share, by which that
        of ``z`` is divided.
        """
        weighs = share != 0 or z is None
        scale = self.weight * share / len(self.x)
        if weighs:
            self.mu = self.mu + share * losses.detach().mean()
        if self.by_backward and weighs:
            torch.autograd.backward(losses, factors * scale)
            # A rank without rows of its own has weight 0 and makes the same passes; its chain is not used.
            return None if z is None or z.grad is None else z.grad / (scale or 1.0)
        inputs, weights = ([] if z is None else [z]), (self.targets if weighs else [])
        grads = torch.autograd.grad(losses, [*inputs, *weights], factors, allow_unused=True)
        if weighs:
            _accumulate(self.targets, grads[len(inputs) :], scale)
        return grads[0] if inputs else None


def tracked(model: nn.Module) -> list[_NormBase]:
    """The batch- and instance-norm layers whose running statistics a train-mode forward updates."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]


@contextmanager
def two_updates(layers: list[_NormBase]) -> Iterator[None]:
    """Inside, one forward updates the running statistics as two forwards of the same batch do.

    With momentum m two updates are one with 1 - (1 - m)^2; with ``momentum=None`` (the cumulative average) after n
    batches they are one with 2 / (n + 2), for which the host waits for n, as torch itself does at each such forward.
    ``num_batches_tracked`` is incremented once more. Exact for layers that a forward uses once; for one that it uses
    twice the order of updates differs.
    """
    momenta = [layer.momentum for layer in layers]
    counters = [
        m.num_batches_tracked for m in layers if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
    ]
    try:
        for layer in layers:
            if layer.momentum is None and isinstance(layer, _BatchNorm):
                layer.momentum = 2.0 / (int(layer.num_batches_tracked or 0) + 2)
            elif layer.momentum is not None:
                layer.momentum = 1.0 - (1.0 - layer.momentum) ** 2
        yield
        if counters:
            torch._foreach_add_(counters, 1)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


def free_energy(step: Step, chain: Sampler, streams: Streams) -> Found:
    """grad mu^K = sum_k c_k mean_i grad_w L(x_i^k), accumulated along the chain.

    One forward at x^k gives grad_x L for the chain's next step and grad_w L for the sum.
    """
    norms = tracked(step.model)
    z, iterates = chain.begin(step.x, streams).detach(), step.iterates
    for k, share in enumerate(step.shares):
        last = k == chain.steps
        if k:
            iterates.append(z.detach())
        # The first iterates have no loss pass and the last no gradient pass; the others share one forward for both.
        with two_updates(norms) if norms and step.skipped < k < chain.steps else nullcontext():
            logits = ask(step.model, z.requires_grad_(not last))
        losses = step.losses(logits, step.labels, step.reference)
        # If alpha is 1, or so near that the share underflows, the older iterates have no weight.
        slope = step.descend(share, losses, torch.ones_like(losses), None if last else z)
        if slope is not None:
            z = chain.move(z.detach(), step.x, slope, k, streams)
    return Found(list(iterates), logits)


def free_energy_two_passes(step: Step, chain: Sampler, streams: Streams) -> Found:
    """The same sum in two passes at each iterate, with two dropout masks.

    The authors' order: the loss pass at x^k comes before the gradient pass at x^k.
    """
    z, iterates = chain.begin(step.x, streams).detach(), step.iterates
    for k, share in enumerate(step.shares):
        if k:
            iterates.append(z.detach())
        if k > step.skipped:
            logits = step.add_at(z, share)
        if k < chain.steps:
            z = chain.move(z.detach(), step.x, step.input_gradient(z), k, streams)
    return Found(list(iterates), logits)


def free_energy_at(step: Step, iterates: list[Tensor]) -> Found:
    """The same sum at the iterates of a complete chain."""
    for z, share in zip(iterates[step.skipped :], step.shares[step.skipped + 1 :], strict=True):
        logits = step.add_at(z, share)
    return Found(iterates, logits)


def uses(method: Any, chains: Sequence[Sampler]) -> list[tuple[str, str, bool]]:
    """Fields of ATENT that wait for others, see `report_idle`; ``chains``: its samplers, some of which may have an
    anchor term, as all have by a calibration of gamma."""
    averages = method.objective == "free-energy"
    anchored = any(chain.anchor_weight > 0 for chain in chains) or method.calibrated in (True, "gamma")
    return [
        ("beta", "set outer_loss to kl", method.outer_loss == "kl"),
        ("alpha", "use objective free-energy without burn_in", averages and method.burn_in is None),
        ("dropout", "use mode train and objective free-energy", averages and method.mode == "train"),
        ("anchor", "set gamma above 0", anchored),
    ]


def check_samples(chain: Sampler, noise: float, samples: int) -> None:
    """ValueError, with the reason, for a chain whose iterates do not sample p, or too few ``samples`` for a covariance;
    ``noise`` is the minimum over the training."""
    if noise == 0:
        raise ValueError(
            "objective 'data-entropy' needs noise above 0, got 0: without noise the chain does not sample p"
        )
    if chain.gradient != "raw":
        raise ValueError(
            f"objective 'data-entropy' needs gradient 'raw', got {chain.gradient!r}: steps of equal"
            " length do not sample p"
        )
    if chain.projection == "last":
        raise ValueError(
            "objective 'data-entropy' needs projection 'never' or 'every', got 'last': a single projected"
            " iterate is not a sample of p"
        )
    if samples < 2:
        raise ValueError(
            "objective 'data-entropy' needs at least 2 samples for a covariance, got 1: lower burn_in, or raise"
            " steps or chains"
        )


def data_entropy(step: Step, samples: Samples, images: int, temperature: float) -> Found:
    """grad L_DE = E_p[grad L] + Cov_p(L, grad L) / T = E_p[(1 + (L - E_p[L]) / T) grad L], image by image.

    The mean of an image's losses is known after the chain, so the weights' pass comes second.
    """
    factors = samples.factors(step.skipped, images, temperature)
    kept = zip(samples.iterates[step.skipped :], step.shares[step.skipped + 1 :], factors, strict=True)
    for z, share, each in kept:
        logits = step.add_at(z, share, each)
    return Found(samples.iterates, logits)


@contextmanager
def kl_outer(step: Step, x: Tensor, y: Tensor, beta: float, smoothing: float) -> Iterator[None]:
    """grad [CE(f(x), y) + beta mu^K] with L(x') = KL(f(x) || f(x')), mu^K's gradient by the body inside.

    The clean logits f(x) are a target of the body in addition to the weights: their gradients are summed there, and
    backpropagated to the weights once, d f(x)/d w (grad_f CE + beta grad_f mu^K).
    """
    weight = step.weight
    # The gradients of all iterates are summed at the clean logits: not in half precision.
    step.clean = clean = wide(ask(step.model, x))
    step.reference = reference = clean.detach().requires_grad_()
    step.targets.append(reference)
    step.weight = weight * beta
    yield
    fit = cross_entropy(clean, y, smoothing).mean()
    step.fit = fit.detach()
    back = reference.grad if reference.grad is not None else torch.zeros_like(reference)
    outer = [torch.full_like(fit, weight), back]
    if step.by_backward:
        torch.autograd.backward([fit, clean], outer)
    else:
        _accumulate(step.parameters, torch.autograd.grad([fit, clean], step.parameters, outer, allow_unused=True), 1.0)


def _accumulate(targets: Sequence[Tensor], grads: Sequence[Tensor | None], share: float) -> None:
    """p.grad += share * g, without a graph; unchanged for tensors that the loss does not depend on."""
    pairs = [(p, g) for p, g in zip(targets, grads, strict=True) if g is not None]
    old = [(p.grad, g) for p, g in pairs if p.grad is not None]
    if old:
        torch._foreach_add_([a for a, _ in old], [g for _, g in old], alpha=share)
    new = [(p, g) for p, g in pairs if p.grad is None]
    if new:
        for (p, _), g in zip(new, torch._foreach_mul([g for _, g in new], share), strict=True):
            p.grad = g


def clean_metrics(clean: Tensor, y: Tensor, fit: Tensor, mu: Tensor) -> Metrics:
    """The metrics of the clean batch and of the running average, with ``outer_loss="kl"``."""
    return {"clean": correct(clean, y), "clean_loss": fit, "robust_loss": mu}
