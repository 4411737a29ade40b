"""Several processes that share each batch end at the weights of one process, for every method and optimizer."""

import pytest
import rank_jobs
from rank_jobs import BATCH, GRID, JOBS, Job, N, network

from atent.methods import METHODS
from atent.optim.settings import OPTIMIZERS

# The slow grid trains for more.
EPOCHS = 2
STEPS = EPOCHS * -(-N // BATCH)
# 20 steps of sums of at most 55 float64 numbers of size 1, in another order: 1e-13 at most; the limit is the promise.
LIMIT = 1e-10
# The same of one step in float32. A rounding of a gradient is 2^-24 of it for each of about 100 operations on its way,
# of random signs; the learning rate of 0.1, momentum 0.9 and gradients of at most the size of the weights pass each on
# once. It grows with the steps by their curvature, at most tenfold.
LIMIT_32 = 10 * 100**0.5 * 2**-24


def check(result, limit=LIMIT):
    assert result["same"]
    assert result["weights"] < limit
    assert result["metrics"] < limit


@pytest.fixture(scope="module")
def two():
    return rank_jobs.found(2, list(JOBS), more=True, epochs=EPOCHS)


@pytest.mark.parametrize("name", [name for name in JOBS if name != "local"])
def test_two_ranks_train_as_one_process(two, name):
    """Steps with last batches that the ranks cannot share evenly."""
    check(two[name], STEPS * LIMIT_32 if name == "float32" else LIMIT)


def test_local_batch_norm_is_that_of_each_ranks_rows(two):
    """The weights are those of one process that takes as many micro-batches; the statistics of a transcription."""
    assert two["local"]["same"]
    assert two["local"]["weights"] < LIMIT
    assert two["local, transcribed"] < LIMIT


def test_a_gradient_travels_once(two):
    """One message for each gradient that is consumed: parameters, what each rank measured, which gradients there are.

    EntropySGD takes two gradients a step, and half as many steps.
    """
    count = sum(p.numel() for p in network(Job(None)).parameters())
    leaves = len(list(network(Job(None)).parameters()))
    messages, size = two["EntropySGD"]["sent"]
    assert messages == STEPS
    assert 8 * STEPS * (count + leaves) <= size <= 8 * STEPS * (count + leaves + 2 * 2 * 4)
    # A vector of distances, one for each sample and chain, travels with it.
    assert two["ATENT, chains"]["sent"][0] == STEPS
    # AWP consumes two, beside what batch-norm and the discriminator's embeddings say.
    assert two["AWP, discriminator"]["sent"][0] > 2 * STEPS


def test_a_gradient_that_one_rank_lacks(two):
    """A network may leave parts of itself out, by what it sees: it has the gradient of those that do not."""
    assert two["missing"] == [[[3.0, 3.0], [1.0, 1.0], None]] * 2


def test_few_and_many_numbers_add_up(two):
    """The one are exchanged, the others go round a ring."""
    assert two["added"] == [[[[[3.0], [3.0]]] * 2, [0, 1]]] * 2


def test_a_method_that_needs_the_whole_batch_is_said_to_be_no_faster(two):
    assert [line.split(",")[0] for line in two["a coupled method"]["said"]] == ["warning: Whole needs the full batch"]
    assert not two["a method with state"]["said"]


def test_hooks_of_ddp_do_not_see_gradients_of_autograd_grad(two):
    """Why nothing here is wrapped: ATENT takes its gradient by `torch.autograd.grad`."""
    hooked, plain = two["DDP"]
    assert hooked
    assert not plain


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
@pytest.mark.parametrize("size", [2, 4])
def test_every_method_and_optimizer(size, share):
    assert {type(job.method).__name__ for job in GRID.values()} >= set(METHODS)
    assert {job.optimizer.name for job in GRID.values()} >= set(OPTIMIZERS)
    # The micro-batches of one process are not the rows of four ranks.
    names = [name for name in GRID if name not in ("local", "float32") or size == 2][share::4]
    found = rank_jobs.found(size, names, more=share == 0)
    if share == 0:
        assert found["local, transcribed"] < LIMIT
    for name in names:
        assert (name, found[name]["same"]) == (name, True)
        limit = rank_jobs.EPOCHS * STEPS / EPOCHS * LIMIT_32 if name == "float32" else LIMIT
        assert (name, found[name]["weights"]) < (name, limit)
        if name != "local":  # a validation depends on the running statistics
            assert (name, found[name]["metrics"]) < (name, limit)
