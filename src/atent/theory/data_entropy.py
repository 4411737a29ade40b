"""The gradient of the data-entropy loss from samples: one coefficient for each sample's own gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def data_entropy_coefficients(
    losses: Tensor, temperature: float, weights: Sequence[float] | Tensor | None = None
) -> Tensor:
    """Coefficients a (m, n) with which sum_k a_ki grad L_ki estimates the gradient of image i's data-entropy loss.

    L_DE(w) = E_p[L] with p ~ exp((L - gamma/2 ||x' - x||^2) / T) has the gradient E_p[grad L] + Cov_p(L, grad L) / T
    (the supplement of Jagatap et al. 2022 drops the normaliser and prints E_p[grad L (1 + L)]). ``losses`` (m, n) are
    those of m samples of p for each of n images, ``temperature`` is T. With weights c that sum to 1,

        a_ki = c_k (1 + (L_ki - sum_j c_j L_ji) / (T (1 - sum_j c_j^2))).

    The last factor makes the covariance unbiased where the samples are independent, as m / (m - 1) does for equal
    weights. A column sums to 1, and losses that all move by a constant give the same coefficients. ``weights`` (m,) are
    normalised here; left out: equal ones. The coefficients carry no gradient: multiply them into the losses of a second
    pass, sum, and differentiate.

    ValueError for fewer than two samples, a temperature that is not above 0 (without noise nothing is sampled), and
    weights that are negative, of another number than the samples, or all on one of them.
    """
    if losses.dim() != 2 or len(losses) < 2:
        raise ValueError(f"a covariance needs losses (m, n) of m >= 2 samples, got shape {tuple(losses.shape)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}: without noise nothing is sampled")
    c = torch.ones(len(losses)) if weights is None else torch.as_tensor(weights)
    c = c.to(losses.device, torch.float64)
    if c.shape != (len(losses),) or not bool((c >= 0).all()) or not float(c.sum()) > 0:
        raise ValueError(f"weights must be {len(losses)} numbers of at least 0, one for each sample, got {c.tolist()}")
    c = (c / c.sum())[:, None]
    spread = 1 - float((c * c).sum())
    if spread < 1e-12:
        raise ValueError("all the weight is on one sample, which has no covariance: spread it over two at least")
    wide = losses.detach().double()
    centred = wide - (c * wide).sum(0)
    return (c * (1 + centred / (temperature * spread))).to(losses.dtype)
