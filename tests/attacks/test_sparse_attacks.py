"""Attacks in l1, in l0 and on patches against the closed forms of linear networks, and Auto-PGD's l1 form in parts."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from atent.attacks import APGD, ATTACKS, DDN, FAB, FGSM, FMN, PGD, AutoAttack, DeepFool, Square
from atent.attacks.hyperplane import to_hyperplane
from atent.attacks.spec import labelled, parse, show, spell
from atent.attacks.step_rules import Sparse, stages
from atent.methods import MART, PGDAT
from atent.threat import Threat

L1 = Threat("l1", 3.0)


def linear(shape, n=12, seed=0, dtype=torch.float64):
    """A network of two classes, inputs, their labels, which hold for good, and each coordinate's gain and room."""
    g = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    w = torch.randn(d, generator=g, dtype=torch.float64)
    x = torch.rand(n, *shape, generator=g, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(d, 2)).to(dtype)
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-w / 2, w / 2]))
        net[1].bias.copy_(torch.tensor([0.0, -float((x.flatten(1) @ w).min()) + float(w.abs().sum())]))
    room = torch.where(w > 0, x.flatten(1), 1 - x.flatten(1))
    return net, x.to(dtype), torch.ones(n).long(), w, room


def knapsack(w, room, eps):
    """The largest sum of |w_i| t_i with 0 <= t_i <= room_i and the t_i summing to eps."""
    order = w.abs().argsort(descending=True)
    room, gain = room[:, order], w.abs()[order]
    before = room.cumsum(1) - room
    return (gain * torch.minimum(room, (eps - before).clamp_min(0))).sum(1)


def gained(x_adv, x, w):
    return (x.double() - x_adv.double()).flatten(1) @ w


@pytest.mark.parametrize(
    ("shape", "eps", "attack", "share"),
    [
        ((1, 8, 8), 0.3, APGD(L1, loss="margin", radii="shrinking"), 0.99),
        ((1, 8, 8), 3.0, APGD(L1, loss="margin", radii="shrinking"), 0.99),
        ((3, 16, 16), 12.0, APGD(L1, loss="margin", radii="shrinking"), 0.99),
        ((3, 16, 16), 12.0, APGD(L1, loss="margin"), 0.99),
        # Long before the last step the gradient of a linear network says it all.
        ((3, 16, 16), 12.0, FGSM(L1), 1 - 1e-9),
        ((3, 16, 16), 12.0, PGD(L1, steps=40), 0.95),
    ],
)
def test_l1_attacks_reach_the_optimum_of_a_linear_network(shape, eps, attack, share):
    net, x, y, w, room = linear(shape)
    x_adv = parse(spell(attack), Threat("l1", eps), ATTACKS)(net, x, y)
    assert Threat("l1", eps).contains(x_adv, x).all()
    found = gained(x_adv, x, w) / knapsack(w, room, eps)
    assert float(found.mean()) >= share
    assert float(found.min()) >= share - 0.02
    assert float(found.max()) <= 1 + 1e-6


@pytest.mark.parametrize("group", ["element", "pixel"])
@pytest.mark.parametrize("kind", [FGSM, PGD])
def test_l0_attacks_choose_the_best_elements_of_a_linear_network(kind, group):
    net, x, y, w, room = linear((3, 8, 8))
    value = w.abs() * room
    value = value if group == "element" else value.view(-1, 3, 64).sum(1)
    best = value.sort(1, descending=True).values[:, :5].sum(1)
    x_adv = kind(Threat("l0", 5, group=group))(net, x, y)
    assert (gained(x_adv, x, w) >= 0.95 * best).all()
    assert (gained(x_adv, x, w) <= best + 1e-9).all()


def test_patch_attacks_choose_the_best_patches_of_a_linear_network():
    net, x, y, w, room = linear((1, 8, 8))
    for threat in (Threat("patch", 3, side=2), Threat("patch", 3, side=2, inner="linf", inner_eps=0.1)):
        limit = room if threat.inner_eps is None else room.clamp_max(threat.inner_eps)
        value = threat.blocks((1, 8, 8)).pool((w.abs() * limit).view(-1, 1, 8, 8))
        best = value.sort(1, descending=True).values[:, :3].sum(1)
        x_adv = PGD(threat)(net, x, y)
        assert threat.contains(x_adv, x).all()
        assert (gained(x_adv, x, w) >= 0.95 * best).all()


