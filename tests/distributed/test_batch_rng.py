"""Random numbers of a part of a batch are those that its rows have in the whole batch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atent.data import DataSettings, load
from atent.distributed import BatchShard, World, adjacent, undivided
from atent.distributed.batch_rng import caught
from atent.distributed.batch_shard import under_way
from atent.methods import ACL, ATENT, AWP, PGDAT, Standard
from atent.rng import Batch
from atent.threat import Threat
from atent.train import TrainSettings, fit

N = 7
LINF = Threat("linf", 0.05)
CHANNELS_LAST = {"memory_format": torch.channels_last}


class Drawing(nn.Module):
    """A network that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def parts():
    """Each part of a batch of N that two ranks, three ranks or two micro-batches of two ranks see."""
    for size, cuts in ((2, [0, N]), (3, [0, N]), (2, [0, 4, N])):
        for (begin, end), rank in itertools.product(itertools.pairwise(cuts), range(size)):
            yield BatchShard(N, slice(begin, end), World(rank, size))


def seeded():
    torch.manual_seed(3)
    return torch.Generator().manual_seed(5)


def compared(draw, whole, rows):
    """``draw(network, x, rng)`` of each part's rows is ``rows`` of that of the whole, and leaves the same states."""
    network = Drawing(lambda x: x)
    rng = seeded()
    all_of_it = draw(network, whole, rng)
    states = torch.get_rng_state(), rng.get_state()
    for shard in parts():
        rng = seeded()
        with under_way(shard) as now, caught(network, now):
            found = draw(network, rows(whole, shard.rows), rng)
        assert torch.equal(found, rows(all_of_it, shard.rows))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert torch.equal(rng.get_state(), states[1])


def first(t, rows):
    return t[rows]


