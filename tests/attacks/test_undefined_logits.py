"""NaN logits: no attack reports a sample as robust where its search met them, without an error or a remark."""

import math
from dataclasses import dataclass

import pytest
import torch
from test_attack_calls import CASE, small
from torch import nn

from atent import Threat
from atent.attacks import PGD, Attack, Square, Transfer
from atent.attacks.oracle import GRADIENTS, LOGITS, POINTS, UNDEFINED, Oracle, Undefined
from atent.attacks.windowed import Scores, Window
from atent.evaluate import evaluate
from atent.integrations.peers import _Counted
from atent.messages import once

NO_LOGITS = "NaN or infinite logits"
CLAUSE = UNDEFINED.format(NO_LOGITS)
# Values of the clean inputs: no attack of a budget in these tests, and no face of the box, gives them.
VALUES = torch.tensor([0.3, 0.7])

WHERE = {
    "everywhere": lambda x: x.new_ones(len(x), dtype=torch.bool),
    "on some samples": lambda x: x.flatten(1)[:, 0] > 0.5,
    "away from the clean input": lambda x: (x.flatten(1)[..., None] != VALUES.to(x)).all(2).any(1),
}
# How NaN enters, with the gradients of a margin and of the cross-entropy there.
HOW = {
    "gradients of zero": lambda z, bad: torch.where(bad, math.nan, z),
    "finite gradients of the margin": lambda z, bad: z + torch.where(bad, math.nan, 0.0),
    "NaN gradients": lambda z, bad: z * torch.where(bad, math.nan, 1.0),
}


class Broken(nn.Module):
    """A linear network whose logits are NaN on the inputs ``where``."""

    def __init__(self, where, how):
        super().__init__()
        self.linear, self.where, self.how = nn.Linear(192, 5), WHERE[where], HOW[how]

    def forward(self, x):
        return self.how(self.linear(x.flatten(1)), self.where(x.detach())[:, None])


def case(where, how):
    """A network, 4 inputs, the first two of which have a large first element, and their labels."""
    torch.manual_seed(0)
    model, x = Broken(where, how), VALUES[torch.randint(2, (4, 3, 8, 8))]
    x[:, 0, 0, 0] = VALUES[torch.tensor([1, 1, 0, 0])]
    return model, x, model.linear(x.flatten(1)).argmax(1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", WHERE)
@CASE
def test_no_attack_reports_robustness_without_a_word(name, norm, where, how, capsys):
    once.cache_clear()
    (model, x, y), attack, said, outcome, refused = case(where, how), small(name, norm), [], None, ""
    try:
        outcome = attack.run(model, x, y, remark=said.append)
    except ValueError as error:
        refused = str(error)
    if outcome is None:
        assert NO_LOGITS in refused
        assert "\n" not in refused
        return
    line = capsys.readouterr().err
    assert outcome.success.all() or said == [CLAUSE]
    assert (CLAUSE in line) is bool(said)
    # Called without a verdict, it says the same.
    once.cache_clear()
    attack(model, x, y)
    assert capsys.readouterr().err == line


@CASE
def test_finite_logits_have_no_remark(name, norm):
    (model, x, y), said = case("everywhere", "NaN gradients"), []
    small(name, norm).run(nn.Sequential(nn.Flatten(), model.linear), x, y, remark=said.append)
    assert said == []


def test_a_transfer_reports_the_logits_of_its_source():
    model, x, y = case("away from the clean input", "gradients of zero")
    attack = Transfer(Threat("l2", 0.1), source=model, attack="FMN(steps=4)")
    found = evaluate(nn.Sequential(nn.Flatten(), model.linear), x, y, {"t": attack})
    assert found.attacks["t"]["remarks"] == [CLAUSE]


@pytest.mark.parametrize("attack", [PGD(Threat("linf", 0.1), steps=2), Square(Threat("linf", 0.1), queries=3)])
def test_an_evaluation_is_refused_where_the_verdict_has_none(attack):
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        evaluate(*case("away from the clean input", "gradients of zero"), [attack])


def test_logits_from_cached_layers_count_too():
    class Cached:
        def logits(self, z, top, left):
            return torch.full((len(z), 5), math.inf)

    x, side = torch.rand(2, 3, 8, 8), torch.tensor([2, 2])
    oracle = Oracle(nn.Identity(), *torch.zeros(2, 2).long(), check=False, undefined=Undefined())
    scores = Scores(oracle, x)
    scores.graph, scores.windowed, scores.side = object(), Cached(), 2
    scores.logits(oracle, x, torch.tensor([0, 1]), x, Window(side, side, side))
    assert oracle.met()[0] == NO_LOGITS


@dataclass(frozen=True)
class Overflowing(Attack):
    """An attack whose second point is NaN, and whose result is x."""

    def search(self, oracle, x, y, streams):
        for z in (x, x * math.nan):
            oracle.logits(z, y)
        return x


def test_points_that_an_attack_spoils_itself_are_not_the_networks_fault(capsys):
    once.cache_clear()
    said, (model, x, y) = [], case("everywhere", "NaN gradients")
    Overflowing(Threat("l2", 1.0)).run(nn.Sequential(nn.Flatten(), model.linear), x, y, remark=said.append)
    assert said == [UNDEFINED.format("NaN or infinite points of its own")]
    assert "its steps overflow, use smaller settings" in capsys.readouterr().err


class Steep(nn.Module):
    """Finite logits with NaN gradients."""

    def forward(self, x):
        return x.flatten(1)[:, :5] + torch.sqrt(0 * x.flatten(1)[:, :1])


@pytest.mark.parametrize("logits", [True, False])
def test_the_network_of_another_package_records_what_it_meets(logits):
    model, x, y = case("everywhere", "NaN gradients")
    model, met, undefined = model if logits else Steep(), LOGITS if logits else GRADIENTS, Undefined()
    network, x = _Counted(model, x.dtype, undefined), x.requires_grad_()
    for _ in range(2):
        torch.nn.functional.cross_entropy(network(x), y).backward()
    assert undefined.first() == met
    assert network.backwards == 8


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cpu = False


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
@pytest.mark.parametrize("first", [LOGITS, GRADIENTS, POINTS, None])
def test_what_was_not_finite_first_is_noted_and_large_numbers_are_finite(first, kind):
    undefined = Undefined()
    large = torch.full((3, 2), 3e38)
    assert large.sum().isinf()
    half, double = torch.full((2, 2), 6e4, dtype=torch.float16), torch.full((2,), 1e308, dtype=torch.float64)
    noted = [(large, POINTS), (half, LOGITS), (double, GRADIENTS)]
    if first is not None:
        noted += [(torch.tensor([0.0, -math.inf]), first), (torch.tensor([math.nan]), LOGITS), (large, POINTS)]
    for values, cause in noted:
        undefined.note(values.as_subclass(kind), cause)
    assert undefined.first() == (first or 0)
    assert bool(undefined) == (kind is Elsewhere or first is not None)
