"""Whether a model's output for a sample depends on the other samples of its batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atent.guard import ask, guard, outside_inference, seed_all
from atent.losses import magnitude
from atent.precision import full_precision, twin

FEW, OTHERS = 4, 8
"""Number of samples that are evaluated alone, and of other samples in their batch, which also has altered copies."""


class Dependence(NamedTuple):
    """Comparison of samples evaluated alone and in a batch."""

    change: float
    """Largest difference of the logits as a share of the largest logit, minus the noise of a random model."""
    tolerance: float
    """Share that rounding explains: sqrt(machine epsilon) of the dtype, or more if the last float32 digit of the inputs
    changes the logits by more."""
    flips: int
    """Number of samples whose class changes."""
    n: int
    """Number of compared samples, including an altered copy."""
    size: int
    """Number of samples in the batch."""
    dtype: torch.dtype
    """The dtype of the comparison: float64 if the model can be copied to it."""
    noise: float = 0.0
    """Largest difference of the logits between two passes over the same batch, as a share of the largest logit."""
    state: float = 0.0
    """The same for two passes that begin with the same random states, in the model's own dtype: what the passes before
    them change. 0 where rounding explains it."""

    @property
    def found(self) -> bool:
        """Whether the difference exceeds rounding."""
        return self.change > self.tolerance


def dependence(model: nn.Module, x: Tensor, *, seed: int = 0, size: int = 0) -> Dependence | None:
    """Compare samples alone and in a batch, in eval mode; ``x`` (n, ...) floats with n >= 1. None if the model fails on
    the batch.

    A float32 comparison that differs by a few roundings is final; otherwise it is repeated in float64, where rounding
    is unlikely to explain a difference. A model that fails on single samples (batch statistics of one value) is
    compared in pairs. ``size``: the largest batch size in use; if the small batch shows no difference, the same samples
    are compared in a batch of that size, since a network may depend on the batch in large batches only.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled model would be recompiled for another batch size
    x = outside_inference(x.detach())
    try:
        found = _settled(model, x, seed)
    except Exception:  # whatever a user's forward raises for other inputs
        return None
    if found.found or size <= found.size:
        return found
    try:
        crowd = _settled(model, x, seed, size)
    except Exception:  # out of memory, in float64
        return found
    return crowd if crowd.found else found


def _settled(model: nn.Module, x: Tensor, seed: int, size: int = 0) -> Dependence:
    """The comparison in the model's own dtype, or in float64 if that shows more than a few roundings."""
    found = _compare(model, x, seed, size=size)
    if found.change > 32 * torch.finfo(found.dtype).eps:
        double, dtype = twin(model, x[:1])
        # The roughness below includes what a pass changes, so a state is that of the first comparison.
        found = _compare(double, x.to(dtype), seed, size=size, rough=True)._replace(state=found.state)
    return found


