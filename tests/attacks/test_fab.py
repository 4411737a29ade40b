"""FAB against linear programs, one-sample transcriptions in float64 and distances that are known."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import BALLS, Recorded, Syncs
from scipy.optimize import brentq, linprog
from torch import nn

from atent.attacks import FAB, PGD, DeepFool, EoT, fab
from atent.attacks.boundary import nearest_boundary
from atent.attacks.hyperplane import to_hyperplane
from atent.attacks.loops import side_by_side
from atent.attacks.oracle import Oracle
from atent.attacks.starts import start
from atent.rng import PerSample
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)
TARGETS = pytest.mark.parametrize("targets", [None, 3], ids=["all classes", "targeted"])
ENDLESS = {norm: Threat(norm, math.inf) for norm in ("linf", "l2", "l1")}


def size(norm, d):
    return {"linf": np.abs(d).max(), "l2": np.sqrt((d * d).sum()), "l1": np.abs(d).sum()}[norm]


# -- the way to a hyperplane


def reach(x, w, gap, low, high):
    """How far <w, d> can go towards the gap inside the box."""
    away = np.where(np.sign(gap) * w > 0, high - x, low - x)
    return (w * away).sum()


def slow_way(norm, x, w, gap, low=0.0, high=1.0):
    """Smallest d with <w, d> = gap in the box, one sample, by a linear program, or by the multiplier's root in l2."""
    most = reach(x, w, gap, low, high)
    if abs(most) <= abs(gap):
        return np.where(w == 0, 0.0, np.where(np.sign(gap) * w > 0, high - x, low - x))
    if norm == "l2":

        def step(mu):
            return np.clip(mu * w, low - x, high - x)

        if gap == 0:
            return np.zeros_like(x)
        far = np.sign(gap) * 2 * (high - low) / np.abs(w[w != 0]).min()
        return step(brentq(lambda mu: (w * step(mu)).sum() - gap, *sorted((0.0, far)), xtol=1e-15, rtol=1e-15))
    d = len(x)
    if norm == "l1":
        bounds = [*((0, far) for far in high - x), *((0, far) for far in x - low)]
        found = linprog(np.ones(2 * d), A_eq=np.r_[w, -w][None], b_eq=[gap], bounds=bounds)
        return found.x[:d] - found.x[d:]
    above = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
    found = linprog(
        np.r_[np.zeros(d), 1.0], A_ub=above, b_ub=np.zeros(2 * d), A_eq=np.r_[w, 0.0][None], b_eq=[gap],
        bounds=[*zip(low - x, high - x), (0, None)],
    )  # fmt: skip
    return found.x[:d]


