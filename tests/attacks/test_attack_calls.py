"""What a call of an attack takes beside inputs and labels, for every attack in the registry: callbacks and targets."""

import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_attacks import BOTH, EPS, build, threat_in
from torch import nn

import atent
from atent.attacks import ATTACKS, Transfer
from atent.losses import LOSSES, cross_entropy
from atent.messages import once
from atent.threat import COUNTS, Threat

CASE = pytest.mark.parametrize(("name", "norm"), [pytest.param(*each, id=" ".join(each)) for each in BOTH])
AIMING = [(name, norm) for name, norm in BOTH if ATTACKS[name].aims]
AIMED = pytest.mark.parametrize(("name", "norm"), [pytest.param(*each, id=" ".join(each)) for each in AIMING])
STEPS = {"PGD": {"steps": 3}, "IFGS": {"steps": 3}, "Langevin": {"steps": 3}}
# Where an attack has to find something.
ENOUGH = {
    "CarliniWagner": {"steps": 20},
    "SAPF": {"steps": 25, "final_steps": 15, "search_steps": 3},
    "Square": {"queries": 30},
    "SparseRS": {"queries": 30},
}


CLIMB_CE = ("FGSM", "IFGS", "PGD", "Langevin", "DDN", "EoT", "SparsePGD", "TokenAttack")


def small(name, norm, eps=None):
    return build(name, norm, STEPS.get(name, {}), eps)


@CASE
def test_a_callback_that_spoils_what_it_gets_changes_nothing(name, norm, conv_net, batch):
    model, (x, y) = nn.Sequential(conv_net(norm=True), nn.Dropout(0.1)), batch(6)
    attack, seen = small(name, norm), []

    def callback(k, x_adv, loss):
        seen.append(k)
        assert x_adv.shape == x.shape
        assert loss.shape == y.shape
        assert not x_adv.requires_grad
        assert not loss.requires_grad
        model(torch.rand_like(x))
        model.train()
        x_adv.fill_(math.nan)
        loss.fill_(math.nan)

    for mode in ("eval", "train"):
        plain, reported = attack.run(model, x, y, mode=mode), attack.run(model, x, y, mode=mode, callback=callback)
        assert all(torch.equal(a, b) for a, b in zip(plain, reported))
        assert seen == list(range(len(seen)))
        assert len(seen) >= 1
        seen.clear()
        assert torch.equal(attack(model, x, y, mode=mode, callback=callback), plain.x_adv)
        seen.clear()


def hinge(logits, y):
    return (-LOSSES["margin"](logits, y)).clamp_min(0)


def constraint(logits, y):
    top = logits.topk(3, dim=1).values
    return (1e-4 - LOSSES["margin"](logits, y)) / (top[:, 0] - top[:, 2] + 1e-8)


@CASE
def test_the_losses_are_those_of_the_points(name, norm, conv_net, batch):
    model, (x, y) = conv_net(), batch(6)
    attack = small(name, norm)
    losses = [cross_entropy] if name in CLIMB_CE else [LOSSES["margin"]]
    # The parts of AutoAttack climb losses of their own.
    losses = [*losses, cross_entropy] if name in ("APGD", "AutoAttack") else losses
    hinged = {each: [hinge] for each in ("CarliniWagner", "SAPF", "SigmaZero")}
    losses = {**hinged, "ALMA": [constraint]}.get(name, losses)

    def callback(k, x_adv, loss):
        logits, met = model(x_adv), ~loss.isnan()
        if name == "AutoAttack" and not torch.allclose(loss[met], cross_entropy(logits, y)[met], atol=1e-9):
            return
        assert any(torch.allclose(loss[met], each(logits, y)[met], atol=1e-9) for each in losses)
        assert torch.equal(x_adv[~met], x[~met])

    attack(model, x, y, callback=callback)


@pytest.mark.parametrize(
    ("name", "setting", "calls"),
    [
        ("FGSM", {}, 1),
        ("PGD", {"steps": 4}, 4),
        ("PGD", {"steps": 4, "keep": "best"}, 5),
        ("PGD", {"steps": 4, "restarts": 3}, 12),
        ("Langevin", {"steps": 5}, 5),
        ("FMN", {"steps": 6}, 6),
        ("Square", {"queries": 7}, 8),
        ("EoT", {"attack": "PGD(steps=4)", "samples": 3}, 4),
        ("APGD", {"steps": 4}, 5),
    ],
)
def test_the_number_of_calls(name, setting, calls, conv_net, batch):
    seen = []
    ATTACKS[name](Threat("linf", 1e-6), **setting)(
        conv_net(), *batch(5), callback=lambda *reported: seen.append(reported)
    )
    assert [k for k, _, _ in seen] == list(range(calls))


