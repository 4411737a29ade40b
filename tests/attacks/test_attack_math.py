"""Attacks against problems whose answer is known, and their moves against hand-written ones."""

import math
from itertools import pairwise

import pytest
import torch
from kit import BALLS, Recorded
from scipy import stats
from torch import nn

from atent.attacks import FGSM, IFGS, PGD, Langevin, sampler
from atent.attacks.starts import start
from atent.losses import cross_entropy, margin
from atent.rng import Batch, PerSample
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)


def size(norm, d):
    d = d.flatten(1)
    return d.abs().amax(1) if norm == "linf" else d.norm(dim=1)


# -- linear models: the worst case is known


def exact(norm, eps):
    """Attacks that must reach the optimum of a linear model itself."""
    threat = Threat(norm, eps)
    calm = {"noise": 0.0, "gamma": 0.0}
    return {
        "FGSM": FGSM(threat),
        "PGD": PGD(threat, steps=60, step_size=2 * eps),
        "PGD margin": PGD(threat, steps=60, step_size=2 * eps, loss="margin", keep="best"),
        "PGD cube": PGD(threat, steps=60, step_size=2 * eps, start="cube"),
        "PGD zero": PGD(threat, steps=5, start="zero"),
        "PGD gaussian": PGD(threat, steps=60, step_size=2 * eps, start="gaussian", start_noise=eps),
        "PGD momentum": PGD(threat, steps=60, step_size=2 * eps, momentum=0.9),
        "PGD momentum zero": PGD(threat, steps=5, step_size=eps / 5, momentum=1.0, start="zero"),
        "IFGS": IFGS(threat, steps=5),
        "Langevin": Langevin(threat, steps=60, step_size=2 * eps, projection="every", **calm),
        "Langevin zero": Langevin(threat, steps=5, start="zero", **calm),
    }


EXACT = list(exact("l2", 1.0))


@NORM
@pytest.mark.parametrize("name", EXACT)
def test_the_closed_form_worst_case_of_a_linear_model(norm, name, two_class):
    model, x, y, distance = two_class()
    eps = float(distance[norm].median())
    w = model.weight[1] - model.weight[0]
    dual = w.abs().sum() if norm == "linf" else w.norm()
    x_adv = exact(norm, eps)[name](model, x, y)
    with torch.no_grad():
        expected = margin(model(x), y) + eps * dual
        assert (margin(model(x_adv), y) - expected).abs().max() <= 1e-9
    sign = torch.where(y == 1, -1.0, 1.0)[:, None].double()
    best = x + eps * sign * (w.sign() if norm == "linf" else w / w.norm())
    assert (x_adv - best).abs().max() <= 1e-6


@NORM
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("begin", ["gaussian", "uniform"])
def test_the_divergence_of_a_linear_model_is_greatest_at_either_end(norm, keep, begin, two_class):
    # it grows with the distance of the logits from the clean ones, whichever way the start has set out
    model, x, y, distance = two_class()
    eps = float(distance[norm].median())
    w = model.weight[1] - model.weight[0]
    dual = w.abs().sum() if norm == "linf" else w.norm()
    x_adv = PGD(Threat(norm, eps), steps=60, step_size=2 * eps, loss="kl", keep=keep, start=begin)(model, x, y)
    with torch.no_grad():
        moved = margin(model(x_adv), y) - margin(model(x), y)
    assert (moved.abs() - eps * dual).abs().max() <= 1e-9
    assert 0 < int((moved > 0).sum()) < len(moved)