def _mixed(x: Tensor) -> tuple[Tensor, list[int]]:
    """A batch of a few samples, others, and altered copies, and the rows that are compared."""
    few = x[torch.arange(min(FEW, len(x)), device=x.device) * len(x) // min(FEW, len(x))]
    others = x[torch.arange(min(OTHERS, len(x)), device=x.device) * len(x) // min(OTHERS, len(x))]
    # Altered copies, so that a batch of one sample, or of equal ones, has different samples too.
    batch = torch.cat([few, others.flip(0), few.flip(-1) / 2, torch.zeros_like(few[:1])])
    # An altered copy is compared too: if all samples have the batch's largest value, only it can depend on that.
    return batch, [*range(len(few)), len(few) + len(others)]


@torch.no_grad()
def _compare(model: nn.Module, x: Tensor, seed: int, *, size: int = 0, rough: bool = False) -> Dependence:
    """Compare samples in the mixed batch with the same samples alone or, with ``size``, in a batch of that size."""
    batch, rows = _mixed(x)
    with guard(model, mode="eval", seed=seed), full_precision(x.device):
        seed_all(seed % 2**32, x.device)
        beside = ask(model, batch)
        seed_all(seed % 2**32, x.device)
        replayed, again = ask(model, batch), ask(model, batch)
        others = [_crowded(model, batch, size)[rows]] if size else _fewer(model, batch, rows)
        # A network may use a lower precision inside, so that its rounding is not that of its output's dtype.
        moved = ask(model, batch * (1 + torch.finfo(torch.float32).eps)) if rough else beside
    scale = float(magnitude(unmasked(beside.double())).max().clamp_min(torch.finfo(torch.float64).tiny))
    noise, state = (float((replayed.double() - z.double()).abs().max()) for z in (again, beside))
    roughness = float((beside.double() - moved.double()).abs().max())
    here, classes = beside[rows], [z.argmax(1) for z in others]
    pairs = [(others[0], z) for z in (here, *others[1:])]
    apart = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    flips = int(torch.stack([classes[0] != z for z in (here.argmax(1), *classes[1:])]).any(0).sum())
    # A random layer has other random numbers alone and in a batch: a multiple of their noise is not chance.
    change = max(apart - 3 * noise, 0.0) / scale
    rounding, noise, state = torch.finfo(beside.dtype).eps ** 0.5, noise / scale, state / scale
    tolerance, state = max(rounding, 8 * roughness / scale), state if state > rounding else 0.0
    return Dependence(change, tolerance, flips, len(rows), size or len(batch), beside.dtype, noise, state)


def unmasked(logits: Tensor) -> Tensor:
    """The columns of logits (n, classes) that differ between samples, or all if fewer than two do: a masked class has
    a constant logit, such as -1e9, which would hide changes of the others."""
    varying = (logits != logits[:1]).any(0)
    return logits[:, varying] if int(varying.sum()) > 1 else logits


def _crowded(model: nn.Module, batch: Tensor, size: int) -> Tensor:
    """The logits of the batch, repeated to ``size`` samples."""
    return ask(model, batch[torch.arange(size, device=batch.device) % len(batch)])[: len(batch)]


def _fewer(model: nn.Module, batch: Tensor, rows: list[int]) -> list[Tensor]:
    """The logits of the rows alone, and in a batch of one sample less."""
    try:
        alone = torch.cat([ask(model, batch[i, None]) for i in rows])
    except (ValueError, RuntimeError, IndexError):
        alone = torch.cat([ask(model, torch.stack([batch[i], batch[i].flip(-1) / 3]))[:1] for i in rows])
    # A network may also depend on the parity of the batch size.
    return [alone, ask(model, batch[:-1])[rows]]


def dependence_hint(model: nn.Module, x: Tensor, *, seed: int = 0, size: int = 0) -> str | None:
    """One line if the model's output for a sample depends on its batch, or on earlier passes, so that no certificate is
    valid; otherwise None. ``size`` as in `dependence`."""
    found = dependence(model, x, seed=seed, size=size)
    return batch_hint(found) or _state_hint(found)


def _state_hint(found: Dependence | None) -> str | None:
    if found is None or not found.state:
        return None
    return (
        "the network keeps a state in eval mode: in two passes over the same batch with the same random numbers logits"
        f" differ by {100 * found.state:.3g} % of the largest, so votes depend on the passes before, and no certificate"
        " is valid: remove the cause, such as observers of quantisation (torch.ao.quantization.disable_observer)"
    )


def noise_hint(found: Dependence | None) -> str | None:
    """One line if the model's output differs between two passes over the same batch, otherwise None."""
    if found is None or not found.noise > found.tolerance:
        return None
    return (
        "the network is random or keeps a state in eval mode: in two passes over the same batch logits differ by"
        f" {100 * found.noise:.3g} % of the largest, so each verdict and each gradient is for one sample of its random"
        " numbers: remove the cause (dropout that ignores eval mode), or average with EoT or"
        " AutoAttack(version=rand)"
    )


def batch_hint(found: Dependence | None) -> str | None:
    """`dependence_hint` for a comparison."""
    if found is None or not found.found:
        return None
    return (
        f"the network's output for a sample depends on the other samples of its batch: alone and in a batch of"
        f" {found.size} logits differ by {100 * found.change:.2g} % of the largest, and {found.flips} of {found.n}"
        f" classes ({str(found.dtype).removeprefix('torch.')}); all figures change with the batch size, and no"
        f" certificate is valid: use stored batch-norm statistics (track_running_stats=True, model.eval())"
    )
