"""Embedding regularisation after Li et al. 2021: a loss term that makes embeddings approximately Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from atent.checks import Settings, check_number
from atent.distributed import gathered
from atent.guard import ask
from atent.losses import wide
from atent.messages import unknown
from atent.methods.awp import AWP, buffers_kept, may_perturb
from atent.methods.base import Method, Metrics, State, warm
from atent.methods.divergence import CHANCE, Discriminator, mmd, multiquadrics, rbf
from atent.methods.wrapper import Wrapper
from atent.rng import PerSample, check_rng

_DIVERGED = 1e4
"""Loss above which a discriminator has diverged; that of output one half everywhere is `CHANCE`, 1.39."""


@dataclass(frozen=True)
class EmbeddingTerm(metaclass=Settings):
    """Settings of embedding regularisation in a training: ``embedding = { weight = 0.1 }`` in a recipe's ``[train]``.

    Examples
    --------
    >>> from atent.methods import EmbeddingTerm
    >>> EmbeddingTerm(weight=0.1).divergence
    'mmd'
    """

    weight: float = 0.0
    """Weight lambda of the divergence between the embeddings and their prior; 0: none."""
    divergence: Literal["mmd", "discriminator"] = "mmd"
    """The divergence: the maximum mean discrepancy, or that of a discriminator trained with the network."""
    layer: str | None = None
    """Module whose output is the embedding, by its name in the network; default: the input of the last Linear."""
    sigma: float = 1.0
    """Standard deviation of the prior N(0, sigma^2 I)."""
    ramp: float = 0.0
    """Share of the training over which the weight grows linearly from 0."""
    kernel: Literal["multiquadric", "rbf"] = "multiquadric"
    """Kernel of mmd, of scale 2 d sigma^2: seven inverse multiquadrics around it, or a Gaussian."""
    width: int = 512
    """Units of each hidden layer of the discriminator."""
    depth: int = 3
    """Hidden layers of the discriminator; 0: a linear one."""
    lr: float = 1e-4
    """Learning rate of the discriminator's Adam."""
    beta1: float = 0.5
    """First beta of the discriminator's Adam."""

    def __post_init__(self) -> None:
        check_number("weight (of embedding)", self.weight, 0)
        check_number("sigma (of embedding)", self.sigma, 0, above=True)
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp (of embedding) is a share of the training, in [0, 1], got {self.ramp}")
        check_number("width (of the discriminator)", self.width, 1, whole=True)
        check_number("depth (of the discriminator)", self.depth, 0, whole=True)
        check_number("lr (of the discriminator)", self.lr, 0, above=True)
        check_number("beta1 (of the discriminator)", self.beta1, 0, 1, below=True)
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if given and not self.weight:
            raise ValueError(
                f"{given[0]} (of embedding) has no effect without a weight: set one, such as weight = 0.1, or omit"
                f" {given[0]}"
            )
        others = {"mmd": ("width", "depth", "lr", "beta1"), "discriminator": ("kernel",)}[self.divergence]
        odd = next((name for name in given if name in others), None)
        if odd:
            raise ValueError(f"{odd} (of embedding) has no effect with divergence {self.divergence}: omit it")

    @property
    def discriminator(self) -> Discriminator:
        """The discriminator of these settings."""
        return Discriminator(self.width, self.depth, self.lr, self.beta1)


