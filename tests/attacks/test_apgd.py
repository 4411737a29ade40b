"""Auto-PGD against a plain transcription, problems whose answer is known, and PGD; gradients averaged over draws."""

import math
from itertools import pairwise

import pytest
import torch
from kit import BALLS, Recorded, Syncs
from torch import nn

from atent.attacks import APGD, PGD, EoT
from atent.attacks.loops import side_by_side
from atent.attacks.spec import label, parse
from atent.attacks.starts import start
from atent.attacks.step_rules import Halving, Sparse, checkpoints, stages
from atent.losses import dlr_targeted
from atent.rng import PerSample
from atent.stats import sign_test
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)
# Some of the digits fall at once, some late, some never.
EPS = {"linf": 0.07, "l2": 0.45}
LOSSES = ("ce", "margin", "dlr", "dlr-targeted")


# -- the targeted loss


def slow_targeted(row, y, target):
    ordered = sorted(row, reverse=True)
    return -(row[y] - row[target]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


@pytest.mark.parametrize("classes", [4, 9])
def test_the_targeted_loss_is_its_formula(classes):
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(50, classes, generator=g, dtype=torch.float64)
    y, target = torch.randint(classes, (2, 50), generator=g)
    slow = [slow_targeted(*row) for row in zip(z.tolist(), y.tolist(), target.tolist())]
    assert dlr_targeted(z, y, target).tolist() == pytest.approx(slow, rel=1e-9)
    # it knows no scale and no shift, and half precision is raised
    assert dlr_targeted(7 * z - 3, y, target).tolist() == pytest.approx(slow, rel=1e-9)
    assert dlr_targeted(z.bfloat16(), y, target).dtype == torch.float32
    z.requires_grad_()
    (grad,) = torch.autograd.grad(dlr_targeted(z, y, target).sum(), z)
    for j in range(classes):
        h = torch.zeros(classes, dtype=torch.float64)
        h[j] = 1e-6
        difference = (dlr_targeted(z + h, y, target) - dlr_targeted(z - h, y, target)) / 2e-6
        assert (grad[:, j] - difference).abs().max() <= 1e-6


def test_the_targeted_loss_needs_four_classes():
    with pytest.raises(ValueError, match="at least 4 classes, got 3: use the margin loss or cross-entropy") as error:
        dlr_targeted(torch.zeros(2, 3), torch.zeros(2).long(), torch.ones(2).long())
    assert "\n" not in str(error.value)


# -- the algorithm, one sample and one number at a time


def slow_loss(name, z, y, target):
    ordered = z.sort(descending=True).values
    other = max(z[i] for i in range(len(z)) if i != y)
    if name == "ce":
        return z.logsumexp(0) - z[y]
    if name == "margin":
        return other - z[y]
    if name == "dlr":
        return (other - z[y]) / (ordered[0] - ordered[2])
    return -(z[y] - z[target]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


class Slow:
    """Algorithm 1 for one sample, with every quantity in a list by its number of steps."""

    def __init__(self, net, attack, x, y, begin, target):
        self.net, self.attack, self.x, self.y, self.target = net, attack, x, y, target
        self.begin, self.forwards, self.backwards = begin, 0, 0

    def project(self, z):
        norm, eps, d = self.attack.threat.norm, float(self.attack.threat.eps), z - self.x
        if norm == "linf":
            d = d.clamp(-eps, eps)
        elif d.norm() > eps:
            d = d * (eps / d.norm())
        return (self.x + d).clamp(0, 1)

    def look(self, z, slope=True):
        z = z.clone().requires_grad_()
        logits = self.net(z[None])[0]
        value = slow_loss(self.attack.loss, logits, self.y, self.target)
        self.forwards += 1
        self.backwards += slope
        grad = torch.autograd.grad(value, z)[0] if slope else None
        return float(value.detach()), grad, float(slow_loss("margin", logits.detach(), self.y, None))

    def climb(self):
        """After each check for finished samples: (best point, its margin)."""
        steps, rho, eps = self.attack.steps, self.attack.rho, float(self.attack.threat.eps)
        marks = [0]
        p, gap = 22, 22
        while p <= 100:
            marks.append(math.ceil(p * steps / 100 - 1e-9))
            gap = max(gap - 3, 6)
            p += gap
        marks = sorted(set(marks))
        x = [self.project(self.begin)]
        f, g, m = ([v] for v in self.look(x[0]))
        top, f_max, eta, eta_at, f_max_at = 0, [f[0]], 2 * eps, [2 * eps], [f[0]]
        yield x[top], m[top]
        was = x[0]
        for k in range(steps):
            d = g[k].sign() if self.attack.threat.norm == "linf" else g[k] / g[k].norm()
            z = self.project(x[k] + eta * d)
            new = z if k == 0 else self.project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - was))
            was = x[k]
            value, grad, score = self.look(new, slope=k + 1 < steps)
            for a, v in ((x, new), (f, value), (g, grad), (m, score)):
                a.append(v)
            found = m[top] > 0
            if (score > m[top]) if found or score > 0 else (value > f_max[-1]):
                top = k + 1
            f_max.append(max(f_max[-1], value))
            if k + 1 in marks:
                w_before = marks[marks.index(k + 1) - 1]
                rises = sum(f[i + 1] > f[i] for i in range(w_before, k + 1))
                one = rises < rho * (k + 1 - w_before)
                two = eta_at[-1] == eta and f_max_at[-1] == f_max[-1]
                eta_at.append(eta)
                f_max_at.append(f_max[-1])
                if one or two:
                    eta /= 2
                    # the loss keeps its place in the list, the point and its gradient go back to the best
                    x[k + 1], g[k + 1] = x[top], g[top]
            if k + 1 < steps and (k + 1 in marks or k + 1 in (1, 2, 4, 8, 16)):
                yield x[top], m[top]
        yield x[top], m[top]


