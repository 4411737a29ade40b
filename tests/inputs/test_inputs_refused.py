"""Inputs from outside that need a word, or none."""

import warnings

import numpy as np
import pytest
import torch

from atent.attacks import FGSM
from atent.checks import check_batch
from atent.data import from_dataset, from_tensors, load
from atent.threat import Threat


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (9, 7, 4)])
def test_channels_last_are_refused_alike_by_tensors_and_data_sets(shape):
    x, y = torch.rand(20, *shape), torch.arange(20) % 2
    with pytest.raises(ValueError, match=r"^x_train: .*channels last; wanted \(n, c, h, w\): .*permute\(0, 3, 1, 2\)"):
        from_tensors(x, y, x, y, validation=4)
    with pytest.raises(ValueError, match=r"^x_train: .*channels last"):
        from_tensors(x.numpy(), y.numpy(), x.numpy(), y.numpy(), validation=4)
    part = torch.utils.data.TensorDataset(x, y)
    with pytest.raises(ValueError, match=r"^train: item 0: .*channels last; wanted \(c, h, w\): .*permute\(2, 0, 1\)"):
        from_dataset(part, part, validation=4)
    moved = x.permute(0, 3, 1, 2)
    assert from_tensors(moved, y, moved, y, validation=4).shape == (shape[2], *shape[:2])
    assert np.array_equal(x.numpy().transpose(0, 3, 1, 2), moved.numpy())


@pytest.mark.parametrize("shape", [(16, 4, 4), (512, 1, 1), (3, 32, 3)])
def test_feature_maps_are_taken_as_they_are(shape):
    x, y = torch.rand(20, *shape), torch.arange(20) % 2
    assert from_tensors(x, y, x, y, validation=4).shape == shape


def test_inputs_that_require_a_gradient_warn_of_nothing():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    x, y = torch.rand(6, 1, 2, 2, requires_grad=True), torch.arange(6) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_batch(x, y, (0.0, 1.0))
        check_batch(x, y, ((0.0,), (1.0,)))
        made = FGSM(Threat("linf", 0.1)).run(net, x, y)
    assert not made.x_adv.requires_grad


def test_the_name_of_a_data_set_is_no_settings():
    with pytest.raises(ValueError, match=r"got a str: write load\(DataSettings\('digits'\)\)"):
        load("digits")