def problems(n=60, d=7, box=(0.0, 1.0), seed=3):
    """Points of which some coordinates touch the box, weights of which some are zero, gaps near and out of reach."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(*box, (n, d))
    x = np.where(rng.random((n, d)) < 0.3, box[0], np.where(rng.random((n, d)) < 0.2, box[1], x))
    w = rng.normal(size=(n, d)) * np.exp(rng.normal(size=(n, d))) * (rng.random((n, d)) < 0.8)
    w[:, 0] = rng.normal(size=n)
    sign = rng.choice([-1.0, 1.0], n)
    most = np.array([reach(*row, *box) for row in zip(x, w, sign)])
    return x, w, most * rng.choice([0.01, 0.3, 0.7, 0.97, 1.5], n)


@pytest.mark.parametrize("norm", ENDLESS)
@pytest.mark.parametrize("box", [(0.0, 1.0), (-2.0, 0.5)], ids=["unit box", "other box"])
def test_the_smallest_step_onto_a_hyperplane(norm, box):
    x, w, gap = problems(box=box)
    d = to_hyperplane(Threat(norm, 0.1, box), *(torch.tensor(v) for v in (x, w, gap))).numpy()
    kinds = {"reached": 0, "out of reach": 0, "at the box": 0}
    for i in range(len(x)):
        expected, most = slow_way(norm, x[i], w[i], gap[i], *box), reach(x[i], w[i], gap[i], *box)
        assert (w[i] * d[i]).sum() == pytest.approx(gap[i] if abs(gap[i]) < abs(most) else most, rel=1e-10, abs=1e-12)
        assert size(norm, d[i]) == pytest.approx(size(norm, expected), rel=1e-9, abs=1e-12)
        assert (x[i] + d[i]).min() >= box[0] - 1e-15
        assert (x[i] + d[i]).max() <= box[1] + 1e-15
        assert (d[i][w[i] == 0] == 0).all()
        if norm == "l2":  # the only one
            assert np.abs(d[i] - expected).max() <= 1e-9
        kinds["reached" if abs(gap[i]) < abs(most) else "out of reach"] += 1
        kinds["at the box"] += bool(((d[i] != 0) & np.isin(x[i] + d[i], box)).any())
    assert min(kinds.values()) >= 10


@NORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_multiples_of_a_hyperplane_are_the_same(norm, dtype):
    x, w, gap = (torch.tensor(v).to(dtype) for v in problems(d=50))
    threat = Threat(norm, 0.1)
    once = to_hyperplane(threat, x, w, gap)
    for factor in (2.0**-100, -(2.0**60)):
        assert torch.equal(to_hyperplane(threat, x, w * factor, gap * factor), once)
    assert (once.double() - to_hyperplane(threat, x.double(), w.double(), gap.double())).abs().max() <= 3e-5


@NORM
def test_nothing_to_do_and_nothing_that_can_be_done(norm):
    x, w, gap = (torch.tensor(v) for v in problems())
    for d in (
        to_hyperplane(Threat(norm, 0.1), x, w, 0 * gap),
        to_hyperplane(Threat(norm, 0.1), x, 0 * w, gap),
        to_hyperplane(Threat(norm, 0.1), x, 0 * w, 0 * gap),
    ):
        assert torch.equal(d, torch.zeros_like(d))
    image = to_hyperplane(Threat(norm, 0.1), x[:, :6].view(-1, 1, 2, 3), w[:, :6].view(-1, 1, 2, 3), gap)
    assert torch.equal(image.flatten(1), to_hyperplane(Threat(norm, 0.1), x[:, :6], w[:, :6], gap))


# -- the attack, one sample at a time


def slow_run(norm, model, x, y, others, z, steps, alpha_max=0.1, eta=1.05, beta=0.9):
    """(norm, point) of the nearest misclassified point of one run from z."""
    best, found = math.inf, x
    for _ in range(steps):
        leaf = z.clone().requires_grad_()
        logits = model(leaf[None])[0]
        tangents = []
        for other in others:
            difference = logits[other] - logits[y]
            (grad,) = torch.autograd.grad(difference, leaf, retain_graph=True)
            w, value = grad.flatten().numpy(), difference.item()
            dual = {"linf": np.abs(w).sum(), "l2": np.sqrt((w * w).sum()), "l1": np.abs(w).max()}[norm]
            tangents.append((abs(value) / dual, value, w))
        _, value, w = min(tangents, key=lambda t: t[0])
        here, clean = z.flatten().numpy(), x.flatten().numpy()
        # <w, p> = <w, here> - value is the hyperplane
        d, d0 = slow_way(norm, here, w, -value), slow_way(norm, clean, w, -value + (w * (here - clean)).sum())
        a, a0 = max(size(norm, d), 1e-8), max(size(norm, d0), 1e-8)
        alpha = min(a / (a + a0), alpha_max)
        point = np.clip((1 - alpha) * (here + eta * d) + alpha * (clean + eta * d0), 0, 1)
        z = torch.tensor(point).view_as(x)
        with torch.no_grad():
            fooled = int(model(z[None]).argmax()) != y
        if fooled:
            if size(norm, point - clean) < best:
                best, found = size(norm, point - clean), z
            z = x + beta * (z - x)
    return best, found


class Smooth(nn.Module):
    """No two of its linearisations agree, and its linear programs have one solution."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(8)
        self.first, self.second = (
            nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64)) for shape in ((8, 6), (6, 4))
        )

    def forward(self, x):
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.second