def slow_attack(net, attack, x, y, sample, seed):
    """One sample: adversarial point, forwards and backwards, the verdict's forward included."""
    streams = PerSample(seed, torch.tensor([sample]), "APGD")
    forwards = 0
    targets = [None]
    if attack.loss == "dlr-targeted":
        z = net(x[None])[0].detach()
        forwards += 1
        targets = [i for i in z.argsort(descending=True).tolist() if i != y][: attack.targets]
    runs = []
    for target in targets:
        for _ in range(attack.restarts):
            begin = start(attack.threat, attack.start, x[None], streams, len(runs))[0]
            runs.append(Slow(net, attack, x, y, begin, target))
    answers = []
    for wave in (runs[:1], runs[1:]):
        if not wave or any(score > 0 for _, score in answers):
            continue
        for found in zip(*(run.climb() for run in wave)):
            best = max(found, key=lambda pair: pair[1])
            if best[1] > 0 and attack.eot == 1:
                break
        answers.append(best)
        forwards += len(runs) > 1
    forwards += attack.eot * sum(run.forwards for run in runs) + 1
    backwards = attack.eot * sum(run.backwards for run in runs)
    return max(answers, key=lambda pair: pair[1])[0], forwards, backwards


SLOW = [
    *({"loss": loss, "steps": 30, "targets": 4} for loss in LOSSES),
    {"steps": 12, "rho": 0.4, "start": "uniform"},
    {"steps": 6, "restarts": 4},
    {"steps": 9, "loss": "dlr-targeted", "restarts": 2, "targets": 2},
    # gaps of two steps, of which one may raise the loss
    {"steps": 12, "rho": 0.5, "start": "zero"},
    # nobody leaves early, and the largest margin of a fooled sample is not its highest loss
    {"steps": 12, "loss": "dlr-targeted", "eot": 2, "targets": 2},
]


