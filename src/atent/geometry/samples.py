"""Norms and directions of each sample of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per sample so that it broadcasts over the samples.

    Parameters
    ----------
    v
        One value per sample, shape (n,).
    like
        The samples, shape (n, ...).

    Returns
    -------
    Tensor
        The same values in shape (n, 1, ..., 1), with as many dimensions as ``like``; a view where possible.

    Examples
    --------
    >>> import torch
    >>> from atent.threat import per_sample
    >>> x = torch.ones(2, 3, 4, 4)
    >>> scale = torch.tensor([0.0, 2.0])
    >>> (x * per_sample(scale, x)).sum((1, 2, 3))
    tensor([ 0., 96.])
    """
    return v.reshape(-1, *[1] * (like.dim() - 1))


def l2_norm(d: Tensor) -> Tensor:
    """The l2 norm of each sample, summed in float64: squares do not overflow, and rounding does not grow with dim.

    Parameters
    ----------
    d
        Perturbations or gradients, shape (n, ...), floating point.

    Returns
    -------
    Tensor
        The norms, shape (n,), in the dtype of ``d``.

    Examples
    --------
    >>> import torch
    >>> from atent.threat import l2_norm
    >>> l2_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([5., 0.])
    """
    norm: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1, dtype=torch.float64).to(d.dtype)
    return norm


def unit(grad: Tensor, order: float = 2) -> Tensor:
    """Each sample divided by its norm, ``g / ||g||_order``; a zero sample stays zero.

    Samples are scaled by their largest entry first, so that tiny gradients do not underflow.

    Parameters
    ----------
    grad
        Gradients, shape (n, ...), floating point.
    order
        Order of the norm, 1 or more; ``math.inf`` divides by the largest absolute entry. Default: 2.

    Returns
    -------
    Tensor
        Directions of unit length, the shape of ``grad``.

    Examples
    --------
    >>> import math, torch
    >>> from atent.threat import unit
    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), math.inf)
    tensor([[0.7500, 1.0000],
            [0.0000, 0.0000]])
    """
    flat = grad.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    scaled = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = torch.linalg.vector_norm(scaled, order, dim=1, keepdim=True)
    made: Tensor = (scaled / norm.clamp_min(torch.finfo(grad.dtype).tiny)).view_as(grad)
    return made
