"""Batch-norm over the rows of all ranks, where one rank has them all: what torch's own layer computes."""

import pytest
import torch
from torch import nn

from atent.distributed import SINGLE, BatchShard, World
from atent.distributed.coupling import Synchronised

N, C = 6, 4
# Sums of at most 150 products, in another order and with another grouping of the affine map, of numbers below 40.
LIMIT = {torch.float64: 1e-12, torch.float32: 5e-4}


def passed(layer, x, slope, mode=None):
    """Output, the gradients that there are, and the running statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    if mode is None:
        out = layer(x)
    else:
        with mode:
            out = layer(x)
    out.backward(slope)
    return [out.detach(), x.grad, *[p.grad for p in layer.parameters()], *[b for b in layer.buffers() if b.dim()]]


@pytest.mark.parametrize("dtype", list(LIMIT), ids=str)
@pytest.mark.parametrize("shape", [(N, C, 5, 5), (N, C, 3), (N, C)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_one_rank_computes_what_torch_computes(dtype, shape, affine):
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    for layout in [torch.contiguous_format, *[torch.channels_last] * (len(shape) == 4)]:
        x = (3 * torch.randn(shape, dtype=dtype) + 2).contiguous(memory_format=layout)
        slope = torch.randn(shape, dtype=dtype)
        one, other = (kind(C, affine=affine, momentum=0.3).to(dtype) for _ in range(2))
        if affine:
            with torch.no_grad():
                for layer in (one, other):
                    layer.weight.copy_(torch.arange(1, C + 1))
                    layer.bias.copy_(torch.arange(C))
        found = passed(one, x, slope, Synchronised(BatchShard(N, slice(0, N), SINGLE)))
        for a, b in zip(found, passed(other, x, slope), strict=True):
            assert (a - b).abs().max() <= LIMIT[dtype]


def test_rows_that_do_not_count_are_normalised_and_add_nothing(monkeypatch):
    """A rank without rows gets the moments of the others."""
    torch.manual_seed(0)
    x, slope = torch.randn(2, C, 3, 3).double(), torch.randn(2, C, 3, 3).double()
    others = torch.cat([torch.full((C,), 1.0), torch.full((C,), 36.0), torch.tensor([9.0])]).double()
    given = []

    def stacked(self, own):
        given.append(own)
        return torch.stack([others, own])

    monkeypatch.setattr(World, "stacked", stacked)
    monkeypatch.setattr(World, "add", lambda self, tensors: given.extend(tensors))
    shard = BatchShard(2, slice(0, 2), World(1, 2))
    assert not shard.counts
    layer = nn.BatchNorm2d(C).double()
    out, slope_of_x, *gradients, mean, var = passed(layer, x, slope, Synchronised(shard))
    assert all(not t.any() for t in [*given, slope_of_x, *gradients])
    # Mean 1 and variance 36 / 9 of the nine numbers of the others; their unbiased variance is 36 / 8.
    assert (out - (x - 1) / (4 + layer.eps) ** 0.5).abs().max() <= 1e-14
    assert (mean - 0.1).abs().max() <= 1e-15
    assert (var - (0.9 + 0.45)).abs().max() <= 1e-15