@NORM
@pytest.mark.parametrize("setting", SLOW, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))
def test_it_is_the_transcription(norm, setting, conv_net, batch):
    net, (x, y) = conv_net(), batch(12)
    attack, ids = APGD(Threat(norm, EPS[norm]), **setting), 50 + torch.arange(12)
    out = attack.run(net, x, y, seed=3, ids=ids)
    assert 0 < int(out.success.sum()) < 12
    slow = [slow_attack(net, attack, x[i], int(y[i]), int(ids[i]), 3) for i in range(12)]
    for i, (x_adv, forwards, backwards) in enumerate(slow):
        assert (out.forwards[i], out.backwards[i]) == (forwards, backwards), i
        assert (out.x_adv[i] - x_adv).abs().max() <= 1e-9, i


def test_checkpoints_are_the_published_ones():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (1, 2, 7, 20, 100, 333, 1000):
        found = checkpoints(steps)
        p, places = [0.0, 0.22], [0]
        while p[-1] <= 1:
            places.append(math.ceil(round(p[-1] * steps, 9)))
            p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        places = sorted(set(places))
        assert list(found) == places[1:]
        assert list(found.values()) == [b - a for a, b in pairwise(places)]


def test_an_equal_loss_is_no_increase():
    """f(x_{i+1}) > f(x_i) strictly (Croce and Hein 2020, condition 1)."""
    x, zero = torch.zeros(3, 2), torch.zeros(3)
    rule = Halving.begin(Threat("linf", 0.1), x, zero, zero, 100, 0.75)
    rule.see(torch.tensor([0.0, 1.0, -1.0]))
    rule.see(torch.tensor([0.0, 1.0, 0.0]))
    assert rule.raised.tolist() == [0, 1, 1]


def test_the_stages_and_the_sparse_rule_are_the_published_ones():
    """Croce and Hein 2021: 30, 30 and 40 % of the steps, shares rounded up; the step restarts at eps where the number
    of coordinates falls by more than 5 %, and is divided by 1.5 to eps / 10 at least elsewhere."""
    assert stages(100) == [(3, 30), (2, 30), (1, 40)]
    assert stages(11) == [(3, 4), (2, 4), (1, 3)]
    assert stages(1) == [(1, 1)]
    x, eps = torch.zeros(4, 100), torch.full((4,), 6.0)
    best = torch.zeros(4, 100)
    for row, count in enumerate((94, 95, 100, 60)):
        best[row, :count] = 0.5
    rule = Sparse({4: 4}, eps, torch.tensor([3.0, 3.0, 0.7, 3.0]), torch.zeros(4), torch.full((4,), 100.0))
    assert rule.check(4, x, best, torch.zeros(4)).tolist() == [True, False, False, True]
    assert rule.size.tolist() == pytest.approx([6, 2, 0.6, 6])
    assert rule.share.tolist() == pytest.approx([0.94 / 1.5, 0.95 / 1.5, 1 / 1.5, 0.6 / 1.5])


@NORM
def test_the_start_is_on_the_boundary(norm):
    x = torch.full((40, 6), 0.5, dtype=torch.float64)
    streams = PerSample(1, torch.arange(40), "A")
    d = start(Threat(norm, 0.3), "boundary", x, streams) - x
    size = d.abs().amax(1) if norm == "linf" else d.norm(dim=1)
    assert (size - 0.3).abs().max() <= 1e-12
    u, n = 2 * streams.uniform(x, use="start") - 1, streams.normal(x, use="start")
    direction = u / u.abs().amax(1, keepdim=True) if norm == "linf" else n / n.norm(dim=1, keepdim=True)
    assert (d - 0.3 * direction).abs().max() <= 1e-12


# -- problems whose answer is known


