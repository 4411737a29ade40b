"""The examples of what the API pages list beside the names that the rooms export."""

import doctest
from importlib import import_module

import pytest
import torch


@pytest.mark.parametrize(
    "name",
    ["data.corruptions", "data.views", "models.contrastive", "models.vit", "integrations.sklearn"],
)
def test_examples_run(name):
    torch.manual_seed(0)
    failed, tried = doctest.testmod(import_module(f"atent.{name}"))
    assert (failed, tried > 2) == (0, True)