DRAWS = {
    "rand": lambda _, x, rng: torch.rand(x.shape, generator=rng),
    "randn": lambda _, x, rng: torch.randn(len(x), 3, generator=rng),
    "randint": lambda _, x, rng: torch.randint(9, (len(x),), generator=rng),
    "randint from": lambda _, x, rng: torch.randint(2, 9, (len(x), 2), generator=rng),
    "like": lambda _, x, rng: torch.rand_like(x) + torch.randn_like(x) + torch.randint_like(x, 5),
    "normal": lambda _, x, rng: torch.normal(0.0, 2.0, (len(x), 20), generator=rng),
    "normal around": lambda _, x, rng: torch.normal(x, 0.1, generator=rng) + torch.normal(x, x + 1, generator=rng),
    "uniform_": lambda _, x, rng: torch.empty_like(x).uniform_(-1, 1, generator=rng),
    "normal_": lambda _, x, rng: torch.empty(len(x), 3).normal_(1, 2),
    "bernoulli_": lambda _, x, rng: x.new_empty(len(x), 1).bernoulli_(0.4),
    "bernoulli": lambda _, x, rng: x.bernoulli() + torch.empty_like(x).bernoulli_(x),
    "exponential_": lambda _, x, rng: torch.empty_like(x).exponential_(generator=rng).cauchy_().log_normal_(),
    "random_": lambda _, x, rng: torch.empty(len(x), dtype=torch.long).random_(9).geometric_(0.3),
    "gumbel": lambda _, x, rng: F.gumbel_softmax(x.flatten(1)),
    "dropout": lambda _, x, rng: F.dropout(x, 0.4) + F.dropout2d(x, 0.4) + F.alpha_dropout(x, 0.4, training=True),
    "attention": lambda _, x, rng: F.scaled_dot_product_attention(*[x.flatten(2)] * 3, dropout_p=0.4),
    "channels last": lambda _, x, rng: F.dropout(x.contiguous(**CHANNELS_LAST), 0.4),
    "transposed": lambda _, x, rng: F.dropout(x.flatten(1).T.contiguous().T, 0.4),
    "streams": lambda _, x, rng: Batch(rng).uniform(x) + Batch(rng).normal(x) + Batch(rng).integers(9, x.shape),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_way_to_draw(name):
    # Chances for `bernoulli`; enough numbers for the vectorised kernels of a CPU.
    compared(DRAWS[name], torch.rand(N, 3, 4, 5), first)


def test_copies_of_the_batch_one_after_the_other():
    """As the chains of ATENT lie, whose rows are (chains, samples)."""

    def rows(t, part):
        return t.unflatten(0, (3, -1))[:, part].flatten(0, 1)

    compared(lambda _, x, rng: F.dropout(x) + Batch(rng).normal(x), torch.ones(3 * N, 4), rows)


def test_copies_of_a_sample_side_by_side():
    """As those of SmoothAdv lie."""

    def rows(t, part):
        return t.unflatten(0, (-1, 3))[part].flatten(0, 1)

    def draw(_, x, rng):
        with adjacent():
            return F.dropout(x) + Batch(rng).normal(x)

    compared(draw, torch.ones(3 * N, 4), rows)


def test_rows_of_a_sample_inside_a_forward_pass():
    """Heads or tokens are several rows of each sample; the input says that the batch is there twice."""

    def forward(x):
        heads = F.dropout(torch.ones(len(x) * 4, 5))
        return heads.view(len(x), 20)

    def draw(network, x, rng):
        network.function = forward
        return network(x)

    def rows(t, part):
        return t.unflatten(0, (2, -1))[:, part].flatten(0, 1)

    compared(draw, torch.ones(2 * N, 3), rows)


def test_what_has_no_dimension_of_samples_is_the_same_for_all():
    for draw in (
        lambda rng: torch.randint(2**62, (), generator=rng),
        lambda rng: torch.rand(11, generator=rng),  # no multiple of any part
    ):
        wanted = draw(seeded())
        for shard in parts():
            with under_way(shard) as now, caught(Drawing(None), now) as catching, undivided():
                assert torch.equal(draw(seeded()), wanted)
            assert not catching.caught


def test_the_rows_of_the_ranks():
    """All rows of a part, once and in order; none alone where there are two; ranks without any pass the first ones."""
    for n, size in itertools.product(range(1, 12), range(1, 6)):
        shards = [BatchShard(n, slice(0, n), World(rank, size)) for rank in range(size)]
        own = [shard for shard in shards if shard.counts]
        assert [i for shard in own for i in range(n)[shard.rows]] == list(range(n))
        assert n == 1 or min(shard.length for shard in shards) >= 2
        assert sum(shard.weight for shard in shards) == pytest.approx(1)
        assert all(shard.weight == 0 and shard.rows.start == 0 for shard in shards if not shard.counts)
        assert [shard.whole for shard in shards] == [size == 1] * size


# -- micro-batches of one process


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=60, validation=40))


def trained(data, method, most=None, **changes):
    """Weights after two epochs; forward passes of more than ``most`` samples run out of memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 10))

    def limited(_, given):
        if most is not None and len(given[0]) > most and model.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    hook = model.register_forward_pre_hook(limited)
    settings = {"epochs": 2, "batch_size": 24, "validate_limit": 4, "validate_attack": "none", "device": "cpu"}
    fitted = fit(model, data, method, settings=TrainSettings(**settings, **changes), progress=False)
    hook.remove()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), fitted.history[-1]


def test_micro_batches_draw_what_the_batch_draws(digits):
    """Dropout masks, starts and noise; whether they are asked for or memory runs out."""
    method = ATENT(Threat("l2", 0.5), steps=2, chains=2)
    whole, row = trained(digits, method)
    for how in ({"accumulate": 4}, {"most": 30}):
        parts, other = trained(digits, method, **how)
        # Six steps; float32 sums of 24 samples in another order differ by 1e-6 of the gradient at most.
        assert float((parts - whole).abs().max()) < 1e-5
        assert other["distance_median"] == pytest.approx(row["distance_median"], rel=1e-5)
        assert ("micro_batch" in other) == ("most" in how)


def test_a_batch_as_a_whole_takes_no_micro_batches(digits):
    for method in (AWP(PGDAT(LINF, 1)), ACL(LINF)):
        with pytest.raises(ValueError, match=r"train.accumulate 2 divides a batch"):
            trained(digits, method, accumulate=2)
    with pytest.raises(ValueError, match="accumulate"):
        TrainSettings(accumulate=0)
    # More micro-batches than samples are as many as there are samples.
    trained(digits, Standard(), accumulate=100)