@pytest.fixture
def linear():
    """Five classes, x well inside the box, labels that it gets right, and each sample's distance by norm."""
    g = torch.Generator().manual_seed(4)
    net, x = nn.Linear(12, 5).double(), 0.4 + 0.2 * torch.rand(20, 12, generator=g, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(5, 12, generator=g, dtype=torch.float64))
        net.bias.copy_(-(net.weight @ x.mean(0)))
        z = net(x)
        y = z.argmax(1)
        w = net.weight[y][:, None] - net.weight[None]
        gap = z.gather(1, y[:, None]) - z
    # the true class itself is no wrong class
    own = nn.functional.one_hot(y, 5) * 1e9
    distance = {"linf": gap / w.abs().sum(2), "l2": gap / w.norm(dim=2)}
    return net, x, y, {norm: (torch.nan_to_num(d) + own).amin(1) for norm, d in distance.items()}


@NORM
@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_flips_if_and_only_if_eps_exceeds_its_distance(norm, loss, linear, two_class):
    # with more classes, untargeted losses climb towards one that need not be the nearest
    net, x, y, distance = two_class() if loss in ("ce", "margin") else linear
    for i, far in enumerate(distance[norm][:10].tolist()):
        one = slice(i, i + 1)
        for factor, flips in ((1.05, True), (0.99, False)):
            attack = APGD(Threat(norm, factor * far), steps=40, loss=loss, restarts=5 if loss == "dlr" else 1)
            assert bool(attack.run(net, x[one], y[one], ids=torch.tensor([i])).success) == flips


@pytest.fixture(scope="module")
def hardened(all_digits):
    """A network on digits that has seen one-step attacks in training; float32, eval mode."""
    x, y = (t[:1000] for t in all_digits)
    x, threat = x.float(), Threat("linf", 0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        step = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(120):
            rows = torch.randint(1000, (128,))
            noise = 0.2 * (2 * torch.rand(128, 1, 8, 8) - 1)
            z = (x[rows] + noise).requires_grad_()
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), y[rows]), z)
            z = threat.project(z.detach() + 0.2 * grad.sign(), x[rows])
            step.zero_grad()
            nn.functional.cross_entropy(net(z), y[rows]).backward()
            step.step()
    return net.eval()


def fewer(ours, theirs):
    """Whether ``ours`` finds fewer than ``theirs`` beyond chance: the network's weights, and so a few verdicts, differ
    between processors."""
    return sign_test(int((theirs & ~ours).sum()), int((ours & ~theirs).sum())) < 1e-3


@NORM
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_it_finds_more_than_pgd_with_as_many_steps(norm, loss, hardened, batch):
    x, y = batch(150, torch.float32)
    threat = Threat(norm, {"linf": 0.2, "l2": 0.8}[norm])
    ours = APGD(threat, steps=30, loss=loss).run(hardened, x, y, seed=1).success
    theirs = PGD(threat, steps=30, loss=loss, keep="best").run(hardened, x, y, seed=1).success
    assert int(theirs.sum()) > 20
    assert int(ours.sum()) < 140
    assert not fewer(ours, theirs)
    if (loss, norm) == ("dlr", "linf"):
        aimed = APGD(threat, steps=30, loss="dlr-targeted").run(hardened, x, y, seed=1).success
        assert not fewer(aimed, ours)


@NORM
def test_it_converges_to_the_top_of_a_hill(norm):
    class Peak(nn.Module):
        def forward(self, x):
            z = -9.0 * ((x - 0.55) ** 2).sum(1) - 1
            return torch.stack([torch.zeros_like(z), z], 1)

    x, y = torch.full((12, 5), 0.5, dtype=torch.float64), torch.zeros(12).long()
    x_adv = APGD(Threat(norm, 0.3), loss="margin")(Peak(), x, y)
    # 8 halvings at most of 0.6 leave steps of 0.005; fixed steps of 2 eps would dance around the top
    assert (x_adv - 0.55).abs().max() <= 0.01


# -- what it costs


