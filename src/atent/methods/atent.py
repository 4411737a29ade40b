"""ATENT: adversarial training by entropic regularisation (Jagatap et al. 2022, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from atent.attacks.langevin import SAMPLER_FIELDS, Anchor, Gradient, Projection, Sampler, Variant, sampler
from atent.attacks.starts import Start
from atent.checks import check_number
from atent.guard import ask, guard
from atent.losses import check_smoothing, cross_entropy, kl, wide
from atent.messages import report_idle
from atent.methods import base
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, method, warm
from atent.methods.calibration import Calibration, Setting, calibrate
from atent.methods.objectives import (
    Samples,
    Step,
    check_samples,
    clean_metrics,
    data_entropy,
    free_energy,
    free_energy_at,
    free_energy_two_passes,
    kl_outer,
    uses,
)
from atent.rng import Batch, seed_from
from atent.threat import Threat

_SCHEDULED = ("gamma", "noise", "effective_noise", "temperature")


@method
@dataclass(frozen=True)
class ATENT(Method):
    """Langevin ascent on the inputs, gradient descent on the weights.

    With w fixed, x^0 .. x^K is a Langevin chain for p(x') ~ exp((L(x'; y, w) - gamma/2 ||x' - x||^2) / T), T = noise^2.
    w minimises the running average mu^K of the batch loss, mu^k = (1 - alpha) mu^{k-1} + alpha L(x^k), mu^0 = 0:
    iterate k has weight c_k = alpha (1 - alpha)^(K - k), x^0 has weight 0, and no gradient flows through the iterates.

    ``variant="released"`` is the authors' code without its early break on a small batch gradient and its unused clean
    forward; ``"published"`` is Eq. 7, with this library's reading of the linf step (sign, projection after each step),
    whose exact text is not available. `atent.attacks.sampler` describes each switch. A zero gradient causes no NaN.

    The gradient is accumulated over the iterates: one forward at x^k serves the input gradient of the next step and the
    weight gradient of this iterate. This takes K + 1 forwards instead of 2K and one graph in memory instead of K, with
    the same gradient to rounding; batch-norm statistics receive both updates at once. It requires that both passes see
    the same network: ``mode="train"`` (default, as published) and ``dropout="shared"``, one mask per iterate.
    ``dropout="fresh"`` samples two masks in two passes, as the authors did; ``mode="eval"`` runs the chain first.

    ``objective="free-energy"`` (default) minimises T log Z(w), Z = int exp((L - gamma/2 ||x' - x||^2) / T) dx', whose
    gradient is E_p[grad L]; mu^K is a running estimate of it. ``"data-entropy"`` minimises the paper's stated objective
    L_DE(w) = E_p[L]: grad L_DE = E_p[grad L] + Cov_p(L, grad L) / T per image (`atent.sgld.data_entropy_coefficients`;
    the supplement's derivation omits the normaliser of p, its algorithm the second term). If the loss is linear in x',
    T log Z exceeds the clean loss by ||grad_x L||^2 / (2 gamma), and L_DE by twice that, as T log Z at gamma / 2. The
    iterates after ``burn_in`` have equal weights; the weight pass follows the chain, 2K + 1 - burn_in forwards per
    chain, is the only one to update batch-norm statistics, and has fresh dropout masks. p is restricted to the box, and
    with projection "every" to the ball. Chains that do not sample p raise ValueError: no noise, sign or unit gradients,
    or projection at the last step only.

    ``outer_loss="kl"`` replaces the cross-entropy by L(x') = KL(f(x) || f(x')) in the chain and in mu^K; w minimises
    CE(f(x), y) + beta mu^K: TRADES with its maximum replaced by the objective. The gradient flows through both
    arguments; the chain keeps f(x) constant; the clean batch has a separate pass in each mode.

    ``drop_below`` omits iterates with c_k below it from mu^K: at alpha 0.9 and 1e-3 the last three remain, and the
    others have a total weight of at most (1 - alpha)^3; the first batch of a training measures the difference of the
    gradient, and an omitted iterate updates batch-norm statistics once. The default omits none.

    gamma, noise, effective_noise and temperature accept schedules over the training: "0.5..0.1" is linear from start to
    end, "0.5..0.1@0.3" ends after 30 %. eps has eps_warmup.

    Metrics: accuracy (``robust``) and ``distance`` at the last iterates; with ``kl`` also ``clean``, ``clean_loss`` and
    ``robust_loss`` (mu^K); with data-entropy ``tilt``, the standard deviation of L / T over an image's samples: at 0
    both objectives have the same gradient; far above 1 few samples dominate and the estimate is noisy.

    References
    ----------
    Jagatap, Joshi, Chowdhury, Garg and Hegde 2022, "Adversarially robust learning via entropic regularization",
    Frontiers in Artificial Intelligence 4, arXiv 2008.12338.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.methods import ATENT
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> method = ATENT(Threat("l2", 0.5), variant="released", steps=4)
    >>> sorted(method.backward(net, torch.rand(8, 1, 8, 8), torch.arange(8)))  # leaves the gradient in .grad
    ['distance', 'loss', 'robust']
    """

    FORMER: ClassVar[dict[str, str]] = {"pull": "anchor"}
    shardable = True

    threat: Threat
    """Ball of the adversary."""
    steps: int = 10
    """K: number of Langevin steps."""
    step_size: float | None = None
    """eta': length of a Langevin step; default: 2 eps / steps (l2), 2.5 eps / steps (linf)."""
    gamma: float | str | None = None
    """Weight of the anchor term gamma/2 ||x' - x||^2; default: 0.05 (l2), 0 (linf). Or a schedule such as 0.5..0.1."""
    noise: float | str | None = None
    """Thermal noise, the square root of the temperature; default: 1e-3. Or a schedule."""
    effective_noise: float | str | None = None
    """Standard deviation of one step's noise, sqrt(2 step_size) * noise; instead of noise."""
    temperature: float | str | None = None
    """Temperature of the chain, noise^2; instead of noise."""
    alpha: float = 0.9
    """Weight of the newest iterate in the running average of the loss, in (0, 1]."""
    variant: Variant = "released"
    """released (the authors' code) or published (the paper's Eq. 7)."""
    start: Start | None = None
    """Where the chain begins; default: sphere (l2), corner (linf)."""
    projection: Projection | None = None
    """Projection onto the ball: never, last or every step; default: as the variant."""
    gradient: Gradient | None = None
    """Gradient in the step: raw, unit (l2 norm 1) or sign; default: as the variant."""
    anchor: Anchor | None = None
    """Whether the anchor term is free of the step size or scaled by it; default: as the variant."""
    dropout: Literal["shared", "fresh"] = "shared"
    """One dropout mask per iterate (shared), or one for each of its two passes (fresh)."""
    mode: Literal["train", "eval"] = "train"
    """Mode of the network in the chain: train, or eval (stored batch-norm statistics, no dropout)."""
    objective: Literal["free-energy", "data-entropy"] = "free-energy"
    """Objective to minimise: the free energy (the paper's algorithm), or the mean loss under p (its stated aim)."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""
    burn_in: int | None = None
    """Number of first iterates without weight, the others having equal weights; default: steps // 2 for data-entropy,
    and the weights of alpha for free-energy."""
    drop_below: float = 0.0
    """Omit iterates from the gradient whose share of the average is below this, at most alpha; 0 is exact."""
    chains: int = 1
    """Number of chains per image; each chain costs as much as a batch."""
    outer_loss: Literal["ce", "kl"] = "ce"
    """The loss L of chain and average: cross-entropy, or the divergence from the clean prediction as in TRADES."""
    beta: float = 6.0
    """Weight of the average relative to the clean batch's cross-entropy, with outer_loss kl."""
    label_smoothing: float = 0.0
    """Label smoothing in every cross-entropy, also in the chain, in [0, 1)."""
    calibrated: bool | Setting = False
    """Calibrate gamma (true) or noise on two batches before the training begins, so that the median distance is eps; on
    the command line also --method.calibrate."""

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1, above=True)
        check_number("beta", self.beta, 0)
        check_number("chains", self.chains, 1, whole=True)
        check_smoothing(self.label_smoothing)
        if self.burn_in is not None:
            check_number("burn_in", self.burn_in, 0, whole=True)
            if self.burn_in >= self.steps:
                raise ValueError(f"burn_in must be below steps={self.steps}, got {self.burn_in}")
        self._check_dropping()
        check_warmup(self.eps_warmup)
        check_budget(self.threat)
        chain = self.chain()
        if chain.gradient != "raw":
            check_reach(self.threat, chain.step_size, f"with steps={self.steps} a step_size of")
        first = self.chain(0.0)
        report_idle(self, "ATENT.", uses(self, (chain, first)))
        chain.report_path()
        if self.objective == "data-entropy":
            check_samples(chain, min(chain.noise, first.noise), self.chains * (self.steps - self._skipped))
        if self.outer_loss == "kl" and chain.start == "zero" and (chain.noise == 0 or chain.gradient != "raw"):
            raise ValueError("outer_loss 'kl' has no gradient at the clean input: use a start other than 'zero'")

    def _check_dropping(self) -> None:
        """ValueError for a ``drop_below`` that would drop all iterates, or cannot drop any."""
        check_number("drop_below", self.drop_below, 0)
        if self.drop_below > self.alpha:
            raise ValueError(
                f"drop_below must be at most alpha={self.alpha}, the last iterate's share, got {self.drop_below}"
            )
        if self.drop_below and (self.objective == "data-entropy" or self.burn_in is not None):
            raise ValueError("drop_below has no effect if all iterates have equal weights: use burn_in alone")

    @property
    def _skipped(self) -> int:
        """The number of first iterates without weight."""
        if self.burn_in is not None:
            return self.burn_in
        if self.objective == "data-entropy":
            return self.steps // 2
        if self.alpha == 1:  # the average is then the last loss alone
            return self.steps - 1
        return self.weights()[1:].count(0.0) if self.drop_below else 0  # shares grow from iterate to iterate

    def chain(self, progress: float = 1.0) -> Sampler:
        """The resolved chain at ``progress``: while eps warms up, step size and radius shrink together."""
        if self._constant is not None:
            return self._constant
        fields = {name: getattr(self, name) for name in SAMPLER_FIELDS}
        fields |= {
            name: base.scheduled(name, fields[name], progress) for name in _SCHEDULED if fields[name] is not None
        }  # fmt: skip
        full = sampler(self.threat, **fields)
        factor = warm(self.eps_warmup, progress)
        if factor == 1.0:
            return full
        fields |= {"step_size": full.step_size * factor, "noise": full.noise}
        fields |= {"effective_noise": None, "temperature": None}
        return sampler(self.threat.scaled(factor), **fields)

    @cached_property
    def _constant(self) -> Sampler | None:
        """The chain of the entire training, if nothing of it is scheduled."""
        if self.eps_warmup or any(isinstance(getattr(self, name), str) for name in _SCHEDULED):
            return None
        return sampler(self.threat, **{name: getattr(self, name) for name in SAMPLER_FIELDS})

    def settings_at(self, progress: float) -> Hashable:
        """The chain; None if it runs in a separate pass, which samples a seed on the host."""
        return (self, self.chain(progress)) if self.mode == "train" and self.objective == "free-energy" else None

    def weights(self) -> list[float]:
        """c_0 .. c_K: the share of each iterate's loss in the average."""
        if self.objective == "data-entropy" or self.burn_in is not None:
            return [0.0] * (self._skipped + 1) + [1 / (self.steps - self._skipped)] * (self.steps - self._skipped)
        shares = [self.alpha * (1 - self.alpha) ** (self.steps - k) for k in range(1, self.steps + 1)]
        return [0.0, *[share if share >= self.drop_below else 0.0 for share in shares]]

    def calibrate(
        self, model: nn.Module, x: Tensor, y: Tensor, target: float | None = None, *,
        setting: Setting = "gamma", batch: int = 256, seed: int = 0,
    ) -> Calibration[ATENT]:  # fmt: skip
        """Find the ``setting``, gamma or noise, whose median ||x^K - x|| is ``target``; default: the threat's eps.

        ``x`` (n, ...) in pixel units and ``y`` (n,) are processed in batches of ``batch``, as in training: in train
        mode batch-norm couples the samples of a batch. Distances are in the threat's norm, at full eps, with one set of
        random numbers for all values, keyed by ``seed``. gamma is searched up to an anchor weight of 1 per step, noise
        up to the width of the box per step. The result is valid for the current weights: the scale of gradients changes
        during training.

        The state of the model is restored. ValueError, with the range reached, for a target that the chain does not
        reach, and for a setting that is a schedule or that projection makes ineffective.
        """
        return calibrate(self, model, x, y, target, setting=setting, batch=batch, seed=seed)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> list[Tensor] | Samples:  # fmt: skip
        """The iterates [x^1, ..., x^K], for data-entropy as `Samples`; the state of the model is restored."""
        if self.calibrated:
            self._refuse_uncalibrated()
        chain, streams = self.chain(progress), Batch(rng)
        clean, x, y = x, self._copies(x), self._copies(y)
        keep = self.objective == "data-entropy"
        # From a copy of the stream: `backward` must sample the same start and noise.
        inner = seed_from(rng, copied=True)
        found = Samples([], [])
        with guard(model, mode="eval" if self.mode == "eval" else "as-is", seed=inner):
            with torch.no_grad():
                reference = ask(model, clean) if self.outer_loss == "kl" else None
            z = chain.begin(x, streams)
            for k in range(chain.steps):
                slope, losses = self._input_gradient(model, z, y, reference)
                z = chain.move(z, x, slope, k, streams)
                found.iterates.append(z)
                if keep and k:
                    found.losses.append(losses)
            if keep:
                with torch.no_grad():
                    found.losses.append(self._losses(ask(model, z), y, reference))
        return found if keep else found.iterates

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """The scalar to minimise, with the graphs of all iterates in memory: the definition; `backward` accumulates it.

        For data-entropy its value is the estimate of L_DE, and its gradient the one with the covariance.
        """
        clean = wide(ask(model, x)) if self.outer_loss == "kl" else None
        value = surrogate = x.new_zeros(())
        for z, share, factors in self._weighed(aux, progress):
            logits = ask(model, z)
            losses = self._losses(logits, self._copies(y), clean)
            value = value + share * losses.mean()
            if factors is not None:
                surrogate = surrogate + share * (losses * factors).mean()
        if self.objective == "data-entropy":
            value = value.detach() + surrogate - surrogate.detach()
        metrics = self._metrics(logits, z, self._copies(x), self._copies(y))
        if self.objective == "data-entropy":
            metrics |= self._tilt(aux, progress)
        if clean is None:
            return value, metrics
        fit = cross_entropy(clean, y, self.label_smoothing).mean()
        return fit + self.beta * value, metrics | clean_metrics(clean, y, fit.detach(), value.detach())

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        """The last iterates of the chains."""
        iterates: list[Tensor] = aux.iterates if isinstance(aux, Samples) else aux
        return iterates[-1]

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """One pass at each iterate with a weight; one graph in memory at a time."""
        return self._gradient(model, x, y, aux, None, progress=progress, weight=weight)[1]

    def attack_and_descend(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """The accumulating pass: the iterates, and the gradient accumulated along the chain."""
        if self.calibrated:
            self._refuse_uncalibrated()
        return self._gradient(model, x, y, None, rng, progress=progress, weight=weight)

    def _backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """The accumulating pass; it keeps only the last iterate."""
        if self.calibrated:
            self._refuse_uncalibrated()
        return self._gradient(model, x, y, None, rng, progress=progress, weight=weight, keep=False)[1]

    def _gradient(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, rng: torch.Generator | None, *, progress: float,
        weight: float, keep: bool = True,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """The gradient at the iterates ``aux``; for None, at those of a chain sampled from ``rng``."""
        many, labels = self._copies(x), self._copies(y)
        step = Step(model, many, labels, self._losses, self.weights(), self._skipped, weight, keep)
        if rng is not None and (self.mode == "eval" or self.objective == "data-entropy"):
            aux = self.adversary(model, x, y, rng=rng, progress=progress)
        with kl_outer(step, x, y, self.beta, self.label_smoothing) if self.outer_loss == "kl" else nullcontext():
            if self.objective == "data-entropy":
                iterates, logits = data_entropy(step, aux, len(x), self._temperature(progress))
            elif aux is not None or rng is None:
                iterates, logits = free_energy_at(step, aux)
            else:
                accumulate = free_energy_two_passes if self.dropout == "fresh" else free_energy
                iterates, logits = accumulate(step, self.chain(progress), Batch(rng))
        metrics = {"loss": step.mu, **self._metrics(logits, iterates[-1], many, labels)}
        if step.clean is not None:
            metrics["loss"] = step.fit + self.beta * step.mu
            metrics |= clean_metrics(step.clean, y, step.fit, step.mu)
        if self.objective == "data-entropy":
            metrics |= self._tilt(aux, progress)
        return iterates if aux is None else aux, metrics

    def _refuse_uncalibrated(self) -> None:
        raise ValueError(
            "calibrated is set but the method is not calibrated yet: use calibrate(model, x, y).method, or atent.fit,"
            " which calibrates it"
        )

    def _copies(self, x: Tensor) -> Tensor:
        """The batch repeated for each chain, (chains n, ...)."""
        return x if self.chains == 1 else torch.cat([x] * self.chains)

    def _losses(self, logits: Tensor, y: Tensor, reference: Tensor | None) -> Tensor:
        """L per sample (chains n,); ``reference`` (n, classes) is the clean prediction that kl compares with."""
        if reference is None:
            return cross_entropy(logits, y, self.label_smoothing)
        return kl(logits, self._copies(reference))

    def _input_gradient(
        self, model: nn.Module, z: Tensor, y: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The gradient of each sample's loss at ``z``, and the losses."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(ask(model, z), y, None if reference is None else reference.detach())
            return torch.autograd.grad(losses, z, torch.ones_like(losses))[0], losses.detach()

    def _weighed(self, aux: Any, progress: float) -> list[tuple[Tensor, float, Tensor | None]]:
        """Each iterate with a weight, its share, and the factors of its samples' gradients, None for 1."""
        skipped, shares = self._skipped, self.weights()
        if self.objective == "free-energy":
            return [(z, share, None) for z, share in zip(aux[skipped:], shares[skipped + 1 :], strict=True)]
        factors = aux.factors(skipped, aux.losses[0].numel() // self.chains, self._temperature(progress))
        return list(zip(aux.iterates[skipped:], shares[skipped + 1 :], factors, strict=True))

    def _temperature(self, progress: float) -> float:
        return self.chain(progress).noise ** 2

    def _metrics(self, logits: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Metrics:
        """Robust training accuracy at the last iterate, and ||x^K - x|| per sample in the threat's norm."""
        return {"robust": correct(logits, y), "distance": self.threat.distance(z.detach(), x)}

    def _tilt(self, aux: Samples, progress: float) -> Metrics:
        """The metric ``tilt`` of data-entropy."""
        losses = aux.by_image(self._skipped, aux.losses[0].numel() // self.chains)
        return {"tilt": losses.std(0) / self._temperature(progress)}
