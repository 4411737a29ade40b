"""One step of stochastic gradient Langevin dynamics with an anchor.

The same step moves inputs in ATENT and its attack, and weights in Entropy-SGD and SGLD:

    z' = z + step_size * direction + weight * (anchor - z) + noise * sqrt(2 * step_size) * N(0, I)

With ``direction`` the gradient of log p and weight = step_size * gamma it samples
p(z) ~ exp((log p(z) - gamma/2 ||z - anchor||^2) / noise^2): the temperature is noise squared
(Welling and Teh 2011; supplement of Jagatap et al. 2022, B.2 and B.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def langevin_step(
    z: Tensor,
    direction: Tensor,
    anchor: Tensor | None = None,
    *,
    step_size: float,
    weight: float = 0.0,
    noise: float = 0.0,
    normal: Tensor | None = None,
) -> Tensor:
    """One Langevin step as defined in the module; all tensors have the shape of ``z``.

    ``normal`` contains standard normal samples. ValueError for noise without ``normal`` or a weight without ``anchor``.
    """
    out = z.add(direction, alpha=step_size)
    if weight:
        if anchor is None:
            raise ValueError(f"an anchor term of weight {weight:g} needs an anchor")
        out = out.add_(anchor - z, alpha=weight)
    if noise:
        if normal is None:
            raise ValueError(f"noise of {noise:g} needs standard normal samples")
        out = out.add_(normal, alpha=effective_noise(step_size, noise))
    return out


def langevin_move_(
    zs: Sequence[Tensor],
    directions: Sequence[Tensor],
    anchors: Sequence[Tensor] | None = None,
    *,
    step_size: float,
    weight: float = 0.0,
    noise: float = 0.0,
    normals: Sequence[Tensor] | None = None,
) -> None:
    """`langevin_step` for many tensors in place, in a few fused operations, with bit-identical results.

    ValueError as `langevin_step`.
    """
    offsets = None
    if weight:
        if anchors is None:
            raise ValueError(f"an anchor term of weight {weight:g} needs an anchor")
        offsets = torch._foreach_sub(list(anchors), list(zs))
    if noise and normals is None:
        raise ValueError(f"noise of {noise:g} needs standard normal samples")
    torch._foreach_add_(list(zs), list(directions), alpha=step_size)
    if offsets is not None:
        torch._foreach_add_(list(zs), offsets, alpha=weight)
    if noise:
        torch._foreach_add_(list(zs), list(normals or ()), alpha=effective_noise(step_size, noise))


def effective_noise(step_size: float, noise: float) -> float:
    """Standard deviation per coordinate of the noise that one step adds: sqrt(2 step_size) * noise."""
    return math.sqrt(2.0 * step_size) * noise


def noise_for(step_size: float, effective: float) -> float:
    """The ``noise`` whose effective noise is ``effective`` (0.12 at step size 0.02175 is 0.5754).

    ValueError if the step size is 0 and the effective noise is not.
    """
    if effective == 0:
        return 0.0
    if step_size <= 0:
        raise ValueError(f"an effective noise of {effective} needs a step size above 0, got {step_size}")
    return effective / math.sqrt(2.0 * step_size)


def data_entropy_coefficients(losses: Tensor, temperature: float, weights: Sequence[float] | None = None) -> Tensor:
    """Coefficients a (m, n) such that sum_k a_ki grad L_ki estimates the gradient of image i's data-entropy loss.

    L_DE(w) = E_p[L] with p ~ exp((L - gamma/2 ||x' - x||^2) / T) has the gradient E_p[grad L] + Cov_p(L, grad L) / T
    (the supplement of Jagatap et al. 2022, B.1, drops the normaliser of p and prints E_p[grad L (1 + L)], at T = 1).
    ``losses`` (m, n) are those of m samples of p for each of n images, ``temperature`` is T. With weights c that sum
    to 1,

        a_ki = c_k (1 + (L_ki - sum_j c_j L_ji) / (T (1 - sum_j c_j^2))).

    The last factor makes the covariance unbiased for independent samples, as m / (m - 1) does for equal weights; along
    one chain samples are correlated, and their covariance is underestimated. Each column sums to 1, and the
    coefficients do not depend on a constant added to all losses. ``weights`` (m,) are normalised here; default: equal.
    The coefficients carry no gradient: multiply the losses of a second pass by them, sum, and differentiate.

    ValueError for fewer than two samples, a temperature that is not above 0 (without noise nothing is sampled), and
    weights that are negative, of another number than the samples, or all on one of them.
    """
    if losses.dim() != 2 or len(losses) < 2:
        raise ValueError(f"a covariance needs losses (m, n) of m >= 2 samples, got shape {tuple(losses.shape)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}: without noise nothing is sampled")
    # Plain numbers: no synchronisation with the device.
    shares = [1.0] * len(losses) if weights is None else [float(w) for w in weights]
    if len(shares) != len(losses) or not all(w >= 0 for w in shares) or not sum(shares) > 0:
        raise ValueError(f"weights must be {len(losses)} numbers of at least 0, one per sample, got {shares}")
    total = sum(shares)
    shares = [w / total for w in shares]
    spread = 1 - sum(w * w for w in shares)
    if spread < 1e-12:
        raise ValueError("all weight is on one sample, which has no covariance: distribute it over at least two")
    c = torch.tensor(shares, dtype=torch.float64, device=losses.device)[:, None]
    wide = losses.detach().double()
    return (c * (1 + (wide - (c * wide).sum(0)) / (temperature * spread))).to(losses.dtype)