def test_fooled_samples_leave_at_a_few_fixed_steps(hardened, batch):
    model, (x, y) = Recorded(hardened), batch(120, torch.float32)
    out = APGD(Threat("linf", 0.2), steps=30).run(model, x, y)
    rows = [len(z) for z in model.seen[:-1]]
    assert rows == sorted(rows, reverse=True)
    assert len(rows) == 31
    # the looks: 0, 1, 2, 4, 8, 16 and the checkpoints 7, 13, 18, 21, 24, 27, 28, 30
    drops = {k for k in range(1, 31) if rows[k] < rows[k - 1]}
    assert drops <= {k + 1 for k in (0, 1, 2, 4, 8, 16, 7, 13, 18, 21, 24, 27, 28)}
    assert len(drops) > 4
    assert rows[-1] >= int((~out.success).sum()) > 0
    assert set(out.forwards[~out.success].tolist()) == {32}
    assert set(out.backwards[~out.success].tolist()) == {30}
    assert out.forwards.sum() == sum(rows) + 120


def test_more_runs_only_for_survivors_and_side_by_side(hardened, batch):
    model, (x, y) = Recorded(hardened), batch(60, torch.float32)
    out = APGD(Threat("linf", 0.2), steps=10, loss="dlr-targeted", targets=5).run(model, x, y)
    rows = [len(z) for z in model.seen]
    first = APGD(Threat("linf", 0.2), steps=10, loss="dlr-targeted", targets=1).run(hardened, x, y).success
    robust = int((~first).sum())
    # clean logits, the first target, an evaluation, the other four for robust samples, an evaluation, the verdict
    assert rows[:2] == [60, 60]
    assert rows[12:14] == [60, 4 * robust]
    assert rows[-2:] == [robust, 60]
    assert len(rows) == 1 + 11 + 1 + 11 + 1 + 1
    assert all(n % 4 == 0 for n in rows[13:-2])
    assert out.success[first].all()
    assert int(out.success.sum()) > 60 - robust


def test_a_pass_sees_no_more_rows_than_the_batch_unless_they_are_small():
    assert side_by_side(torch.zeros(250, 3, 32, 32), 8) == 31
    assert side_by_side(torch.zeros(4, 3, 224, 224), 8) == 1
    assert side_by_side(torch.zeros(4, 1, 8, 8), 8) == 128
    wide = torch.rand(5, 2**16, generator=torch.Generator().manual_seed(0))
    model = Recorded(nn.Linear(2**16, 4))
    y = model(wide).argmax(1)
    model.seen.clear()
    APGD(Threat("linf", 1e-6), steps=2, loss="dlr-targeted", restarts=2)(model, wide, y)
    assert max(len(z) for z in model.seen) == 5
    assert min(len(z) for z in model.seen) == 5


@pytest.mark.parametrize("loss", LOSSES)
def test_the_host_waits_at_the_checks_only(loss, conv_net, batch):
    net, (x, y) = conv_net(), batch(8)
    attack, seen = APGD(Threat("linf", 0.03), steps=60, loss=loss, targets=1), []
    for steps in (60, 100):
        with Syncs() as syncs:
            APGD(attack.threat, steps=steps, loss=loss, targets=1)(net, x, y, rng=torch.Generator().manual_seed(0))
        seen.append(len(syncs.seen))
    assert max(seen) <= 5 + 2 * 14


# -- random models


