"""MMA against a transcription that takes one sample at a time; its bisection against exact distances."""

import copy
import math

import pytest
import torch
from kit import ROUNDING, Syncs, distance, gradient, learnt, stream
from kit import batch as _batch
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.attacks.bisection import bisect
from atent.methods.mma import MMA, REACH, soft_logit_margin
from atent.methods.standard import Standard

N, CLASSES, TRAIN, STEPS = 12, 4, 40, 4
# Below some margins and above others, so that all three cases of the loss occur (asserted below).
D_MAX = {"linf": 0.12, "l2": 0.45}
EPS_MIN = {"linf": 0.03, "l2": 0.15}


def batch(n=N, seed=5):
    return _batch(n, seed, side=5, classes=CLASSES)


def network(seed=3, dropout=0.0):
    """A network that gets most of `batch` right: seven labels are learnt, the others stay a matter of chance."""
    return learnt(*batch(), 7, steps=30, classes=CLASSES, seed=seed, dropout=dropout)


def make(norm, **given):
    return MMA(Threat(norm, D_MAX[norm]), **{"steps": STEPS, "eps_min": EPS_MIN[norm], **given})


IDS = torch.arange(N) * 3 + 1


def fresh(method, varied=True):
    """A state; ``varied`` gives each of the batch's samples another eps."""
    state = method.init(TRAIN, (1, 5, 5), torch.device("cpu"))
    if varied:
        state["eps"][IDS] = torch.linspace(method.resolved_eps_min, REACH * method.d_max, N, dtype=torch.float64)
    return state


# -- the slow way


def slm(z, label):
    """Soft logit margin of one sample's logits."""
    return torch.logsumexp(torch.cat([z[:label], z[label + 1 :]]), 0) - z[label]


def size(d, norm):
    return float(d.abs().max() if norm == "linf" else d.norm())


def slow_unit_starts(method, x, rng):
    """Points of the unit ball around 0, drawn in the package's order."""
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    if method.start == "zero":
        return torch.zeros_like(x)
    if method.threat.norm == "linf":
        return 2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1
    u = torch.randn(x.shape, generator=rng, dtype=x.dtype)
    r = torch.rand(len(x), 1, generator=rng, dtype=x.dtype)
    return torch.stack([r[i] ** (1 / x[i].numel()) * u[i] / u[i].norm() for i in range(len(x))])


def slow_anpgd(method, model, x, label, eps, begin):
    """Ding et al., Algorithm 2, for one sample: the boundary point and the margin."""
    norm, reach = method.threat.norm, REACH * method.d_max
    z = (x + eps * begin).clamp(0, 1)
    for _ in range(method.steps):
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(slm(model(z[None])[0], label), z)
        g = g.sign() if norm == "linf" else g / g.norm()
        d = z.detach() + method.step_scale * eps / method.steps * g - x
        d = d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / float(d.norm()))
        z = (x + d).clamp(0, 1)
    length = size(z - x, norm)
    u = (z - x) / length
    low, high, t = 0.0, reach, min(length, reach)
    with torch.no_grad():
        for _ in range(method.bisection):
            if float(slm(model((x + t * u).clamp(0, 1)[None])[0], label)) >= 0:
                high = t
            else:
                low = t
            t = (low + high) / 2
    return (x + t * u).clamp(0, 1), t


