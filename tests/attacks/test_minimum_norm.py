"""The minimum-norm attacks: exact distances, what they have in common, their passes, and a comparison."""

import math

import pytest
import torch
from kit import Syncs
from minimum_norm import FREE, linear, right
from torch import nn

from atent.attacks.alma import ALMA
from atent.attacks.carlini_wagner import CarliniWagner
from atent.attacks.ddn import DDN
from atent.attacks.deepfool import DeepFool
from atent.attacks.fmn import FMN
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import beyond
from atent.evaluate import norms as nm
from atent.threat import Threat


def size(norm, d):
    d = d.flatten(1)
    return d.abs().amax(1) if norm == "linf" else d.norm(dim=1)


# -- linear models: the distance is known


def to_half_space(norm, x, w, gap):
    """Length of the shortest step d with <w, d> = gap > 0 inside the box, one sample; inf where there is none."""

    def step(mu):
        return torch.minimum(torch.maximum(mu * (w if norm == "l2" else w.sign()), -x), 1 - x)

    low, high = 0.0, 1.0
    while float(w @ step(high)) < gap:
        high *= 2
        if high > 1e9:
            return math.inf
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (low, mid) if float(w @ step(mid)) >= gap else (mid, high)
    return float(size(norm, step(high)[None]))


def exact(norm, net, x, y):
    """Distance of each sample to the nearest of the other classes, one by one."""
    w, b, out = net.weight.detach(), net.bias.detach(), []
    for z, label in zip(x, y.tolist()):
        scores = w @ z + b
        gaps = {k: float(scores[label] - scores[k]) for k in range(len(b)) if k != label}
        out.append(min(to_half_space(norm, z, w[k] - w[label], gap) for k, gap in gaps.items()))
    return torch.tensor(out, dtype=torch.float64)


def without_box(norm, net, x, y):
    """The same where there is no box."""
    w = net.weight.detach()[None] - net.weight.detach()[y][:, None]
    gaps = net(x).gather(1, y[:, None]) - net(x)
    far = gaps / torch.linalg.vector_norm(w, ord=2 if norm == "l2" else 1, dim=2)
    return far.scatter(1, y[:, None], math.inf).amin(1)


def careful(norm, classes):
    """Attacks with the steps that a linear model needs."""
    threat, constraint = FREE[norm], "dlr" if classes > 2 else "margin"
    both = {"DeepFool": DeepFool(threat), "FMN": FMN(threat, steps=300)}
    if norm == "linf":
        return both
    return {
        **both,
        "DDN": DDN(threat, steps=300),
        "ALMA": ALMA(threat, steps=400, constraint=constraint),
        "ALMA p3": ALMA(threat, steps=400, constraint=constraint, penalty="p3"),
        "CarliniWagner": CarliniWagner(threat, steps=300),
    }


LINEAR = [(norm, name) for norm in FREE for name in careful(norm, 5)]


@pytest.mark.parametrize(("norm", "name"), LINEAR)
@pytest.mark.parametrize(
    # There are five classes in the corner too, and two far from the walls of the box.
    "problem",
    ["two classes", pytest.param("five classes", marks=pytest.mark.slow), "in the corner"],
)
def test_comes_near_the_exact_distance_and_never_below(problem, norm, name, two_class):
    model, x, y = two_class()[:3] if problem == "two classes" else linear(problem == "in the corner")
    distance = exact(norm, model, x, y)
    # nearer than that, DeepFool's 1e-4 and ALMA's tolerance weigh
    rows = distance > {"l2": 0.012, "linf": 0.006}[norm]
    assert rows.sum() >= 10
    if problem == "in the corner":
        assert (distance > 1.02 * without_box(norm, model, x, y))[rows].sum() >= 3
    out = careful(norm, model.out_features)[name].run(model, x, y)
    assert out.success.all()
    assert (model(out.x_adv).argmax(1) != y).all()
    assert out.x_adv.min() >= 0
    assert out.x_adv.max() <= 1
    # in the corner the nearest class is not always the one that the logits say, linf steps know nothing of the box, and
    # Carlini and Wagner's are short beside its walls
    hard = norm == "linf" or name in ("ALMA p3", "CarliniWagner")
    worst = 1.2 if problem == "in the corner" and hard else 1.05
    assert (out.norm[rows] <= worst * distance[rows]).all()
    assert (out.norm >= distance * (1 - 1e-9)).all()


def test_the_exact_distance_of_two_classes_is_the_closed_form(two_class):
    model, x, y, distance = two_class()
    for norm in FREE:
        assert (exact(norm, model, x, y) / distance[norm] - 1).abs().max() < 1e-9


# -- what every one of them owes


