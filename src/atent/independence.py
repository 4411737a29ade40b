"""Whether a model's answer for a sample depends on the other samples of its batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atent.guard import ask, guard, outside_inference
from atent.precision import full_precision, twin

FEW, OTHERS = 4, 8
"""Samples that are asked about alone, and how many others share their batch with them and with altered copies."""


class Dependence(NamedTuple):
    """What one sample alone and the same sample in a batch show."""

    change: float
    """Largest difference of the logits, less what a random model's noise explains, as a share of the largest logit."""
    tolerance: float
    """Share that rounding explains: half of the digits of the type computed in, sqrt(machine epsilon), or more where
    the last float32 digit of the inputs moves the logits more."""
    flips: int
    """Samples whose class changes."""
    n: int
    """Samples that were compared, an altered copy among them."""
    size: int
    """Samples in the batch."""
    dtype: torch.dtype
    """Type computed in: float64 wherever the model has a copy in it."""

    @property
    def found(self) -> bool:
        """Whether the difference is more than rounding."""
        return self.change > self.tolerance


def dependence(model: nn.Module, x: Tensor, *, seed: int = 0, size: int = 0) -> Dependence | None:
    """Compares samples alone and in a batch, in eval mode; ``x`` (n, ...) floats with n >= 1. None where the model
    fails on the batch.

    A float32 pass that differs by a few roundings settles the matter; another is repeated in float64, where a
    difference is hardly rounding. A model that takes no sample alone (batch statistics of one value) is compared in
    pairs. ``size``: the largest batch that the model is asked in; where the small batch shows nothing, the same samples
    are compared in one of that size, since a network may change its ways in a large batch alone.
    """
    model = getattr(model, "_orig_mod", model)  # compiled: another batch size would compile it anew
    x = outside_inference(x.detach())
    try:
        found = _settled(model, x, seed)
    except (ValueError, RuntimeError, IndexError):
        return None
    if found.found or size <= found.size:
        return found
    try:
        crowd = _settled(model, x, seed, size)
    except (ValueError, RuntimeError, IndexError):  # out of memory, in float64
        return found
    return crowd if crowd.found else found


def _settled(model: nn.Module, x: Tensor, seed: int, size: int = 0) -> Dependence:
    """The comparison in the model's own type, or in float64 where that shows more than a few roundings."""
    found = _compare(model, x, seed, size=size)
    if found.change > 32 * torch.finfo(found.dtype).eps:
        double, dtype = twin(model, x[:1])
        found = _compare(double, x.to(dtype), seed, size=size, rough=True)
    return found


def _mixed(x: Tensor) -> tuple[Tensor, list[int]]:
    """A few samples, others, and altered copies as one batch; and which of it are compared."""
    few = x[torch.arange(min(FEW, len(x)), device=x.device) * len(x) // min(FEW, len(x))]
    others = x[torch.arange(min(OTHERS, len(x)), device=x.device) * len(x) // min(OTHERS, len(x))]
    # Copies that are altered, so that a batch of one sample, or of equal ones, has different neighbours too.
    batch = torch.cat([few, others.flip(0), few.flip(-1) / 2, torch.zeros_like(few[:1])])
    # An altered copy is asked about too: where the batch's largest value is every sample's own, only it depends on it.
    return batch, [*range(len(few)), len(few) + len(others)]


@torch.no_grad()
def _compare(model: nn.Module, x: Tensor, seed: int, *, size: int = 0, rough: bool = False) -> Dependence:
    """Samples in the mixed batch, and alone or, with ``size``, in a batch of so many."""
    batch, rows = _mixed(x)
    with guard(model, mode="eval", seed=seed), full_precision(x.device):
        beside = ask(model, batch)
        again = ask(model, batch)
        others = [_crowded(model, batch, size)[rows]] if size else _fewer(model, batch, rows)
        # A network may lower the precision inside; then its steps are not those of the type that it answers in.
        moved = ask(model, batch * (1 + torch.finfo(torch.float32).eps)) if rough else beside
    scale = float(beside.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny))
    noise = float((beside.double() - again.double()).abs().max())
    roughness = float((beside.double() - moved.double()).abs().max())
    here, classes = beside[rows], [z.argmax(1) for z in others]
    pairs = [(others[0], z) for z in (here, *others[1:])]
    apart = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    flips = int(torch.stack([classes[0] != z for z in (here.argmax(1), *classes[1:])]).any(0).sum())
    # The random numbers of a random layer differ alone and in a batch: several times their size is no chance.
    change = max(apart - 3 * noise, 0.0) / scale
    tolerance = max(torch.finfo(beside.dtype).eps ** 0.5, 8 * roughness / scale)
    return Dependence(change, tolerance, flips, len(rows), size or len(batch), beside.dtype)


def _crowded(model: nn.Module, batch: Tensor, size: int) -> Tensor:
    """The answers for the batch, repeated to ``size`` samples."""
    return ask(model, batch[torch.arange(size, device=batch.device) % len(batch)])[: len(batch)]


def _fewer(model: nn.Module, batch: Tensor, rows: list[int]) -> list[Tensor]:
    """The answers for the rows alone, and in a batch of one sample less."""
    try:
        alone = torch.cat([ask(model, batch[i, None]) for i in rows])
    except (ValueError, RuntimeError, IndexError):
        alone = torch.cat([ask(model, torch.stack([batch[i], batch[i].flip(-1) / 3]))[:1] for i in rows])
    # A network may also see whether the number of samples is even.
    return [alone, ask(model, batch[:-1])[rows]]


def dependence_hint(model: nn.Module, x: Tensor, *, seed: int = 0, size: int = 0) -> str | None:
    """One line where the model's answer for a sample depends on its batch, else None; ``size`` as in `dependence`."""
    found = dependence(model, x, seed=seed, size=size)
    if found is None or not found.found:
        return None
    return (
        f"the network's answer for a sample depends on the other samples of its batch: alone and in a batch of"
        f" {found.size} logits differ by {100 * found.change:.2g} % of the largest, and {found.flips} of {found.n}"
        f" classes ({str(found.dtype).removeprefix('torch.')}); all figures change with the batch size, and no"
        f" certificate holds: use stored batch-norm statistics (track_running_stats=True, model.eval())"
    )
