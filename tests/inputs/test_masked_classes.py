"""A network that masks a class by a large negative logit, such as -1e9, is that network without the class."""

import pytest
import torch
from zoo import Attending, Dropping, Twin, data, made

from atent import Threat, models
from atent.attacks import ALMA, DDN, FAB, FMN, CarliniWagner, DeepFool, SigmaZero, Square
from atent.evaluate import evaluate, masking_checks
from atent.independence import dependence
from atent.losses import magnitude, margin

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


class Lifted(torch.nn.Module):
    """All logits have a large number in common."""

    def __init__(self, net, by):
        super().__init__()
        self.net, self.by = net, by

    def forward(self, z):
        return 16 * self.net(z) + self.by


@pytest.mark.parametrize(
    "attack",
    [
        DDN(L2, steps=30),
        DeepFool(L2),
        FMN(L2, steps=30),
        FMN(Threat("linf", "inf"), steps=30),
        CarliniWagner(L2, steps=60, search_steps=3),
        ALMA(L2, steps=40),
        SigmaZero(Threat("l0", 30), steps=30),
    ],
    ids=lambda attack: f"{type(attack).__name__} {attack.threat.norm}",
)
def test_minimum_norms_of_logits_with_a_number_in_common(attack):
    """Before: ALMA and CarliniWagner fooled no sample, and the others needed several times the norm, as margins below
    64 units in the last place of 10^6 counted as rounding."""
    net, (x, _) = made(Twin), data(12)
    y = net(x).argmax(1)
    # The margins of the clean images are far above the unit of the last place, 1/16.
    x, y = x[rows := -margin(16 * net(x), y) > 1], y[rows]
    plain, lifted = attack.run(Lifted(net, 0.0).eval(), x, y), attack.run(Lifted(net, 1e6).eval(), x, y)
    assert plain.success.all()
    # Where rounded logits tie, the hinge of CarliniWagner has no gradient.
    assert 2 * int(lifted.success.sum()) >= len(x)
    # Steps are those of rounded logits: distances are longer by the distance of a few units.
    assert lifted.norm[lifted.success].median() <= 1.5 * plain.norm.median() + (attack.threat.norm == "l0")


def test_square_sees_improvements_of_logits_with_a_number_in_common():
    """Before: differences below 16 units in the last place of 10^6 did not count as an improvement."""
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()), torch.rand(20, 1, 8, 8)
    net.append(torch.nn.Linear(144, 3)).eval().requires_grad_(False)
    net[3].weight *= 50
    y, attack = net(x).argmax(1), Square(Threat("linf", 0.1), queries=200)
    plain = attack.run(net, x, y)
    net[3].bias += 1e6
    found = attack.run(net, x, y)
    assert abs(int(found.success.sum()) - int(plain.success.sum())) <= 2
    assert int(plain.success.sum()) >= 10


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


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("attack", [DeepFool(L2), FMN(L2, steps=30), FAB(L2, steps=10)], ids=lambda a: type(a).__name__)
def test_distances_to_linearised_boundaries_do_not_depend_on_the_scale_of_logits(attack, scale):
    """Before: squares of gradients underflowed or overflowed, and DeepFool and FMN fooled no sample."""
    torch.manual_seed(0)
    net, (x, _) = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).eval(), data(12)
    y, plain = net(x).argmax(1), attack.run(net, x, net(x).argmax(1))
    net[1].weight.data *= scale
    net[1].bias.data *= scale
    found = attack.run(net, x, y)
    assert plain.success.all()
    assert found.success.all()
    assert torch.allclose(found.norm, plain.norm, rtol=0.05)