def boundary():
    """As `linear`, with the decision boundary within reach, and what the smallest changes are."""
    net, x, _, w, _ = linear((1, 6, 6), n=16)
    score = x.flatten(1) @ w
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([0.0, -float(score.median()) + 1e-2]))
    y = net(x).argmax(1)
    up = torch.where(y == 1, -1.0, 1.0).double()[:, None] * w
    room = torch.where(up > 0, 1 - x.flatten(1), x.flatten(1))
    margin = (net(x)[:, 1] - net(x)[:, 0]).abs().detach()
    order = up.abs().argsort(1, descending=True)
    gain, wide = up.abs().gather(1, order), room.gather(1, order)
    left = margin[:, None] - ((gain * wide).cumsum(1) - gain * wide)
    l1 = torch.minimum((left / gain).clamp_min(0), wide).sum(1)
    l0 = ((up.abs() * room).sort(1, descending=True).values.cumsum(1) < margin[:, None]).sum(1) + 1
    return net, x, y, l1, l0.double(), up, margin


def test_smallest_l1_and_l0_changes_of_a_linear_network():
    net, x, y, l1, l0, _, _ = boundary()
    for attack, exact, most in (
        (FMN(Threat("l1", "inf"), steps=300), l1, 1.02),
        (FAB(Threat("l1", "inf"), steps=30), l1, 1.02),
    ):
        out = attack.run(net, x, y)
        assert out.success.all()
        assert (out.norm >= exact * (1 - 1e-9)).all()
        assert (out.norm <= exact * most).all()
    out = FMN(Threat("l0", "inf"), steps=300).run(net, x, y)
    assert out.success.all()
    assert (out.norm >= l0).all()
    assert (out.norm <= l0 + 1).all()
    # Within a budget that is met exactly, the point is returned; with one less, x.
    some = FMN(Threat("l0", out.norm), steps=300).run(net, x, y)
    assert some.success.all()


def test_the_way_to_a_hyperplane_in_l1_is_the_shortest():
    _, x, _, l1, _, up, margin = boundary()
    d = to_hyperplane(Threat("l1", 1.0), x, up.view_as(x), margin)
    assert d.flatten(1).abs().sum(1).tolist() == pytest.approx(l1.tolist(), rel=1e-9)
    assert ((d.flatten(1) * up).sum(1)).tolist() == pytest.approx(margin.tolist(), rel=1e-9)
    assert ((x + d) >= -1e-15).all()
    assert ((x + d) <= 1 + 1e-15).all()
    # Out of reach: every coordinate with weight is at its wall.
    far = to_hyperplane(Threat("l1", 1.0), x, up.view_as(x), margin + 1e3)
    assert (x + far).unique().tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_square_in_l1_finds_much_of_it_by_scores_alone():
    net, x, y, w, room = linear((1, 8, 8), n=8)
    x_adv = Square(L1, queries=400)(net, x, y)
    assert L1.contains(x_adv, x).all()
    found = gained(x_adv, x, w) / knapsack(w, room, 3.0)
    assert 0.5 <= float(found.min()) <= float(found.max()) <= 1


# ---- the parts of Auto-PGD ------------------------------------------------------------------------------


