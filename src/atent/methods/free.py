"""Free adversarial training: one backward serves the weights and the perturbation (Shafahi et al. 2019)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent.checks import check_number
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
from atent.rng import fresh
from atent.threat import Threat


@method
@dataclass(frozen=True)
class Free(Method):
    """CE(f(x + delta)) descended by the weights and climbed by delta, at once (Shafahi et al. 2019).

    Every batch comes ``replays`` times. Each time one forward and one backward give the gradients with respect to the
    weights and to the input; the weights take the optimizer's step, and delta <- clip(delta + step_size sign(g), -eps,
    eps). Delta begins at 0 and is never reset: the next batch meets what the last one left, by position in the batch
    (``state["delta"]``, which grows to the largest batch). So an epoch has ``replays`` times as many steps, each at the
    price of standard training; the authors keep the number of steps, whatever ``replays`` is, by so many times fewer
    epochs, and a recipe has to do so itself.

    As in the authors' code the network is in the mode in which the loop trains it, it sees x + delta clamped to the
    box, and delta itself, which other images will meet, is clipped by eps alone. (The code of Wong et al. 2020 clips
    delta to the box of the image that it just met, and clamps nothing where it meets the next.) One thing differs: g
    is taken at the clamped input, while theirs goes back through the clamp, is 0 at the pixels that it moved, and
    leaves delta there as it was. ``eps_warmup`` is ours too: at 0, its default, the method is theirs. The first pass
    of a training, and one without ``state``, is plain. The parts of a batch that is split have the rows of their
    positions (`rows`).

    References
    ----------
    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor and Goldstein 2019, "Adversarial training for free!",
    NeurIPS.

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
    """m: how often each batch comes, at least 1; the authors' code takes 8 by default."""
    step_size: float | None = None
    """Length of delta's step in pixel units; default: eps, as in the authors' code."""
    eps_warmup: float = 0.0
    """Share of the training over which eps, and the step with it, grows linearly from 0."""

    def __post_init__(self) -> None:
        check_budget(self.threat)
        check_number("replays", self.replays, 1, whole=True)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0)
        check_warmup(self.eps_warmup)
        check_reach(self.threat, self.resolved_step, "a step_size of")

    @property
    def resolved_step(self) -> float:
        """The step size in use, once eps is whole."""
        return float(self.threat.eps) if self.step_size is None else self.step_size

    def settings_at(self, progress: float) -> Hashable:
        """As eps grows."""
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
        """x + delta in the box; the network is not asked."""
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
        """As `Method.backward`; the same pass moves ``state["delta"]``."""
        z = self.adversary(model, x, y, rng=fresh(x.device) if rng is None else rng, state=state).requires_grad_()
        metrics = self.descend(model, x, y, z, progress=progress, weight=weight, state=state)
        if state is not None and z.grad is not None:
            factor = warm(self.eps_warmup, progress)
            eps = float(self.threat.eps) * factor
            moved = _rows(state, x) + self.resolved_step * factor * self.threat.ascent(z.grad)
            state["delta"][: len(x)] = moved.clamp(-eps, eps)
        return metrics


def _rows(state: State | None, x: Tensor) -> Tensor:
    """The perturbation of the batch's positions; zeros are added where the batch is longer than all before."""
    if state is None:
        return torch.zeros_like(x)
    delta = state["delta"].to(x.dtype)
    # A delta that is long enough stays itself: it may be a view.
    more = x.new_zeros(max(0, len(x) - len(delta)), *x.shape[1:])
    state["delta"] = torch.cat([delta, more]) if len(more) else delta
    return state["delta"][: len(x)]
