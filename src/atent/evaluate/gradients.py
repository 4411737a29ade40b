"""Checks of the model itself: whether its outputs and its input gradients are usable by attacks.

Each takes a `Subject` and returns whether it passed, and the measured number as text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atent.attacks.pgd import PGD
from atent.evaluate.subject import Subject, forward, gradient, looks_like_probabilities
from atent.guard import ask, guard
from atent.independence import dependence, unmasked
from atent.losses import cross_entropy, margin
from atent.precision import full_precision, twin
from atent.rng import PerSample

Verdict = tuple[bool, str]

FEW, COORDINATES = 20, 8
"""Samples, and coordinates per sample of each kind, for the comparison of differences with derivatives."""
ROUNDING = 1e-3
"""Share of the range of the logits below which a change counts as rounding."""
FINE, COARSE = 0.1, 0.5
"""Largest error of derivatives at a tiny step, and at the step of an attack."""
UNITS = 16
"""Rounding errors of a logit, in units of its precision, by which a change does not count as a disagreement."""
FLAT = 0.01
"""Share of the samples that may have no gradient."""


def logits(subject: Subject) -> Verdict:
    """The model returns logits: outputs that all lie in [0, 1] are probabilities."""
    low, high = float(subject.logits.min()), float(subject.logits.max())
    return not looks_like_probabilities(subject.logits), f"outputs lie in [{low:.3g}, {high:.3g}] (n = {subject.n})"


@torch.no_grad()
def _twice(subject: Subject) -> tuple[Tensor, Tensor]:
    x = subject.x[: subject.batch]
    with guard(subject.model, mode="eval", seed=subject.seed), full_precision(x.device):
        return ask(subject.model, x), ask(subject.model, x)


def _spread(z: Tensor) -> float:
    z = unmasked(z)
    return float(z.max() - z.min())


def repeatable(subject: Subject) -> Verdict:
    """Two forwards of the same batch are the same."""
    first, second = _twice(subject)
    change = float((first - second).abs().max()) / max(_spread(first), 1e-30)
    flips = int((first.argmax(1) != second.argmax(1)).sum())
    text = f"the same forward twice: logits change by {100 * change:.2g} % of their spread, {flips} verdicts flip"
    return change <= ROUNDING, f"{text} (n = {len(first)})"


def independent(subject: Subject) -> Verdict:
    """The logits of a sample do not depend on the other samples of the batch."""
    found = dependence(subject.model, subject.x, seed=subject.seed, size=subject.batch)
    if found is None:
        return False, "not measured: the model fails on a batch of other samples"
    size = f"{100 * found.change:.2g} % of the largest" if found.found else "rounding only"
    flips = f"{found.flips} of {found.n} classes change"
    return not found.found, f"other samples in the batch move logits by {size}, {flips}"


def _flat(grad: Tensor) -> Tensor:
    return (grad.flatten(1) == 0).all(1)


def zero_gradient(subject: Subject) -> Verdict:
    """At most 1 % of the inputs have a zero gradient of the margin, which does not saturate."""
    flat = int(_flat(subject.gradient(margin)).sum())
    text = f"{100 * flat / subject.n:.1f} % of inputs have a zero gradient (n = {subject.n})"
    return flat <= FLAT * subject.n, text


def saturation(subject: Subject) -> Verdict:
    """The gradient of the cross-entropy vanishes on at most 1 % of the inputs where that of the margin does not."""
    lost = int((_flat(subject.gradient(cross_entropy)) & ~_flat(subject.gradient(margin))).sum())
    text = (
        f"on {100 * lost / subject.n:.1f} % of inputs the cross-entropy's gradient vanishes and the margin's does not"
    )
    return lost <= FLAT * subject.n, f"{text} (n = {subject.n})"


def finite_differences(subject: Subject) -> Verdict:
    """Gradients agree with central differences of the margin, at a tiny step and at the step of PGD-20.

    A staircase or a fine sawtooth agrees at one of the two at best. Half of the coordinates are sampled at random, half
    have the largest derivatives. The error of a sample is ||differences - derivatives||, less what rounding explains,
    over the sum of both norms, 0 to 1; the figure is the median over the samples.
    """
    model, dtype = twin(subject.model, subject.x[:1])
    low, high = subject.threat.edges(subject.x[:1].to(dtype))
    narrowest = float(torch.as_tensor(high - low, dtype=torch.float64).min())
    tiny = (1e-4 if dtype == torch.float64 else 2e-3) * narrowest
    steps = tiny, max(tiny, min(PGD(subject.threat).resolved_step, narrowest / 4))
    # Inside the box by the larger step, so that both sides are legal inputs, and the same point for both steps.
    x = subject.x[:FEW].to(dtype).clamp(low + steps[1], high - steps[1])
    y = subject.y[:FEW]
    slopes = gradient(model, x, y, margin, seed=subject.seed, batch=subject.batch).flatten(1)
    count = min(COORDINATES, slopes.shape[1])
    sampled = PerSample(subject.seed, subject.ids[:FEW], "masking").integers(slopes.shape[1], (len(x), count))
    where = torch.cat([sampled, slopes.abs().topk(count, dim=1).indices], dim=1)
    logits = unmasked(forward(model, x, seed=subject.seed, batch=subject.batch))
    rounding = UNITS * torch.finfo(dtype).eps * logits.abs().amax(1)
    found = [_disagreement(subject, model, x, y, where, slopes, step, rounding) for step in steps]
    precision = "float64" if dtype == torch.float64 else "float32"
    text = " and ".join(f"{100 * e:.1f} % at a step of {h:.2g}" for e, h in zip(found, steps))
    return (
        found[0] <= FINE and found[1] <= COARSE,
        f"differences and derivatives disagree by {text} (median of n = {len(x)}, {where.shape[1]} coordinates each,"
        f" {precision})",
    )


def _disagreement(
    subject: Subject, model: nn.Module, x: Tensor, y: Tensor, where: Tensor, slopes: Tensor, step: float,
    rounding: Tensor,
) -> float:  # fmt: skip
    differences = []
    for column in where.T:
        spot = torch.zeros_like(x).flatten(1).scatter(1, column[:, None], step).view_as(x)
        up, down = (margin(forward(model, z, seed=subject.seed, batch=subject.batch), y) for z in (x + spot, x - spot))
        differences.append((up - down) / (2 * step))
    measured, claimed = torch.stack(differences, 1), slopes.gather(1, where)
    size = measured.norm(dim=1) + claimed.norm(dim=1)
    # On a plateau, such as that of a sigmoid, derivatives are smaller than the rounding errors of differences.
    excess = (measured - claimed).norm(dim=1) - math.sqrt(len(where.T)) * rounding / step
    error = excess.clamp_min(0) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return float(error[size > 0].median()) if bool((size > 0).any()) else 0.0