def test_a_transfer_reports_its_source(conv_net, batch):
    seen, source = [], conv_net()
    attack = Transfer(Threat("linf", 0.1), "PGD(steps=3)", source)
    attack(conv_net(norm=True), *batch(3), callback=lambda k, x_adv, loss: seen.append((x_adv, loss)))
    assert len(seen) == 3
    assert all(torch.allclose(loss, cross_entropy(source(z), batch(3)[1])) for z, loss in seen)


@AIMED
def test_targets_are_met_in_the_ball_and_success_is_the_target(name, norm, conv_net, batch):
    model, x = conv_net(), batch(9)[0]
    with torch.no_grad():
        target = model(x).topk(2, dim=1).indices[:, 1]
    target[0] = model(x)[0].argmax()  # the model gives it already
    eps = {"linf": 0.3, "l2": 2.0, "l1": 6.0, "l0": 10, "patch": 5}[norm]
    attack = build(name, norm, {**STEPS, **ENOUGH}.get(name, {}), eps)
    out = attack.run(model, x, target, targeted=True)
    assert torch.equal(out.success, model(out.x_adv).argmax(1) == target)
    assert out.success[0]
    assert attack.threat.contains(out.x_adv, x).all()
    if attack.minimum_norm:
        assert torch.equal(out.x_adv[0], x[0])
    # The untargeted attack on the same labels leads away from them.
    away = attack.run(model, x, target).x_adv
    reached = (model(away).argmax(1) == target)[1:].sum()
    # The square attack draws few windows here.
    assert out.success[1:].sum() >= reached + (1 if name == "Square" else 4)


def linear(weight, bias):
    net = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        net.weight.copy_(weight)
        net.bias.copy_(bias)
    return net


@pytest.mark.parametrize("name", ["CarliniWagner", "DDN", "FMN", "ALMA"])
def test_minimum_norms_are_the_distances_to_the_target(name):
    # With two wrong classes far below, only the line between the true class and the target is active.
    weight = torch.tensor([[2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 0.1]], dtype=torch.float64)
    net = linear(weight, torch.tensor([0.0, 0.0, -3, -3], dtype=torch.float64))
    x = torch.tensor([[0.45, 0.6, 0.5, 0.5], [0.5, 0.75, 0.2, 0.6]], dtype=torch.float64)
    slope = weight[1] - weight[0]
    exact = (net(x)[:, 0] - net(x)[:, 1]) / slope.norm()
    setting = {"steps": 300} | ({"search_steps": 6, "initial_const": 0.1} if name == "CarliniWagner" else {})
    attack = ATTACKS[name](Threat("l2", 1.9), **setting)
    out = attack.run(net, x, torch.tensor([1, 1]), targeted=True)
    assert out.success.all()
    assert (out.norm >= exact - 1e-9).all()
    assert out.norm.tolist() == pytest.approx(exact.tolist(), rel=0.03)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "IFGS", "APGD"])
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_the_ball_decides_on_a_linear_network(name, factor):
    weight = torch.tensor([[1.0, -2, 0.5], [-1, 1, 1], [0.1, 0.1, 0.1]], dtype=torch.float64)
    net = linear(weight, torch.tensor([1.0, 0.0, -9], dtype=torch.float64))
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    # In linf the logits of two classes come together by eps times the l1 norm of the difference of their weights.
    exact = float((net(x)[:, 0] - net(x)[:, 1]) / (weight[0] - weight[1]).abs().sum())
    # Towards class 1, against which class 2 has no say.
    found = ATTACKS[name](Threat("linf", exact * factor)).run(net, x, torch.tensor([1]), targeted=True)
    assert found.success.tolist() == [factor > 1]


@pytest.mark.parametrize(
    ("name", "setting", "text"),
    [
        ("DeepFool", {}, "DeepFool takes no targets: use one of"),
        ("FAB", {}, "FAB takes no targets: use one of"),
        ("Langevin", {}, "Langevin takes no targets: use one of"),
        ("AutoAttack", {}, "AutoAttack takes no targets: use one of"),
        ("EoT", {"attack": "DeepFool"}, "DeepFool takes no targets: use one of"),
        ("PGD", {"loss": "kl"}, "'kl' does not use labels"),
        ("APGD", {"loss": "dlr-targeted"}, "chooses its targets itself"),
    ],
)
def test_attacks_without_targets_refuse_in_one_line(name, setting, text, conv_net, batch):
    with pytest.raises(ValueError, match=text) as error:
        ATTACKS[name](Threat("linf", EPS["linf"]), **setting)(conv_net(), *batch(2), targeted=True)
    assert "\n" not in str(error.value)


