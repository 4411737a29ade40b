"""Adversarial weight perturbation: a method around a method (Wu, Xia and Wang 2020)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.checks import Settings, check_number
from atent.distributed import shared, summed
from atent.distributed.gradients import densify
from atent.guard import Buffers, explained
from atent.methods.base import METHODS, Method, Metrics, State, begun, in_force
from atent.methods.wrapper import Wrapper


@dataclass(frozen=True)
class Perturbation(metaclass=Settings):
    """Settings of AWP in a training: ``awp = { gamma = 0.005 }`` in a recipe's ``[train]``.

    Examples
    --------
    >>> from atent.methods import Perturbation
    >>> Perturbation(gamma=0.005, warmup=0.05)
    Perturbation(gamma=0.005, warmup=0.05)
    """

    gamma: float = 0.0
    """Length of AWP's weight perturbation, as a share of each layer's weights; 0: none. The code of Wu et al. 2020 uses
    0.005 with TRADES and 0.01 with PGD-AT."""
    warmup: float = 0.0
    """Share of the training before AWP begins."""

    def __post_init__(self) -> None:
        _check(self.gamma, self.warmup)
        if self.warmup and not self.gamma:
            raise ValueError("awp.warmup has no effect without awp.gamma: set one, such as 0.005")


@dataclass(frozen=True)
class AWP(Wrapper):
    """min over w of max over v of the mean loss of ``method`` at w + v, ||v_l|| <= gamma ||w_l|| in each layer l.

    Three parts (Wu et al. 2020, with one step of v as in their code): ``method`` attacks at w; v is along the gradient
    of its loss at the adversarial inputs, v_l = gamma ||w_l|| g_l / ||g_l||; the optimizer gets the gradient of the
    same loss on the same adversarial inputs at w + v. w is restored, bit for bit, before `backward` returns, also after
    an exception. Layers are the parameters with two dimensions or more (their code also requires "weight" in the name):
    biases and the scales of normalisation layers are not perturbed, nor is a layer whose gradient is zero. During the
    first ``warmup`` of the training, and with ``gamma = 0``, the step is that of ``method``, bit for bit.

    For PGDAT, TRADES and MART the loss is that of one batch x', as published. For ATENT it is the running average mu^K
    over the iterates x^1 .. x^K of the chain at w (with ``outer_loss="kl"`` or data-entropy, the loss of these): v is
    along ATENT's gradient, which its accumulating pass computes with the iterates, and a second pass over the same
    iterates gives the gradient at w + v. The chain does not run again: inputs are attacked at w, as with the other
    methods.

    Passes: one forward and one backward to the weights more than PGDAT; two of each more than TRADES, for the clean and
    the perturbed batch; K more than ATENT. Only the passes at w + v update batch-norm statistics, since the authors
    also compute v on a copy of the network; ATENT therefore updates them once per iterate instead of twice. (Their
    PGD-AT attacks in train mode, ``PGDAT(mode="train")``; the attack's passes also update its statistics, as does a
    clean pass at the new weights for logging. Their TRADES attacks in eval mode, and passes the clean batch twice.)
    Dropout samples new masks at w + v.

    Deviations from their code (csdongxian/AWP): w is restored before the optimizer's step here; there the optimizer
    steps from w + v, and v is subtracted afterwards, which leaves the rounding of two additions. For SGD the step is
    the same, except that weight decay acts on w + v there and on w here: their new weights are ours minus lr
    weight_decay v, and momentum propagates the difference. An optimizer that evaluates the loss at the current weights,
    such as EntropySGD, differs by more. Their v comes from a step of a copy of the network; normalisation per layer
    cancels its length, and it is the gradient's direction: no copy is needed. A micro-batch would be perturbed along
    its own gradient, so micro-batches do not add up to the batch; processes that share a batch sum their gradients
    first, so that all have the same perturbed weights.

    `adversary` and `loss` are those of ``method``; metrics too, at w + v, with ``sharpness``: the increase of the loss
    by v.

    References
    ----------
    Wu, Xia and Wang 2020, "Adversarial weight perturbation helps robust generalization", NeurIPS, arXiv 2004.05884.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import AWP, PGDAT
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> method = AWP(PGDAT(Threat("linf", 0.1), steps=2), gamma=0.01)
    >>> sorted(method.backward(net, x, y))
    ['loss', 'robust', 'sharpness']
    """

    method: Method
    """The method whose weights are perturbed: any that does not override `Method.backward`."""
    gamma: float = 5e-3
    """Length of the perturbation as a share of each layer's norm, at least 0; 0 is ``method`` itself. The authors' code
    uses 0.005 with TRADES, 0.01 with PGD-AT."""
    warmup: float = 0.0
    """Share of the training before the perturbation begins, in [0, 1). In the authors' code for CIFAR-10 PGD-AT
    has none, and TRADES begins at the 10th of 200 epochs."""

    def __post_init__(self) -> None:
        _check(self.gamma, self.warmup)
        super().__post_init__()
        # The perturbation depends on the full batch.
        self._set(divisible=False, gathers=self.method.divisible or self.method.gathers)
        if not may_perturb(type(self.method)):
            raise ValueError(
                f"AWP does not support {type(self.method).__name__}, which overrides backward: use another method"
            )

    def settings_at(self, progress: float) -> Hashable:
        inner = in_force(self.method, progress)
        return None if inner is None else (inner, self.gamma, progress < self.warmup)

    def backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        if not (isinstance(rng, torch.Generator) and type(progress) is type(weight) is float):
            x, y, rng, ids = begun(self, model, x, y, rng, ids, progress=progress, weight=weight, state=state)
        if self.gamma == 0 or progress < self.warmup:
            return self.method.backward(
                model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state
            )  # fmt: skip
        layers = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        with explained(model, x, y), aside(model):
            aux, flat = self.method.attack_and_descend(
                model, x, y, rng=rng, ids=ids, progress=progress, weight=weight if shared() else 1.0, state=state
            )  # fmt: skip
            densify(layers)
            summed(layers)
            slopes = {p: p.grad for p in layers if p.grad is not None}
        with _ascended(list(slopes), list(slopes.values()), self.gamma):
            metrics = self.method.descend(model, x, y, aux, progress=progress, weight=weight, state=state)
        return metrics | {"sharpness": metrics["loss"] - flat["loss"]}


def may_perturb(method: type[Method]) -> bool:
    """Whether AWP supports the methods of this class: they do not override `Method.backward`."""
    return method.backward is Method.backward


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore buffers, such as batch-norm statistics, on exit."""
    before = Buffers(model.modules(), model.buffers())
    try:
        yield
    finally:
        before.restore()


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """Gradients accumulate from None inside; gradients and buffers are restored on exit."""
    grads = [(p, p.grad) for p in model.parameters()]
    with buffers_kept(model):
        try:
            for p, _ in grads:
                p.grad = None
            yield
        finally:
            for p, grad in grads:
                p.grad = grad