def slow(method, model, x, y, state, cases=None):
    """Loss and gradient, one sample after the other, the attack before the clean pass; ``state`` is updated."""
    model = copy.deepcopy(model)
    begins = slow_unit_starts(method, x, stream())
    model.eval()
    points, margins = [], []
    for i in range(len(x)):
        point, d = slow_anpgd(method, model, x[i], int(y[i]), float(state["eps"][IDS[i]]), begins[i])
        points.append(point)
        margins.append(d)
        state["eps"][IDS[i]] = max(d, method.resolved_eps_min)
    model.train()
    for p in model.parameters():
        p.grad = None
    clean = model(x)
    right = [float(slm(clean[i], int(y[i])).detach()) < 0 for i in range(len(x))]
    mixed = model(torch.stack([points[i] if right[i] else x[i] for i in range(len(x))]))
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        label = int(y[i])
        ce = -F.log_softmax(mixed[i], 0)[label]
        if not right[i]:
            case, loss = "wrong", ce
        elif margins[i] < method.d_max:
            case, loss = "pushed", ce if method.margin_loss == "ce" else slm(mixed[i], label)
        else:
            case, loss = "hinged", 0.0
        if cases is not None:
            cases.append(case)
        total = total + (1 - method.clean_weight) * loss - method.clean_weight * F.log_softmax(clean[i], 0)[label]
    loss = total / len(x)
    loss.backward()
    shown = torch.tensor([m if r else 0.0 for m, r in zip(margins, right, strict=True)], dtype=torch.float64)
    return loss.item(), gradient(model), shown, model


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "given",
    [
        {}, {"start": "zero"}, {"margin_loss": "slm"}, {"clean_weight": 0.0}, {"step_scale": 1.5, "steps": 7},
        {"bisection": 25},
    ],
    ids=str,
)  # fmt: skip
def test_equals_a_slow_transcription(norm, given):
    method, model, (x, y) = make(norm, **given), network(), batch()
    ours, state, theirs, cases = copy.deepcopy(model), fresh(method), fresh(method), []
    loss, expected, margins, after = slow(method, model, x, y, theirs, cases)
    assert set(cases) == {"wrong", "pushed", "hinged"}
    metrics = method.backward(ours, x, y, rng=stream(), ids=IDS, state=state)
    assert distance(gradient(ours), expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss, rel=ROUNDING)
    torch.testing.assert_close(metrics["margin"], margins, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(state["eps"], theirs["eps"], rtol=ROUNDING, atol=ROUNDING)
    for a, b in zip(ours.buffers(), after.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    assert int(ours[1].num_batches_tracked) == int(model[1].num_batches_tracked) + 2


def test_the_attack_comes_before_the_clean_pass():
    """The authors pass the clean batch first: batch-norm's statistics then hold it when the attack sees them."""
    (x, y), method = batch(), make("l2")
    for normalised in (True, False):
        model = network()
        if not normalised:
            model[1] = nn.Identity()
        ours = method.adversary(model, x, y, rng=stream(), ids=IDS, state=fresh(method))
        after = copy.deepcopy(model)
        with torch.no_grad():
            after(x)
        other = method.adversary(after, x, y, rng=stream(), ids=IDS, state=fresh(method))
        assert all(torch.equal(a, b) for a, b in zip(ours, other)) != normalised


# -- bisection


@pytest.mark.parametrize("steps", [1, 5, 10, 30])
def test_bisect_finds_a_single_change(steps):
    g = torch.Generator().manual_seed(0)
    at, first = (torch.rand(50, generator=g, dtype=torch.float64) for _ in range(2))
    asked = []

    def crossed(t):
        asked.append(t)
        return t >= at

    found = bisect(crossed, 2 * first, torch.full((50,), 2.0, dtype=torch.float64), steps)
    assert len(asked) == steps
    assert torch.equal(asked[0], 2 * first)
    assert ((found - at).abs() <= 2.0 / 2**steps).all()


def test_bisect_ends_at_the_ends():
    high = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for always, end in [(True, torch.zeros(2, dtype=torch.float64)), (False, high)]:
        found = bisect(lambda t, always=always: torch.full((2,), always), high / 2, high, 10)
        torch.testing.assert_close(found, end, rtol=0, atol=float(2.0 / 2**10))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_of_a_linear_classifier_is_its_distance_to_the_boundary(norm):
    torch.manual_seed(1)
    d, n = 9, 30
    model = nn.Linear(d, 2).double()
    x = 0.35 + 0.3 * torch.rand(n, d, dtype=torch.float64)
    with torch.no_grad():
        w = model.weight[1] - model.weight[0]
        model.bias.copy_(torch.stack([(x @ w).median() + 0.002, torch.zeros(())]))
        score = x @ w - model.bias[0]
    y = (score > 0).long()
    exact = score.abs() / (w.abs().sum() if norm == "linf" else w.norm())
    d_max = float(exact.max()) * 1.01
    method = MMA(Threat(norm, d_max), bisection=50, start="zero", eps_min=d_max / 20)
    state = method.init(n, (d,), torch.device("cpu"))
    boundary, margin = method.adversary(model, x, y, rng=stream(), ids=torch.arange(n), state=state)
    # the direction is exact after one step; 50 halvings leave rounding alone
    torch.testing.assert_close(margin, exact, rtol=1e-11, atol=ROUNDING)
    torch.testing.assert_close(method.threat.distance(boundary, x), exact, rtol=1e-11, atol=ROUNDING)
    assert (boundary @ w - model.bias[0]).abs().max() < 1e-12
    torch.testing.assert_close(state["eps"], exact.clamp_min(d_max / 20), rtol=1e-11, atol=ROUNDING)
    wrong = method.adversary(model, x, 1 - y, rng=stream())[1]
    assert (wrong <= d_max * REACH / 2**40).all()


# -- the state


def test_the_state_begins_at_eps_min_and_follows_the_margins():
    method, model, (x, y) = make("l2"), network(), batch()
    state = fresh(method, varied=False)
    assert state["eps"].shape == (TRAIN,)
    assert (state["eps"] == EPS_MIN["l2"]).all()
    for seed in (1, 2):
        before = state["eps"].clone()
        _, margin = method.adversary(model, x, y, rng=stream(seed), ids=IDS, state=state)
        torch.testing.assert_close(state["eps"][IDS], margin.clamp_min(EPS_MIN["l2"]), rtol=ROUNDING, atol=0)
        others = torch.ones(TRAIN, dtype=torch.bool)
        others[IDS] = False
        assert torch.equal(state["eps"][others], before[others])
    assert (state["eps"] <= REACH * D_MAX["l2"]).all()
    assert len(state["eps"][IDS].unique()) > 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_ids_or_state_all_take_eps_min_and_nothing_is_kept(norm):
    method, model, (x, y) = make(norm), network(), batch()
    state = fresh(method)
    before = state["eps"].clone()
    found = [
        method.adversary(model, x, y, rng=stream(), **given)
        for given in (
            {}, {"ids": IDS}, {"state": state}, {"state": fresh(method, varied=False), "ids": IDS},
        )
    ]  # fmt: skip
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert torch.equal(state["eps"], before)


def test_the_default_eps_min():
    assert MMA(Threat("linf", "8/255")).resolved_eps_min == 0.005
    assert MMA(Threat("l2", 1.0)).resolved_eps_min == 0.5
    assert MMA(Threat("l2", 0.2)).resolved_eps_min == 0.2


# -- the loss


def test_soft_logit_margin():
    g = torch.Generator().manual_seed(2)
    z, y = 5 * torch.randn(50, 4, generator=g, dtype=torch.float64), torch.randint(4, (50,), generator=g)
    expected = torch.stack([slm(row, int(label)) for row, label in zip(z, y, strict=True)])
    torch.testing.assert_close(soft_logit_margin(z, y), expected, rtol=ROUNDING, atol=ROUNDING)
    p = F.softmax(z, 1).gather(1, y[:, None]).squeeze(1)
    assert torch.equal(soft_logit_margin(z, y) < 0, p > 0.5)
    assert soft_logit_margin(z.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_no_boundary_is_in_reach_only_the_clean_loss_is_left(norm):
    model, (x, _) = network(), batch()
    model[5].bias.data[0] += 1e4
    y = torch.zeros(N, dtype=torch.int64)
    y[3] = 1
    method = make(norm, bisection=5)
    metrics = method.backward(model, x, y, rng=stream(), ids=IDS, state=fresh(method))
    assert (metrics["margin"][y == 0] > method.d_max).all()
    assert metrics["margin"][3] == 0
    # the one wrong sample counts with weight 1, shared by both parts; the right ones have no loss to speak of
    assert float(metrics["loss"]) == pytest.approx(1e4 / N, rel=1e-2)
    assert float(metrics["clean"]) == pytest.approx((N - 1) / N)


def test_right_means_more_than_half_of_the_probability():
    x = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.1, 0.1]], dtype=torch.float64)
    model, y = nn.Linear(3, 3).double(), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(3))
        model.bias.zero_()
    metrics = make("l2").backward(model, x, y, rng=stream())
    assert float(metrics["clean"]) == 1
    assert metrics["margin"][0] == 0 < metrics["margin"][1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_all_are_wrong_it_is_standard_training(norm):
    model, (x, y) = network(), batch()
    with torch.no_grad():
        y = model(x).argmin(1)
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    metrics = make(norm).backward(ours, x, y, rng=stream())
    plain = Standard().backward(theirs, x, y, rng=stream())
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(float(plain["loss"]), rel=ROUNDING)
    assert (metrics["margin"] == 0).all()


def test_the_mix_of_clean_and_margin_loss():
    """The loss is affine in clean_weight: the default is one third of the way."""
    model, (x, y) = network(), batch()
    grads = {}
    for weight in (0.0, 0.5, 1 / 3, None):
        method = make("l2", **({} if weight is None else {"clean_weight": weight}))
        ours = copy.deepcopy(model)
        method.backward(ours, x, y, rng=stream(), ids=IDS, state=fresh(method))
        grads[weight] = gradient(ours)
    assert torch.equal(grads[None], grads[1 / 3])
    assert distance(grads[0.0] + (2 / 3) * (grads[0.5] - grads[0.0]), grads[1 / 3]) <= ROUNDING


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_micro_batches_sum_to_the_batch(norm):
    method, model, (x, y) = make(norm, start="zero"), network().eval(), batch()
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    method.backward(whole, x, y, rng=stream(), ids=IDS, state=fresh(method))
    state = fresh(method)
    for rows, share in ((slice(0, 5), 5 / N), (slice(5, N), 7 / N)):
        method.backward(parts, x[rows], y[rows], rng=stream(), ids=IDS[rows], weight=share, state=state)
    assert distance(gradient(parts), gradient(whole)) <= ROUNDING


# -- what it leaves behind, and what it costs


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("fails", [0, 2, STEPS + 3], ids=["ends", "raises in pgd", "raises in bisection"])
def test_adversary_leaves_the_model_as_found(norm, fails):
    model, (x, y) = network(dropout=0.3), batch()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    clean, random_state, calls = x.clone(), torch.get_rng_state(), []
    method = make(norm)
    state = fresh(method)
    eps = state["eps"].clone()

    def hook(module, _args):
        assert not any(m.training for m in module.modules())
        calls.append(1)
        if len(calls) == fails:
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            method.adversary(model, x, y, rng=stream(), ids=IDS, state=state)
        assert torch.equal(state["eps"], eps)
    else:
        boundary, margin = method.adversary(model, x, y, rng=stream(), ids=IDS, state=state)
        assert boundary.shape == x.shape
        assert not boundary.requires_grad
        assert ((boundary >= 0) & (boundary <= 1)).all()
        assert (method.threat.distance(boundary, x) <= margin * (1 + ROUNDING)).all()
    handle.remove()
    assert [m.training for m in model.modules()] == modes
    for p, (flag, grad) in zip(model.parameters(), flags, strict=True):
        assert p.requires_grad == flag
        assert p.grad is grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("clean_weight", "last"), [(1 / 3, 2), (0.0, 1)])