@AIMED
def test_a_target_that_the_model_does_not_have_is_refused(name, norm, conv_net, batch):
    x, y = batch(2)
    with pytest.raises(ValueError, match="label 10 is out of range: the model has 10 outputs"):
        small(name, norm)(conv_net(), x, torch.full_like(y, 10), targeted=True)


@CASE
def test_an_eps_for_each_sample_that_is_the_same_is_the_scalar(name, norm, conv_net, batch):
    for dtype in (torch.float32, torch.float64):
        model, (x, y) = conv_net(dtype), batch(6, dtype)
        one, each = small(name, norm), small(name, norm, torch.full((6,), EPS[norm], dtype=torch.float64))
        assert all(torch.equal(a, b) for a, b in zip(one.run(model, x, y), each.run(model, x, y)))


@CASE
def test_a_permuted_batch_with_permuted_eps_gives_the_permuted_result(name, norm, conv_net, batch):
    model, (x, y) = conv_net(), batch(6)
    eps = EPS[norm] * torch.tensor([0.0, 0.2, 1.0, 0.6, 0.2, 1.3], dtype=torch.float64)
    eps = torch.tensor([1.0, 2, 3, 2, 1, 4]).double() if norm in COUNTS else eps
    order, ids = torch.tensor([4, 2, 0, 5, 1, 3]), torch.arange(6) + 10
    attack = small(name, norm, eps)
    out = attack.run(model, x, y, ids=ids)
    moved = attack.of(order).run(model, x[order], y[order], ids=ids[order])
    assert torch.allclose(moved.x_adv, out.x_adv[order], rtol=0, atol=1e-9)
    assert torch.equal(moved.success, out.success[order])
    assert torch.equal(out.x_adv[0], x[0]) or norm in COUNTS
    for i in range(6):
        assert threat_in(norm, float(eps[i])).contains(out.x_adv[i : i + 1], x[i : i + 1]).all()


@CASE
def test_each_sample_is_attacked_as_by_its_own_eps_alone(name, norm, conv_net, batch):
    """Steps, starts and masses follow the eps of the sample, not the largest of the batch."""
    model, (x, y) = conv_net(), batch(6)
    eps = EPS[norm] * torch.tensor([0.2, 1.0, 0.6, 0.2, 1.3, 0.6], dtype=torch.float64)
    eps = torch.tensor([1.0, 2, 3, 1, 4, 3]).double() if norm in COUNTS else eps
    out, ids = small(name, norm, eps).run(model, x, y, ids=torch.arange(6) + 10), torch.arange(6) + 10
    for value in eps.unique():
        rows = (eps == value).nonzero().squeeze(1)
        alone = small(name, norm, float(value)).run(model, x[rows], y[rows], ids=ids[rows])
        assert torch.allclose(alone.x_adv, out.x_adv[rows], rtol=0, atol=1e-9)
        assert torch.equal(alone.success, out.success[rows])


def test_evaluate_takes_an_eps_for_each_sample(conv_net, batch):
    from atent.evaluate import evaluate

    model, (x, y) = conv_net(), batch(8)
    eps = torch.linspace(0, 0.2, 8, dtype=torch.float64)
    attacks = [small("PGD", "linf", eps), small("Square", "linf", eps)]
    found = [
        evaluate(model, x, y, attacks, batch=size, cascade=cascade) for size in (3, 8) for cascade in (True, False)
    ]
    assert len({str(each.worst) for each in found}) == 1
    assert 0 < found[0].worst["k"] < found[0].clean["k"]
    assert found[0].to_json()["attacks"]["PGD-3"]["threat"]["eps"] == pytest.approx(tuple(eps.tolist()))


def test_threats_with_an_eps_for_each_sample_compare_and_refuse():
    a, b = Threat("l2", torch.tensor([0.5, 1.0])), Threat("l2", ["1/2", 1.0])
    assert a == b
    assert hash(a) == hash(b)
    assert Threat(**b.plain()) == a
    assert a.take(torch.tensor([1, 1])) == Threat("l2", [1.0, 1.0])
    assert Threat("l2", 1.0).take(torch.tensor([0])) == Threat("l2", 1.0)
    with pytest.raises(ValueError, match="an eps for each of 2 samples, and one number is needed here"):
        float(a.eps)
    with pytest.raises(ValueError, match="eps must be finite and at least 0"):
        Threat("l2", torch.tensor([0.5, -1.0]))
    with pytest.raises(ValueError, match="one for each sample"):
        Threat("l2", torch.ones(2, 2))
    with pytest.raises(ValueError, match="an eps for each of 2 samples, got 3 samples"):
        ATTACKS["FGSM"](a)(nn.Linear(4, 2), torch.rand(3, 4), torch.zeros(3).long())


