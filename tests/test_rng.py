import math

import pytest
import torch
from scipy import stats
from torch import nn

from atent import Threat
from atent.attacks import FGSM
from atent.certify import Smoothed
from atent.rng import Batch, PerSample, fold, narrow, philox

# Random123, kat_vectors, philox4x32 10
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(w, 16) for w in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS)
def test_philox_known_answers(counter, key, answer):
    assert philox(words(counter), words(key)) == words(answer)
    tensors = tuple(torch.tensor([w, 0], dtype=torch.int64) for w in words(counter))
    assert tuple(int(t[0]) for t in philox(tensors, words(key))) == words(answer)


def test_words_follow_the_documented_layout():
    # block, step, low id bits, high id bits and restart; the key holds the seed and the purpose
    import zlib

    seed, ident = 2**40 + 7, 2**33 + 5
    got = PerSample(seed, torch.tensor([ident]), "PGD").words(7, use="start", restart=3, step=9)[0].tolist()
    key = (seed % 2**32, zlib.crc32(b"PGD/start") ^ (seed >> 32))
    slow = [w for block in (0, 1) for w in philox((block, 9, ident % 2**32, (ident >> 32) | (3 << 16)), key)]
    assert got == slow[:7]


DRAWS = {
    "uniform": lambda s, n, dtype, dim, **k: s.uniform(torch.empty(n, dim, dtype=dtype), **k),
    "normal": lambda s, n, dtype, dim, **k: s.normal(torch.empty(n, dim, dtype=dtype), **k),
    "integers": lambda s, n, dtype, dim, **k: s.integers(1000, (n, dim), **k),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_sample_draws_the_same_bits_in_any_company(kind, dtype):
    ids = torch.arange(41) * 13 + 5
    g = torch.Generator().manual_seed(1)
    for dim in (1, 3, 8, 33, 192):
        full = DRAWS[kind](PerSample(4, ids, "A"), 41, dtype, dim, use="u", restart=2, step=7)
        for n in (1, 2, 7, 16, 40):
            rows = torch.randperm(41, generator=g)[:n]
            alone = DRAWS[kind](PerSample(4, ids[rows], "A"), n, dtype, dim, use="u", restart=2, step=7)
            taken = DRAWS[kind](PerSample(4, ids, "A").take(rows), n, dtype, dim, use="u", restart=2, step=7)
            assert torch.equal(alone, full[rows])
            assert torch.equal(taken, full[rows])


def test_shapes_and_dtypes_follow_like():
    streams = PerSample(0, torch.arange(3))
    like = torch.empty(3, 2, 5, 7, dtype=torch.float32).to(memory_format=torch.channels_last)
    for name in ("uniform", "normal"):
        flat = getattr(streams, name)(torch.empty(3, 70))
        got = getattr(streams, name)(like)
        assert got.shape == like.shape
        assert got.dtype == like.dtype
        assert torch.equal(got.flatten(1), flat)
    assert streams.integers(5, (3,)).shape == (3,)
    assert streams.integers(5, (3,)).dtype == torch.int64


BASE = dict(seed=1, ident=10, attack="PGD", use="start", restart=0, step=0)
OTHERS = [
    dict(seed=2), dict(seed=2**32 + 1), dict(seed=2**63 + 1), dict(ident=11), dict(ident=2**32 + 10),
    dict(ident=2**47 + 10), dict(attack="FGSM"), dict(use="noise"), dict(restart=1), dict(step=1),
    dict(ident=11, restart=1), dict(step=2**20),
]  # fmt: skip


def stream(seed, ident, attack, use, restart, step):
    streams = PerSample(seed, torch.tensor([ident]), attack)
    return streams.uniform(torch.empty(1, 5000, dtype=torch.float64), use=use, restart=restart, step=step)[0]


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_each_part_of_the_key_gives_another_stream(change):
    a, b = stream(**BASE), stream(**{**BASE, **change})
    assert int((a == b).sum()) <= 2  # 5000 pairs of 2^23 values
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 4.5 / math.sqrt(5000)


def test_streams_do_not_overlap_when_shifted():
    # a counter that ran on from one id, step or restart to the next would show up here
    every = torch.cat([
        PerSample(3, torch.arange(6), "A").words(400, use="u", restart=r, step=s).flatten()
        for r in range(3) for s in range(4)
    ])  # fmt: skip
    # 28,800 words out of 2^32: a collision or two by chance
    assert len(every) - len(every.unique()) <= 2


def test_uniforms_lie_strictly_inside():
    streams = PerSample(0, torch.arange(200))
    for dtype in (torch.float32, torch.float64):
        u = streams.uniform(torch.empty(200, 10_000, dtype=dtype))
        assert u.min() > 0
        assert u.max() < 1


def test_extreme_words_stay_strictly_inside(monkeypatch):
    streams = PerSample(0, torch.arange(1))
    extremes = torch.tensor([[0, 2**32 - 1, 511, 512]])
    monkeypatch.setattr(PerSample, "words", lambda self, count, **k: extremes[:, :count])
    u = streams.uniform(torch.empty(1, 4, dtype=torch.float32))[0]
    assert 0 < u[0] == u[2] < u[3] < u[1] < 1
    assert torch.isfinite(streams.normal(torch.empty(1, 4, dtype=torch.float32))).all()


def source(kind, seed, n):
    if kind == "batch":
        return Batch(torch.Generator().manual_seed(seed))
    return PerSample(seed, torch.arange(n), "A")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("kind", ["per sample", "batch"])
def test_distributions(kind, dtype):
    n, dim = 40, 1001
    streams = source(kind, 7, n)
    like = torch.empty(n, dim, dtype=dtype)
    u, z = streams.uniform(like, use="u").double().flatten(), streams.normal(like, use="z").double().flatten()
    size = n * dim
    assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01
    assert abs(u.mean().item() - 0.5) < 4 / math.sqrt(12 * size)
    assert abs(z.mean().item()) < 4 / math.sqrt(size)
    assert abs(z.var().item() - 1) < 4 * math.sqrt(2 / size)
    assert abs((z**4).mean().item() - 3) < 4 * math.sqrt(96 / size)
    # the two halves of Box and Muller's pairs
    pairs = z.view(n, dim)[:, :1000].reshape(n, 2, 500).transpose(0, 1).flatten(1)
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / math.sqrt(size / 2)
    assert abs(torch.corrcoef(pairs.abs())[0, 1].item()) < 4 / math.sqrt(size / 2)


@pytest.mark.parametrize("high", [2, 10, 1000])
@pytest.mark.parametrize("kind", ["per sample", "batch"])
def test_integers_are_even(high, kind):
    k = source(kind, 8, 50).integers(high, (50, 20, 20), use="i")
    assert k.min() >= 0
    assert k.max() == high - 1
    assert stats.chisquare(k.flatten().bincount(minlength=high).numpy()).pvalue > 0.01


@pytest.mark.parametrize("along", ["id", "step", "restart", "place"])
def test_neighbours_are_uncorrelated(along):
    if along in ("id", "place"):
        z = PerSample(9, torch.arange(200), "A").normal(torch.empty(200, 200, dtype=torch.float64))
        a, b = (z[:-1], z[1:]) if along == "id" else (z[:, :-1], z[:, 1:])
    else:
        streams, like = PerSample(9, torch.arange(100), "A"), torch.empty(100, 50, dtype=torch.float64)
        z = torch.stack([streams.normal(like, **{along: k}) for k in range(9)])
        a, b = z[:-1], z[1:]
    r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
    assert abs(r) < 4 / math.sqrt(a.numel())


def test_a_batch_stream_runs_on_and_repeats():
    like = torch.empty(4, 5)
    a, b = Batch(torch.Generator().manual_seed(1)), Batch(torch.Generator().manual_seed(1))
    first, second = a.normal(like), a.normal(like)
    assert torch.equal(first, b.normal(like))
    assert not torch.equal(first, second)
    assert a.take(torch.tensor([0])) is a


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    PerSample(1, torch.arange(3)).normal(torch.empty(3, 4))
    Batch(torch.Generator().manual_seed(1)).normal(torch.empty(3, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_fold_is_stable_and_sensitive():
    assert fold() == 0
    assert fold(0) == 8070778858246304609
    assert fold("noise", 3, 4) == 5048855775939903025
    assert fold(1, 2) != fold(2, 1)
    assert fold("a") != fold("b")
    assert fold(1) != fold(1, 0)
    assert fold(2**32) != fold(0)
    seeds = {fold(a, b) for a in range(60) for b in range(60)}
    assert len(seeds) == 3600
    assert all(0 <= s < 2**63 for s in seeds)
    for key in range(3):
        keys = [5, 6, 7]
        keys[key] += 1
        assert fold(*keys) != fold(5, 6, 7)


def test_seeds_beyond_32_bits_are_their_own():
    """torch's CPU generators keep the low 32 bits of a seed."""
    assert [narrow(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    assert len({narrow(seed) % 2**32 for seed in (3, 2**32 + 3, 2**33 + 3, 2**63 + 3, -3)}) == 5


def test_a_random_model_draws_by_all_of_the_seed():
    class Random(nn.Module):
        def forward(self, x):
            self.drawn = float(torch.rand(()))
            return x.flatten(1)

    net, x, y = Random(), torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    seen = []
    for seed in (3, 3, 2**32 + 3):
        FGSM(Threat("linf", 0.1))(net, x, y, seed=seed)
        first = net.drawn
        Smoothed(net, 0.5).votes(x, 10, seed=seed)
        seen.append((first, net.drawn))
    assert seen[0] == seen[1]
    assert all(a != b for a, b in zip(seen[0], seen[2]))