def quick(norm):
    threat = FREE[norm]
    both = {"DeepFool": DeepFool(threat), "FMN": FMN(threat, steps=40)}
    if norm == "linf":
        return both
    return {
        **both,
        "DDN": DDN(threat, steps=40),
        "ALMA": ALMA(threat, steps=60, alpha=0.5),
        "CarliniWagner": CarliniWagner(threat, steps=60, search_steps=3, initial_const=0.5, step_size=0.05),
    }


QUICK = pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm in FREE for name in quick(norm)])


@QUICK
def test_what_is_wrong_already_stays_and_the_rest_falls(norm, name, conv_net, batch):
    model, (x, y) = conv_net(), batch(40)
    y[::5] = (y[::5] + 1) % 10
    wrong = model(x).argmax(1) != y
    assert 7 < wrong.sum() < 20
    out = quick(norm)[name].run(model, x, y)
    assert torch.equal(out.x_adv[wrong], x[wrong])
    assert (out.norm[wrong] == 0).all()
    assert (out.norm[~wrong] > 0).all()
    assert out.success.all()
    assert (model(out.x_adv).argmax(1) != y).all()


@QUICK
def test_beyond_eps_x_comes_back(norm, name, conv_net, batch):
    model, (x, y) = conv_net(), batch(20)
    free = quick(norm)[name].run(model, x, y)
    eps = float(free.norm.median())
    fields = {k: v for k, v in vars(quick(norm)[name]).items() if k != "threat"}
    out = type(quick(norm)[name])(Threat(norm, eps), **fields).run(model, x, y)
    near = free.norm <= eps
    assert 5 < near.sum() < 15
    assert torch.equal(out.x_adv[near], free.x_adv[near])
    assert torch.equal(out.x_adv[~near], x[~near])
    assert not out.success[~near].any()


@QUICK
def test_a_constant_model_has_no_adversarial_point(norm, name, batch):
    x, y = batch(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.arange(10.0))
    out = quick(norm)[name].run(model, x, torch.full_like(y, 9))
    assert torch.equal(out.x_adv, x)
    assert not out.success.any()
    out = quick(norm)[name].run(model, x, y % 9)
    assert torch.equal(out.x_adv, x)
    assert out.success.all()


def test_a_margin_that_rounding_could_turn_is_none():
    y = torch.zeros(4, dtype=torch.long)
    logits = torch.tensor([[100.0, 100.0], [100.0, 100.0005], [100.0, 100.002], [1.0, 1.00002]])
    oracle = Oracle(nn.Identity(), *torch.zeros(2, 4), check=False)
    assert beyond(oracle, logits, y).tolist() == [False, False, True, True]
    assert beyond(oracle, logits.double(), y).tolist() == [False, True, True, True]
    assert beyond(oracle, logits, y, 0.01).tolist() == [False] * 4
    # but x itself is evaluated as verdicts are
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.copy_(torch.tensor([100.0, 100.0005]))
    x = torch.full((1, 2), 0.5)
    for attack in (DDN(FREE["l2"], steps=5), DeepFool(FREE["l2"]), CarliniWagner(FREE["l2"], steps=5, search_steps=2)):
        out = attack.run(model, x, y[:1])
        assert out.success.all()
        assert torch.equal(out.x_adv, x)