@AIMED
def test_a_target_that_the_model_gives_already_is_met_where_x_is(name, norm, conv_net, batch):
    model, (x, _) = conv_net(), batch(6)
    given = model(x).argmax(1)
    attack = small(name, norm)
    out = attack.run(model, x, given, targeted=True)
    assert out.success.all()
    assert (out.norm == 0).all() or not attack.minimum_norm


def coloured(dtype, boxes):
    """A linear network for 3 channels of 4 x 4, inputs in their boxes, some at the walls, and the model's labels."""
    g = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 4)
    low, high = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in boxes)
    x = low + (high - low) * (1.4 * torch.rand(8, 3, 4, 4, generator=g).to(dtype) - 0.2).clamp(0, 1)
    x = torch.minimum(torch.maximum(x, low), high)
    return net, x, net(x).argmax(1)


@CASE
def test_an_attack_stays_in_the_box_of_each_channel(name, norm):
    boxes = ((0.0, -1.0, 0.2), (1.0, 2.0, 0.5))
    for dtype in (torch.float32, torch.float64):
        model, x, y = coloured(dtype, boxes)
        # DDN's few steps find nothing within the usual eps.
        attack = small(name, norm, 3.0 if name == "DDN" else None)
        attack = replace(attack, threat=replace(attack.threat, box=boxes))
        out = attack.run(model, x, y)
        assert attack.threat.contains(out.x_adv, x).all()
        for c, (low, high) in enumerate(zip(*boxes)):
            own = out.x_adv[:, c]
            assert own.min() >= torch.tensor(low, dtype=dtype)
            assert own.max() <= torch.tensor(high, dtype=dtype)
        # Not because nothing moves.
        assert (out.norm > 0).any() or name == "Transfer"


@CASE
# The box of images is the easier one.
@pytest.mark.parametrize("box", [pytest.param((0.0, 1.0), marks=pytest.mark.slow), (-0.3, 1.7)])
def test_boxes_of_channels_that_are_the_same_are_the_scalar(name, norm, box):
    for dtype in (torch.float32, torch.float64):
        boxes = ((box[0],) * 3, (box[1],) * 3)
        model, x, y = coloured(dtype, boxes)
        attack = small(name, norm)
        one, each = (replace(attack, threat=replace(attack.threat, box=b)) for b in (box, boxes))
        assert all(torch.equal(a, b) for a, b in zip(one.run(model, x, y), each.run(model, x, y)))


def test_inputs_outside_the_box_of_their_channel_are_refused():
    boxes = ((0.0, -1.0, 0.2), (1.0, 2.0, 0.5))
    model, x, y = coloured(torch.float32, boxes)
    attack = ATTACKS["PGD"](Threat("linf", 0.1, boxes))
    x[0, 2, 0, 0] = 0.9
    with pytest.raises(ValueError, match=r"^inputs of channel 2 lie in \[0.2, 0.9\], outside the box \[0.2, 0.5\]: "):
        attack(model, x, y)
    with pytest.raises(ValueError, match="the threat's box is for 3 channels, got inputs of 2"):
        attack(model, x[:, :2], y)


class MaskedRoot(nn.Module):
    """A linear network with finite logits, whose first input has a NaN (scale 0) or infinite (scale 1) gradient."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(192, 5)

    def forward(self, x):
        x = x.flatten(1)
        first = torch.sqrt(self.scale * (x[:, :1] - x[:, :1].detach()))
        return self.linear(x) + first * torch.arange(5)


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["nan", "infinite"])
@CASE
def test_gradients_that_are_not_finite_are_reported(name, norm, scale, capsys):
    once.cache_clear()
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    attack, plain, broken = small(name, norm), nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), MaskedRoot(scale)
    y = plain(x).argmax(1)
    attack(plain, x, y)
    assert "NaN" not in capsys.readouterr().err
    y = broken(x).argmax(1)
    attack(broken, x, y)
    assert ("NaN or infinite input gradients" in capsys.readouterr().err) is attack.needs_gradient


ROOT = Path(atent.__file__).parent


@pytest.mark.parametrize("room", ["attacks", "evaluate"])
def test_attacks_and_evaluate_import_nothing_from_above(room):
    above = {"attacks": ("methods", "evaluate"), "evaluate": ()}[room]
    refused = tuple(f"atent.{each}" for each in (*above, "train", "experiments", "report", "paper", "cli"))
    for file in (ROOT / room).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith(refused)], file.name


def test_the_examples_of_the_page_run():
    page = Path(__file__).parents[2] / "docs" / "attacks.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S))
    exec(compile(code, page.name, "exec"), {})
