"""ATENT's training step against the slow transcription in `oracle_atent`, and its promises."""

import copy
import dataclasses
import math
import random
from contextlib import contextmanager

import numpy as np
import oracle_atent as oracle
import pytest
import torch
from kit import ROUNDING, distance, gradient, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods import ATENT
from atent.methods.base import Method
from atent.rng import Batch

EPS = {"l2": 1.0, "linf": 0.3}


pytestmark = pytest.mark.usefixtures("seeded")


# -- networks, float64


class Residual(nn.Module):
    """Stem, one residual block, mean, linear; ``momentum`` "no" leaves batch-norm out."""

    def __init__(self, momentum=0.1, dropout=0.0, channels=1, width=6):
        super().__init__()

        def norm():
            return nn.Identity() if momentum == "no" else nn.BatchNorm2d(width, momentum=momentum)

        self.stem, self.norm0 = nn.Conv2d(channels, width, 3, padding=1), norm()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), norm()
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(4 * width, 5)

    def forward(self, x):
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.fc(self.drop(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class Mlp(nn.Sequential):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__(
            nn.Flatten(),
            nn.Linear(36, 24),
            nn.BatchNorm1d(24) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(24, 5),
        )


NETWORKS = {
    "residual": lambda: Residual("no"),
    "residual-bn": lambda: Residual(0.1),
    "residual-bn-0.37": lambda: Residual(0.37),
    "residual-bn-none": lambda: Residual(None),
    "mlp-bn": lambda: Mlp(norm=True),
}


def network(make, seed=3):
    torch.manual_seed(seed)
    model = make().double().train()
    # Not the first batch of its life: the cumulative average of momentum=None must have a past.
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 1, 6, 6, dtype=torch.float64))
    return model


def batch(n=8, seed=5):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 6, 6, generator=rng, dtype=torch.float64)
    return x, torch.randint(5, (n,), generator=rng)


