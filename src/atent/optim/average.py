"""Averages of the weights over the training: exponential (EMA), or the mean of the epochs (SWA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atent.checks import check_choice, check_number


class Average:
    """An average of a model's parameters and buffers over the training.

    ``ema`` is updated at every step: mean <- d mean + (1 - d) w, d = min(decay, (1 + t) / (10 + t)) after t
    updates (the rule of TensorFlow's ExponentialMovingAverage), so that the initial weights are forgotten quickly.
    ``swa`` is the mean over the weights at the end of each epoch (Izmailov et al. 2018, with one epoch per cycle). The
    learning rate remains as scheduled; theirs is cyclic or constant while they average. The first update of either
    copies the weights.

    Batch-norm statistics are averaged with the weights; Izmailov et al. recompute them in a pass over the training
    set. Integers, such as batch counters, are those of the last update. An update is one ``_foreach`` call without
    host synchronisation.

    Parameters
    ----------
    model
        Network whose parameters and buffers are averaged; the average starts at their values.
    kind
        "ema" or "swa".
    decay
        Decay d of the exponential average per step, in [0, 1).
    start
        Share of the training before the first update, in [0, 1).

    Raises
    ------
    ValueError
        For an unknown kind, and for values out of range.

    References
    ----------
    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson 2018, "Averaging weights leads to wider optima and better
    generalization", UAI, arXiv 1803.05407.

    Examples
    --------
    >>> import torch
    >>> from atent.optim import Average
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> average = Average(net, "swa")
    >>> for epoch, weight in enumerate([1.0, 2.0, 6.0]):
    ...     _ = torch.nn.init.constant_(net.weight, weight)  # stands for an epoch of training
    ...     average.after_epoch(progress=(epoch + 1) / 3)
    >>> with average.applied():
    ...     net.weight.item()
    3.0
    >>> net.weight.item()
    6.0
    """

    def __init__(self, model: nn.Module, kind: str, *, decay: float = 0.995, start: float = 0.0) -> None:
        check_choice("average", kind, ("ema", "swa"))
        check_average(decay, start)
        self.kind, self.decay, self.start, self.count = kind, decay, start, 0
        self._places = _places(model)
        floats, others = self._tensors()
        self._mean, self._last = [t.clone() for t in floats], [t.clone() for t in others]

    def after_step(self, progress: float) -> None:
        """Update the exponential average with the weights after a step."""
        if self.kind == "ema" and progress >= self.start:
            self._update(1.0 - min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 1.0)

    def after_epoch(self, progress: float) -> None:
        """Update the SWA mean with the weights after an epoch."""
        if self.kind == "swa" and progress >= self.start:
            self._update(1.0 / (self.count + 1))

    def _update(self, share: float) -> None:
        floats, others = self._tensors()
        with torch.no_grad():
            for mean, now in ((self._mean, floats), (self._last, others)):
                # A buffer of another shape than before has no mean with its former values.
                mean[:] = [t.clone() if m.shape != t.shape else m for m, t in zip(mean, now, strict=True)]
            if share == 1.0:
                _copy(self._mean, floats)
            elif floats:
                torch._foreach_lerp_(self._mean, floats, share)
            _copy(self._last, others)
        self.count += 1

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of which means are taken, and the others, as they are now: an optimizer may set ``p.data``, and a
        forward pass may assign a new tensor to a buffer."""
        floats, others = ([held[name].data for held, name in some] for some in self._places)
        return floats, others

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights; its own are restored exactly, also on exception."""
        floats, others = self._tensors()
        own = [t.clone() for t in (*floats, *others)]
        try:
            _copy([*floats, *others], [*self._mean, *self._last])
            yield
        finally:
            _copy([*floats, *others], own)

    def state(self) -> dict[str, Any]:
        """The state for `restore`."""
        return {"count": self.count, "mean": self._mean, "last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a saved state."""
        self.count = state["count"]
        for own, saved in ((self._mean, state["mean"]), (self._last, state["last"])):
            own[:] = [t.to(o.device, copy=True) for o, t in zip(own, saved, strict=True)]


_Place = tuple[Mapping[str, Any], str]
"""A module's parameters or buffers by name, and the name of one."""


def _places(model: nn.Module) -> tuple[list[_Place], list[_Place]]:
    """Where the tensors of a model are of which means are taken, and the others; a shared tensor once."""
    means, others = ([], [])  # type: tuple[list[_Place], list[_Place]]
    seen: set[int] = set()
    modules = list(model.modules())
    tables: list[Mapping[str, Any]] = [*[m._parameters for m in modules], *[m._buffers for m in modules]]
    for held in tables:
        for name, t in held.items():
            # Sparse, quantised and lazily conjugated buffers are constants: arithmetic is not supported for them.
            known = t is None or id(t) in seen or t.layout != torch.strided or t.is_quantized or t.is_conj()
            if not known:
                (means if t.is_floating_point() or t.is_complex() else others).append((held, name))
            seen.add(id(t))
    return means, others


def check_average(decay: float, start: float) -> None:
    """ValueError for values out of range."""
    check_number("average_decay", decay, 0, 1, below=True)
    if not 0 <= start < 1:
        raise ValueError(f"average_start is a share of the training, in [0, 1), got {start}")


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)
