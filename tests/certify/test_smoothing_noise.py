"""The noise of randomised smoothing: its distribution, its keys, and counts independent of batch, order and shard."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from atent.certify import Smoothed
from atent.certify.noise import Noise, address, device_seed

SIGMA = 0.5


def test_the_noise_is_gaussian_of_the_right_size_and_never_the_same():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    Smoothed(Spy(), 0.25).votes(torch.full((20, 8), 0.5), 1000, batch=700)
    z = (torch.cat(seen).double() - 0.5) / 0.25
    assert z.shape == (20_000, 8)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(z.T).triu(1).abs().max() < 0.04
    assert len(z.unique(dim=0)) == len(z)


def test_no_two_blocks_of_a_seed_share_a_key():
    """The lower half of a counter counts within a block: blocks differ where the upper halves, (block, id), do."""
    key, counter = address(3, 7, 11)
    assert (key.dtype, counter.dtype) == (np.uint64, np.uint64)
    assert counter.tolist() == [0, 0, 11, 7]
    assert address(-1, 2**48 - 1, 2**32 - 1)[1].tolist() == [0, 0, 2**32 - 1, 2**48 - 1]
    keys = [address(seed, 0, 0)[0].tolist() for seed in (0, 1, 2**32, 2**32 + 1, 2**63, -1)]
    assert len({tuple(k) for k in keys}) == len(keys)


@pytest.mark.slow
def test_the_seeds_of_an_accelerator_do_not_coincide():
    """10,000 images of 1,001 blocks: with 64 bits two are equal with probability 3e-6, with 32 bits 11,600 pairs."""
    seeds = [
        device_seed(5, torch.arange(first, first + 500)[:, None], torch.tensor([*range(1000), 2**31])).flatten()
        for first in range(0, 10_000, 500)
    ]
    full = torch.cat(seeds)
    assert len(full.unique()) == len(full) == 10_010_000
    # Scalars and tensors agree, as unsigned and as signed 64 bits.
    assert device_seed(5, 500, 2**31) % 2**64 == int(seeds[1][1000]) % 2**64
    assert 0 <= device_seed(-3, 2**48 - 1, 2**32 - 1) < 2**64
    assert len({device_seed(seed, 0, 0) for seed in (0, 2**32, 2**63, -1)}) == 4


@pytest.mark.slow
def test_sampled_blocks_do_not_coincide():
    """Of 200,000 blocks with seeds of 32 bits, 4.7 pairs would be the same in the mean, and none in 1 of 105 trials."""
    noise = Noise(torch.zeros(1, 2), 0)
    # Two float32 normals as one word: different streams agree in both with probability below 1e-12.
    begins = torch.cat([noise.draw(i, b, 1).view(torch.int64).clone() for i in range(1000) for b in range(200)])
    assert len(begins.unique()) == len(begins) == 200_000


def test_the_noise_is_what_it_says():
    """Other ids, blocks and seeds, also those that agree in their low 32 bits, give other noise; the same give the same
    numbers whatever their count."""
    x = torch.zeros(1, 3, 5)
    noise = Noise(x, 9)
    full = noise.draw(4, 2, 100).clone()
    assert full.shape == (100, 3, 5)
    assert torch.equal(noise.draw(4, 2, 37), full[:37])
    stream = np.random.Generator(np.random.Philox(key=[9, 0x736D6F6F7468696E], counter=[0, 0, 2, 4]))
    assert np.array_equal(stream.standard_normal((100, 3, 5), dtype=np.float32), full.numpy())
    others = [(9, 4, 3), (9, 5, 2), (9, 4 + 2**32, 2), (9 + 2**32, 4, 2), (9 - 2**33, 4, 2), (9, 2, 4)]
    drawn = [full, *(Noise(x, seed).draw(i, b, 100).clone() for seed, i, b in others)]
    correlations = torch.corrcoef(torch.stack(drawn).flatten(1))
    # Independent normals correlate by N(0, 1/1500): five standard deviations.
    assert correlations.triu(1).abs().max() < 5 / 1500**0.5
    assert Noise(x.double(), 9).draw(4, 2, 100).dtype == torch.float64


def test_the_tails_of_the_noise_are_gaussian():
    noise = Noise(torch.zeros(1, 1000), 1)
    z = torch.cat([noise.draw(0, b, 100).clone().flatten() for b in range(40)])
    for level in (2.0, 3.0, 4.0):
        expected = len(z) * float(2 * stats.norm.sf(level))
        assert abs(int((z.abs() > level).sum()) - expected) < 5 * expected**0.5


@pytest.mark.parametrize("size", [37, 100, 250, 10_000])
def test_counts_do_not_depend_on_batch_order_or_shard(conv_net, batch, size):
    x, _ = batch(6, torch.float32)
    ids = torch.tensor([5, 9, 2**40, 0, 77, 3])
    smoothed = Smoothed(conv_net(torch.float32, norm=True), SIGMA)
    full = smoothed.votes(x, 330, seed=4, ids=ids)
    assert (full.sum(1) == 330).all()
    assert torch.equal(smoothed.votes(x, 330, seed=4, ids=ids, batch=size), full)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(smoothed.votes(x[order], 330, seed=4, ids=ids[order], batch=size), full[order])
    shards = [smoothed.votes(x[i::2], 330, seed=4, ids=ids[i::2], batch=size) for i in range(2)]
    assert torch.equal(torch.stack(shards, 1).flatten(0, 1), full)
    # The samples of a small n are the first of a larger one, and other keys give other samples.
    assert (smoothed.votes(x, 130, seed=4, ids=ids, batch=size) <= full).all()
    assert not torch.equal(smoothed.votes(x, 330, seed=5, ids=ids), full)
    assert not torch.equal(smoothed.votes(x, 330, seed=4, ids=ids + 1), full)


def test_a_model_in_train_mode_is_evaluated_in_eval_mode_and_comes_back_as_it_was(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10))
    x, _ = batch(4, torch.float32)
    want = Smoothed(model.eval(), SIGMA).votes(x, 200)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert torch.equal(Smoothed(model, SIGMA).votes(x, 200), want)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