@contextmanager
def recorded(model):
    """The inputs that the model sees."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def compare(make, steps, variant="released", norm="l2", n=8, dropout="fresh", mode="train", **given):
    """One step of both on copies of one network, from the same draws; all differences asserted."""
    x, y = batch(n)
    ours = network(make)
    theirs = copy.deepcopy(ours)
    method = ATENT(Threat(norm, EPS[norm]), steps=steps, variant=variant, dropout=dropout, mode=mode, **given)
    torch.manual_seed(21)
    with recorded(ours) as seen:
        metrics = method.backward(ours, x, y, rng=stream())
    torch.manual_seed(21)
    s = oracle.settings(norm, EPS[norm], steps, variant, dropout=dropout, mode=mode, **given)
    with recorded(theirs) as seen_by_oracle:
        mu, path = oracle.step(theirs, x, y, stream(), s)
    assert len(seen_by_oracle) == 2 * steps
    if mode == "train" and dropout == "shared":
        assert len(seen) == steps + 1
    elif mode == "eval":
        # the chain comes first, then the loss passes
        assert len(seen) == 2 * steps
        seen = [*seen[:steps], seen[-1]]
    else:
        # the gradient pass at x^k follows the loss pass at x^k
        assert len(seen) == 2 * steps
        seen = [seen[0], *seen[1::2]]
    for z, expected in zip(seen, path, strict=True):
        assert distance(z, expected) <= ROUNDING
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(float(mu), rel=ROUNDING)
    assert metrics["loss"].dtype == torch.float64
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert int(a) == int(b) == 3 + (2 * steps if mode == "train" else steps)
        else:
            assert distance(a, b) <= ROUNDING, name
    last = path[-1] - x
    expected = last.abs().flatten(1).amax(1) if norm == "linf" else last.flatten(1).norm(dim=1)
    torch.testing.assert_close(metrics["distance"], expected, rtol=ROUNDING, atol=0)
    return ours, theirs


# -- against the transcription


@pytest.mark.parametrize("variant", ["released", "published"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_transcription(name, steps, norm, variant):
    compare(NETWORKS[name], steps, variant, norm, dropout="shared")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("projection", ["never", "last", "every"])
@pytest.mark.parametrize("anchor", ["free", "scaled"])
@pytest.mark.parametrize("grad", ["raw", "unit", "sign"])
def test_every_switch_equals_the_transcription(norm, projection, anchor, grad):
    compare(
        NETWORKS["residual-bn"], 4, norm=norm, dropout="shared",
        projection=projection, anchor=anchor, gradient=grad, gamma=0.3, noise=0.02, alpha=0.6, step_size=0.17,
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_start_zero_and_no_noise_equal_the_transcription(norm):
    compare(NETWORKS["residual-bn"], 3, norm=norm, dropout="shared", start="zero", noise=0.0)


def test_equals_the_transcription_where_the_mean_rounds():
    # 1/7 of a gradient is not the gradient's own digits, so the chains differ in the last ones
    compare(NETWORKS["residual-bn"], 5, n=7, dropout="shared")


@pytest.mark.parametrize("dropout", ["fresh", "shared"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "make",
    [lambda: Residual("no", 0.4), lambda: Residual(0.1, 0.4), lambda: Mlp(0.5)],
    ids=["plain", "bn", "mlp"],
)
def test_dropout_equals_the_transcription(make, norm, dropout):
    compare(make, 5, norm=norm, dropout=dropout)


def test_fresh_and_shared_masks_differ_with_dropout_and_agree_without():
    def grad(make, dropout):
        model = network(make)
        torch.manual_seed(21)
        ATENT(Threat("l2", 1.0), steps=4, dropout=dropout).backward(model, *batch(), rng=stream())
        return gradient(model)

    assert distance(grad(lambda: Mlp(0.5), "fresh"), grad(lambda: Mlp(0.5), "shared")) > 1e-3
    for make in (NETWORKS["residual-bn"], NETWORKS["residual-bn-none"]):
        assert distance(grad(make, "fresh"), grad(make, "shared")) <= ROUNDING


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("make", [lambda: Residual(0.1, 0.4), NETWORKS["residual-bn-none"]], ids=["dropout", "none"])
def test_eval_mode_chain_equals_the_transcription(make, norm):
    ours, _ = compare(make, 5, norm=norm, mode="eval")
    assert all(m.training for m in ours.modules())


def test_many_batches_keep_batchnorm_together():
    ours = network(NETWORKS["residual-bn-none"])
    theirs = copy.deepcopy(ours)
    s = oracle.settings("l2", 1.0, 3)
    for seed in range(3):
        x, y = batch(seed=seed)
        ATENT(Threat("l2", 1.0), steps=3).backward(ours, x, y, rng=stream(seed))
        oracle.step(theirs, x, y, stream(seed), s)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    assert all(m.momentum is None for m in ours.modules() if isinstance(m, nn.BatchNorm2d))


def test_eval_mode_is_adversary_and_loss_with_batchnorm_too():
    ours = network(lambda: Residual(0.1, 0.4))
    theirs = copy.deepcopy(ours)
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=4, mode="eval"), batch()
    torch.manual_seed(3)
    method.backward(ours, x, y, rng=stream())
    torch.manual_seed(3)
    Method.backward(method, theirs, x, y, rng=stream())
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_chain_leaves_frozen_batchnorm_frozen():
    """Fine-tuning with the statistics held: mode train means as the loop has the network."""
    model = network(NETWORKS["residual-bn"])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    before = [b.clone() for b in model.buffers()]
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=3), batch()
    iterates = method.adversary(model, x, y, rng=stream())
    with recorded(model) as seen:
        method.backward(model, x, y, rng=stream())
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    for a, b in zip(iterates, seen[1:], strict=True):
        assert distance(a, b) <= ROUNDING


def test_warmup_shrinks_a_scaled_anchor_term_with_the_step():
    method = ATENT(Threat("l2", 1.0), variant="published", gamma=0.5, eps_warmup=0.5, effective_noise=0.1)
    full, half, none = method.chain(1.0), method.chain(0.25), method.chain(0.0)
    assert half.threat.eps == pytest.approx(0.5)
    assert half.anchor_weight == pytest.approx(full.anchor_weight / 2)
    assert half.noise == full.noise
    assert none.step_size == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dropout", ["shared", "fresh"])
def test_equals_adversary_and_loss_where_nothing_is_random_in_the_network(norm, mode, dropout):
    ours = network(NETWORKS["residual"])
    theirs = copy.deepcopy(ours)
    method = ATENT(Threat(norm, EPS[norm]), steps=5, mode=mode, dropout=dropout)
    x, y = batch()
    a = method.backward(ours, x, y, rng=stream(), weight=0.7)
    b = Method.backward(method, theirs, x, y, rng=stream(), weight=0.7)
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_adversary_gives_the_iterates_that_backward_trains_on(noise):
    model, method = network(NETWORKS["residual"]), ATENT(Threat("l2", 1.0), steps=4, noise=noise)
    x, y = batch()
    iterates = method.adversary(model, x, y, rng=stream())
    with recorded(model) as seen:
        method.backward(model, x, y, rng=stream())
    assert len(iterates) == 4
    for a, b in zip(iterates, seen[1:], strict=True):
        assert distance(a, b) <= ROUNDING
        assert not a.requires_grad


# -- how the gradient is handed over


@pytest.mark.parametrize("dropout", ["shared", "fresh"])
def test_weight_scales_and_adds_to_what_is_there(dropout):
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=3, dropout=dropout), batch()
    plain, weighted = network(NETWORKS["residual"]), network(NETWORKS["residual"])
    full = method.backward(plain, x, y, rng=stream())
    for p in weighted.parameters():
        p.grad = torch.full_like(p, 2.0)
    held = [p.grad for p in weighted.parameters()]
    share = method.backward(weighted, x, y, rng=stream(), weight=0.25)
    for p, q, old in zip(weighted.parameters(), plain.parameters(), held, strict=True):
        torch.testing.assert_close(p.grad, 2.0 + 0.25 * q.grad, rtol=ROUNDING, atol=ROUNDING)
        assert p.grad is old
        assert p.grad.grad_fn is None
        assert not p.grad.requires_grad
    torch.testing.assert_close(share["loss"], full["loss"])


@pytest.mark.parametrize("dropout", ["shared", "fresh"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frozen_and_unreached_parameters_stay_untouched(dropout, mode):
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = Residual("no"), nn.Linear(2, 2)

        def forward(self, x):
            return self.net(x)

    model, whole = network(WithSpare), network(NETWORKS["residual"])
    whole.load_state_dict(model.net.state_dict())
    model.net.stem.requires_grad_(False)
    frozen = model.net.stem.bias
    frozen.grad = torch.full_like(frozen, 7.0)
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=3, dropout=dropout, mode=mode), batch()
    method.backward(model, x, y, rng=stream())
    method.backward(whole, x, y, rng=stream())
    assert model.net.stem.weight.grad is None
    assert torch.equal(frozen.grad, torch.full_like(frozen, 7.0))
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.spare.parameters())
    torch.testing.assert_close(model.net.fc.weight.grad, whole.fc.weight.grad, rtol=ROUNDING, atol=0)


def test_a_parameter_reached_only_at_some_iterates_gets_its_share():
    class Odd(nn.Module):
        """A branch taken at every other forward."""

        def __init__(self):
            super().__init__()
            self.fc, self.branch, self.calls = nn.Linear(36, 5), nn.Linear(36, 5), 0

        def forward(self, x):
            self.calls += 1
            x = x.flatten(1)
            return self.fc(x) + (self.branch(x) if self.calls % 2 else 0.0)

    torch.manual_seed(0)
    model = Odd().double()
    x, y = batch()
    ATENT(Threat("l2", 1.0), steps=2, start="zero", step_size=0.0, noise=0.0).backward(model, x, y, rng=stream())
    assert model.calls == 3
    # at rest only the third forward, x^2 of weight alpha, takes the branch
    loss = 0.9 * F.cross_entropy(model.fc(x.flatten(1)) + model.branch(x.flatten(1)), y)
    (expected,) = torch.autograd.grad(loss, model.branch.weight)
    torch.testing.assert_close(model.branch.weight.grad, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("alpha", "steps"), [(0.9, 1), (0.9, 10), (0.3, 7), (1.0, 4)])
def test_weights_of_the_iterates(alpha, steps):
    shares = ATENT(Threat("l2", 1.0), steps=steps, alpha=alpha).weights()
    assert len(shares) == steps + 1
    assert shares[0] == 0
    assert sum(shares) == pytest.approx(1 - (1 - alpha) ** steps, rel=1e-14)
    mu = [0.0] * (steps + 1)
    for k in range(1, steps + 1):
        mu = [(1 - alpha) * c for c in mu]
        mu[k] += alpha
    assert shares == pytest.approx(mu, rel=1e-13)


def test_alpha_one_is_the_last_iterate_alone():
    model, (x, y) = network(NETWORKS["residual"]), batch()
    method = ATENT(Threat("linf", 0.3), steps=3, alpha=1.0)
    metrics = method.backward(model, x, y, rng=stream())
    last = method.adversary(model, x, y, rng=stream())[-1]
    loss = F.cross_entropy(model(last), y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert distance(gradient(model), torch.cat([g.flatten() for g in grads])) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)


@pytest.mark.parametrize("variant", ["released", "published"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_network_without_input_gradient_gives_no_nan(norm, variant):
    model = network(NETWORKS["residual-bn"])
    nn.init.zeros_(model.fc.weight)
    with recorded(model) as seen:
        metrics = ATENT(Threat(norm, EPS[norm]), steps=5, variant=variant).backward(model, *batch(), rng=stream())
    assert all(torch.isfinite(z).all() for z in seen)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.isfinite(v).all() for v in metrics.values())


# -- cost


def peak(run, model):
    """Most bytes of saved activations alive at once during run(); parameters do not count."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    now = top = 0

    class Held:
        def __init__(self, t):
            nonlocal now, top
            self.t, self.size = (
                t,
                0 if t.untyped_storage().data_ptr() in own else t.numel() * t.element_size(),
            )
            now += self.size
            top = max(top, now)

        def __del__(self):
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.t):
        run()
    return top


