"""The rows of one group of samples, by the library's certifier or an external one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atent.certify.limits import largest_radius
from atent.certify.rows import Row
from atent.certify.smoothing import ABSTAIN, Smoothed, certificates, predictions
from atent.guard import ask, guard
from atent.origins import called_by
from atent.precision import full_precision
from atent.progress import Advance
from atent.registry import first_line

if TYPE_CHECKING:
    from atent.certify.summary import Sampling


def made_by(
    certifier: Callable[[nn.Module, float], Any], model: nn.Module, sigma: float, channels_last: bool | None
) -> Any:
    """The certifier; ValueError, in one line, where an external one cannot be constructed."""
    if certifier is Smoothed:
        return Smoothed(model, sigma, channels_last)
    try:
        return certifier(model, sigma)
    except Exception as error:
        raise ValueError(f"{name_of(certifier)} raised {first_line(error)}") from error


def name_of(certifier: Any) -> str:
    """The certifier's name, for errors; of a partial that of what it calls."""
    certifier = called_by(certifier)
    return str(getattr(certifier, "__name__", type(certifier).__name__))


def rows_of(
    smoothed: Any, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, sampling: Sampling, batch: int | None,
    advance: Advance | None,
) -> list[Row]:  # fmt: skip
    """A row for each of the samples, which share forward passes."""
    begun = time.perf_counter()
    clean, taken = clean_logits(model, x, sampling.seed).argmax(1), torch.zeros(len(x), dtype=torch.int64)
    if sampling.radius is not None:
        at = smoothed.decided(
            x, sampling.radius, sampling.n0, sampling.n, sampling.alpha, seed=sampling.seed, ids=ids, batch=batch,
            advance=advance,
        )  # fmt: skip
        classes = plain = at.classes
        radii, taken = (classes != ABSTAIN).double() * sampling.radius, at.samples
    elif type(smoothed) is Smoothed:
        found = smoothed.two_votes(
            x, sampling.n0, sampling.n, seed=sampling.seed, ids=ids, batch=batch, advance=advance
        )
        classes, radii = certificates(*found, sampling.sigma, sampling.alpha)
        plain = predictions(found[1], sampling.alpha)
    else:
        classes, radii = _certified_by(smoothed, model, x, ids, sampling)
        plain = classes
        if advance:
            advance(len(x) * (sampling.n0 + sampling.n), "")
    table = (v.tolist() for v in (ids, y, classes, radii, classes == y.to(classes.device), clean, plain, taken))
    seconds = round((time.perf_counter() - begun) / len(x), 6)
    return [
        Row(i, label, got, radius, int(right), seconds, base, vote, samples)
        for i, label, got, radius, right, base, vote, samples in zip(*table)
    ]


def _certified_by(smoothed: Any, model: nn.Module, x: Tensor, ids: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Classes (n,) and radii (n,) of an external certifier; ValueError, in one line, for any other result."""
    name, n = type(smoothed).__name__, len(x)
    with guard(model, mode="eval", seed=sampling.seed), full_precision(x.device):
        try:
            found = smoothed.certify(x, sampling.n0, sampling.n, sampling.alpha, seed=sampling.seed, ids=ids)
        except Exception as error:
            raise ValueError(f"{name}.certify raised {first_line(error)}") from error
    pair = tuple(found) if isinstance(found, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(t, Tensor) and t.shape == (n,) for t in pair):
        raise ValueError(f"{name}.certify must return (classes, radii), tensors of shape ({n},): see Smoothed.certify")
    if pair[0].is_floating_point():
        raise ValueError(f"{name}.certify must return classes as integers, got {pair[0].dtype}")
    classes, radii = pair[0].long(), pair[1].double()
    most = largest_radius(sampling.n, sampling.alpha, sampling.sigma)
    # Comparisons with NaN are false, so that NaN is refused.
    if not bool(((radii >= 0) & (radii <= most * (1 + 1e-9))).all()):
        raise ValueError(
            f"{name}.certify gives radii of {float(radii.min()):.4g} to {float(radii.max()):.4g}: {sampling.n:,} noise"
            f" samples of sigma {sampling.sigma:g} certify 0 to {most:.4g}"
        )
    return classes, torch.where(classes == ABSTAIN, 0.0, radii)


@torch.no_grad()
def clean_logits(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """The base model's logits without noise."""
    with guard(model, mode="eval", seed=seed), full_precision(x.device):
        return ask(model, x)