@dataclass(frozen=True)
class EmbeddingRegularised(Wrapper):
    """The loss of ``method`` plus lambda D(Q_Z, N(0, sigma^2 I)), Q_Z the law of embeddings (after Li et al. 2021).

    Z is the input of the network's last Linear, or the output of ``term.layer``, flattened. D is one of two:

    - mmd: the unbiased estimate of the squared maximum mean discrepancy with as many samples of the prior, which may be
      negative and is logged as such;
    - discriminator: -E log g(Z), where g is trained by one step of Adam per batch on -E log g(prior) - E log(1 - g(Z)).

    D is computed at the clean batch and at the adversary's inputs (`Method.points`), each in a separate pass in the
    mode of the loss, and averaged over the two; a discriminator of the clean batch alone would not regularise
    embeddings under attack. Only the passes of ``method`` update batch-norm statistics. The discriminator takes its
    step after the term is computed, on the same embeddings and the same samples of the prior. Its weights and moments
    are in the method's state, so a resumed training restores them.

    This is not a reproduction: only part of the paper's text was available, and no code was found. The kernel's
    scales, the discriminator's layers and learning rate, the ramp and the mean over clean and adversarial inputs are
    choices of this library. A network with a narrow embedding may mask gradients: evaluate it with the checks
    (``evaluate.checks``), by APGD on cross-entropy and DLR, Square and a transfer attack.

    With ``weight = 0`` this is ``method``, bit for bit. With AWP the term is evaluated at the perturbed weights.
    Passes: two forwards and two backwards more than ``method``, one of each without an adversary.

    Metrics: those of ``method``, with the term in ``loss``; ``embedding``, the divergence without its weight; of a
    discriminator also ``discriminator_loss``, 1.386 if it cannot distinguish the two distributions.

    References
    ----------
    Li, Min, Lee, Yu, Kruus, Wang et al. 2021, "Towards robustness of deep neural networks via regularization", ICCV.
    An earlier version is "Optimal transport classifier: defending against adversarial attacks by regularized deep
    embedding", arXiv 1811.07950.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import EmbeddingRegularised, EmbeddingTerm, PGDAT
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> method = EmbeddingRegularised(PGDAT(Threat("linf", 0.1), steps=2), EmbeddingTerm(weight=0.1))
    >>> sorted(method.backward(net, x, y))
    ['embedding', 'loss', 'robust']
    """

    method: Method
    """The method to whose loss the term is added: any that does not override `Method.backward`."""
    term: EmbeddingTerm = EmbeddingTerm()
    """The term's settings."""

    def __post_init__(self) -> None:
        if not isinstance(self.term, EmbeddingTerm):
            raise ValueError(
                f"term must be an EmbeddingTerm, got a {type(self.term).__name__}: write EmbeddingTerm(weight=0.1)"
            )
        name = type(self.method).__name__
        if isinstance(self.method, AWP):
            raise ValueError("embedding regularisation must be inside AWP: use AWP(EmbeddingRegularised(method, term))")
        if not may_perturb(type(self.method)):
            raise ValueError(
                f"embedding regularisation does not support {name}, which overrides backward: use another method"
            )
        if not self.method.labelled:
            raise ValueError(
                f"embedding regularisation does not support {name}, which trains without labels: use it in the"
                " fine-tuning"
            )
        super().__post_init__()
        # The divergence depends on the full batch.
        gathers, alike = self.method.divisible or self.method.gathers, (*self.method.alike, "discriminator")
        self._set(divisible=False, gathers=gathers, alike=alike)

    @property
    def is_one_loss(self) -> bool:
        """As for the method inside; False with a discriminator, which is trained at each step."""
        return super().is_one_loss and not (self.term.weight and self.term.divergence == "discriminator")

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        """The result of the method's adversary, and the key of the prior's samples; with weight 0 only the former."""
        given: dict[str, Any] = {"rng": rng, "ids": ids, "progress": progress, "state": state}
        if not self.term.weight:
            return self.method.adversary(model, x, y, **given)
        key = _key(rng)
        return [self.method.adversary(model, x, y, **given), key]

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        if not self.term.weight:
            return self.method.loss(model, x, y, aux, progress=progress, state=state)
        inner, key = aux
        loss, metrics = self.method.loss(model, x, y, inner, progress=progress, state=state)
        divergence, more, _ = self._divergence(model, x, inner, key, {} if state is None else state)
        return loss + self._weight(progress) * divergence, metrics | more

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        if not self.term.weight:
            return self.method.descend(model, x, y, aux, progress=progress, weight=weight, state=state)
        inner, key = aux
        metrics = self.method.descend(model, x, y, inner, progress=progress, weight=weight, state=state)
        found = self._divergence(model, x, inner, key, {} if state is None else state)
        return self._add(metrics, found, progress, weight)

    def attack_and_descend(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        given: dict[str, Any] = {"rng": rng, "ids": ids, "progress": progress, "weight": weight, "state": state}
        if not self.term.weight:
            return self.method.attack_and_descend(model, x, y, **given)
        key, state = _key(rng), {} if state is None else state
        inner, metrics = self.method.attack_and_descend(model, x, y, **given)
        found = self._divergence(model, x, inner, key, state)
        metrics = self._add(metrics, found, progress, weight)
        if self.term.divergence == "discriminator":
            samples, prior = found[2]
            with torch.autocast(x.device.type, enabled=False):
                self.term.discriminator.learn(state, samples, prior)
        return [inner, key], metrics

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        return self.method.points(x, aux[0] if self.term.weight else aux)

    def diverged(self, state: State | None) -> str | None:
        loss = None if state is None else state.get("discriminator.loss")
        if loss is not None and not float(loss) < _DIVERGED:
            return (
                f"the discriminator of the embeddings has diverged, its loss is {float(loss):.3g} (at chance:"
                f" {CHANCE:.2f}): lower train.embedding.lr (now {self.term.lr:g})"
            )
        return self.method.diverged(state)

    def _weight(self, progress: float) -> float:
        return self.term.weight * warm(self.term.ramp, progress)

    def _add(
        self, metrics: Metrics, found: tuple[Tensor, Metrics, tuple[Tensor, Tensor]], progress: float, weight: float
    ) -> Metrics:
        """Add the gradient of the term; the metrics include it."""
        divergence, more, _ = found
        if not divergence.requires_grad:
            raise ValueError(
                "embedding regularisation has no gradient: no trainable parameter comes before the embedding; add"
                " layers, or set embedding.layer to a later one"
            )
        term = self._weight(progress) * divergence
        (weight * term).backward()
        return metrics | {"loss": metrics["loss"] + term.detach()} | more

    def _divergence(
        self, model: nn.Module, x: Tensor, inner: Any, key: Tensor, state: State
    ) -> tuple[Tensor, Metrics, tuple[Tensor, Tensor]]:
        """D, its metrics, and the embeddings and samples of the prior from which it was computed."""
        term, points = self.term, self.method.points(x, inner)
        with buffers_kept(model):
            parts = [embed(model, inputs, term.layer) for inputs in (x, points) if inputs is not None]
        with torch.autocast(x.device.type, enabled=False):
            # The distributions are those of the full batch.
            parts = [gathered(wide(part)) for part in parts]
            samples = torch.cat(parts)
            prior = term.sigma * PerSample(key, torch.arange(len(samples), device=x.device)).normal(samples.detach())
            if term.divergence == "discriminator":
                return (*self._against(state, samples, prior), (samples, prior))
            scale = 2 * samples.shape[1] * term.sigma**2
            kernel = multiquadrics(scale) if term.kernel == "multiquadric" else rbf((scale / 2) ** 0.5)
            # Separate divergences: the embeddings of an image and of its adversarial input are not independent.
            sizes = [len(part) for part in parts]
            value = torch.stack([mmd(a, b, kernel) for a, b in zip(samples.split(sizes), prior.split(sizes))]).mean()
        return value, {"embedding": value.detach()}, (samples, prior)

    def _against(self, state: State, samples: Tensor, prior: Tensor) -> tuple[Tensor, Metrics]:
        """-E log g(Z), and the discriminator's loss, without an update of the discriminator."""
        discriminator = self.term.discriminator
        discriminator.begin(state, samples.detach())
        odds = discriminator.logits(state, samples)
        value = softplus(-odds).mean()
        with torch.no_grad():
            own = softplus(-discriminator.logits(state, prior)).mean() + softplus(odds).mean()
        return value, {"embedding": value.detach(), "discriminator_loss": own}


def embed(model: nn.Module, x: Tensor, layer: str | None = None) -> Tensor:
    """The embeddings (n, d) of inputs (n, ...), with their graph.

    Parameters
    ----------
    model
        The network; its mode is not changed.
    x
        Inputs in pixel units.
    layer
        Module whose output is the embedding, by its name in ``model.named_modules()``; default: the input of the last
        ``nn.Linear``.

    Raises
    ------
    ValueError
        In one line, for a network without a Linear, for an unknown module, and for one that the forward pass does not
        call or that does not return a tensor.
    """
    modules = dict(model.named_modules())
    seen: list[Any] = []
    if layer is None:
        linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        if not linears:
            raise ValueError(
                "the network has no Linear layer: set train.embedding.layer to the module of the embedding"
            )
        name = linears[-1]
        hook = modules[name].register_forward_pre_hook(lambda _, given: seen.append(given[0] if given else None))
    else:
        name = layer
        if not layer or layer not in modules:
            raise ValueError(unknown("module of the network", layer, [name for name in modules if name]))
        hook = modules[layer].register_forward_hook(lambda _, given, out: seen.append(out))
    try:
        ask(model, x)
    finally:
        hook.remove()
    found = seen[-1] if seen else None
    if not isinstance(found, Tensor) or len(found) != len(x) or not found.is_floating_point():
        raise ValueError(
            f"{name} does not return an embedding of the {len(x)} inputs: set train.embedding.layer to another module"
        )
    return found.flatten(1)


def _key(rng: torch.Generator) -> Tensor:
    """A key for the samples of the prior, a scalar on the device."""
    check_rng(rng)
    return torch.randint(2**62, (), generator=rng, device=rng.device)


# ---- settings of a training -----------------------------------------------------------------------------


def regularised(method: Method, term: EmbeddingTerm) -> Method:
    """The method with the term; ``method`` itself if its weight is 0."""
    return EmbeddingRegularised(method, term) if term.weight else method


def apart(method: Method, term: EmbeddingTerm) -> tuple[Method, EmbeddingTerm]:
    """The method inside an `EmbeddingRegularised`, and its term; for others, ``method`` and ``term`` unchanged.

    ValueError if both have one.
    """
    if not isinstance(method, EmbeddingRegularised):
        return method, term
    if term.weight:
        raise ValueError("embedding regularisation is set twice, by the method and by train.embedding: use one")
    return method.method, method.term if method.term.weight else term
