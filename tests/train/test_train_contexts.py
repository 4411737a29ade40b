"""The modes of torch that enclose a call of `fit` do not change the training: its settings determine it."""

import pytest
import torch
from torch import nn

from atent import Threat
from atent.data import from_tensors
from atent.methods import PGDAT
from atent.precision import under, without_callers_modes
from atent.train import TrainSettings, fit

X, Y = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
SETTINGS = TrainSettings(epochs=2, batch_size=6, validate_limit=6, device="cpu")


def trained():
    """The weights after a training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    fit(net, from_tensors(X, Y, X[:6], Y[:6]), PGDAT(Threat("linf", 0.05), steps=2), settings=SETTINGS, progress=False)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_autocast_of_the_caller_does_not_change_a_training():
    expected = trained()
    with torch.autocast("cpu", torch.bfloat16):
        found = trained()
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
    assert torch.equal(found, expected)


def test_no_grad_of_the_caller_does_not_change_a_training():
    expected = trained()
    with torch.no_grad():
        found = trained()
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


def test_inference_mode_of_the_caller_does_not_change_a_training():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    data, method = from_tensors(X, Y, X[:6], Y[:6]), PGDAT(Threat("linf", 0.05), steps=2)
    with torch.inference_mode():
        fit(net, data, method, settings=SETTINGS, progress=False)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), trained())


@pytest.mark.parametrize("enabled", [False, True])
def test_bfloat16_inside_the_autocast_of_the_caller_uses_the_present_weights(enabled):
    """The outermost context keeps the cast weights, also where it is not enabled."""
    layer, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), without_callers_modes():
        amp = under("bfloat16", torch.device("cpu"))
        for value in (1.0, 2.0):
            with torch.no_grad():
                layer.weight.fill_(value)
            with amp:
                assert layer(x).item() == 2 * value
