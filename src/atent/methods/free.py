"""Free adversarial training: one backward pass updates the weights and the perturbation (Shafahi et al. 2019)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent.attacks.starts import check_step
from atent.checks import check_number
from atent.guard import ask, explained
from atent.losses import cross_entropy
from atent.methods.base import (
    Method,
    Metrics,
    State,
    begun,
    check_budget,
    check_reach,
    check_warmup,
    correct,
    method,
    warm,
)
from atent.methods.contract import check_trainable
from atent.threat import Threat


@method
@dataclass(frozen=True)
class Free(Method):
    """Simultaneous descent in the weights and ascent in delta on CE(f(x + delta)) (Shafahi et al. 2019).

    Every batch is passed ``replays`` times. Each time one forward and one backward compute the gradients with respect
    to the weights and to the input; the weights take the optimizer's step, and delta <- clip(delta + step_size sign(g),
    -eps, eps). Delta starts at 0 and is never reset: the next batch starts from the delta of the previous one, by
    position in the batch (``state["delta"]``, which grows to the largest batch). So an epoch has ``replays`` times as
    many steps, each at the cost of standard training; the authors keep the number of steps constant by dividing the
    number of epochs by ``replays``, which a recipe has to do itself.

    As in the authors' code the network is in the mode of the training loop, its input is x + delta clamped to the box,
    and delta, which is applied to other images later, is clipped by eps only. (The code of Wong et al. 2020 clips delta
    to the box of the current image, and does not clamp the next input.) One difference: g is the gradient at the
    clamped input, while theirs is backpropagated through the clamp, is 0 at clamped pixels, and does not change delta
    there. ``eps_warmup`` is an addition: at 0, its default, the method is theirs. The first pass of a training, and one
    without ``state``, has no perturbation. The parts of a split batch use the rows of their positions (`rows`).

    References
    ----------
    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor and Goldstein 2019, "Adversarial training for free!",
    NeurIPS, arXiv 1904.12843.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import Free
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = Free(Threat("linf", "8/255"), replays=4).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['loss', 'robust']
    >>> Free(Threat("linf", "8/255"), replays=4).replays
    4
    """

    single_step = True

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    threat: Threat
    """Ball of the adversary, linf."""
    replays: int = 8
    """m: number of passes of each batch, at least 1; the authors' code uses 8 by default."""
    step_size: float | None = None
    """Length of delta's step in pixel units; default: eps, as in the authors' code."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and the step with it, grows linearly from 0."""

    def __post_init__(self) -> None:
        check_budget(self.threat)
        check_number("replays", self.replays, 1, whole=True)
        if self.step_size is not None:
            check_step(self.threat, self.step_size)
        check_warmup(self.eps_warmup)
        check_reach(self.threat, self.resolved_step, "a step_size of")

    @property
    def resolved_step(self) -> float:
        """The step size at full eps."""
        return float(self.threat.eps) if self.step_size is None else self.step_size

    def settings_at(self, progress: float) -> Hashable:
        """The factor of eps."""
        return self, warm(self.eps_warmup, progress)

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        """``delta``: the perturbation by position in the batch, (0, ...) before the first."""
        return {"delta": torch.zeros(0, *shape, device=device)}

    def rows(self, state: State, x: Tensor, part: slice) -> State:
        """``delta`` of the part's positions, a view."""
        _rows(state, x)
        return {"delta": state["delta"][part]}

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor:  # fmt: skip
        """x + delta clamped to the box; the network is not evaluated."""
        return self.threat.clamp(x.detach() + _rows(state, x))

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = ask(model, aux)
        return cross_entropy(logits, y).mean(), {"robust": correct(logits, y)}

    def backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """As `Method.backward`; the same pass updates ``state["delta"]``."""
        if not (isinstance(rng, torch.Generator) and type(progress) is type(weight) is float):
            x, y, rng, ids = begun(self, model, x, y, rng, ids, progress=progress, weight=weight, state=state)
        check_trainable(model)  # the loss has a gradient at its input in any case
        z = self.adversary(model, x, y, rng=rng, state=state).requires_grad_()
        with explained(model, x, y):
            metrics = self.descend(model, x, y, z, progress=progress, weight=weight, state=state)
        if state is not None and z.grad is not None:
            factor = warm(self.eps_warmup, progress)
            eps = float(self.threat.eps) * factor
            moved = _rows(state, x) + self.resolved_step * factor * self.threat.ascent(z.grad)
            state["delta"][: len(x)] = moved.clamp(-eps, eps)
        return metrics


def _rows(state: State | None, x: Tensor) -> Tensor:
    """The perturbation at the batch's positions; zeros are appended if the batch is longer than all before."""
    if state is None:
        return torch.zeros_like(x)
    delta = state["delta"].to(x.dtype)
    # A delta that is long enough is not copied: it may be a view.
    more = x.new_zeros(max(0, len(x) - len(delta)), *x.shape[1:])
    state["delta"] = torch.cat([delta, more]) if len(more) else delta
    return state["delta"][: len(x)]