def test_the_stages_of_the_radius():
    assert stages(100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
    for steps in range(1, 60):
        found = stages(steps)
        assert sum(count for _, count in found) == steps
        assert found[-1][0] == 1.0
        assert min(count for _, count in found) >= 1


def test_l1_steps_adapt_as_published():
    threat, x = Threat("l1", 6.0), torch.full((2, 50), 0.5, dtype=torch.float64)
    rule = Sparse.begin(threat, x, None, 100)
    assert rule.checks == dict.fromkeys(range(4, 101, 4), 4)
    assert rule.share.tolist() == [0.2, 0.2]
    grad = torch.arange(1.0, 51).double().expand(2, -1)
    moved = rule.move(Threat("l1", 100.0), x, x, x, grad, 1)
    # A fifth of 50 coordinates, the last ones, share a step of 6; the box stops at 0.5.
    assert ((moved - x) != 0).sum(1).tolist() == [10, 10]
    assert (moved[:, 40:] == 1.0).all()
    best = x.clone()
    best[0, :30] += 0.1
    best[1, :49] += 0.1
    assert rule.check(4, x, best, None).tolist() == [True, False]
    assert rule.share.tolist() == pytest.approx([20 / 50, 49 / 75])
    assert rule.size.tolist() == [6.0, 4.0]
    for _ in range(9):
        rule.check(4, x, best, None)
    assert rule.size.tolist() == pytest.approx([0.6, 0.6])
    # What the box stops does not count among the largest.
    at_wall = x.clone()
    at_wall[:, 40:] = 1.0
    rule = Sparse.begin(threat, x, None, 100)
    moved = rule.move(Threat("l1", 100.0), x, at_wall, at_wall, grad, 1)
    assert ((moved - at_wall) != 0).nonzero()[:, 1].unique().tolist() == list(range(30, 40))


def test_autoattack_in_l1_is_the_published_ensemble():
    parts = AutoAttack(Threat("l1", 12.0)).parts()
    assert list(parts) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    ce, targeted = parts["APGD-CE"], parts["APGD-T"]
    assert (ce.restarts, ce.radii, ce.steps) == (5, "shrinking", 100)
    assert (targeted.targets, targeted.radii, targeted.loss) == (5, "shrinking", "dlr-targeted")
    assert parts["FAB-T"].targets == 9
    assert (parts["Square"].queries, parts["Square"].schedule) == (5000, "absolute")


# ---- norms that an attack or method does not have, and threats as text -----------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DDN(L1), "DDN has no form for l1: give a threat in l2, or use one of APGD, AutoAttack"),
        (lambda: DeepFool(Threat("l0", 3)), "DeepFool has no form for l0: give a threat in linf or l2, or use one of"),
        (lambda: AutoAttack(Threat("l0", 3)), "AutoAttack has no form for l0"),
        (lambda: MART(Threat("patch", 1, side=2)), "MART has no form for patch: give a threat in linf, or use one of"),
        (lambda: APGD(Threat("linf", 0.1), radii="shrinking"), "radii 'shrinking' is for l1, got linf"),
        (lambda: PGD(L1, start="cube"), r"start \(for l1\) 'cube' is not known: use one of zero"),
        (lambda: parse("EoT(attack=DDN)", L1, ATTACKS), "DDN has no form for l1"),
    ],
)
def test_what_has_no_form_for_a_norm_says_so_in_one_line(make, text):
    with pytest.raises(ValueError, match=rf"^[^\n]*{text}[^\n]*$"):
        make()


def test_threats_as_text_and_back():
    threats = [
        L1, Threat("l0", 100, group="pixel"), Threat("l0", 1), Threat("patch", 2, side=4),
        Threat("patch", 2, side=4, inner="linf", inner_eps="8/255"),
    ]  # fmt: skip
    shown = ["l1 3", "l0 100 pixels", "l0 1 element", "patch 2 of 4x4", "patch 2 of 4x4 linf 8/255"]
    assert [show(t) for t in threats] == shown
    assert show(Threat("l0", [3, 5])) == "l0 3..5 elements per sample"
    for threat in threats:
        attack = PGD(threat, steps=3)
        assert parse(spell(attack, threat=True), None, ATTACKS) == attack
        assert parse("PGD(steps=3)", threat, ATTACKS) == attack
    # Another norm takes nothing over but the box.
    assert parse("PGD(norm=linf, eps=0.1)", threats[4], ATTACKS).threat == Threat("linf", 0.1)
    assert parse("PGD(eps=3)", threats[4], ATTACKS).threat.inner_eps == 8 / 255
    assert list(labelled([PGD(t) for t in threats]))[1] == "PGD-20 l0 100 pixels"
    assert PGDAT(threats[1]).attack(1.0).threat == threats[1]


# ---- against the authors' code --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is not installed")
def test_apgd_in_l1_is_as_strong_as_pyautoattack():
    from pyautoattack.autopgd_base import APGDAttack
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(200):
        rows = torch.randint(1000, (100,))
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, y = x[1000:1200], y[1000:1200]
    for eps in (1.0, 2.0, 3.0):
        port = APGDAttack(net, n_iter=100, norm="L1", n_restarts=1, eps=eps, device="cpu", use_largereps=True)
        theirs = net(port.perturb(x, y)).argmax(1) == y
        ours = ~APGD(Threat("l1", eps), radii="shrinking").run(net, x, y).success
        # Both are random: of n samples on which they differ, sqrt(n) either way is chance.
        differ = int((ours ^ theirs).sum())
        assert int((ours & ~theirs).sum()) <= differ / 2 + 2 * math.sqrt(differ)


def test_long_steps_choose_elements_better_than_short_ones(conv_net, batch):
    model, (x, _) = conv_net(), batch(60)
    with torch.no_grad():
        y = model(x).argmax(1)
    fooled = {
        step: int(PGD(Threat("l0", 2), steps=20, step_size=step, loss="margin").run(model, x, y).success.sum())
        for step in (0.3, 10.0)
    }
    assert fooled[10.0] >= fooled[0.3] + 5