@pytest.mark.parametrize("given", [{}, {"dropout": "fresh"}, {"mode": "eval"}], ids=["shared", "fresh", "eval"])
def test_one_graph_alive_whatever_the_number_of_steps(given):
    model, (x, y) = network(lambda: Residual(0.1, 0.4)), batch()

    def ours(steps):
        method = ATENT(Threat("l2", 1.0), steps=steps, **given)
        return peak(lambda: method.backward(model, x, y, rng=stream()), model)

    def theirs(steps):
        s = oracle.settings("l2", 1.0, steps)
        return peak(lambda: oracle.step(model, x, y, stream(), s), model)

    one = peak(lambda: F.cross_entropy(model(x.clone().requires_grad_()), y).backward(), model)
    assert ours(2) == ours(10)
    assert ours(10) <= 1.05 * one
    assert theirs(10) > 4 * theirs(2)


# -- settings


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("given", [{}, {"step_size": 0.1}], ids=["default", "given"])
def test_eps_warms_up(norm, given):
    method = ATENT(Threat(norm, EPS[norm]), steps=5, eps_warmup=0.5, **given)
    full = method.chain()
    for progress, factor in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)]:
        chain = method.chain(progress)
        assert chain.threat.eps == pytest.approx(factor * EPS[norm])
        assert chain.step_size == pytest.approx(factor * full.step_size)
        assert (chain.noise, chain.steps, chain.start) == (full.noise, full.steps, full.start)
    assert method.chain(0.5) == method.chain(1.0) == ATENT(Threat(norm, EPS[norm]), steps=5, **given).chain()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_warm_up_begins_with_the_clean_batch(norm):
    model, (x, y) = network(NETWORKS["residual"]), batch()
    method = ATENT(Threat(norm, EPS[norm]), steps=3, eps_warmup=0.5)
    with recorded(model) as seen:
        metrics = method.backward(model, x, y, rng=stream(), progress=0.0)
    assert all(torch.equal(z, x) for z in seen)
    assert float(metrics["distance"].max()) == 0
    assert float(metrics["loss"]) == pytest.approx(0.999 * F.cross_entropy(model(x), y).item(), rel=ROUNDING)


