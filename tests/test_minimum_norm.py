"""The minimum-norm attacks against known distances, slow transcriptions and each other; what their norms say."""

import math
from statistics import median

import pytest
import torch
from kit import Syncs
from torch import nn
from torch.nn import functional as F

from atent.attacks.alma import ALMA, alpha_of, penalty_slope
from atent.attacks.carlini_wagner import CarliniWagner
from atent.attacks.ddn import DDN
from atent.attacks.deepfool import DeepFool
from atent.attacks.fmn import FMN
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import beyond
from atent.evaluate import norms as nm
from atent.threat import Threat

FREE = {norm: Threat(norm, "inf") for norm in ("l2", "linf")}


class Recorded(nn.Module):
    """Keeps every input that it is shown."""

    def __init__(self, body):
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.body(x)


def size(norm, d):
    d = d.flatten(1)
    return d.abs().amax(1) if norm == "linf" else d.norm(dim=1)


def right(model, x, y, n):
    """The first n samples that the model gets right."""
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero().squeeze(1)[:n]
    return x[rows], y[rows]


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


def linear(corner, n=16, d=12, classes=5):
    """A linear model whose rows are orthogonal, inputs in the middle or in a corner of the box, their labels."""
    g = torch.Generator().manual_seed(2)
    net = nn.Linear(d, classes).double()
    x = torch.rand(n, d, generator=g, dtype=torch.float64)
    x = 0.2 * (x - 0.5).clamp_min(0) if corner else 0.35 + 0.3 * x
    with torch.no_grad():
        net.weight.copy_(100 * torch.linalg.qr(torch.randn(d, classes, generator=g, dtype=torch.float64))[0].T)
        net.bias.copy_(-net.weight @ x.mean(0) + 15 * torch.randn(classes, generator=g, dtype=torch.float64))
    return net, x, net(x).argmax(1)


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
@pytest.mark.parametrize("problem", ["two classes", "five classes", "in the corner"])
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


# -- slow transcriptions: one sample, plain loops


def logits_and_gradient(model, z, of):
    """Logits of one sample and the gradient of ``of(logits)``."""
    z = z.clone().requires_grad_()
    out = model(z[None])[0]
    return out.detach(), torch.autograd.grad(of(out), z)[0]


def runner_up(logits, label):
    return max((v, k) for k, v in enumerate(logits.tolist()) if k != label)[1]


def slow_ddn(model, x, label, steps, init, gamma, levels):
    delta, norm, best, best_norm, seen = torch.zeros_like(x), init, x, math.inf, []
    farthest = float(torch.maximum(x, 1 - x).norm())
    for k in range(steps):
        z = x + delta
        seen.append(z)
        logits, g = logits_and_gradient(model, z, lambda v: -F.log_softmax(v, 0)[label])
        adversarial = int(logits.argmax()) != label
        if adversarial and float(delta.norm()) < best_norm:
            best, best_norm = z, float(delta.norm())
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * (k + 1) / steps)) / 2
        delta = delta + rate * g / g.norm()
        norm = min(norm * (1 - gamma if adversarial else 1 + gamma), farthest)
        z = (x + norm * delta / delta.norm()).clamp(0, 1)
        delta = (z if levels is None else (z * (levels - 1)).round() / (levels - 1)) - x
    return best, seen


