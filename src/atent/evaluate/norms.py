"""Robust accuracy at every radius, and quantiles, from the smallest adversarial norms of n samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from atent.attacks.base import Outcome


class Curve(NamedTuple):
    """Robust accuracy against the radius, a decreasing step function."""

    radii: list[float]
    """0 and every distinct finite norm, ascending, in pixel units."""
    accuracy: list[float]
    """Share of the samples that are robust at each radius, in [0, 1], constant up to the next one."""


def found_norms(outcome: Outcome) -> Tensor:
    """Distance of each sample's adversarial point, inf where the attack found none.

    Parameters
    ----------
    outcome
        The result of ``attack.run`` of a minimum-norm attack.

    Returns
    -------
    Tensor
        float64 (n,), in the norm of the attack's threat.
    """
    return torch.where(outcome.success, outcome.norm, math.inf)


def robust_accuracy(norms: Tensor, radii: Tensor) -> Tensor:
    """Share of the samples whose norm exceeds each radius.

    Parameters
    ----------
    norms
        Smallest adversarial norms (n,): 0 for misclassified samples, inf where not fooled. A sample of norm r is not
        robust at r.
    radii
        Radii (m,), in the same units.

    Returns
    -------
    Tensor
        float64 (m,), in [0, 1].

    Raises
    ------
    ValueError
        In one line, for no samples, and for norms that are negative or NaN.
    """
    ordered = _sorted(norms)
    fallen = torch.searchsorted(ordered, radii.to(ordered), right=True)
    return 1 - fallen.double() / len(ordered)


def curve(norms: Tensor) -> Curve:
    """`robust_accuracy` at 0, the clean accuracy, and at every radius where it decreases.

    Parameters
    ----------
    norms
        As in `robust_accuracy`.

    Returns
    -------
    Curve
        Radii and accuracies.

    Raises
    ------
    ValueError
        In one line, as `robust_accuracy`.
    """
    ordered = _sorted(norms)
    radii = torch.cat([ordered.new_zeros(1), ordered[ordered.isfinite()]]).unique()
    return Curve(radii.tolist(), robust_accuracy(norms, radii).tolist())


def quantile(norms: Tensor, share: float) -> float:
    """The smallest radius at which at least a share of the samples are not robust.

    Without interpolation, which inf among the norms would not allow.

    Parameters
    ----------
    norms
        As in `robust_accuracy`.
    share
        In (0, 1]; 0.5 is the median.

    Returns
    -------
    float
        inf if there is no such radius.

    Raises
    ------
    ValueError
        In one line, as `robust_accuracy`, and for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}: 0.5 is the median")
    ordered = _sorted(norms)
    # Rounded first, as 0.1 * 30 is slightly more than 3 in floating point.
    return float(ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1])


def median(norms: Tensor) -> float:
    """The smallest radius at which at least half of the samples are not robust; inf if there is none."""
    return quantile(norms, 0.5)


def _sorted(norms: Tensor) -> Tensor:
    if norms.dim() != 1 or not len(norms):
        raise ValueError(f"norms must be one number per sample, got shape {tuple(norms.shape)}")
    if not bool((norms >= 0).all()):
        raise ValueError("norms must be at least 0, and inf where an attack fails: some are negative or NaN")
    return norms.double().sort().values
