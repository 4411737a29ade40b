"""Inputs that are close to what is wanted: each is refused in one line that has the remedy."""

import numpy as np
import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import FGSM
from atent.data import collect, from_tensors
from atent.evaluate import evaluate

X, Y = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
ATTACKS = [FGSM(Threat("linf", 0.05))]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def refused(call, *parts):
    """The call raises ValueError with one line that contains the parts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert [part for part in parts if part not in text] == [], text


def test_batches_of_a_loader_have_one_label_per_input():
    """Batches whose sums agree would pair images with labels of others."""
    pairs = [(X[:2], Y[:3]), (X[2:5], Y[3:5])]
    refused(lambda: collect(pairs), "(2, 1, 4, 4)", "(3,)", "one label per input")
    refused(lambda: evaluate(net(), pairs, None, ATTACKS), "(2, 1, 4, 4)", "(3,)")
    refused(lambda: collect([(X[0], Y[:3])]), "(3,)")


def test_items_of_a_loader_that_are_no_pairs_have_a_remedy():
    refused(lambda: collect([{"image": X[:2], "label": Y[:2]}]), "a dict with 'image', 'label'", 'b["label"]')
    refused(lambda: collect([(X[:2], Y[:2], Y[:2])]), "3 items", "drop the other items")
    refused(lambda: collect([X[:2]]), "a Tensor", "pair")


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.ma.masked_greater(X.numpy(), 0.9), ("masked", ".filled(")),
        (X.flatten(1).to_sparse(), ("sparse", ".to_dense()")),
        (X.flatten(1).to_sparse_csr(), ("sparse", ".to_dense()")),
        (X.to("meta"), ("meta device",)),
        (255 * X, ("[0, 1]", "divide pixels by 255")),
        (65535 * X, ("[0, 1]", "divide pixels by 65535")),
        (4 * X - 2, ("[0, 1]", "atent.models.Normalize")),
    ],
)  # fmt: skip
def test_arrays_that_are_no_pixels_have_a_remedy(x, parts):
    refused(lambda: evaluate(net(), x, Y, ATTACKS), *parts)
    refused(lambda: from_tensors(x, Y, x, Y), *parts)


def test_an_array_that_could_mask_and_does_not_is_taken():
    x = np.ma.masked_greater(X.numpy(), 2.0)
    assert evaluate(net(), x, Y, ATTACKS).clean == evaluate(net(), X, Y, ATTACKS).clean


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_the_seed_of_a_split_is_named(seed):
    refused(lambda: from_tensors(X, Y, X, Y, split_seed=seed), f"split_seed is {seed}", "0 to 2**32 - 1")


def test_sets_without_an_image_to_validate_on():
    refused(lambda: from_tensors(X[:3], Y[:3], X, Y), "3 training samples of 3 classes", "at least 4")
    assert len(from_tensors(X[:4], Y[:4], X, Y).train) == 3


def test_labels_with_gaps_have_a_remedy():
    refused(lambda: from_tensors(X, 2 * Y, X, 2 * Y), "class 1 of 0 to 4", "np.unique")
    refused(lambda: from_tensors(X, Y + 1, X, Y + 1), "class 0 of 0 to 3", "y - 1")


@pytest.mark.parametrize("n", [2.5, True, "some"])
def test_a_subset_has_a_number_of_samples(n):
    refused(lambda: from_tensors(X, Y, X, Y).sample("test", n), repr(n), "integer or 'all'")


def test_a_subset_is_of_a_part_that_exists():
    refused(lambda: from_tensors(X, Y, X, Y).sample("tests", 3), "'tests'", "train, validation, test")