def points(n=7, seed=1):
    return torch.rand(n, 2, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Two restarts begin with the one.
@pytest.mark.parametrize("restarts", [pytest.param(1, marks=pytest.mark.slow), 2])
@TARGETS
@pytest.mark.parametrize("norm", ENDLESS)
def test_the_transcription_finds_the_same(norm, targets, restarts):
    model, x = Smooth(), points()
    y = model(x).argmax(1)
    attack = FAB(ENDLESS[norm], steps=9, targets=targets, restarts=restarts, alpha_max=0.3, eta=1.2, beta=0.7)
    got = attack(model, x, y, seed=5)
    reached = 0
    for i in range(len(x)):
        label = int(y[i])
        with torch.no_grad():
            logits = model(x[i : i + 1])[0]
        wrong = [k for k in logits.argsort(descending=True).tolist() if k != label]
        runs = [wrong] if targets is None else [[k] for k in wrong]
        best, found = math.inf, x[i]
        for restart in range(restarts):
            before = best
            for number, others in enumerate(runs):
                z = x[i]
                if restart:
                    # eps is infinite: half the best norm, or the radius of the authors' code
                    radius = (before if math.isfinite(before) else {"linf": 0.3, "l2": 1.0, "l1": 5.0}[norm]) / 2
                    stream = PerSample(5, torch.tensor([i]), "FAB").named(f"run {number}")
                    ball = start(Threat(norm, 1.0), "uniform", torch.zeros(1, 2, 2, 2).double(), stream, restart)[0]
                    z = (x[i] + radius * ball).clamp(0, 1)
                distance, point = slow_run(norm, model, x[i], label, others, z, 9, 0.3, 1.2, 0.7)
                if distance < best:
                    best, found = distance, point
        reached += math.isfinite(best)
        assert (got[i] - found).abs().max() <= 1e-7
    assert reached >= 5


# -- linear models: the distance is known


@NORM
@pytest.mark.parametrize("targets", [None, 9], ids=["all classes", "targeted"])
def test_the_known_distance_of_a_linear_model(norm, targets, two_class):
    model, x, y, distance = two_class()
    for endless in (ENDLESS[norm], Threat(norm, 100.0, allow_large_eps=True)):
        out = FAB(endless, targets=targets, steps=10).run(model, x, y)
        assert out.success.all()
        assert (out.norm >= distance[norm]).all()
        assert (out.norm <= 1.01 * distance[norm]).all()
    # and one step, from x, goes eta times the way
    once = FAB(ENDLESS[norm], targets=targets, steps=1).run(model, x, y)
    assert once.norm.tolist() == pytest.approx((1.05 * distance[norm]).tolist(), rel=1e-9)


@NORM
def test_the_nearest_tangent_is_nearest_in_the_norm(norm):
    # class 1 is 0.2 away in both norms, class 2 is 0.15 away in linf and 0.3 in l2
    model, x = nn.Linear(4, 3, bias=False).double(), torch.full((1, 4), 0.5).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]))
        model.register_forward_hook(lambda module, inputs, logits: logits - torch.tensor([0, 0.7, 1.3]))
    x_adv = FAB(ENDLESS[norm], steps=1)(model, x, torch.tensor([0]))
    expected = 1.05 * torch.tensor([0.15] * 4 if norm == "linf" else [0.2, 0, 0, 0])
    assert torch.allclose(x_adv - x, expected.double(), atol=1e-7)


@NORM
def test_the_known_distance_where_the_box_is_in_the_way(norm):
    rng = np.random.default_rng(2)
    w, x = (
        rng.normal(size=(12, 3)),
        np.where(rng.random((30, 12)) < 0.6, rng.integers(0, 2, (30, 12)), rng.random((30, 12))),
    )
    model = nn.Linear(12, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w.T))
        model.bias.zero_()
    t = torch.tensor(x).double()
    logits = model(t).detach()
    y = logits.argmax(1)
    pairs = [[(w[:, k] - w[:, label], logits[i, label] - logits[i, k]) for k in range(3) if k != label]
             for i, label in enumerate(y.tolist())]  # fmt: skip
    ways = [[slow_way(norm, x[i], v, float(gap)) for v, gap in pair] for i, pair in enumerate(pairs)]
    free = [min(float(gap) / np.linalg.norm(v, 1 if norm == "linf" else 2) for v, gap in pair) for pair in pairs]
    exact = torch.tensor([min(size(norm, d) for d in way) for way in ways])
    out = FAB(ENDLESS[norm], targets=2, steps=40).run(model, t, y)
    assert out.success.all()
    assert (out.norm >= exact * (1 - 1e-9)).all()
    assert (out.norm <= 1.05 * exact).all()
    assert (exact > 1.2 * torch.tensor(free)).sum() >= 10


# -- networks


def test_as_good_as_a_strong_attack_with_a_budget(conv_net, batch):
    model, (x, y) = conv_net(norm=True), batch(40)
    for norm in BALLS:
        smallest = FAB(ENDLESS[norm], targets=9, steps=40).run(model, x, y)
        assert smallest.success.all()
        for eps in smallest.norm.quantile(torch.tensor([0.3, 0.6, 0.9]).double()).tolist():
            fooled = PGD(Threat(norm, eps), steps=100, restarts=2, loss="margin", keep="best").run(model, x, y).success
            assert int((smallest.norm <= eps).sum()) >= int(fooled.sum())