# -- passes


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (DDN(FREE["l2"], steps=7), 7, 6),
        (FMN(FREE["linf"], steps=7), 7, 6),
        (ALMA(FREE["l2"], steps=7), 7, 6),
        (CarliniWagner(FREE["l2"], steps=7, search_steps=3), 22, 21),
        # x is ranked; each of two steps takes one backward for each of four other classes; the last point is judged
        (DeepFool(FREE["l2"], steps=2, classes=5), 4, 8),
    ],
    ids=lambda v: type(v).__name__ if hasattr(v, "threat") else str(v),
)
def test_passes_are_as_many_as_stated(attack, forwards, backwards, batch):
    x, y = batch(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        model[1].weight.mul_(1e-4)
        model[1].bias.copy_(torch.arange(10.0))
    out = attack.run(model, x, torch.full_like(y, 9))
    assert not out.success.any()
    assert out.forwards.tolist() == [forwards + 1] * 5
    assert out.backwards.tolist() == [backwards] * 5
    assert forwards + backwards + 1 == attack.passes


@pytest.mark.parametrize("name", ["DDN", "FMN", "ALMA"])
def test_no_evaluation_waits_for_the_device(name, conv_net, batch):
    model, (x, y) = conv_net(), batch(4)
    counts = []
    for steps in (5, 25):
        attack = {"DDN": DDN, "FMN": FMN, "ALMA": ALMA}[name](FREE["l2"], steps=steps)
        with Syncs() as syncs:
            attack(model, x, y)
        counts.append(len(syncs.seen))
    assert counts[0] == counts[1]


# -- against each other, on a trained network


def medians(attacks, model, x, y):
    out = {}
    for name, attack in attacks.items():
        found = attack.run(model, x, y)
        assert found.success.all(), name
        out[name] = nm.median(found.norm)
    return out


def test_alma_and_fmn_are_no_farther_than_ddn_and_carlini_wagner_than_deepfool(conv_net, batch):
    model = conv_net(torch.float32)
    x, y = right(model, *batch(60, torch.float32), 40)
    l2 = FREE["l2"]
    found = medians(
        {
            "DDN": DDN(l2, steps=100),
            "FMN": FMN(l2, steps=100),
            "ALMA": ALMA(l2, steps=100, alpha=0.5),
            "CarliniWagner": CarliniWagner(l2, steps=300, step_size=0.03, initial_const=0.5, search_steps=5),
            "DeepFool": DeepFool(l2),
        },
        model, x, y,
    )  # fmt: skip
    # at 100 forwards each; all three end on the same boundary, but for a thousandth of its distance
    assert found["ALMA"] <= 1.01 * found["DDN"]
    assert found["FMN"] <= 1.01 * found["DDN"]
    assert found["CarliniWagner"] <= found["DeepFool"]


# -- refusals


@pytest.mark.parametrize(
    ("cls", "settings", "text"),
    [
        (DDN, {"steps": 1}, "steps must be at least 2, got 1"),
        (DDN, {"init_norm": 0}, "init_norm must be above 0, got 0"),
        (DDN, {"gamma": 1.0}, r"gamma must lie in \[0, 1\), got 1"),
        (DDN, {"gamma": -0.1}, "gamma must be at least 0, got -0.1"),
        (DDN, {"levels": 1}, "levels must be at least 2, got 1"),
        (FMN, {"steps": 2.5}, "steps must be an integer, got 2.5"),
        (FMN, {"step_size": 0.0}, "step_size must be above 0, got 0"),
        (FMN, {"final_step_size": -1.0}, "final_step_size must be at least 0"),
        (FMN, {"gamma": 2.0}, r"gamma must lie in \[0, 1\)"),
        (FMN, {"final_gamma": 2.0}, r"final_gamma must lie in \[0, 1\)"),
        (ALMA, {"steps": 1}, "steps must be at least 2, got 1"),
        (ALMA, {"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        (ALMA, {"penalty": "p1"}, "penalty 'p1' is not known: use one of p2, p3"),
        (ALMA, {"constraint": "ce"}, "constraint 'ce' is not known"),
        (ALMA, {"rho_init": 0.0}, "rho_init must be above 0"),
        (ALMA, {"multiplier_init": -1.0}, "multiplier_init must be above 0"),
        (ALMA, {"check_steps": 0}, "check_steps must be at least 1"),
        (ALMA, {"tau": math.nan}, "tau must be a finite number, got nan"),
        (ALMA, {"gamma": 0.9}, "gamma must be at least 1"),
        (ALMA, {"first_step": 0.0}, "first_step must be above 0"),
        (ALMA, {"final_rate": 1.5}, r"final_rate must lie in \(0, 1\], got 1.5"),
        (ALMA, {"final_rate": 0.0}, "final_rate must be above 0"),
        (ALMA, {"tolerance": -1.0}, "tolerance must be at least 0"),
        (CarliniWagner, {"steps": 0}, "steps must be at least 1"),
        (CarliniWagner, {"search_steps": 0}, "search_steps must be at least 1"),
        (CarliniWagner, {"step_size": 0.0}, "step_size must be above 0"),
        (CarliniWagner, {"initial_const": 0.0}, "initial_const must be above 0"),
        (CarliniWagner, {"confidence": -1.0}, "confidence must be at least 0"),
        (CarliniWagner, {"abort_early": 1}, "abort_early must be true or false, got 1"),
        (DeepFool, {"steps": 0}, "steps must be at least 1"),
        (DeepFool, {"overshoot": -0.1}, "overshoot must be at least 0"),
        (DeepFool, {"classes": 1}, "classes must be at least 2, got 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(cls, settings, text):
    with pytest.raises(ValueError, match=text) as error:
        cls(FREE["l2"], **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", [CarliniWagner, DDN, ALMA])
def test_another_norm_is_refused_in_one_line(cls):
    with pytest.raises(
        ValueError, match=rf"^{cls.__name__} has no form for linf: give a threat in l2, or use one of [^\n]*, FMN, "
    ):
        cls(FREE["linf"])
