"""Hints of an evaluation: normalised inputs, a constant network."""

import torch
from torch import nn

from atent.evaluate import evaluate
from atent.evaluate.hints import Hints
from atent.models import Normalize


def test_a_model_of_normalised_inputs_is_noticed(conv_net, batch):
    x, y = batch(200)
    mean, std = x.mean(), x.std(correction=0)
    inner = conv_net()
    wants = nn.Sequential(Scaled(float(std), float(mean)), inner)  # the inner network gets standardised inputs
    got = evaluate(wants, x, y, [])
    assert got.clean["value"] < 0.8
    raw, standardised = (round(100 * v) for v in (got.clean["value"], evaluate(inner, x, y, []).clean["value"]))
    assert f"{raw} % on raw pixels, {standardised} % on standardised ones; put atent.models.Normalize" in got.hint
    assert f"[{mean:.3g}] and [{std:.3g}]" in got.hint
    assert "\n" not in got.hint
    corrected = nn.Sequential(Normalize([float(mean)], [float(std)]), wants).double()
    assert evaluate(corrected, x, y, []).hint is None
    assert evaluate(wants, x, y, [], hints=Hints(check_inputs=False)).hint is None


class Scaled(nn.Module):
    def __init__(self, factor, shift):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return self.factor * x + self.shift


def test_no_hint_without_reason(conv_net, batch):
    x, y = batch(60)
    assert evaluate(conv_net(), x, y, []).hint is None
    g = torch.Generator().manual_seed(0)
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        blind[1].weight.copy_(torch.randn(10, 64, generator=g))
    assert evaluate(blind, x, y, []).hint is None
    assert evaluate(blind, x, (y + 1) % 10, []).hint is None


class Constant(nn.Module):
    """Logits that are only a bias: a constant class."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10, dtype=torch.float64).index_fill(0, torch.tensor(7), 3.0))

    def forward(self, x):
        return self.bias + 0 * x.flatten(1)[:, :1]


def test_a_network_that_gives_everything_one_class_is_noticed(batch):
    x, y = batch(60)
    hint = evaluate(Constant(), x, y, []).hint
    assert hint.startswith("the network gives class 7 to all 60 samples")
    assert "optimizer.lr" in hint
    assert "method.eps_warmup" in hint
    assert "\n" not in hint
    named = Hints(class_names=[f"kind {k}" for k in range(10)], samples="images", advice="")
    assert evaluate(Constant(), x, y, [], hints=named).hint == "the network gives class 'kind 7' to all 60 images"
    # Names that are the numbers, or too few of them.
    for names in (list("0123456789"), ["none", "one"]):
        assert evaluate(Constant(), x, y, [], hints=Hints(class_names=names)).hint == hint
    # a few samples are not evidence
    assert evaluate(Constant(), x[:19], y[:19], []).hint is None
    # on samples of its own class alone the accuracy is 100 %
    praised = evaluate(Constant(), x, torch.full_like(y, 7), [])
    assert praised.clean["value"] == 1.0
    assert praised.hint.startswith("all 60 samples are of class 7")
    assert "stratified" in praised.hint
    assert "\n" not in praised.hint
    praised = evaluate(Constant(), x, torch.full_like(y, 7), [], hints=named)
    assert praised.hint.startswith("all 60 images are of class 'kind 7', so")
