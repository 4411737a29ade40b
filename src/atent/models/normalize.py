"""Normalisation as a layer, so that threats and attacks are in pixel units."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Maps x of shape (n, c, h, w), or of another number of dimensions, to (x - mean) / std, per channel.

    ``mean`` and ``std`` are buffers of shape (c, 1, 1), of images: the state dict contains them, and training does not
    change them.

    Parameters
    ----------
    mean
        One finite number per channel, in the units of x (pixels in [0, 1]).
    std
        One finite number above 0 per channel, in the same units.
    dims
        Dimensions of a sample after its channels: 2 for images (n, c, h, w), 1 for signals (n, c, t), 0 for the
        columns of a table (n, c), 3 for volumes (n, c, d, h, w).

    Raises
    ------
    ValueError
        If the lengths differ or are 0, a value is not finite, or a standard deviation is not above 0; in the forward
        pass, for inputs of another number of dimensions, whose channels would not be those of mean and std.

    Examples
    --------
    >>> import torch
    >>> from atent.models import Normalize
    >>> model = torch.nn.Sequential(Normalize([0.5], [0.25]), torch.nn.Flatten(), torch.nn.Linear(784, 10))
    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    >>> Normalize([0.5, 3.0], [0.25, 1.0], dims=0)(torch.tensor([[1.0, 4.0]])).tolist()
    [[2.0, 1.0]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dims: int = 2):
        super().__init__()
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if not mean or len(mean) != len(std):
            raise ValueError(f"normalize needs one mean and one std per channel, got {mean} and {std}")
        if not all(map(math.isfinite, mean + std)):
            raise ValueError(f"normalize needs finite numbers, got mean {mean} and std {std}")
        if min(std) <= 0:
            raise ValueError(f"normalize needs every std above 0, got {std}")
        if dims not in range(4):
            raise ValueError(f"dims must be 0 (tables), 1 (signals), 2 (images) or 3 (volumes), got {dims!r}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, *[1] * dims))
        self.register_buffer("std", torch.tensor(std).view(-1, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check(x, self.mean)
        return (x - self.mean) / self.std


def _check(x: Tensor, mean: Tensor) -> None:
    """ValueError for inputs whose samples, or columns, would be broadcast against the channels."""
    # What traces the network gives no tensor, and no dimensions.
    if not isinstance(x, Tensor) or x.dim() == mean.dim() + 1:
        return
    fix = f"give dims={x.dim() - 2}" if 2 <= x.dim() <= 5 else "give a batch of samples with channels"
    raise ValueError(
        f"Normalize with dims={mean.dim() - 1} takes inputs of {mean.dim() + 1} dimensions, got shape"
        f" {tuple(x.shape)}: {fix}"
    )