def test_warm_up_reaches_backward_and_adversary_alike():
    model, (x, y) = network(NETWORKS["residual"]), batch()
    method = ATENT(Threat("linf", 0.3), steps=3, eps_warmup=1.0)
    for progress in (0.0, 0.5, 1.0):
        found = method.backward(model, x, y, rng=stream(), progress=progress)["distance"]
        last = method.adversary(model, x, y, rng=stream(), progress=progress)[-1]
        torch.testing.assert_close(found, method.threat.distance(last, x), rtol=ROUNDING, atol=0)
        assert float(found.max()) <= 0.3 * progress + 1e-12


def test_noise_and_effective_noise():
    threat = Threat("l2", 0.435)
    by_effect = ATENT(threat, steps=10, step_size=0.02175, effective_noise=0.12).chain()
    assert by_effect.noise == pytest.approx(0.5754, abs=5e-5)
    by_noise = ATENT(threat, steps=10, step_size=0.02175, noise=0.577).chain()
    assert by_noise.effective_noise == pytest.approx(0.1203, abs=5e-5)
    assert ATENT(threat, effective_noise=0.0).chain().noise == 0
    assert ATENT(threat).chain().noise == 1e-3
    assert by_effect.effective_noise == pytest.approx(0.12, rel=1e-14)