def test_targets_look_further_than_the_nearest_tangent(conv_net, batch):
    model, (x, y) = conv_net(norm=True), batch(40)
    for norm in BALLS:
        near, far = (FAB(ENDLESS[norm], targets=targets, steps=30).run(model, x, y).norm for targets in (None, 9))
        assert (far <= 1.02 * near).all()
        assert (far < 0.999 * near).sum() >= 1


@NORM
def test_restarts_and_runs_never_lose(norm, conv_net, batch):
    model, (x, y) = conv_net(norm=True), batch(20)
    # steps so long that the start matters
    long = {"steps": 4, "eta": 1.6, "alpha_max": 0.4}
    norms = [
        FAB(ENDLESS[norm], targets=t, restarts=r, **long).run(model, x, y).norm for t, r in ((2, 1), (2, 3), (5, 1))
    ]
    assert (norms[1] <= norms[0]).all()
    assert (norms[1] < norms[0]).any()
    assert (norms[2] <= norms[0]).all()
    assert (norms[2] < norms[0]).any()


@NORM
def test_stopping_at_eps_changes_no_success(norm, conv_net, batch):
    model, (x, y) = conv_net(norm=True), batch(40)
    eps = float(FAB(ENDLESS[norm], targets=3, steps=15).run(model, x, y).norm.median())
    whole, early = (
        FAB(Threat(norm, eps), targets=3, steps=35, restarts=2, stop_at_eps=stop).run(model, x, y)
        for stop in (False, True)
    )
    assert 5 < int(whole.success.sum()) < 35
    assert torch.equal(whole.success, early.success)
    right = model(x).argmax(1) == y
    fell, stood = right & whole.success, ~whole.success
    assert (early.norm >= whole.norm).all()
    # the clean logits, the verdict, and two forwards in each step of each run
    assert early.forwards[stood].unique().tolist() == [2 + 2 * 3 * 70]
    assert (early.forwards[fell] < whole.forwards[fell]).all()
    assert int(early.forwards[fell].min()) == 2 + 2 * 3 * 10
    assert early.forwards[~right].unique().tolist() == [2]


def test_groups_of_rows_are_exact_and_no_larger_than_the_batch(conv_net, batch, monkeypatch):
    (x, y), model = batch(20), Recorded(conv_net(norm=True))
    attack = FAB(Threat("l2", 0.7), targets=4, steps=4)
    sizes, results = [], []
    assert [side_by_side(torch.empty(20, d), 4) for d in (64, 2**13)] == [256, 5]
    for samples in (256, 5):
        monkeypatch.setattr(fab, "side_by_side", lambda x, runs, samples=samples: samples)
        model.seen.clear()
        results.append(attack.run(model, x, y))
        sizes.append(max(len(seen) for seen in model.seen))
    assert (results[0].x_adv - results[1].x_adv).abs().max() <= 1e-12
    assert torch.equal(results[0].forwards, results[1].forwards)
    right = int((model.body(x).argmax(1) == y).sum())
    assert sizes == [4 * right, 20]


@NORM
def test_where_the_runs_begin(norm, conv_net, batch):
    (x, y), body = batch(12), conv_net(norm=True)
    x, y = x[body(x).argmax(1) == y], y[body(x).argmax(1) == y]
    for eps in (0.02, math.inf):
        model = Recorded(body)
        threat = Threat(norm, eps)
        FAB(threat, targets=2, steps=3, restarts=2)(model, x, y)
        rows = [seen for seen in model.seen if len(seen) == 2 * len(x)]
        assert len(rows) == 2 * 2 * 3
        assert torch.equal(rows[0], x.repeat_interleave(2, 0))
        checked = torch.stack(rows[1:6:2])
        with torch.no_grad():
            fooled = torch.stack([body(z).argmax(1) != y.repeat_interleave(2) for z in checked])
        d = (checked - x.repeat_interleave(2, 0)).flatten(2)
        norms = d.abs().amax(2) if norm == "linf" else d.norm(dim=2)
        best = torch.where(fooled, norms, math.inf).amin(0).view(-1, 2).amin(1)
        radius = best.clamp_max(eps) / 2
        radius = torch.where(radius.isfinite(), radius, {"linf": 0.15, "l2": 0.5}[norm])
        away = (rows[6] - x.repeat_interleave(2, 0)).flatten(1)
        away = (away.abs().amax(1) if norm == "linf" else away.norm(dim=1)).view(-1, 2)
        assert (away <= radius[:, None] * (1 + 1e-12)).all()
        assert (away.amax(1) > 0.5 * radius).sum() >= len(x) // 2
        assert (away[:, 0] != away[:, 1]).all()