def nearest_in_l1(d, x, radius):
    """The point of the l1 ball and the box that is nearest to x + d: the multiplier by bisection."""
    room = torch.where(d > 0, 1 - x, x)

    def cut(t):
        return (d.abs() - t).clamp_min(0).minimum(room)

    low, high = 0.0, float(d.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if float(cut(middle).sum()) <= radius else (middle, high)
    return x + d.sign() * cut(0.0 if float(cut(0.0).sum()) <= radius else high)


def nearest_in_l0(d, x, count):
    """The nearest point with so many changed elements: those whose change brings it nearest to x + d."""
    held = (x + d).clamp(0, 1) - x
    gain = (d.square() - (d - held).square()).flatten().tolist()
    kept = sorted(range(len(gain)), key=lambda i: -gain[i])[: int(count)]
    z = x.clone().flatten()
    z[kept] = (x + held).flatten()[kept]
    return z.view_as(x)


def slow_fmn(model, x, label, norm, steps, first, last, gamma_first, gamma_last, projection=None):
    order, dual = {"l2": (2, 2), "linf": (math.inf, 1), "l1": (1, math.inf), "l0": (0, None)}[norm]
    z, radius, best, best_norm, seen = x, 1 if norm == "l0" else math.inf, x, math.inf, []
    farthest = float(torch.maximum(x, 1 - x).flatten().norm(p=order))
    for k in range(steps):
        seen.append(z)
        logits, g = logits_and_gradient(model, z, lambda v: v[runner_up(v, label)] - v[label])
        adversarial, here = int(logits.argmax()) != label, float((z - x).flatten().norm(p=order))
        if adversarial and here < best_norm:
            best, best_norm = z, here
        cosine = (1 + math.cos(math.pi * k / steps)) / 2
        step, gamma = last + (first - last) * cosine, gamma_last + (gamma_first - gamma_last) * cosine
        gap = abs(float(logits[runner_up(logits, label)] - logits[label]))
        if norm == "l0":
            shrunk, grown = min(radius - 1, math.floor(radius * (1 - gamma))), math.floor(radius * (1 + gamma))
            radius = min(shrunk, best_norm) if adversarial else max(grown, radius + 1)
        elif adversarial:
            radius = min(radius * (1 - gamma), best_norm)
        elif best_norm < math.inf or k >= steps / 2:
            radius = radius * (1 + gamma)
        else:
            radius = 1.001 * (here + gap / float(g.flatten().norm(p=dual)))
        radius = min(radius, farthest)
        d = z + step * g / g.norm() - x
        if norm in ("l1", "l0"):
            z = (nearest_in_l1 if norm == "l1" else nearest_in_l0)(d, x, radius)
            continue
        if norm == "linf":
            d = d.clamp(-radius, radius)
        else:
            d = d * (min(1.0, radius / float(d.norm())) if projection == "ball" else radius / float(d.norm()))
        z = (x + d).clamp(0, 1)
    return best, seen


def slow_deepfool(model, x, label, norm, steps, overshoot, classes):
    logits = model(x[None])[0].detach()
    order = sorted((k for k in range(len(logits)) if k != label), key=lambda k: -float(logits[k]))[: classes - 1]
    total, seen = torch.zeros_like(x), [x]
    for _ in range(steps):
        z = (x + (1 + overshoot) * total).clamp(0, 1)
        logits = model(z[None])[0].detach()
        if int(logits.argmax()) != label:
            return z, seen
        seen.append(z)
        nearest, move = math.inf, None
        for k in order:
            _, w = logits_and_gradient(model, z, lambda v, k=k: v[k] - v[label])
            far = abs(float(logits[k] - logits[label])) / float(w.norm() if norm == "l2" else w.abs().sum())
            if far < nearest:
                nearest, move = far, (far + 1e-4) * (w / w.norm() if norm == "l2" else w.sign())
        total = total + move
    z = (x + (1 + overshoot) * total).clamp(0, 1)
    return (z if int(model(z[None])[0].argmax()) != label else x), seen


def penalty(g, rho, m, cubic):
    if g < 0:
        return m * g / (1 - rho * g)
    return m * g + m * rho * g**2 + (rho**2 * g**3 / 6 if cubic else 0)


def slow_alma(model, x, label, a):
    def constraint(v):
        top = v.sort(descending=True).values
        gap = v[label] - v[runner_up(v, label)] + a.tolerance
        return gap / (top[0] - top[2] + 1e-8) if dlr else gap

    alpha = min(0.9, max(0.2, 0.9 + 0.4 * math.log10(a.steps / 1000))) if a.alpha is None else a.alpha
    first_step, dlr = a.first_step or 0.1, a.constraint in (None, "dlr")
    rho, m, square, momentum = a.rho_init, a.multiplier_init, torch.ones_like(x), torch.zeros_like(x)
    z, best, best_norm, found_at, rho_grew, seen = x, x, math.inf, None, 0, []
    for k in range(a.steps):
        seen.append(z)
        logits, slope = logits_and_gradient(model, z, constraint)
        g = float(constraint(logits))
        if k == 0:
            before = g
        elif (k + 1) % a.check_steps == 0:
            if found_at is None and g >= a.tau * before:
                rho, rho_grew = a.gamma * rho, rho_grew + 1
            before = g

        def lagrangian(rho, m, g=g):
            h = torch.tensor(g, dtype=torch.float64, requires_grad=True)
            return float(torch.autograd.grad(penalty(h, rho, m, a.penalty == "p2"), h)[0])

        if k:
            m = min(max(alpha * m + (1 - alpha) * lagrangian(rho, m), 1e-6), 1e12)
        here = float((z - x).norm())
        if g < 0:
            found_at = k if found_at is None else found_at
            if here < best_norm:
                best, best_norm = z, here
        descent = lagrangian(rho, m) * slope
        if k == 0:
            low, high = 0.0, 1.0
            while float(((x - high * descent).clamp(0, 1) - x).norm()) <= first_step:
                high *= 2
            for _ in range(200):
                mid = (low + high) / 2
                near = float(((x - mid * descent).clamp(0, 1) - x).norm()) <= first_step
                low, high = (mid, high) if near else (low, mid)
            rate = high
        else:
            descent = descent + (z - x) / here
        square = alpha * square + (1 - alpha) * descent**2
        momentum = alpha * momentum + descent / (square.sqrt() + 1e-8)
        decay = 1.0 if found_at is None else a.final_rate ** ((k - found_at) / (a.steps - found_at))
        z = (z - rate * decay * momentum).clamp(0, 1)
    return best, seen, rho_grew


def slow_cw(model, x, label, a):
    """The best point, and the number of points looked at."""
    best, best_norm, looks, tenth = x, math.inf, 0, max(1, a.steps // 10)
    if int(model(x[None])[0].argmax()) != label:
        best_norm = 0.0
    c, lower, upper = a.initial_const, 0.0, math.inf
    for repeat in range(a.search_steps):
        if a.search_steps >= 10 and repeat == a.search_steps - 1 and upper < math.inf:
            c = upper
        w = (0.999999 * (2 * x - 1)).atanh()
        mean, square, won, last = torch.zeros_like(x), torch.zeros_like(x), False, math.inf
        for k in range(a.steps):
            w = w.detach().requires_grad_()
            z = 0.5 * w.tanh() + 0.5
            logits = model(z[None])[0]
            gap = logits[label] - logits[runner_up(logits, label)]
            objective = ((z - x) ** 2).sum() + c * (gap + a.confidence).clamp_min(0)
            (g,) = torch.autograd.grad(objective, w)
            looks += 1
            here, objective = float((z - x).detach().norm()), objective.item()
            if gap.item() < -a.confidence:
                won = True
                if here < best_norm:
                    best, best_norm = z.detach(), here
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
            w = w - a.step_size * mean / (1 - 0.9 ** (k + 1)) / ((square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            if a.abort_early and (k + 1) % tenth == 0:
                if objective > 0.9999 * last:
                    break
                last = objective
        if won:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        c = (lower + upper) / 2 if upper < math.inf else 10 * c
    return best, looks


def assert_same_walk(attack, slow, model, x, y):
    """Every point looked at, and the result, up to what rounding becomes on the way.

    A walk may enlarge rounding, and kernels round differently on each processor: the transcription walks once more from
    a start that differs by 1e-13, and a hundred times the distance that comes of it is allowed, 1e-5 at most.
    """
    recorded = Recorded(model)
    found = attack(recorded, x, y)
    for i in range(len(x)):
        best, seen = slow(model, x[i], int(y[i]))[:2]
        beside = slow(model, x[i] * (1 - 1e-13), int(y[i]))[1]
        grown = max(float((a - b).abs().max()) for a, b in zip(seen, beside))
        allowed = min(1e-5, 1e-9 + 100 * grown)
        assert len(recorded.seen) == len(seen)
        # driven on from where it is wrong, a sample swings between the walls and rounding grows
        if not torch.equal(best, x[i]):
            assert max(float((a[i] - b).abs().max()) for a, b in zip(recorded.seen, seen)) <= allowed
        assert (found[i] - best).abs().max() <= allowed
    return found


@pytest.fixture
def five(conv_net, batch):
    """A network, four digits that it gets right and one that it does not."""
    model, (x, y) = conv_net(), batch(20)
    x, y = right(model, x, y, 5)
    y[2] = (y[2] + 1) % 10
    return model, x, y


@pytest.mark.parametrize("levels", [None, 17, 40])
def test_ddn_equals_its_transcription(levels, five):
    model, x, y = five
    attack = DDN(FREE["l2"], steps=40, init_norm=0.5, gamma=0.07, levels=levels)
    found = assert_same_walk(attack, lambda m, z, label: slow_ddn(m, z, label, 40, 0.5, 0.07, levels), model, x, y)
    assert (found != x).flatten(1).any(1).tolist() == [True, True, False, True, True]
    if levels is not None:
        assert ((found[0] * (levels - 1)) - (found[0] * (levels - 1)).round()).abs().max() < 1e-9


@pytest.mark.parametrize("norm", [*FREE, "l1", "l0"])
@pytest.mark.parametrize(
    "given",
    [{}, {"projection": "ball"}, {"step_size": 0.2, "final_step_size": 0.05, "gamma": 0.2, "final_gamma": 0.01}],
)
def test_fmn_equals_its_transcription(norm, given, five):
    model, x, y = five
    a = FMN(Threat(norm, "inf"), steps=40, **given)
    first = given.get("step_size", 1.0)
    last = given.get("final_step_size", first / 100)

    def slow(*sample):
        return slow_fmn(*sample, norm, 40, first, last, a.gamma, a.final_gamma, a.projection)

    assert_same_walk(a, slow, model, x, y)


def test_fmn_in_l2_ends_on_the_boundary_where_the_ball_stalls():
    # The gradient turns with the position: each step of the paper's form crosses the ball and ends inside it.
    x, y = torch.full((6, 24), 0.02, dtype=torch.float64), torch.zeros(6).long()
    x[:, ::2] = torch.linspace(0.02, 0.1, 6, dtype=torch.float64)[:, None]

    class Curved(nn.Module):
        def forward(self, z):
            away = (z.square() * torch.linspace(1, 9, 24, dtype=z.dtype)).sum(1) + 3 * z[:, 0] * z[:, 1]
            return torch.stack([torch.full_like(away, 1.5), away], 1)

    found = {p: FMN(FREE["l2"], steps=100, projection=p).run(Curved(), x, y) for p in ("sphere", "ball")}
    assert found["sphere"].success.all()
    assert (found["sphere"].norm <= found["ball"].norm.where(found["ball"].success, math.inf) * 1.001).all()
    assert torch.equal(FMN(FREE["l2"], steps=100)(Curved(), x, y), found["sphere"].x_adv)


def test_the_sphere_is_for_l2():
    with pytest.raises(ValueError, match=r"projection \(for linf\) 'sphere' is not known: use one of ball"):
        FMN(FREE["linf"], projection="sphere")
    with pytest.raises(ValueError, match="projection 'cube' is not known"):
        FMN(FREE["l2"], projection="cube")


def test_fmn_grows_where_the_estimate_never_arrives():
    # in a corner the box takes so much of each step that the estimate stays short
    model, x, y = linear(True)
    a = FMN(FREE["l2"], steps=40, step_size=0.02, final_step_size=0.02)
    waited = [
        i for i in range(len(x))
        if not any(int(model(z).argmax()) != int(y[i]) for z in slow_fmn(
            model, x[i], int(y[i]), "l2", 40, 0.02, 0.02, 0.05, 0.001)[1][:21])
    ]  # fmt: skip
    assert len(waited) >= 1
    out = a.run(model, x, y)
    assert out.success[waited].any()
    assert_same_walk(a, lambda m, z, label: slow_fmn(m, z, label, "l2", 40, 0.02, 0.02, 0.05, 0.001), model, x, y)


@pytest.mark.parametrize("norm", FREE)
@pytest.mark.parametrize("given", [{}, {"classes": 3, "overshoot": 0.3}, {"steps": 1}, {"classes": 50, "steps": 7}])
def test_deepfool_equals_its_transcription(norm, given, five):
    model, x, y = five
    a = DeepFool(FREE[norm], **given)
    found, recorded = a.run(model, x, y), Recorded(model)
    a(recorded, x, y)
    for i in range(len(x)):
        best, seen = slow_deepfool(model, x[i], int(y[i]), norm, a.steps, a.overshoot, a.classes)
        assert (found.x_adv[i] - best).abs().max() <= 1e-9
        # x is ranked before it is looked at, and the verdict takes one more
        assert found.forwards[i] >= len(seen)
    if given == {"steps": 1}:
        assert not found.success.all()


@pytest.mark.parametrize(
    "given",
    [
        {}, {"alpha": 0.9, "penalty": "p3"},
        {"constraint": "margin", "rho_init": 0.3, "multiplier_init": 0.2, "tolerance": 0.05},
        {"alpha": 0.5, "check_steps": 3, "tau": 0.999, "gamma": 1.5, "first_step": 0.02, "final_rate": 0.1},
        {"alpha": 0.9, "multiplier_init": 1e-3, "first_step": 0.01, "check_steps": 4, "tau": 0.5, "gamma": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_alma_equals_its_transcription(given, five):
    model, x, y = five
    attack, grew = ALMA(FREE["l2"], steps=40, **given), []

    def slow(*args):
        out = slow_alma(*args, attack)
        grew.append(out[2])
        return out

    assert_same_walk(attack, slow, model, x, y)
    if given.get("tau") == 0.5:
        assert max(grew) > 0  # the penalty's growth was seen


def test_the_penalty_slope_is_a_derivative():
    g = torch.linspace(-3, 3, 13, dtype=torch.float64)
    rho, m, h = torch.full_like(g, 0.7), torch.full_like(g, 1.3), 1e-6
    for cubic in (False, True):
        found = penalty_slope(g, rho, m, cubic)
        for v, slope in zip(g.tolist(), found.tolist()):
            difference = (penalty(v + h, 0.7, 1.3, cubic) - penalty(v - h, 0.7, 1.3, cubic)) / (2 * h)
            assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"abort_early": True}, {"confidence": 0.7, "abort_early": True}, {"search_steps": 11, "steps": 10},
        {"initial_const": 50.0, "steps": 25, "abort_early": True},
    ],
    ids=str,
)  # fmt: skip
def test_carlini_wagner_equals_its_transcription(given, five):
    model, x, y = five
    settings = {"steps": 30, "search_steps": 4, "step_size": 0.05, "initial_const": 0.05, **given}
    a = CarliniWagner(FREE["l2"], **settings)
    out = a.run(model, x, y)
    aborted = False
    for i in range(len(x)):
        best, looks = slow_cw(model, x[i], int(y[i]), a)
        assert (out.x_adv[i] - best).abs().max() <= 1e-9
        assert (out.forwards[i], out.backwards[i]) == (looks + 2, looks)
        aborted |= looks < a.steps * a.search_steps
    assert aborted or not a.abort_early
    if a.confidence:
        logits = model(out.x_adv)
        own = logits.gather(1, y[:, None]).squeeze(1)
        found = (out.x_adv != x).flatten(1).any(1)
        assert found.sum() >= 3
        assert (logits.amax(1) - own > a.confidence)[found].all()


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


def test_who_has_fallen_leaves_deepfool(conv_net, batch):
    model, (x, y) = conv_net(), batch(30)
    wrong = model(x).argmax(1) != y
    out = DeepFool(FREE["l2"]).run(model, x, y)
    assert (out.backwards[wrong] == 0).all()
    assert (out.forwards[wrong] == 2).all()
    assert set(out.backwards[~wrong].tolist()) <= {9 * k for k in (2, 4, 8, 16)}


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
        (ALMA, {"final_rate": 1.5}, "final_rate must be at most 1, got 1.5"),
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


def test_alma_on_two_classes_takes_the_margin_unless_the_ratio_is_asked_for(two_class):
    model, x, y, _ = two_class()
    margin = ALMA(FREE["l2"], steps=30, constraint="margin")(model, x, y)
    assert torch.equal(ALMA(FREE["l2"], steps=30)(model, x, y), margin)
    with pytest.raises(ValueError, match=r"needs 3 classes or more: use constraint='margin', got 2 classes"):
        ALMA(FREE["l2"], steps=3, constraint="dlr")(model, x, y)


def test_almas_memory_grows_with_its_budget():
    assert [round(alpha_of(steps), 3) for steps in (2, 10, 100, 1000, 5000)] == [0.2, 0.2, 0.5, 0.9, 0.9]


# -- norms


def test_robust_accuracy_is_counted_by_hand():
    norms = torch.tensor([0.3, 0.0, math.inf, 0.1, 0.3, 2.0, 0.0, 0.5])
    radii = torch.tensor([0.0, 0.05, 0.1, 0.29, 0.3, 1.0, 2.0, 100.0])
    expected = [sum(v > r for v in norms.tolist()) / 8 for r in radii.tolist()]
    assert nm.robust_accuracy(norms, radii).tolist() == expected
    assert expected[0] == 0.75
    assert expected[-1] == 0.125
    found = nm.curve(norms.double())
    assert found.radii == pytest.approx([0.0, 0.1, 0.3, 0.5, 2.0])
    assert found.accuracy == [0.75, 0.625, 0.375, 0.25, 0.125]
    assert nm.curve(torch.tensor([math.inf])) == ([0.0], [1.0])
    assert nm.curve(torch.zeros(2)) == ([0.0], [0.0])


def test_quantiles_are_radii_at_which_so_many_fall():
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 10, 30):
        norms = torch.rand(n, generator=g, dtype=torch.float64)
        norms[norms > 0.8] = math.inf
        for share in (0.01, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0):
            q = nm.quantile(norms, share)
            assert int((norms <= q).sum()) >= share * n - 1e-9
            smaller = norms[norms < q]
            assert len(smaller) < share * n - 1e-9
    assert nm.median(torch.tensor([3.0, 1.0, 2.0])) == median([3.0, 1.0, 2.0])
    assert nm.median(torch.tensor([1.0, math.inf, math.inf])) == math.inf
    assert nm.median(torch.tensor([1.0, 2.0, math.inf, math.inf])) == 2.0


def test_norms_come_from_outcomes(conv_net, batch):
    model, (x, y) = conv_net(), batch(20)
    eps = 0.5
    free = DDN(FREE["l2"], steps=30).run(model, x, y)
    bounded = DDN(Threat("l2", eps), steps=30).run(model, x, y)
    found = nm.found_norms(bounded)
    assert torch.equal(found, torch.where(free.norm <= eps, free.norm, math.inf))
    assert 0 < found.isinf().sum() < 20
    standing = nm.robust_accuracy(found, torch.tensor([0.0, eps]))
    assert standing[0] == (model(x).argmax(1) == y).double().mean()
    assert standing[1] == (~bounded.success).double().mean()


@pytest.mark.parametrize("norms", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, math.nan]), -torch.ones(1)])
def test_no_norms_are_refused_in_one_line(norms):
    for ask in (nm.curve, nm.median, lambda v: nm.robust_accuracy(v, torch.zeros(1))):
        with pytest.raises(ValueError, match="norms must be") as error:
            ask(norms)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, math.nan])
def test_shares_are_shares(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        nm.quantile(torch.ones(3), share)