class Noisy(nn.Module):
    """A linear model behind random masks; keeps them."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.w, self.masks, self.seen = torch.randn(10, 4, generator=g, dtype=torch.float64), [], []

    def forward(self, x):
        self.masks.append((torch.rand(len(x), 10) > 0.5).double())
        self.seen.append(x.detach().clone())
        return 3 * (x * self.masks[-1]) @ self.w


def slope(model, k, y):
    z = (model.seen[k] * model.masks[k]) @ model.w * 3
    p = torch.softmax(z, 1) - nn.functional.one_hot(y, 4)
    return 3 * (p @ model.w.T) * model.masks[k]


@NORM
@pytest.mark.parametrize("name", ["APGD", "EoT"])
def test_the_first_move_follows_the_mean_gradient(norm, name):
    g = torch.Generator().manual_seed(5)
    x, y = 0.3 + 0.4 * torch.rand(7, 10, generator=g, dtype=torch.float64), torch.randint(4, (7,), generator=g)
    model, threat = Noisy(), Threat(norm, 0.1)
    if name == "APGD":
        APGD(threat, steps=2, eot=6, start="zero")(model, x, y)
        size = 0.2
    else:
        EoT(threat, "PGD(steps=2, start=zero, step_size=0.04)", samples=6)(model, x, y)
        size = 0.04
    assert len(model.seen) == (18 if name == "APGD" else 12)
    assert all(torch.equal(z, x) for z in model.seen[:6])
    mean = sum(slope(model, k, y) for k in range(6)) / 6
    d = mean.sign() if norm == "linf" else mean / mean.norm(dim=1, keepdim=True)
    moved = threat.project(x + size * d, x)
    assert all((z - moved).abs().max() <= 1e-12 for z in model.seen[6:12])
    assert not torch.allclose(slope(model, 0, y).sign(), mean.sign())


def test_a_random_model_runs_to_the_last_step():
    g = torch.Generator().manual_seed(5)
    x, y = 0.3 + 0.4 * torch.rand(7, 10, generator=g, dtype=torch.float64), torch.randint(4, (7,), generator=g)
    out = APGD(Threat("linf", 0.2), steps=9, eot=4).run(Noisy(), x, y)
    assert out.success.any()
    assert out.forwards.tolist() == [4 * 10 + 1] * 7
    assert out.backwards.tolist() == [4 * 9] * 7


@NORM
@pytest.mark.parametrize("inner", ["PGD(steps=4, restarts=2)", "APGD(steps=9)", "FAB(steps=5)", "Langevin(steps=3)"])
def test_with_one_draw_it_is_the_attack_itself(norm, inner, conv_net, batch):
    from atent.attacks import ATTACKS

    net, (x, y) = conv_net(), batch(20)
    threat = Threat(norm, EPS[norm])
    alone = parse(inner, threat, ATTACKS).run(net, x, y, seed=2)
    eot = EoT(threat, inner, samples=1)
    for got, expected in zip(eot.run(net, x, y, seed=2), alone):
        assert torch.equal(got, expected)
    more = EoT(threat, inner, samples=3).run(net, x, y, seed=2)
    assert ((more.forwards + more.backwards) <= EoT(threat, inner, samples=3).passes).all()
    assert threat.contains(more.x_adv, x).all()


def test_averaging_finds_the_steeper_way():
    g = torch.Generator().manual_seed(6)
    x = 0.3 + 0.4 * torch.rand(100, 10, generator=g, dtype=torch.float64)
    y, threat, model = (x @ Noisy().w).argmax(1), Threat("l2", 0.3), Noisy()
    loss = []
    for streams in (1, 40):
        x_adv = EoT(threat, "FGSM", samples=streams)(Noisy(), x, y)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            answers = torch.stack([nn.functional.cross_entropy(model(x_adv), y) for _ in range(300)])
        loss.append(float(answers.mean()))
    assert loss[0] * 1.03 < loss[1]


# -- names


def test_labels():
    threat = Threat("linf", 0.1)
    names = {
        "APGD-CE": APGD(threat), "APGD-T": APGD(threat, loss="dlr-targeted"), "APGD-DLR": APGD(threat, loss="dlr"),
        "APGD-margin": APGD(threat, loss="margin"), "APGD-CE-50 x 5": APGD(threat, 50, 5), "EoT PGD-20": EoT(threat),
    }  # fmt: skip
    for name, attack in names.items():
        assert label(attack) == name


def test_a_dash_needs_no_quotes():
    from atent.attacks import ATTACKS

    assert parse("APGD(loss=dlr-targeted)", Threat("l2", 1), ATTACKS).loss == "dlr-targeted"
    for text in ("APGD(loss=1-2)", "APGD(loss=a-b-c)", "APGD(loss=f()-a)"):
        with pytest.raises(ValueError, match="is not a plain value"):
            parse(text, Threat("l2", 1), ATTACKS)