def test_the_loop_waits_for_nothing(conv_net, batch):
    (x, y), model = batch(6), conv_net()
    counts = []
    for steps in (3, 8):
        with Syncs() as syncs:
            FAB(Threat("linf", 0.1), targets=2, steps=steps, restarts=2)(model, x, y)
        counts.append(len(syncs.seen))
    assert counts[0] == counts[1]


def test_a_check_waits_once(conv_net, batch):
    """Of 35 steps 3 are checked, whichever samples leave; a gather by a mask would wait for each tensor."""
    (x, y), model = batch(20), conv_net()
    attack = FAB(Threat("linf", 0.05), targets=2, steps=35, stop_at_eps=True)
    with Syncs() as syncs:
        out = attack.run(model, x, y, rng=torch.Generator().manual_seed(0))
    assert len(out.forwards.unique()) >= 3
    # The generator's seed, the samples to attack, and who is still to find.
    assert len(syncs.seen) == 2 + 3


def test_as_many_targets_as_there_are(two_class):
    model, x, y, _ = two_class()
    assert torch.equal(*(FAB(ENDLESS["l2"], targets=t, steps=5)(model, x, y) for t in (1, 9)))
    with pytest.raises(ValueError, match="logits for 2 classes or more, got 1 output"):
        FAB(ENDLESS["l2"], targets=9)(nn.Linear(10, 1).double(), x, 0 * y)


# -- memory: the gradient of every class is looked at, and none is kept

_PEAK = """
import torch
from torch import nn
from atent.attacks import FAB, DeepFool
from atent.threat import Threat

def peak():
    # getrusage would count what the parent held when it forked.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**20

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(588, 1000))
x = torch.rand(4, 3, 112, 112)
y = net(x).argmax(1)
before = peak()
for attack in (FAB(Threat("linf", 0.1), steps=1), DeepFool(Threat("l2", 0.1), steps=1, classes=1000)):
    attack(net, x, y)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_a_thousand_classes_take_no_more_memory_than_a_few():
    # Stacked, 999 gradients of 4 x 3 x 112 x 112 numbers in float32 are 0.56 GiB, and as much again while they are
    # stacked; a group of them is 0.06 GiB.
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 0.35


@NORM
@pytest.mark.parametrize("most", [1, 3 * 64 * 9, 2**24])
def test_groups_of_classes_change_no_bit(norm, most, conv_net, batch, monkeypatch):
    model, (x, y) = conv_net(), batch(9)
    attacks = [FAB(ENDLESS[norm], steps=5), DeepFool(ENDLESS[norm]), EoT(Threat(norm, 0.3), "FAB(steps=3)", 2)]
    whole = [attack.run(model, x, y) for attack in attacks]
    monkeypatch.setattr("atent.attacks.oracle._MOST", most)
    for attack, expected in zip(attacks, whole):
        found = attack.run(model, x, y)
        assert torch.equal(found.x_adv, expected.x_adv)
        assert torch.equal(found.backwards, expected.backwards)
        if not isinstance(attack, EoT):
            assert torch.equal(found.forwards, expected.forwards)


@NORM
def test_the_nearest_boundary_is_that_of_all_gradients_stacked(norm, conv_net, batch, monkeypatch):
    model, (x, y) = conv_net(), batch(9)
    classes = torch.stack([torch.tensor([k for k in range(10) if k != label]) for label in y.tolist()])
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: model(v[None])[0], z) for z in x])
    rows, logits = torch.arange(9)[:, None], model(x)
    slopes = jacobian[rows, classes] - jacobian[torch.arange(9), y][:, None]
    differences = logits.gather(1, classes) - logits.gather(1, y[:, None])
    far = differences.abs() / torch.linalg.vector_norm(slopes.flatten(2), 1 if norm == "linf" else 2, dim=2)
    monkeypatch.setattr("atent.attacks.oracle._MOST", 2 * x.numel())
    oracle = Oracle(model, *torch.zeros(2, 9, dtype=torch.int64), check=True)
    found, _ = nearest_boundary(oracle, x, y, classes, norm)
    # A few roundings of numbers of order 1.
    assert torch.allclose(found.distance, far.amin(1), rtol=1e-10)
    assert torch.allclose(found.slope, slopes[torch.arange(9), far.argmin(1)], atol=1e-12)
    assert oracle.forwards.tolist() == [1] * 9
    assert oracle.backwards.tolist() == [9] * 9
