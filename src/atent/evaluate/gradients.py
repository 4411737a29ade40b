"""Checks of the model itself: what its outputs and its input gradients are worth to an attack.

Each takes a `Probe` and returns whether it passed, and the measured figure in words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.evaluate.probe import Probe, forward, gradient, looks_like_probabilities
from atent.guard import ask, guard
from atent.independence import dependence
from atent.losses import cross_entropy, margin
from atent.precision import full_precision, twin
from atent.rng import PerSample

Verdict = tuple[bool, str]

FEW, COORDINATES = 20, 8
"""Samples, and coordinates per sample of each kind, on which differences are compared with derivatives."""
ROUNDING = 1e-3
"""Share of the logits' spread below which a change is rounding."""
FINE, COARSE = 0.1, 0.5
"""Largest disagreement of differences and derivatives at a tiny step, and at the step of an attack."""
FLAT = 0.01
"""Share of the samples that may have no gradient."""


def logits(probe: Probe) -> Verdict:
    """The model returns logits: outputs that all lie in [0, 1] are probabilities."""
    low, high = float(probe.logits.min()), float(probe.logits.max())
    return not looks_like_probabilities(probe.logits), f"outputs lie in [{low:.3g}, {high:.3g}] (n = {probe.n})"


@torch.no_grad()
def _twice(probe: Probe) -> tuple[Tensor, Tensor]:
    x = probe.x[: probe.batch]
    with guard(probe.model, mode="eval", seed=probe.seed), full_precision(x.device):
        return ask(probe.model, x), ask(probe.model, x)


def _spread(z: Tensor) -> float:
    return float(z.max() - z.min())


def repeatable(probe: Probe) -> Verdict:
    """Two forwards of the same batch are the same."""
    first, second = _twice(probe)
    change = float((first - second).abs().max()) / max(_spread(first), 1e-30)
    flips = int((first.argmax(1) != second.argmax(1)).sum())
    text = f"the same forward twice: logits change by {100 * change:.2g} % of their spread, {flips} verdicts flip"
    return change <= ROUNDING, f"{text} (n = {len(first)})"


def independent(probe: Probe) -> Verdict:
    """A sample's logits are the same alone and beside other samples."""
    found = dependence(probe.model, probe.x, seed=probe.seed, size=probe.batch)
    if found is None:
        return False, "not measured: the model fails on a batch of other samples"
    size = f"{100 * found.change:.2g} % of the largest" if found.found else "rounding only"
    flips = f"{found.flips} of {found.n} classes change"
    return not found.found, f"other samples in the batch move logits by {size}, {flips}"


def _flat(grad: Tensor) -> Tensor:
    return (grad.flatten(1) == 0).all(1)


def zero_gradient(probe: Probe) -> Verdict:
    """Few inputs have a gradient of the margin that is zero in every coordinate; the margin does not saturate."""
    flat = int(_flat(probe.gradient(margin)).sum())
    text = f"{100 * flat / probe.n:.1f} % of inputs have a zero gradient (n = {probe.n})"
    return flat <= FLAT * probe.n, text


def saturation(probe: Probe) -> Verdict:
    """The cross-entropy keeps its gradient where the margin has one."""
    lost = int((_flat(probe.gradient(cross_entropy)) & ~_flat(probe.gradient(margin))).sum())
    text = f"on {100 * lost / probe.n:.1f} % of inputs the cross-entropy's gradient vanishes and the margin's does not"
    return lost <= FLAT * probe.n, f"{text} (n = {probe.n})"


def finite_differences(probe: Probe) -> Verdict:
    """Autograd tells how the margin changes: central differences on sampled coordinates agree with it, at a tiny step
    and at the step of PGD-20.

    A staircase agrees at one of the two at best, and so does a fine sawtooth. Half of the coordinates are drawn, half
    have the largest derivatives. The disagreement of a sample is ||differences - derivatives|| over the sum of both
    norms: 0 is perfect, 1 is unrelated in size; the figure is the median over the samples.
    """
    model, dtype = twin(probe.model, probe.x[:1])
    low, high = probe.threat.edges(probe.x[:1].to(dtype))
    narrowest = float(torch.as_tensor(high - low, dtype=torch.float64).min())
    tiny = (1e-4 if dtype == torch.float64 else 2e-3) * narrowest
    steps = tiny, max(tiny, min(PGD(probe.threat).resolved_step, narrowest / 4))
    # Away from the faces of the box, so that both sides are legal inputs, and the same point for both steps.
    x = probe.x[:FEW].to(dtype).clamp(low + steps[1], high - steps[1])
    y = probe.y[:FEW]
    slopes = gradient(model, x, y, margin, seed=probe.seed, batch=probe.batch).flatten(1)
    count = min(COORDINATES, slopes.shape[1])
    drawn = PerSample(probe.seed, probe.ids[:FEW], "masking").integers(slopes.shape[1], (len(x), count))
    where = torch.cat([drawn, slopes.abs().topk(count, dim=1).indices], dim=1)
    found = [_disagreement(probe, model, x, y, where, slopes, step) for step in steps]
    precision = "float64" if dtype == torch.float64 else "float32"
    text = " and ".join(f"{100 * e:.1f} % at a step of {h:.2g}" for e, h in zip(found, steps))
    return (
        found[0] <= FINE and found[1] <= COARSE,
        f"differences and derivatives disagree by {text} (median of n = {len(x)}, {where.shape[1]} coordinates each,"
        f" {precision})",
    )


def _disagreement(
    probe: Probe, model: nn.Module, x: Tensor, y: Tensor, where: Tensor, slopes: Tensor, step: float
) -> float:
    differences = []
    for column in where.T:
        spot = torch.zeros_like(x).flatten(1).scatter(1, column[:, None], step).view_as(x)
        up, down = (margin(forward(model, z, seed=probe.seed, batch=probe.batch), y) for z in (x + spot, x - spot))
        differences.append((up - down) / (2 * step))
    measured, claimed = torch.stack(differences, 1), slopes.gather(1, where)
    size = measured.norm(dim=1) + claimed.norm(dim=1)
    error = (measured - claimed).norm(dim=1) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return float(error[size > 0].median()) if bool((size > 0).any()) else 0.0
