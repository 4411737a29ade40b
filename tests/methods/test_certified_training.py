"""CROWNIBP and Dual: the slow way, by finite differences, and what must hold whatever the network."""

import copy
import itertools
import math

import pytest
import torch
from kit import ROUNDING, Syncs, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.certify import bounds, margins, read, verified
from atent.certify.projection import estimated_margins, hidden
from atent.certify.region import region
from atent.methods import CROWNIBP, METHODS, PGDAT, Dual, Standard
from atent.models import build, native_shape

BOUNDED = ("CROWNIBP", "Dual")
EPS = {"linf": 0.12, "l2": 0.25}
NORM = pytest.mark.parametrize("norm", EPS)
# IBP, a mixture, the linear bound alone; each as at the training's end.
BETA = pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])


pytestmark = pytest.mark.usefixtures("seeded")


def three_layers(seed=1):
    """Three layers from 6 inputs to 4 classes; at eps some ReLUs are open, some on and some off."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def conv():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(36, 4),
    ).double()  # fmt: skip


def points(norm, n=5):
    rng = torch.Generator().manual_seed(4)
    x = torch.rand(n, 6, generator=rng, dtype=torch.float64)
    # the plain arithmetic below knows no box in l2
    x = x if norm == "linf" else 0.3 + 0.4 * x
    return x, torch.arange(n) % 4


# -- the slow way: one sample and one number at a time


def row_bound(row, const, layers, known, region, lines):
    """The least value of <row, z> + const, z the output of the last of ``layers``, by lines over the ReLUs' boxes."""
    x, norm, eps = region
    for (w, b), box in zip(reversed(layers), [*reversed(known), None]):
        const = const + sum(row[i] * b[i] for i in range(len(b)))
        row = [sum(row[i] * w[i, j] for i in range(len(b))) for j in range(w.shape[1])]
        if box is None:
            break
        for j, (low, high) in enumerate(box):
            if high <= 0:
                row[j] = 0 * row[j]
            elif low < 0:
                slope = high / (high - low)
                if row[j] > 0:
                    row[j] = row[j] * lines(low, high)
                else:
                    const, row[j] = const - row[j] * slope * low, row[j] * slope
    if norm == "l2":
        return const + sum(a * v for a, v in zip(row, x)) - eps * torch.stack(row).norm()
    return const + sum(a * (v - eps).clamp(min=0) if a > 0 else a * (v + eps).clamp(max=1) for a, v in zip(row, x))


def intervals(w, b, box):
    return [
        (
            sum(torch.minimum(a * low, a * high) for a, (low, high) in zip(row, box)) + c,
            sum(torch.maximum(a * low, a * high) for a, (low, high) in zip(row, box)) + c,
        )
        for row, c in zip(w, b)
    ]


def relu(box):
    return [(low.clamp(min=0), high.clamp(min=0)) for low, high in box]


def slow_margins(net, x, y, threat, beta):
    """Lower bounds of z_y - z_j of one sample; ``beta`` as in CROWNIBP, or "dual" for the bound of Wong and Kolter."""
    eps, norm = threat.eps, threat.norm
    region = x, norm, eps
    layers = [(m.weight, m.bias) for m in net if isinstance(m, nn.Linear)]
    if norm == "linf":
        first = intervals(*layers[0], [((v - eps).clamp(min=0), (v + eps).clamp(max=1)) for v in x])
    else:
        first = [(w @ x + b - eps * w.norm(), w @ x + b + eps * w.norm()) for w, b in zip(*layers[0])]
    if beta == "dual":
        second, eye = [], torch.eye(8, dtype=x.dtype)
        for unit in eye:
            lower, minus_upper = (
                row_bound(list(side), 0.0, layers[:2], [first], region, lambda low, high: high / (high - low))
                for side in (unit, -unit)
            )
            second.append((lower, -minus_upper))
    else:
        second = intervals(*layers[1], relu(first))
    w, b = layers[2]
    out = []
    for j in range(4):
        row, const = w[y] - w[j], b[y] - b[j]
        if beta == "dual":
            lines = lambda low, high: high / (high - low)  # noqa: E731
        else:
            lines = lambda low, high: 1.0 if high > -low else 0.0  # noqa: E731
        difference = [(row, const)] if j != int(y) else []
        if not difference:
            out.append(torch.zeros((), dtype=x.dtype))
            continue
        plain = intervals(row[None], const[None], relu(second))[0][0]
        layered = [*layers[:2], (row[None], const[None])]
        linear = row_bound([torch.ones((), dtype=x.dtype)], 0.0, layered, [first, second], region, lines)
        out.append(linear if beta == "dual" else beta * linear + (1 - beta) * plain)
    return torch.stack(out)