def test_the_noise_that_a_step_adds_has_the_stated_deviation():
    chain = ATENT(Threat("l2", 1.0, box=(-100, 100)), steps=2, effective_noise=0.12, gamma=0.0).chain()
    x = torch.zeros(50, 1, 40, 40, dtype=torch.float64)
    z = chain.move(x, x, torch.zeros_like(x), 0, Batch(stream()))
    assert float(z.std()) == pytest.approx(0.12, rel=0.01)
    assert abs(float(z.mean())) < 0.002


BAD = [
    {"steps": 0}, {"steps": -3}, {"steps": math.nan}, {"steps": 2.5}, {"steps": "3"}, {"alpha": "a"},
    {"step_size": -0.1}, {"step_size": math.inf},
    {"gamma": -1.0}, {"gamma": math.nan}, {"gamma": 3.0}, {"noise": -1e-3}, {"noise": math.nan},
    {"effective_noise": -0.1}, {"effective_noise": math.inf}, {"noise": 0.1, "effective_noise": 0.1},
    {"noise": 0.0, "effective_noise": 0.0}, {"step_size": 0.0, "effective_noise": 0.1},
    {"alpha": 0.0}, {"alpha": -0.5}, {"alpha": 1.1}, {"alpha": math.nan}, {"variant": "arxiv"},
    {"start": "corner"}, {"start": "nowhere"}, {"projection": "first"}, {"gradient": "adam"},
    {"anchor": "none"}, {"dropout": "off"}, {"mode": "as-is"}, {"objective": "data-entropy"},
    {"eps_warmup": -0.1}, {"eps_warmup": math.nan}, {"eps_warmup": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_settings_are_refused_in_one_line(bad):
    with pytest.raises(ValueError, match=r".") as error:
        ATENT(Threat("l2", 1.0), **bad)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 200
    assert any(name in text.replace("step size", "step_size") for name in bad)


def test_the_temperature_is_the_noise_squared():
    method = ATENT(Threat("l2", 1.0), temperature=0.25, eps_warmup=0.5)
    assert [method.chain(p).noise for p in (0.25, 1.0)] == [0.5, 0.5]
    warming = ATENT(Threat("l2", 1.0), noise=0.5, eps_warmup=0.5)
    assert all(method.chain(p) == warming.chain(p) for p in (0.25, 1.0))
    with pytest.raises(ValueError, match=r"noise 0\.1 and temperature 0\.2 exclude each other"):
        ATENT(Threat("l2", 1.0), noise=0.1, temperature=0.2)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        ATENT(Threat("l2", 1.0), temperature=-1.0)


def test_both_noises_are_named():
    with pytest.raises(ValueError, match=r"noise 0\.577 and effective_noise 0\.12 exclude each other"):
        ATENT(Threat("l2", 1.0), noise=0.577, effective_noise=0.12)


def test_a_corner_start_is_for_linf_and_a_sphere_for_l2():
    with pytest.raises(ValueError, match="sphere"):
        ATENT(Threat("linf", 0.3), start="sphere")
    for start in ("zero", "uniform", "cube"):
        assert ATENT(Threat("l2", 1.0), start=start).chain().start == start


@pytest.mark.parametrize("variant", ["released", "published"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_chain_describes_itself(norm, variant):
    found = ATENT(Threat(norm, EPS[norm]), variant=variant).chain().describe()
    s = oracle.settings(norm, EPS[norm], 10, variant)
    anchor = s["gamma"] * (s["step_size"] if s["scaled"] else 1)
    assert found["threat"] == {"norm": norm, "eps": EPS[norm], "box": (0.0, 1.0)}
    for name in ("steps", "noise", "start", "projection", "gradient"):
        assert found[name] == s[name], name
    assert found["step_size"] == pytest.approx(s["step_size"])
    assert found["anchor_weight"] == pytest.approx(anchor)
    assert found["effective_noise"] == pytest.approx(math.sqrt(2 * s["step_size"]) * 1e-3)


def test_a_step_has_its_default_length_for_the_number_of_steps():
    method = ATENT(Threat("l2", 1.0))
    assert method == ATENT(Threat("l2", "1"))
    assert dataclasses.replace(method, steps=3).chain().step_size == pytest.approx(2 / 3)


def test_the_chain_at_progress_describes_the_warm_up():
    method = ATENT(Threat("l2", 1.0), eps_warmup=1.0)
    assert method.chain(0.5).describe()["threat"]["eps"] == 0.5


# -- the model and the world come back as they were


def world(model):
    return (
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),  # noqa: NPY002
    )


def same(a, b):
    assert a[0] == b[0]
    for (r, g, v), (r2, g2, v2) in zip(a[1], b[1], strict=True):
        assert r == r2
        assert g is g2
        assert torch.equal(v, v2)
    assert all(torch.equal(u, v) for u, v in zip(a[2], b[2], strict=True))
    assert a[3][:2] == b[3][:2]
    assert torch.equal(a[3][2], b[3][2])


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_adversary_leaves_everything_as_found(mode, fails):
    model = network(lambda: Residual(0.1, 0.4))
    model.conv1.eval()
    model.stem.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    x, y = batch()
    before, clean = world(model), x.clone()
    calls = []

    def hook(_module, _args):
        calls.append(1)
        if fails and len(calls) == 3:
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    method = ATENT(Threat("l2", 1.0), steps=4, mode=mode)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            method.adversary(model, x, y, rng=stream())
    else:
        method.adversary(model, x, y, rng=stream())
    handle.remove()
    same(before, world(model))
    assert torch.equal(x, clean)
    assert not x.requires_grad


@pytest.mark.parametrize("start", ["zero", "sphere"])
@pytest.mark.parametrize("given", [{}, {"dropout": "fresh"}, {"mode": "eval"}], ids=["shared", "fresh", "eval"])
def test_backward_leaves_input_modes_and_momenta(start, given):
    model, (x, y) = network(lambda: Residual(None, 0.4)), batch()
    clean, modes = x.clone(), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    ATENT(Threat("l2", 1.0), steps=3, start=start, **given).backward(model, x, y, rng=stream())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(m.momentum is None for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_momenta_come_back_when_the_forward_raises():
    model, (x, y) = network(lambda: Residual(0.2)), batch()
    calls = []

    def hook(_module, _args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")

    model.fc.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="stop"):
        ATENT(Threat("l2", 1.0), steps=3).backward(model, x, y, rng=stream())
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.2] * 3


def test_frozen_batchnorm_stays_frozen():
    model, (x, y) = network(lambda: Residual(0.1)), batch()
    model.norm1.eval()
    before = {k: v.clone() for k, v in model.norm1.state_dict().items()}
    ATENT(Threat("l2", 1.0), steps=3).backward(model, x, y, rng=stream())
    assert all(torch.equal(v, before[k]) for k, v in model.norm1.state_dict().items())
    assert int(model.norm0.num_batches_tracked) == 3 + 6


# -- precision


def test_bfloat16_autocast_gives_float32_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 5))
    exact = copy.deepcopy(model)
    x, y = batch()
    method = ATENT(Threat("l2", 1.0), steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        metrics = method.backward(model, x.float(), y, rng=stream())
    assert torch.isfinite(metrics["loss"])
    assert metrics["loss"].dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())
    expected = method.backward(exact, x.float(), y, rng=stream())
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=0.02)
    assert distance(gradient(model), gradient(exact)) < 0.05


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_float32_agrees_with_float64(norm):
    model, (x, y) = network(NETWORKS["residual-bn"]), batch()
    single = copy.deepcopy(model).float()
    # no draws: the streams of the two precisions differ
    method = ATENT(Threat(norm, EPS[norm]), steps=3, start="zero", noise=0.0)
    a = method.backward(single, x.float(), y, rng=stream())
    b = method.backward(model, x, y, rng=stream())
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
    assert distance(gradient(single).double(), gradient(model)) < 1e-3