@contextmanager
def _ascended(layers: list[Tensor], slopes: list[Tensor], gamma: float) -> Iterator[None]:
    """Set each layer to w + gamma ||w|| g / ||g|| inside, and restore w on exit. ``slopes``, the g, are overwritten.

    Autocast caches a cast copy of each weight: the cache is cleared at both changes, since passes would use the old
    weights.
    """
    if not layers:
        yield
        return
    with torch.no_grad():
        before = [p.detach().clone() for p in layers]
        # Normalise first: for a zero gradient 0 / tiny is 0, and no product overflows.
        torch._foreach_div_(slopes, [n.clamp_min(torch.finfo(n.dtype).tiny) for n in torch._foreach_norm(slopes)])
        lengths = torch._foreach_mul(torch._foreach_norm(before), gamma)
        torch._foreach_mul_(slopes, list(lengths))
    try:
        with torch.no_grad():
            torch._foreach_add_(layers, slopes)
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(layers, before)
        torch.clear_autocast_cache()


def _check(gamma: float, warmup: float) -> None:
    check_number("gamma (of AWP)", gamma, 0)
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup (of AWP) is a share of the training, in [0, 1), got {warmup}")


# ---- settings of a training -----------------------------------------------------------------------------


def perturbed(method: Method, awp: Perturbation) -> Method:
    """The method with its gradient taken at perturbed weights; ``method`` itself without a perturbation.

    ValueError, in one line, for a method that `AWP` does not support.
    """
    return AWP(method, awp.gamma, awp.warmup) if awp.gamma else method


def apart(method: Method, awp: Perturbation) -> tuple[Method, Perturbation]:
    """The method inside an `AWP`, and its perturbation; for any other method, ``method`` and ``awp`` unchanged.

    ValueError if both have one.
    """
    if not isinstance(method, AWP):
        return method, awp
    if awp.gamma:
        raise ValueError("AWP is set twice, by AWP(method) and by train.awp: use one of them")
    return method.method, Perturbation(method.gamma, method.warmup) if method.gamma else awp


def plain(method: Method) -> dict[str, Any]:
    """The settings of a method as plain values with its ``name``, in a recipe's form."""
    threat = getattr(method, "threat", None)
    against = {"threat": threat.plain()} if threat is not None else {}
    return {"name": METHODS.name_of(type(method)), **asdict(method), **against}