def slow_loss(net, x, y, threat, kappa, beta):
    clean = torch.stack([torch.log(torch.exp(z - z[c]).sum()) for z, c in zip(net(x), y)]).mean()
    worst = [slow_margins(net, v, c, threat, beta) for v, c in zip(x, y)]
    return kappa * clean + (1 - kappa) * torch.stack([torch.log(torch.exp(-m).sum()) for m in worst]).mean()


def compare(method, threat, kappa, beta):
    net, (x, y) = three_layers(), points(threat.norm)
    metrics = method.backward(net, x, y, rng=stream())
    found = gradient(net)
    theirs = slow_loss(net, x, y, threat, kappa, beta)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(theirs, list(net.parameters()))])
    assert float(metrics["loss"]) == pytest.approx(theirs.item(), rel=1e-10)
    assert distance(found, expected) <= 1e-10
    # and the loss moves as its gradient says
    rng = torch.Generator().manual_seed(2)
    for p in net.parameters():
        v = torch.randn(p.shape, generator=rng, dtype=p.dtype)
        sides = []
        for h in (1e-6, -1e-6):
            moved = copy.deepcopy(net)
            for q, own in zip(moved.parameters(), net.parameters()):
                if own is p:
                    q.data.add_(h * v)
            sides.append(method.loss(moved, x, y, None)[0].item())
        assert float((p.grad * v).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-8)


@NORM
@BETA
@pytest.mark.parametrize("kappa", [0.0, 0.4])
def test_crown_ibp_equals_a_slow_transcription(norm, beta, kappa):
    threat = Threat(norm, EPS[norm])
    compare(CROWNIBP(threat, kappa_end=kappa, beta_end=beta), threat, kappa, beta)


@NORM
@pytest.mark.parametrize("kappa", [0.0, 0.4])
def test_dual_equals_a_slow_transcription(norm, kappa):
    threat = Threat(norm, EPS[norm])
    compare(Dual(threat, kappa=kappa), threat, kappa, "dual")


def test_the_cases_above_have_open_and_settled_relus():
    for norm in EPS:
        x, y = points(norm)
        net = three_layers().eval()
        values = [margins(net, x, y, Threat(norm, EPS[norm]), m) for m in ("ibp", "crown-ibp", "crown", "dual")]
        for a, b in itertools.combinations(values, 2):
            assert distance(a.detach(), b.detach()) > 1e-3


# -- identities


def ran(method, model, x, y, **given):
    model = copy.deepcopy(model)
    metrics = method.backward(model, x, y, rng=stream(), **given)
    return metrics, gradient(model)


def same(one, two):
    assert torch.equal(one[0]["loss"], two[0]["loss"])
    assert torch.equal(one[1], two[1])


@NORM
def test_without_eps_or_with_kappa_1_it_is_standard_training(norm):
    model, (x, y) = network(), batch()
    threat, none = Threat(norm, 0.1), Threat(norm, 0.0)
    plain = ran(Standard(), model, x, y)
    for method, progress in (
        (CROWNIBP(none), 1.0),
        (CROWNIBP(threat, eps_start=0.2, eps_end=0.6), 0.2),
        (CROWNIBP(threat, kappa_end=1.0), 1.0),
        (CROWNIBP(threat, eps_end=0.6, kappa_end=1.0), 0.5),
        (Dual(none), 1.0),
        (Dual(threat, eps_warmup=0.5), 0.0),
        (Dual(threat, kappa=1.0), 1.0),
    ):
        same(ran(method, model, x, y, progress=progress), plain)
    # The bound at a radius of nearly 0 is the plain loss, to the rounding that bounds add.
    for method in (CROWNIBP(Threat(norm, 1e-12), kappa_end=0.0, beta_end=0.5), Dual(Threat(norm, 1e-12))):
        near = ran(method, model, x, y)
        assert float(near[0]["loss"]) == pytest.approx(float(plain[0]["loss"]), rel=1e-9)
        assert distance(near[1], plain[1]) <= 1e-8


