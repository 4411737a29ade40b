"""A last batch of one image."""

from contextlib import nullcontext

import pytest
import torch
from tiny_runs import Body, answers, images, make, train
from torch import nn

from atent import Threat
from atent.methods import ATENT, PGDAT, Method, Standard
from atent.train import trainer
from atent.train.interrupt import Interrupted


class Norm(Body):
    """Batch-norm on one value per channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.last(self.norm(self.first(x.flatten(1))).relu())


class Squeeze(Body):
    def forward(self, x):
        return super().forward(x).squeeze()


class Wide(Body):
    """Batch-norm that has a variance of one image, too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return super().forward(self.norm(x))


def sizes(model, data, method=Standard, path=None, **changes):
    """The batches that a method sees, epoch by epoch."""
    seen = []

    class Watched(method):
        def backward(self, net, x, y, **kwargs):
            if net is model:  # a copy is only tried
                seen.append(len(x))
            return super().backward(net, x, y, **kwargs)

    given = {"threat": Threat("linf", 0.1), "steps": 1} if method is not Standard else {}
    return seen, train(model, path, data, Watched(**given), **changes)


@pytest.mark.parametrize("method", [Standard, PGDAT, ATENT])
@pytest.mark.parametrize(
    ("kind", "expected"), [(Norm, [8, 9]), (Squeeze, [8, 8, 1]), (Wide, [8, 8, 1]), (Body, [8, 8, 1])]
)
def test_one_image_left_over_joins_where_it_must(kind, expected, method):
    seen, fitted = sizes(make(kind), images(17), method)
    assert seen == expected * 2
    assert len(fitted.history) == 2


def test_only_one_image_left_over_joins():
    assert sizes(make(Norm), images(18))[0] == [8, 8, 2] * 2
    assert sizes(make(Norm), images(16))[0] == [8, 8] * 2
    assert sizes(make(Norm), images(9))[0] == [9] * 2


def test_joined_batches_resume_exactly(tmp_path, monkeypatch):
    whole = train(make(Norm), tmp_path / "whole", images(17), epochs=3)
    answers_left = iter([False] * 6 + [True] * 2)  # twice after each of the 2 steps of an epoch

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requests", lambda: nullcontext(lambda: next(answers_left)))
        with pytest.raises(Interrupted):
            train(make(Norm), tmp_path / "run", images(17), epochs=3)
    resumed = train(make(Norm, seed=9), tmp_path / "run", images(17), epochs=3, resume=True)
    assert torch.equal(answers(resumed.model), answers(whole.model))


@pytest.mark.parametrize(("n", "size", "fix"), [(1, 8, "more training images"), (17, 1, "batch_size 2 or more")])
def test_where_nothing_can_be_joined_it_is_refused(n, size, fix, tmp_path):
    with pytest.raises(ValueError, match=f"cannot train on a batch of one image .*: .*{fix}") as caught:
        train(make(Norm), tmp_path / "run", images(n), batch_size=size)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_micro_batches_of_one_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.accumulate 5 divides the 8 of a batch, use at most 4"):
        train(make(Norm), tmp_path / "run", images(17), batch_size=8, accumulate=5)
    assert not (tmp_path / "run").exists()
    assert train(make(Norm), tmp_path / "run", images(17), batch_size=8, accumulate=4).history


def test_a_calibrated_method_joins_too(tmp_path):
    method = ATENT(Threat("l2", 0.5), steps=2, calibrated=True)
    assert train(make(Norm), tmp_path / "run", images(9), method).history


def test_an_error_that_is_not_for_want_of_images_is_the_first_steps():
    class Broken(Method):
        def backward(self, model, x, y, **kwargs):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(make(Body), data=images(17), method=Broken())


@pytest.mark.parametrize(
    ("n", "size", "parts", "expected"),
    [(13, 8, 3, [3, 2, 3, 2, 3]), (11, 8, 4, [2, 2, 2, 2, 3]), (10, 8, 4, [2, 2, 2, 2, 2]), (9, 3, 3, [1] * 9)],
)
def test_no_micro_batch_of_a_short_last_batch_is_a_single_image(n, size, parts, expected):
    """Before: batch-norm ended the training in the last batch of the first epoch. Micro-batches of one remain where
    full batches have them."""
    model = make(Norm if expected[0] > 1 else Body)
    seen, fitted = sizes(model, images(n), batch_size=size, accumulate=parts)
    assert seen == expected * 2
    assert len(fitted.history) == 2