class Third(nn.Module):
    """A third class that is never near, for losses that need three."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        z = self.body(x)
        return torch.cat([z, torch.full_like(z[:, :1], -10.0)], 1)


def usual(norm, eps):
    """Attacks as people run them: they need a little more than the exact distance."""
    threat = Threat(norm, eps)
    calm = {"start": "zero", "gamma": 0.0} if norm == "l2" else {}
    unit = {"gradient": "unit"} if norm == "l2" else {}  # raw gradients vanish here, and the steps with them
    return {
        "FGSM": FGSM(threat),
        "PGD": PGD(threat),
        "PGD restarts": PGD(threat, steps=30, restarts=2, start="cube", keep="best"),
        "PGD margin": PGD(threat, steps=20, loss="margin"),
        "PGD dlr": PGD(threat, loss="dlr"),
        # half the starts set out away from the boundary, and stay there
        "PGD kl": PGD(threat, loss="kl", restarts=12),
        "PGD kl gaussian": PGD(threat, loss="kl", start="gaussian", restarts=12),
        **{
            f"PGD {loss} momentum": PGD(threat, loss=loss, momentum=1.0, restarts=12 if loss == "kl" else 1)
            for loss in ("ce", "margin", "dlr", "kl")
        },
        "MI-FGSM": PGD(threat, steps=10, step_size=eps / 10, momentum=1.0, start="zero"),
        "IFGS": IFGS(threat),
        "Langevin": Langevin(threat, **calm),
        "Langevin published": Langevin(threat, variant="published", **calm, **unit),
    }


@NORM
@pytest.mark.parametrize("name", list(usual("l2", 1.0)))
def test_a_sample_flips_if_and_only_if_eps_exceeds_its_distance(norm, name, two_class):
    model, x, y, distance = two_class()
    model = Third(model)
    for i, far in enumerate(distance[norm][:8].tolist()):
        for factor, flips in ((1.05, True), (0.95, False)):
            attack, one = usual(norm, factor * far)[name], slice(i, i + 1)
            assert bool(attack.run(model, x[one], y[one], ids=torch.tensor([i])).success) == flips


@NORM
def test_fgsm_is_its_formula(norm, conv_net, batch):
    model, (x, y) = conv_net(), batch(6)
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
    step = grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (FGSM(Threat(norm, 0.2))(model, x, y) - (x + 0.2 * step).clamp(0, 1)).abs().max() <= 1e-12


# -- PGD


def softmax_gradient(w, b, z, y):
    """Gradient of the cross-entropy of a linear model, written out."""
    p = torch.softmax(z @ w.T + b, 1)
    return (p - nn.functional.one_hot(y, len(b))) @ w


@pytest.fixture
def linear():
    """Three classes, 7 inputs, float64; x in the box, some of it at its edge."""
    g = torch.Generator().manual_seed(12)
    net = nn.Linear(7, 3).double()
    with torch.no_grad():
        net.weight.copy_(2 * torch.randn(3, 7, generator=g, dtype=torch.float64))
        net.bias.copy_(torch.randn(3, generator=g, dtype=torch.float64))
    x = torch.rand(11, 7, generator=g, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    return net, x, torch.randint(3, (11,), generator=g)


IDS = torch.tensor([4, 1, 77, 2**40, 5, 6, 7, 8, 9, 10, 0])


def uniforms(attack, x, use="start", restart=0):
    return PerSample(9, IDS, attack).uniform(x, use=use, restart=restart)


def project(norm, z, x, eps):
    d = z - x
    if norm == "linf":
        return x + d.clamp(-eps, eps)
    return x + d * (eps / d.norm(dim=1)).clamp_max(1.0)[:, None]


@NORM
def test_pgd_from_the_cube_takes_its_first_gradient_where_it_falls(norm, linear):
    net, x, y = linear
    model, eps = Recorded(net), 0.6
    PGD(Threat(norm, eps), steps=2, start="cube")(model, x, y, seed=9, ids=IDS)
    first, second = model.seen
    assert torch.equal(first, x + eps * (2 * uniforms("PGD", x) - 1))
    assert first.min() < 0
    assert first.max() > 1
    assert (size("l2", first - x) > eps).any()
    assert (size(norm, second - x) <= eps + 1e-12).all()
    assert second.min() >= 0
    assert second.max() <= 1


@NORM
@pytest.mark.parametrize("kind", ["zero", "uniform", "corner", "sphere"])
def test_pgd_from_other_starts_stays_in_ball_and_box_throughout(norm, kind, linear):
    if (norm, kind) in (("l2", "corner"), ("linf", "sphere")):
        kind = "uniform"
    net, x, y = linear
    model = Recorded(net)
    PGD(Threat(norm, 0.6), steps=5, start=kind)(model, x, y, seed=9, ids=IDS)
    assert len(model.seen) == 5
    for z in model.seen:
        assert (size(norm, z - x) <= 0.6 + 1e-12).all()
        assert z.min() >= 0
        assert z.max() <= 1


@NORM
def test_pgd_moves_are_the_formula(norm, linear):
    net, x, y = linear
    model, eps, steps = Recorded(net), 0.4, 6
    x_adv = PGD(Threat(norm, eps), steps=steps)(model, x, y, seed=9, ids=IDS)
    z = model.seen[0]
    for k in range(steps):
        assert (model.seen[k] - z).abs().max() <= 1e-12
        g = softmax_gradient(net.weight.data, net.bias.data, z, y)
        step = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
        z = project(norm, z + 2.5 * eps / steps * step, x, eps).clamp(0, 1)
    assert (x_adv - z).abs().max() <= 1e-12


@NORM
@pytest.mark.parametrize("mu", [0.75, 1.0])
def test_momentum_is_the_formula(norm, mu, linear):
    net, x, y = linear
    model, eps, steps = Recorded(net), 0.4, 6
    x_adv = PGD(Threat(norm, eps), steps=steps, momentum=mu)(model, x, y, seed=9, ids=IDS)
    plain = PGD(Threat(norm, eps), steps=steps)(net, x, y, seed=9, ids=IDS)
    z, g = model.seen[0], torch.zeros_like(x)
    for k in range(steps):
        assert (model.seen[k] - z).abs().max() <= 1e-12
        grad = softmax_gradient(net.weight.data, net.bias.data, z, y)
        g = torch.stack([mu * g[i] + grad[i] / sum(abs(v) for v in grad[i]) for i in range(len(x))])
        step = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
        z = project(norm, z + 2.5 * eps / steps * step, x, eps).clamp(0, 1)
    assert (x_adv - z).abs().max() <= 1e-12
    assert (x_adv - plain).abs().max() > 0.01


@NORM
def test_momentum_begins_anew_at_each_start(norm, linear):
    net, x, y = linear
    model, eps, steps = Recorded(net), 0.05, 3
    PGD(Threat(norm, eps), steps=steps, momentum=5.0, restarts=2)(model, x, y, seed=9, ids=IDS)
    rows = margin(net(model.seen[steps]), y) <= 0
    assert 3 < int(rows.sum()) < len(x)
    first, second = model.seen[steps + 1 : steps + 3]
    g = softmax_gradient(net.weight.data, net.bias.data, first, y[rows])
    step = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
    expected = project(norm, first + 2.5 * eps / steps * step, x[rows], eps).clamp(0, 1)
    assert (second - expected).abs().max() <= 1e-12


@NORM
def test_momentum_is_blind_to_the_size_of_the_gradient(norm, linear):
    net, x, y = linear
    net, x, attack = net.float(), x.float(), PGD(Threat(norm, 0.4), steps=4, loss="margin", momentum=1.0)
    expected = attack(net, x, y)
    with torch.no_grad():
        # down to where float32 loses its digits
        for p in net.parameters():
            p.mul_(2.0**-120)
    assert (attack(net, x, y) - expected).abs().max() <= 1e-4


@NORM
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_the_divergence_is_maximised_by_the_formula(norm, kind, linear):
    net, x, y = linear
    model, eps, steps = Recorded(net), 0.4, 6
    attack = PGD(
        Threat(norm, eps), steps=steps, loss="kl", start=kind, **({"start_noise": 0.3} if kind != "uniform" else {})
    )
    x_adv = attack(model, x, y, seed=9, ids=IDS)
    clean, *seen = model.seen
    assert torch.equal(clean, x)
    z = seen[0]
    if kind == "gaussian":
        assert torch.equal(z, x + 0.3 * PerSample(9, IDS, "PGD").normal(x, use="start"))
        assert z.min() < 0
        assert z.max() > 1
    for k in range(steps):
        assert (seen[k] - z).abs().max() <= 1e-12
        # d KL(p || q) / d logits of q = q - p
        p, q = (torch.softmax(v @ net.weight.data.T + net.bias.data, 1) for v in (x, z))
        g = (q - p) @ net.weight.data
        step = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
        z = project(norm, z + 2.5 * eps / steps * step, x, eps).clamp(0, 1)
    assert (x_adv - z).abs().max() <= 1e-12
    assert torch.equal(attack(net, x, (y + 1) % 3, seed=9, ids=IDS), x_adv)  # no label is asked for


@NORM
def test_restarts_of_the_divergence_keep_each_samples_own_clean_answer(norm, conv_net, batch):
    x, y = batch(40)
    attack = PGD(Threat(norm, {"linf": 0.1, "l2": 0.7}[norm]), steps=3, loss="kl", restarts=3)
    net = conv_net()
    whole = attack.run(net, x, y)
    assert 3 < int(whole.success.sum()) < 37
    for i in range(0, 40, 7):
        one = attack(net, x[i : i + 1], y[i : i + 1], ids=torch.tensor([i]))
        assert (one - whole.x_adv[i : i + 1]).abs().max() <= 1e-9


@NORM
def test_ifgs_is_the_formula(norm, linear):
    net, x, y = linear
    model, eps = Recorded(net), 0.4
    x_adv = IFGS(Threat(norm, eps), steps=6)(model, x, y)
    z = x
    assert len(model.seen) == 6
    for seen in model.seen:
        assert (seen - z).abs().max() <= 1e-12
        g = softmax_gradient(net.weight.data, net.bias.data, z, y)
        step = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
        z = project(norm, z + 1.25 * eps / 6 * step, x, eps).clamp(0, 1)
    assert (x_adv - z).abs().max() <= 1e-12
    # one step of eps is FGSM
    one = IFGS(Threat(norm, eps), steps=1, step_size=eps)(net, x, y)
    assert torch.equal(one, FGSM(Threat(norm, eps))(net, x, y))


class Peak(nn.Module):
    """Two classes; the loss for class 0 is highest at 0.55."""

    def forward(self, x):
        z = -9.0 * ((x - 0.55) ** 2).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


@NORM
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_keep_best_returns_the_best_iterate_after_the_start(norm, loss):
    # the loss peaks inside the ball, and steps of fixed length dance around the peak
    model = Recorded(Peak())
    x, y = torch.full((12, 5), 0.5, dtype=torch.float64), torch.zeros(12).long()
    attack = PGD(Threat(norm, 0.3), steps=6, step_size=0.1, loss=loss, keep="best")
    x_adv = attack(model, x, y)
    value = {"ce": cross_entropy, "margin": margin}[loss]
    with torch.no_grad():
        seen = torch.stack([value(model.body(z), y) for z in model.seen[1:]])
        got = value(model.body(x_adv), y)
    assert len(seen) == 6
    assert torch.allclose(got, seen.amax(0), rtol=0, atol=1e-10)
    assert (got > seen[-1] + 1e-6).any()
    assert (got < seen[-1] + 1e-6).any()


@NORM
def test_keep_best_never_returns_the_start(norm):
    # begun on top of the peak, every step loses
    x, y = torch.full((3, 5), 0.55, dtype=torch.float64), torch.zeros(3).long()
    x += torch.tensor([1e-3, -1e-3, 2e-3])[:, None].double()
    x_adv = PGD(Threat(norm, 0.3), steps=1, step_size=0.1, start="zero", keep="best")(Peak(), x, y)
    assert (size(norm, x_adv - x) > 0.09).all()


@NORM
def test_keep_best_counts_the_first_step_too(norm):
    # one step of 0.1 lands 0.01 behind the peak, the next goes back
    away = 0.09 if norm == "linf" else 0.09 / math.sqrt(5)
    x, y = torch.full((1, 5), 0.55 - away, dtype=torch.float64), torch.zeros(1).long()
    model = Recorded(Peak())
    x_adv = PGD(Threat(norm, 0.3), steps=2, step_size=0.1, start="zero", keep="best")(model, x, y)
    assert torch.equal(x_adv, model.seen[1])
    assert size(norm, x_adv - 0.55).item() == pytest.approx(0.01, abs=1e-9)


# -- Langevin


def chain(norm, variant, net, x, y, eps, steps, step, gamma, noise, every):
    """The released code's and Eq. 7's chains, written out; every iterate and the end."""
    streams = PerSample(9, IDS, "Langevin")
    n = streams.normal(x, use="start")
    u = streams.uniform(x, use="start")
    z = x + eps * (n / n.norm(dim=1, keepdim=True) if norm == "l2" else (u - 0.5).sign())
    out = [z]
    for k in range(steps):
        g = softmax_gradient(net.weight.data, net.bias.data, z, y)
        xi = streams.normal(x, use="noise", step=k)
        if norm == "linf":
            z = z + step * g.sign()
        elif variant == "released":
            z = z + step * g / g.norm(dim=1, keepdim=True) + gamma * (x - z)
        else:
            z = z + step * g + step * gamma * (x - z)
        z = z + noise * math.sqrt(2 * step) * xi
        if every or k == steps - 1:
            z = project(norm, z, x, eps)
        z = z.clamp(0, 1)
        out.append(z)
    return out


@NORM
@pytest.mark.parametrize("variant", ["released", "published"])
def test_langevin_chains_are_the_written_out_ones(norm, variant, linear):
    net, x, y = linear
    model, eps = Recorded(net), 0.3
    gamma = 0.4 if norm == "l2" else 0.0
    attack = Langevin(Threat(norm, eps), steps=6, step_size=0.1, gamma=gamma, noise=0.2, variant=variant)
    x_adv = attack(model, x, y, seed=9, ids=IDS)
    every = (variant, norm) == ("published", "linf")
    *slow, end = chain(norm, variant, net, x, y, eps, 6, 0.1, gamma, 0.2, every)
    assert len(model.seen) == 6
    for got, expected in zip(model.seen, slow):
        assert (got - expected).abs().max() <= 1e-12
    assert (x_adv - end).abs().max() <= 1e-12
    # it projects at the last step only, unless the variant says every; the start is not clamped
    beyond = [bool((size(norm, z - x) > eps * 1.001).any()) for z in model.seen[1:]]
    assert beyond == [not every] * 5
    assert (size(norm, x_adv - x) <= eps + 1e-12).all()
    assert model.seen[0].min() < 0
    assert all(z.min() >= 0 and z.max() <= 1 for z in model.seen[1:])


def test_langevin_defaults():
    for norm, step, anchor, gradient, projection, begin in (
        ("l2", 0.2, 0.05, "unit", "never", "sphere"), ("linf", 0.25, 0.0, "sign", "last", "corner"),
    ):  # fmt: skip
        got = sampler(Threat(norm, 1.0), steps=10)
        assert (got.step_size, got.anchor_weight, got.noise) == (step, anchor, 1e-3)
        assert (got.gradient, got.projection, got.start) == (gradient, projection, begin)
    published = sampler(Threat("l2", 1.0), steps=10, variant="published")
    assert (published.anchor_weight, published.gradient) == (0.05 * 0.2, "raw")
    assert sampler(Threat("linf", 1.0), variant="published").projection == "every"
    assert sampler(Threat("l2", 1.0), step_size=0.02175, effective_noise=0.1203).noise == pytest.approx(0.577, abs=3e-4)
    assert sampler(Threat("l2", 1.0), temperature=0.25).noise == 0.5
    assert sampler(Threat("l2", 1.0), temperature=0.0).noise == 0.0
    # as an attack it projects, whatever the variant
    assert Langevin(Threat("l2", 1.0)).sampler.projection == "last"


class Flat(nn.Module):
    """Three classes, and no slope anywhere."""

    def forward(self, x):
        return 0.0 * x.flatten(1)[:, :3]


@NORM
@pytest.mark.parametrize("gradient", ["raw", "unit", "sign"])
def test_at_zero_gradient_the_noise_has_its_effective_deviation(norm, gradient):
    n, d, steps, effective = 100, 900, 4, 0.12
    x = torch.zeros(n, d, dtype=torch.float64)
    attack = Langevin(
        Threat(norm, 500.0, (-1000.0, 1000.0)), steps=steps, step_size=0.02175, effective_noise=effective,
        gamma=0.0, start="zero", gradient=gradient,
    )  # fmt: skip
    assert attack.sampler.effective_noise == pytest.approx(effective, rel=1e-12)
    model = Recorded(Flat())
    x_adv = attack(model, x, torch.zeros(n).long())
    walk = [*model.seen, x_adv]
    moves = torch.stack([b - a for a, b in pairwise(walk)])
    for move in moves:
        assert move.var().item() == pytest.approx(effective**2, rel=4 * math.sqrt(2 / (n * d)))
        assert abs(move.mean().item()) < 4 * effective / math.sqrt(n * d)
    assert x_adv.var().item() == pytest.approx(steps * effective**2, rel=4 * math.sqrt(2 / (n * d)))


@NORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_moves_nothing_and_makes_no_nan(norm, dtype):
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    y, threat = torch.zeros(5).long(), Threat(norm, 0.1)
    assert torch.equal(FGSM(threat)(Flat(), x, y), x)
    assert torch.equal(PGD(threat, start="zero")(Flat(), x, y), x)
    assert torch.equal(Langevin(threat, start="zero", noise=0.0)(Flat(), x, y), x)
    assert torch.equal(IFGS(threat)(Flat(), x, y), x)
    assert torch.equal(PGD(threat, start="zero", momentum=1.0)(Flat(), x, y), x)
    for loss in ("ce", "margin", "dlr", "kl"):
        assert torch.isfinite(PGD(threat, loss=loss)(Flat(), x, y)).all()
    assert torch.isfinite(Langevin(threat, noise=1.0)(Flat(), x, y)).all()


# -- starts


def begin(norm, kind, dim, eps, per_sample=True, n=6000):
    streams = PerSample(5, torch.arange(n), "A") if per_sample else Batch(torch.Generator().manual_seed(5))
    x = torch.full((n, dim), 0.5, dtype=torch.float64)
    return start(Threat(norm, eps), kind, x, streams) - x


@pytest.mark.parametrize("per_sample", [True, False], ids=["per sample", "batch"])
@pytest.mark.parametrize("dim", [1, 2, 3, 64])
def test_uniform_in_the_ball_has_radius_u_to_the_1_over_d(dim, per_sample):
    d = begin("l2", "uniform", dim, 0.7, per_sample)
    assert size("l2", d).max() <= 0.7 + 1e-12
    assert stats.kstest(((size("l2", d) / 0.7) ** dim).numpy(), "uniform").pvalue > 1e-3
    # no direction is preferred
    unit = d / d.norm(dim=1, keepdim=True)
    assert (unit.mean(0).abs() < 4.5 / math.sqrt(dim * len(d))).all()
    assert ((unit**2).mean(0) * dim - 1).abs().max() < 4.5 * math.sqrt(2 / len(d))


def test_radius_and_direction_are_independent():
    d = begin("l2", "uniform", 3, 1.0)
    r = size("l2", d)
    for j in range(3):
        assert abs(torch.corrcoef(torch.stack([r, d[:, j] / r]))[0, 1].item()) < 4 / math.sqrt(len(d))


@pytest.mark.parametrize("per_sample", [True, False], ids=["per sample", "batch"])
def test_the_sphere_has_its_radius(per_sample):
    d = begin("l2", "sphere", 20, 0.7, per_sample)
    assert (size("l2", d) - 0.7).abs().max() <= 1e-12
    assert (d.mean(0).abs() < 4.5 * 0.7 / math.sqrt(20 * len(d))).all()


@pytest.mark.parametrize("per_sample", [True, False], ids=["per sample", "batch"])
def test_corners_are_plus_or_minus_eps(per_sample):
    d = begin("linf", "corner", 20, 0.25, per_sample)  # 0.5 +- 0.25 is exact
    assert sorted(d.unique().tolist()) == [-0.25, 0.25]
    assert abs((d > 0).double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(d.numel())


def test_a_corner_has_no_middle():
    class Half:
        def uniform(self, like, **k):
            return torch.full_like(like, 0.5)

    x = torch.full((2, 3), 0.5)
    assert (start(Threat("linf", 0.25), "corner", x, Half()) - x).abs().tolist() == [[0.25] * 3] * 2


@pytest.mark.parametrize(("norm", "kind"), [("linf", "uniform"), ("linf", "cube"), ("l2", "cube")])
def test_cubes_are_uniform_in_each_coordinate(norm, kind):
    d = begin(norm, kind, 10, 0.3)
    assert d.abs().max() < 0.3
    assert stats.kstest((d.flatten() / 0.6 + 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("norm", "kind"), [
    ("linf", "uniform"), ("linf", "corner"), ("l2", "uniform"), ("l2", "sphere"), ("l2", "cube"),
])  # fmt: skip
def test_restarts_begin_elsewhere(norm, kind):
    x, streams = torch.full((500, 4), 0.5, dtype=torch.float64), PerSample(5, torch.arange(500), "A")
    a, b = (start(Threat(norm, 0.3), kind, x, streams, restart) - x for restart in (0, 1))
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 4 / math.sqrt(2000)
    if (norm, kind) == ("l2", "uniform"):
        radii = torch.stack([size("l2", a), size("l2", b)])
        assert abs(torch.corrcoef(radii)[0, 1].item()) < 4 / math.sqrt(500)


def test_a_zero_start_is_x():
    for norm in BALLS:
        assert torch.equal(begin(norm, "zero", 4, 0.3), torch.zeros(6000, 4, dtype=torch.float64))


# -- restarts


def several(name, norm, restarts):
    threat = Threat(norm, {"linf": 0.06, "l2": 0.4}[norm])
    if name == "PGD":
        return PGD(threat, steps=2, step_size=0.02, restarts=restarts)
    return Langevin(threat, steps=2, step_size=0.02, noise=0.3, restarts=restarts)


@NORM
@pytest.mark.parametrize("name", ["PGD", "Langevin"])
def test_restarts_only_go_on_with_survivors_and_never_lose(norm, name, conv_net, batch):
    x, y = batch(60)
    net = conv_net()
    share, before = [], None
    for restarts in (1, 2, 6):
        model = Recorded(net)
        out = several(name, norm, restarts).run(model, x, y)
        share.append(int(out.success.sum()))
        with torch.no_grad():
            score = margin(net(out.x_adv), y)
        if before is not None:
            fooled, was = before
            assert out.success[fooled].all()
            assert (score >= was - 1e-12).all()
        before = out.success, score
    assert 0 < share[0] < share[-1] < 60
    # in the last run: 2 steps and a verdict per restart, on the samples that stood after the one before
    rows = [len(z) for z in model.seen]
    assert rows[-1] == 60
    assert len(rows) == 6 * 3 + 1
    sizes = rows[:-1:3]
    assert rows[:-1] == [n for n in sizes for _ in range(3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 60
    assert sizes[1] == 60 - share[0]
    assert out.forwards.sum() == sum(rows)
    assert (out.forwards[out.success].min(), out.forwards[~out.success].max()) == (4, 19)
    assert (out.forwards[~out.success] == 19).all()


def test_restarts_end_when_nothing_is_robust(conv_net, batch):
    x, y = batch(8)
    wrong = (y + 1) % 10
    model = Recorded(conv_net())
    model_says = model.body(x).argmax(1)
    keep = model_says != wrong
    out = PGD(Threat("linf", 1e-4), steps=2, restarts=50).run(model, x[keep], wrong[keep])
    assert out.success.all()
    assert len(model.seen) == 4
    assert out.forwards.tolist() == [4] * int(keep.sum())