def test_makes_no_pass_more_than_it_needs(clean_weight, last):
    model, (x, y) = network(), batch()
    graphs, modes, back = [], [], []

    def seen(module, _args, out):
        graphs.append(out.requires_grad)
        modes.append(module.training)
        if out.requires_grad:
            out.register_hook(lambda g: back.append(1))

    model.register_forward_hook(seen)
    make("l2", bisection=6, clean_weight=clean_weight).backward(model, x, y, rng=stream())
    assert graphs == [True] * STEPS + [False] * 6 + [last == 2, True]
    assert modes == [False] * (STEPS + 6) + [True, True]
    assert len(back) == STEPS + last


def test_nothing_waits_for_the_device():
    model, (x, y) = network(), batch()
    counts = []
    for given in ({}, {"steps": 9, "bisection": 15}):
        method = make("linf", **given)
        with Syncs() as syncs:
            method.backward(model, x, y, rng=stream(), ids=IDS, state=fresh(method, varied=False))
        counts.append(len(syncs.seen))
    # the seed of the network's own random numbers inside the attack
    assert counts == [1, 1]


def test_a_sample_that_cannot_move_keeps_finite_numbers():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.flatten(1).sum(1) + 1, 0 * x.flatten(1).sum(1)], 1)

    x = torch.rand(4, 3, dtype=torch.float64)
    for norm in ("linf", "l2"):
        method = make(norm, start="zero")
        boundary, margin = method.adversary(Flat(), x, torch.zeros(4, dtype=torch.int64), rng=stream())
        assert torch.equal(boundary, x)
        assert (margin > method.d_max).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"steps": 1.5}, {"bisection": 4}, {"bisection": 5.5}, {"step_scale": -1.0},
        {"step_scale": math.nan}, {"start": "corner"}, {"start": "nowhere"}, {"eps_min": 0.0}, {"eps_min": 2.0},
        {"eps_min": math.nan}, {"clean_weight": -0.1}, {"clean_weight": 1.0}, {"clean_weight": math.nan},
        {"margin_loss": "dlr"},
    ],
    ids=str,
)  # fmt: skip
def test_refuses_bad_settings_in_one_line(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        MMA(Threat("l2", 1.0), **bad)
    assert "\n" not in str(error.value)


def test_refuses_a_d_max_of_zero_in_one_line():
    with pytest.raises(ValueError, match="d_max") as error:
        MMA(Threat("l2", 0.0))
    assert "\n" not in str(error.value)
