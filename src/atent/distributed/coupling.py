"""Communication within the passes of a step: rows of all ranks, and batch-norm over the full batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from atent.distributed.batch_shard import BatchShard, shared

Function: Any = torch.autograd.Function  # untyped


def gathered(t: Tensor, *, weighted: bool = True) -> Tensor:
    """The rows of all ranks in the order of the batch, with their graph; ``t`` itself if one process has all of them.

    For losses that compare samples with each other. Every rank then computes the loss of the full batch, and its
    gradient reaches the rows of each rank there.

    Parameters
    ----------
    t
        A row for each sample of this rank, or for each of m copies of its samples, one copy after the other.
    weighted
        Whether the loss is that of a training step: the loop multiplies it by a rank's share of the batch, and its
        gradient is divided by that share here. False for the unscaled gradient, for example of an adversary that
        maximises the loss of the batch.

    Returns
    -------
    Tensor
        (m n, ...) for a batch, or micro-batch, of n.
    """
    shard = shared()
    if shard is None:
        return t
    found: Tensor = _Gathered.apply(t, shard, weighted)
    return found


class _Gathered(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, t: Tensor, shard: BatchShard, weighted: bool) -> Tensor:
        copies, length = len(t) // shard.length, shard.part.stop - shard.part.start
        own = slice(shard.rows.start - shard.part.start, shard.rows.stop - shard.part.start)
        ctx.own, ctx.copies, ctx.length = own, copies, length
        ctx.factor = 0.0 if not shard.counts else length / shard.length if weighted else 1.0
        batch = t.new_zeros(copies, length, *t.shape[1:])
        if shard.counts:
            batch[:, own] = t.reshape(copies, shard.length, *t.shape[1:])
        shard.world.add([batch])
        return batch.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        own = slope.unflatten(0, (ctx.copies, ctx.length))[:, ctx.own].flatten(0, 1)
        return own * ctx.factor, None, None


class Synchronised(TorchFunctionMode):
    """Inside, batch-norm in train mode normalises by the statistics of the full batch, in forward and backward.

    `torch.nn.SyncBatchNorm` does so on CUDA only. Means and sums of squares of the ranks are combined by Chan's
    formula. A forward pass sends 2 C + 1 numbers, a backward pass 2 C, for C channels. The running statistics use the
    unbiased variance of the full batch, with the layer's current momentum. Second derivatives raise an error.

    References
    ----------
    Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations", The
    American Statistician 37.
    """

    def __init__(self, shard: BatchShard) -> None:
        super().__init__()
        self.shard = shard
        self.layers: dict[Callable[..., Any], Callable[..., Tensor]] = {
            F.batch_norm: self._functional,
            torch.batch_norm: self._plain,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = self.layers.get(func, func)
        return layer(*args, **kwargs) if kwargs else layer(*args)

    def _functional(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        found: Tensor = _Normalised.apply(x, weight, bias, running_mean, running_var, momentum, eps, self.shard)
        return found

    def _plain(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, training: bool, momentum: float, eps: float, *_: Any,
    ) -> Tensor:  # fmt: skip
        return self._functional(x, running_mean, running_var, weight, bias, training, momentum, eps)


class _Normalised(Function):  # type: ignore[misc]
    """Batch-norm of the rows of all ranks; rows with weight 0 are normalised but do not contribute to statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float, shard: BatchShard,
    ) -> Tensor:  # fmt: skip
        wide, norm = _wide(x), torch.ops.aten.native_batch_norm
        mean, squares, total = _moments(wide, shard)
        var = squares / total
        if running_mean is not None and running_var is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
            # A single value has no unbiased variance; torch raises an error for it.
            unbiased = squares / (total - 1).clamp_min(1)
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
        scale, shift = (None if t is None else t.to(wide.dtype) for t in (weight, bias))
        out: Tensor = norm(wide, scale, shift, mean, var, False, 0.0, eps)[0]
        ctx.save_for_backward(x, mean, var, total, scale)
        ctx.eps, ctx.shard = eps, shard
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        x, mean, var, total, scale = ctx.saved_tensors
        x, wide, aten = _wide(x), _wide(slope), torch.ops.aten
        # As for a layer in eval mode, whose mean and variance are constants: only the sums over the rows.
        known = (scale, mean, var, None, None, False, ctx.eps, [False, True, True])
        _, along, flat = aten.native_batch_norm_backward(wide, x, *known)
        sums = torch.stack([flat, along])
        if not ctx.shard.counts:
            sums.zero_()
        for_bias, for_weight = sums.clone() if scale is not None else (None, None)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, for_bias, None, None, None, None, None
        ctx.shard.world.add([sums])
        if not ctx.shard.counts:
            return torch.zeros_like(slope), for_weight, for_bias, None, None, None, None, None
        factor = (var + ctx.eps).rsqrt()
        factor = factor if scale is None else factor * scale
        flat, along = sums / total * -factor
        inner = aten.native_batch_norm(x, along, flat, mean, var, False, 0.0, ctx.eps)[0]
        inner.addcmul_(wide, factor.view(1, -1, *[1] * (x.dim() - 2)))
        return inner.to(slope.dtype), for_weight, for_bias, None, None, None, None, None


def _wide(t: Tensor) -> Tensor:
    """Convert to at least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _moments(x: Tensor, shard: BatchShard) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), sum of squared distances from it (C,), and number of values, over the rows of all ranks."""
    channels = x.shape[1]
    own = x.new_zeros(2 * channels + 1)
    if shard.counts:
        # The kernel of batch-norm: `torch.var_mean` over the same dimensions takes several times as long.
        mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        count = x.numel() // channels
        own = torch.cat([mean, var * count, mean.new_full((1,), count)])
    moments = shard.world.stacked(own)
    counts, means, squares = moments[:, -1:], moments[:, :channels], moments[:, channels:-1]
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (squares + counts * (means - mean).square()).sum(0), total