@NORM
def test_beta_0_is_ibp_and_beta_1_the_linear_bound(norm):
    model, (x, y) = network(), batch()
    threat = Threat(norm, 0.05)
    for beta, bound in ((0.0, "ibp"), (1.0, "crown-ibp")):
        copied = copy.deepcopy(model).eval()
        loss = F.cross_entropy(-margins(copied, x, y, threat, bound), y)
        loss.backward()
        ours = ran(CROWNIBP(threat, beta_start=beta, beta_end=beta, kappa_end=0.0), model, x, y)
        assert float(ours[0]["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
        assert distance(ours[1], gradient(copied)) <= ROUNDING


def test_the_schedule_at_its_break_points():
    method = CROWNIBP(
        Threat("linf", 0.4), eps_start=0.1, eps_end=0.6, kappa_start=0.9, kappa_end=0.5, beta_start=1.0, beta_end=0.2
    )
    for progress, expected in (
        (0.0, (0.0, 0.9, 1.0)),
        (0.1, (0.0, 0.9, 1.0)),
        (0.35, (0.5, 0.7, 0.6)),
        (0.6, (1.0, 0.5, 0.2)),
        (1.0, (1.0, 0.5, 0.2)),
    ):
        assert method.schedule(progress) == pytest.approx(expected)
    # what ends at 0 or 1 ends there exactly: no bound is paid for that has no weight
    assert CROWNIBP(Threat("linf", 0.4), eps_start=0.1, eps_end=0.7).schedule(0.7) == (1.0, 0.5, 0.0)
    jump = CROWNIBP(Threat("linf", 0.4), eps_start=0.3, eps_end=0.3)
    assert [jump.schedule(p)[0] for p in (0.0, 0.299, 0.3, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert CROWNIBP(Threat("linf", 0.4), eps_start=0.0, eps_end=0.0).schedule(0.0)[0] == 1.0


def published_growth(step, first, last, full):
    """Eps at a step, as a fourth power up to the quarter of the way, which is a step, and a line from there."""
    middle = first + (last - first) // 4
    left, right = middle - first, last - middle
    scale = full / (left**4 + 4 * left**3 * right)
    if step <= middle:
        return scale * max(step - first, 0) ** 4
    at_middle = scale * left**4
    return min(full, at_middle + (full - at_middle) * (step - middle) / right)


@pytest.mark.parametrize(("first", "last"), [(0, 400), (40, 240), (320, 1920)])
def test_the_smoothed_growth_is_the_published_one(first, last):
    steps, threat = last + 80, Threat("linf", 0.03451)
    shares = {"eps_start": first / steps, "eps_end": last / steps, "kappa_start": 0.0, "kappa_end": 0.0}
    method = CROWNIBP(threat, eps_growth="smoothed", beta_end=1.0, **shares)
    mixed = CROWNIBP(threat, eps_growth="smoothed", eps_start=first / steps, eps_end=last / steps)
    for step in range(0, steps, 7):
        factor, kappa, beta = method.schedule(step / steps)
        assert factor * 0.03451 == pytest.approx(published_growth(step, first, last, 0.03451), rel=1e-9, abs=1e-15)
        assert (kappa, beta) == (0.0, 1.0)
        # the other two go with eps, not with the time
        assert mixed.schedule(step / steps) == pytest.approx((factor, 1 - 0.5 * factor, 1 - factor))
    linear = CROWNIBP(threat, **shares).schedule((first + last) / 2 / steps)[0]
    assert linear == pytest.approx(0.5)
    # 1/13 of the whole way in the first quarter, 4/13 in each later one
    assert method.schedule((first + last) / 2 / steps)[0] == pytest.approx(1 / 13 + 4 / 13)


def test_without_kappa_the_clean_cross_entropy_ends_where_eps_begins():
    model, (x, y) = network(), batch()
    given = {"eps_start": 0.2, "eps_end": 0.6, "kappa_start": 0.0, "kappa_end": 0.0, "beta_end": 1.0}
    method = CROWNIBP(Threat("linf", 0.08), eps_growth="smoothed", **given)
    same(ran(method, model, x, y, progress=0.2), ran(Standard(), model, x, y))
    copied = copy.deepcopy(model).eval()
    # half of the growth: 5/13 of eps
    loss = F.cross_entropy(-margins(copied, x, y, Threat("linf", 0.08 * 5 / 13), "crown-ibp"), y)
    loss.backward()
    ours = ran(method, model, x, y, progress=0.4)
    assert float(ours[0]["loss"]) == pytest.approx(loss.item(), rel=1e-10)
    assert distance(ours[1], gradient(copied)) <= 1e-9


def test_eps_first_is_where_the_duals_eps_begins():
    method = Dual(Threat("linf", 0.1), eps_warmup=0.4, eps_first=0.01)
    epochs, growth = 50, 20
    for epoch in range(epochs):
        # in the authors' code eps is the same for an epoch, at equal distances; here it passes there during the epoch
        theirs = 0.1 if epoch >= growth else 0.01 + 0.09 * epoch / (growth - 1)
        begin, end = (float(method.at(e / epochs).eps) for e in (epoch, epoch + 1))
        assert begin - 1e-12 <= theirs <= end + 1e-12
    assert float(method.at(0.0).eps) == pytest.approx(0.01)
    assert float(method.at(0.2).eps) == pytest.approx(0.055)
    assert float(method.at(1.0).eps) == pytest.approx(0.1)
    assert float(Dual(Threat("linf", 0.1), eps_first=0.01).at(0.0).eps) == 0.1
    assert float(Dual(Threat("linf", 0.0)).at(0.5).eps) == 0.0
    model, (x, y) = network(), batch()
    ours, fixed = ran(method, model, x, y, progress=0.2), ran(Dual(Threat("linf", 0.055)), model, x, y)
    assert float(ours[0]["loss"]) == pytest.approx(float(fixed[0]["loss"]), rel=1e-10)
    assert distance(ours[1], fixed[1]) <= 1e-9


def test_in_l2_a_row_at_the_border_holds_only_the_weights_that_meet_the_image():
    """Theirs takes the norm of the whole kernel at every place; inside, both are the same."""
    torch.manual_seed(8)
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    net = nn.Sequential(layer, nn.Flatten()).eval()
    x = torch.full((1, 2, 4, 4), 0.5, dtype=torch.float64)
    lower, upper = (t.detach().view(3, 4, 4) for t in bounds(net, x, Threat("l2", 0.05), "ibp"))
    radius, kernel = (upper - lower) / 2, layer.weight.detach()
    for row, column, part in ((1, 2, kernel), (0, 0, kernel[:, :, 1:, 1:]), (3, 1, kernel[:, :, :2])):
        torch.testing.assert_close(
            radius[:, row, column], 0.05 * part.flatten(1).norm(dim=1), rtol=ROUNDING, atol=ROUNDING
        )
    # a box that is nearer than the ball: one pixel within 0.01 of its end, seen by a 1x1 kernel
    one = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()).double().eval()
    lower, upper = bounds(one, torch.full((1, 1, 1, 1), 0.99, dtype=torch.float64), Threat("l2", 0.05), "ibp")
    width = (upper - lower).detach()
    torch.testing.assert_close(width, 0.06 * one[0].weight.detach().abs().view(1, 2), rtol=ROUNDING, atol=ROUNDING)


def test_the_loss_follows_the_schedule():
    model, (x, y) = network(), batch()
    method = CROWNIBP(Threat("linf", 0.08), eps_start=0.2, eps_end=0.6, kappa_end=0.0)
    for progress, factor in ((0.3, 0.25), (0.5, 0.75)):
        fixed = CROWNIBP(Threat("linf", 0.08 * factor), 0.0, 0.0, kappa_end=1 - factor, beta_end=1 - factor)
        a, b = ran(method, model, x, y, progress=progress), ran(fixed, model, x, y)
        assert float(a[0]["loss"]) == pytest.approx(float(b[0]["loss"]), rel=ROUNDING)
        assert distance(a[1], b[1]) <= 1e-10


@NORM
def test_the_loss_is_above_every_attack(norm):
    model, (x, y) = network(), batch(n=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    threat = Threat(norm, {"linf": 0.05, "l2": 0.2}[norm])
    attacked = max(
        float(ran(PGDAT(threat, steps=20, start=start), model, x, y)[0]["loss"]) for start in ("zero", "uniform")
    )
    clean = float(ran(Standard(), model, x, y)[0]["loss"])
    assert attacked > 1.05 * clean
    losses = {}
    for method in (*(CROWNIBP(threat, kappa_end=0.0, beta_end=b) for b in (0.0, 0.5, 1.0)), Dual(threat)):
        losses[method] = float(ran(method, model, x, y)[0]["loss"])
        assert losses[method] > attacked
    # the dual bound tightens the hidden layers too
    assert min(losses, key=losses.get) == Dual(threat)


def test_the_metrics_are_those_of_the_bounds():
    model, (x, y) = network(), batch(n=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    threat = Threat("linf", 0.01)
    for method, bound in (
        (CROWNIBP(threat), "ibp"),
        (CROWNIBP(threat, beta_end=1.0), "crown-ibp"),
        (Dual(threat), "dual"),
    ):
        metrics = ran(method, model, x, y)[0]
        proved = verified(copy.deepcopy(model).eval(), x, y, threat, bound).double().mean()
        assert 0 < float(proved) < float(metrics["clean"])
        assert float(metrics["verified"]) == float(proved)
        assert float(metrics["clean"]) == float((model(x).argmax(1) == y).double().mean())


def test_an_overflowing_bound_without_weight_is_left_out():
    model, (x, y) = network(), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e80)
    model, x = model.float(), x.float()
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-1e25, 1e25)
    metrics = ran(CROWNIBP(Threat("linf", 0.1), kappa_end=0.0), model, x, y)[0]
    assert float(metrics["verified"]) == 0
    assert not math.isnan(float(metrics["verified"]))


# -- projections


class Skipping(nn.Module):
    """Two hidden layers and a sum past the second one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.skip, self.last = (
            nn.Linear(a, b) for a, b in ((6, 20), (20, 20), (6, 20), (20, 4))
        )

    def forward(self, x):
        return self.last(F.relu(self.second(F.relu(self.first(x))) + self.skip(x)))


@pytest.mark.parametrize("make", [three_layers, lambda: Skipping().double(), conv], ids=["plain", "sum", "conv"])
def test_projections_estimate_the_dual_bound(make):
    net, threat = make().eval(), Threat("linf", 0.3)
    x, y = batch(n=2, classes=4) if make is conv else points("linf")
    with torch.no_grad():
        exact = margins(net, x, y, threat, "dual")
        loose = margins(net, x, y, threat, "crown-ibp")
        many = [estimated_margins(net, x, y, threat, 20_000, stream(seed)) for seed in range(3)]
        few = torch.stack([estimated_margins(net, x, y, threat, 9, stream(seed)) for seed in range(30)])
    assert distance(loose, exact) > 0.04
    for one, other in itertools.combinations(many, 2):
        assert 0 < distance(one, other) < 0.02
        assert distance(one, exact) < 0.02
    # a few projections are rough, and no bound of anything
    assert distance(few[0], exact) > max(distance(one, exact) for one in many)
    open_ = (exact < 0).unsqueeze(0)
    assert 0.05 < float((few > exact + 1e-9)[open_.expand_as(few)].double().mean()) < 0.95


class BeforeSkipping(Skipping):
    """What its second ReLU sees."""

    def forward(self, x):
        return self.second(F.relu(self.first(x))) + self.skip(x)


@pytest.mark.parametrize("name", ["plain", "sum", "conv"])
def test_projections_estimate_the_bounds_of_hidden_layers(name):
    net = {"plain": three_layers, "sum": Skipping, "conv": conv}[name]().double().eval()
    before = BeforeSkipping() if name == "sum" else nn.Sequential(*net[:3], nn.Flatten())
    x = batch(n=2)[0] if name == "conv" else points("linf")[0]
    graph, threat = read(net), Threat("linf", 0.3)
    with torch.no_grad():
        lower, upper = bounds(before.double().eval(), x, threat, "dual")
        boxes, _ = hidden(graph, region(x, threat), 20_000, stream())
    second = [n.inputs[0] for n in graph.nodes if n.kind == "relu"][1]
    for found, exact in ((boxes[second].lower, lower), (boxes[second].upper, upper)):
        assert float(((found.flatten(1) - exact) / (upper - lower)).abs().max()) < 0.03


def test_projections_give_the_gradient_of_their_own_loss():
    net, (x, y) = three_layers(), points("linf")
    method = Dual(Threat("linf", EPS["linf"]), projections=7)
    one, two = ran(method, net, x, y), ran(method, net, x, y)
    same(one, two)
    aux = method.adversary(net, x, y, rng=stream(5))
    assert int(aux) != int(method.adversary(net, x, y, rng=stream(6)))
    loss = method.loss(net, x, y, aux)[0]
    loss.backward()
    for p in net.parameters():
        v = torch.randn_like(p)
        sides = []
        for h in (1e-7, -1e-7):
            with torch.no_grad():
                p.add_(h * v)
                sides.append(float(method.loss(net, x, y, aux)[0]))
                p.sub_(h * v)
        assert float((p.grad * v).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-7, rel=1e-4, abs=1e-6)


def test_projections_wait_once_for_their_seed():
    model, (x, y) = network(), batch()
    counts = []
    for projections in (None, 3, 30):
        with Syncs() as syncs:
            Dual(Threat("linf", 0.1), projections=projections).backward(model, x, y, rng=stream())
        counts.append(len(syncs.seen))
    assert counts == [0, 1, 1]


# -- refusals


def refused(call, *parts):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", BOUNDED)
def test_networks_that_change_in_train_mode_are_refused(name):
    x, y = batch()
    method = METHODS[name](Threat("linf", 0.05))
    for model, part in ((network(True), "1 (BatchNorm2d)"), (network(False, 0.3), "6 (Dropout)")):
        # at every progress: a training that must fail fails at its first step
        for progress in (0.0, 1.0):
            refused(
                lambda m=model, p=progress: method.backward(m, x, y, rng=stream(), progress=p),
                part, "train mode", "digits_cnn, kw_small, kw_resnet, dm_large", "small_cnn with dropout 0",
            )  # fmt: skip
        assert all(p.grad is None for p in model.parameters())
        # frozen, they are fixed functions
        part = model[1] if isinstance(model[1], nn.BatchNorm2d) else model[6]
        part.eval()
        frozen, _ = ran(method, model, x, y)
        assert float(frozen["loss"]) == pytest.approx(float(ran(method, model.eval(), x, y)[0]["loss"]), rel=ROUNDING)


def test_functional_dropout_is_refused_too():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(36, 5).double()

        def forward(self, x):
            return self.fc(F.dropout(x.flatten(1), 0.5, self.training))

    x, y = batch()
    method = CROWNIBP(Threat("linf", 0.05))
    refused(lambda: method.backward(Dropping(), x, y, rng=stream()), "dropout", "Dropping")
    method.backward(Dropping().eval(), x, y, rng=stream())


def test_a_graph_read_for_training_still_refuses_batch_norm():
    model, (x, y) = network(True), batch()
    model[1].eval()
    graph = read(model, training=True)
    margins(graph, x, y, Threat("linf", 0.05), "ibp")
    model.train()
    refused(lambda: margins(graph, x, y, Threat("linf", 0.05), "ibp"), "1 (BatchNorm2d)", "train mode")
    refused(lambda: read(network()), "the model is in train mode", "model.eval()")


@pytest.mark.parametrize("name", ["digits_cnn", "kw_small", "kw_resnet", "dm_large", "small_cnn"])
def test_the_built_in_networks_that_the_refusal_names_train(name):
    c = native_shape(name)[0]
    shape = (c, 16, 16) if name == "small_cnn" else (c, 8, 8)
    model = build(name, shape=shape, dropout=0.0 if name == "small_cnn" else None)
    if name == "small_cnn":
        refused(lambda: read(build(name, shape=shape), training=True), "classifier.drop (Dropout)")
        nn.init.normal_(model.classifier.fc3.weight)
    x, y = torch.rand(2, *shape), torch.tensor([1, 2])
    metrics = CROWNIBP(Threat("linf", 0.001), beta_end=0.5).backward(model, x, y, rng=stream())
    assert torch.isfinite(metrics["loss"])
    assert all(bool((p.grad != 0).any()) for p in model.parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"eps_start": -0.1}, "eps_start must be at least 0"),
        ({"eps_end": 1.1}, "eps_end must lie in [0, 1], got 1.1"),
        ({"eps_start": 0.5, "eps_end": 0.4}, "eps_end must be at least eps_start 0.5, got 0.4"),
        ({"kappa_start": 2.0}, "kappa_start"),
        ({"eps_growth": "smooth"}, "eps_growth 'smooth' is not known: use one of linear, smoothed"),
        ({"kappa_end": math.nan}, "kappa_end"),
        ({"beta_start": -1.0}, "beta_start"),
        ({"beta_end": 1.5}, "beta_end must lie in [0, 1], got 1.5"),
        ({"threat": Threat("linf", "inf")}, "finite eps"),
    ],
    ids=str,
)
def test_crown_ibp_refuses(given, text):
    refused(lambda: CROWNIBP(**{"threat": Threat("linf", 0.1), **given}), text)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"eps_warmup": 1.5}, "eps_warmup"),
        ({"kappa": 1.5}, "kappa must lie in [0, 1], got 1.5"),
        ({"eps_first": 0.2}, "eps_first must be at most the threat's eps 0.1, got 0.2"),
        ({"eps_first": -0.1}, "eps_first must be at least 0, got -0.1"),
        ({"projections": 0}, "projections must be at least 1"),
        ({"projections": 2.5}, "projections"),
        ({"projections": 10, "threat": Threat("l2", 1.0)}, "projections estimate the dual norms of linf"),
        ({"threat": Threat("l2", "inf")}, "finite eps"),
    ],
    ids=str,
)
def test_dual_refuses(given, text):
    refused(lambda: Dual(**{"threat": Threat("linf", 0.1), **given}), text)


def test_projections_refuse_what_they_cannot_estimate():
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5)).double()
    x, y = batch()
    refused(lambda: Dual(Threat("linf", 0.1), projections=5).backward(pooled, x, y, rng=stream()), "1 (MaxPool2d)")
    Dual(Threat("linf", 0.1)).backward(pooled, x, y, rng=stream())
    refused(
        lambda: estimated_margins(three_layers().eval(), *points("l2"), Threat("l2", 0.1), 5, stream()), "linf", "l2"
    )


# -- what it is for


@pytest.mark.parametrize("method", ["CROWNIBP", "Dual"])
def test_training_makes_networks_verifiable(method, all_digits):
    x, y = (t[:600] for t in all_digits)
    x, threat, shares = x.float(), Threat("linf", 0.07), {}
    given = {
        "CROWNIBP": {"eps_start": 0.1, "eps_end": 0.5, "kappa_end": 0.0},
        "Dual": {"eps_warmup": 0.5, "projections": 10},
    }
    for trained in (Standard(), METHODS[method](threat, **given[method])):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(150):
            rows = torch.arange(step * 50, (step + 1) * 50) % 500
            optimizer.zero_grad()
            trained.backward(model, x[rows], y[rows], rng=stream(step), progress=step / 150)
            optimizer.step()
        proved = verified(model.eval(), x[500:], y[500:], threat, "crown-ibp")
        shares[type(trained).__name__] = float(proved.double().mean())
    assert shares["Standard"] < 0.2
    assert shares[method] > 0.4, shares
