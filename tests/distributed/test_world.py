"""The processes of one job: who has which rows."""

import itertools

import torch

from atent.distributed import SINGLE, World, current


def test_the_rows_of_the_ranks_are_the_batch_in_order():
    for n, size in itertools.product(range(12), range(1, 6)):
        parts = [World(rank, size).rows(n) for rank in range(size)]
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert parts == [SINGLE.rows(n, 0) if size == 1 else World(0, size).rows(n, rank) for rank in range(size)]


def test_a_process_alone_says_nothing():
    assert current() is SINGLE
    assert SINGLE.first
    held = torch.ones(3)
    SINGLE.add([held])
    SINGLE.wait()
    assert torch.equal(held, torch.ones(3))
    assert SINGLE.gather("a") == ["a"]
    assert SINGLE.shared("a") == "a"
