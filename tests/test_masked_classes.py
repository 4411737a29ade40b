"""A network that masks a class by a large negative logit, such as -1e9, is that network without the class."""

import pytest
import torch
from zoo import Attending, Dropping, Twin, data, made

from atent import Threat, models
from atent.attacks import ALMA, DDN, FMN, CarliniWagner, DeepFool, Square
from atent.evaluate import evaluate, masking_checks
from atent.independence import dependence
from atent.losses import magnitude

L2 = Threat("l2", "inf")


class Masked(torch.nn.Module):
    def __init__(self, net, value=-1e9):
        super().__init__()
        self.net, self.value = net, value

    def forward(self, z):
        logits = self.net(z)
        return torch.cat([logits, torch.full_like(logits[:, :2], self.value)], 1)


@pytest.mark.parametrize("value", [-1e4, -1e9, -3e38])
@pytest.mark.parametrize(
    "attack",
    [
        DDN(L2, steps=30),
        DeepFool(L2),
        FMN(L2, steps=30),
        CarliniWagner(L2, steps=60, search_steps=3),
        ALMA(L2, steps=40),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_minimum_norms_are_those_without_the_class(attack, value):
    """Before: no point counted as adversarial, as 64 units of the mask's rounding exceed every margin."""
    net, (x, _) = made(Twin), data(12)
    y = net(x).argmax(1)
    plain, masked = attack.run(net, x, y), attack.run(Masked(net, value).eval(), x, y)
    assert plain.success.any()
    assert torch.equal(masked.success, plain.success)
    # The margin above which a point counts is at most 1000 times 64 units of the logits, 0.8 % of them.
    assert torch.allclose(masked.norm, plain.norm, atol=0.01)


def test_square_improves_on_kept_layers():
    """Before: differences below 16 units of the mask did not count as an improvement."""
    torch.manual_seed(1)
    wide, x = models.build("small_cnn", shape=(2, 22, 19), classes=4).eval(), torch.rand(6, 2, 22, 19)
    last = [layer for layer in wide.modules() if isinstance(layer, torch.nn.Linear)][-1]
    last.weight.data[3], last.bias.data[3] = 0.0, -1e9
    y, attack = wide(x).argmax(1), Square(Threat("linf", 0.3), queries=60)
    masked = attack.run(wide, x, y)
    last.bias.data[3] = -1e3
    assert torch.equal(masked.x_adv, attack.run(wide, x, y).x_adv)


def test_dependence_on_the_batch_is_found_beside_a_mask():
    net, (x, y) = Masked(made(Attending)).eval(), data(12)
    assert dependence(net, x).change == pytest.approx(dependence(net.net, x).change)
    assert "depends on the other samples of its batch" in evaluate(net, x, y, {}).hint


def test_random_logits_are_found_beside_a_mask():
    found = masking_checks(Masked(made(Dropping)).eval(), *data(12), Threat("linf", 0.1))
    assert {check.name: check.passed for check in found}["repeatable"] is False


def test_the_magnitude_is_the_largest_logit_where_none_is_masked():
    logits = torch.tensor([[3.0, -7.0, 1.0], [0.1, 0.0, -99.0], [0.5, -1e9, 0.25], [0.0, 0.0, -5.0]])
    assert magnitude(logits).tolist() == [7.0, 99.0, 500.0, 0.0]
