"""Entropy-SGD and SGLD against the formulas written out, closed forms and quadrature."""

import copy
import io
import math

import pytest
import torch
from kit import ROUNDING
from torch import nn

from atent.methods import ATENT, PGDAT
from atent.optim.entropy_sgd import EntropySGD, scoped
from atent.optim.sgld import SGLD, normals
from atent.rng import fold
from atent.threat import Threat


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """A smooth, non-quadratic loss of two float64 parameters on batches that move on at every call."""

    def __init__(self, stay=False):
        self.a, self.b = (nn.Parameter(numbers(*shape, seed=s)) for s, shape in enumerate([(4, 3), (3,)]))
        self.batches, self.calls, self.stay = numbers(7, 5, 4, seed=9), 0, stay

    @property
    def parameters(self):
        return [self.a, self.b]

    def value(self, a, b, call):
        x = self.batches[0 if self.stay else call % 7]
        return (torch.tanh(x @ a + b) ** 2).sum() / 5 + 0.1 * (a.sin() ** 2).sum()

    def gradient(self, a, b, call):
        a, b = (t.clone().requires_grad_() for t in (a, b))
        return torch.autograd.grad(self.value(a, b, call), (a, b))

    def closure(self):
        for p in self.parameters:
            p.grad = None
        loss = self.value(self.a, self.b, self.calls)
        loss.backward()
        self.calls += 1
        return loss


def algorithm_1(
    problem, outer, *, lr, momentum, nesterov, weight_decay, inner_steps, gamma, scoping, inner_lr, noise, alpha,
    average, scale, seed, inner_momentum=0.0,
):  # fmt: skip
    """The corrected Algorithm 1, line by line, with torch's momentum around line 11."""
    w, call, speed = [p.detach().clone() for p in problem.parameters], 0, None
    for t in range(outer):
        g = gamma * (1 + scoping) ** t
        walker, mu = [v.clone() for v in w], [v.clone() for v in w]
        total, weight = [torch.zeros_like(v) for v in w], 0.0
        inner_speed = [torch.zeros_like(v) for v in w]
        for k in range(inner_steps):
            generator = torch.Generator().manual_seed(fold(seed, "entropy-sgd", t, k))
            grads = problem.gradient(*walker, call)
            call += 1
            for i in range(2):
                inner_speed[i] = inner_momentum * inner_speed[i] + grads[i]
                downhill = -(grads[i] + inner_momentum * inner_speed[i]) + g * (w[i] - walker[i])
                normal = torch.randn(w[i].shape, generator=generator, dtype=torch.float64)
                walker[i] = walker[i] + inner_lr * downhill + math.sqrt(2 * inner_lr) * noise * normal
                mu[i] = (1 - alpha) * mu[i] + alpha * walker[i]
                total[i] = total[i] + inner_lr * walker[i]
            weight += inner_lr
        if average == "ergodic":
            mu = [v / weight for v in total]
        d = [(g if scale == "gamma" else 1.0) * (w[i] - mu[i]) + weight_decay * w[i] for i in range(2)]
        speed = d if speed is None else [momentum * s + v for s, v in zip(speed, d)]
        if momentum:
            d = [v + momentum * s for v, s in zip(d, speed)] if nesterov else speed
        w = [v - lr * s for v, s in zip(w, d)]
    return w


# ---- the algorithm


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"average": "ergodic"},
        {"nesterov": False},
        {"momentum": 0.0, "nesterov": False},
        {"scale": "none", "lr": 0.7, "alpha": 0.25},
        {"average": "ergodic", "scale": "none", "lr": 0.7, "weight_decay": 0.02},
        {"inner_momentum": 0.9, "scale": "none", "lr": 0.1, "alpha": 0.25, "scoping": 0.0},
        {"inner_steps": 1},
    ],
    ids=str,
)
def test_it_is_algorithm_1_corrected(changes):
    settings = {
        "lr": 3.0, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "inner_steps": 4, "gamma": 0.3,
        "scoping": 0.05, "inner_lr": 0.1, "noise": 0.05, "alpha": 0.75, "average": "exponential", "scale": "gamma",
        "seed": 3, **changes,
    }  # fmt: skip
    problem = Problem()
    want = algorithm_1(problem, 6, **settings)
    optimizer = EntropySGD(problem.parameters, **settings)
    start = [p.detach().clone() for p in problem.parameters]
    for _ in range(6):
        optimizer.step(problem.closure)
    for p, w, s in zip(problem.parameters, want, start):
        torch.testing.assert_close(p.detach(), w, rtol=ROUNDING, atol=ROUNDING)
        assert (p.detach() - s).abs().max() > 1e-3


def published(problem, outer, *, lr, momentum, gamma, inner_steps, noise, seed):
    """The published PyTorch code in formulas: every gradient of a step is one batch's, as in Jagatap et al.'s loop."""
    w, speed = [p.detach().clone() for p in problem.parameters], None
    for t in range(outer):
        # the call before the walk, at w: all that is kept of it is the first one's gradient, as the momentum's start
        speed = [g.clone() for g in problem.gradient(*w, 0)] if speed is None else speed
        walker, mu, inner = [v.clone() for v in w], [v.clone() for v in w], [torch.zeros_like(v) for v in w]
        for k in range(inner_steps):
            generator = torch.Generator().manual_seed(fold(seed, "entropy-sgd", t, k))
            for i, g in enumerate(problem.gradient(*walker, 0)):
                inner[i] = momentum * inner[i] + g
                normal = torch.randn(g.shape, generator=generator, dtype=torch.float64)
                slope = g + momentum * inner[i] - gamma * (w[i] - walker[i])
                walker[i] = walker[i] - 0.1 * slope + 0.1 * noise / math.sqrt(0.5 * 0.1) * normal
                mu[i] = 0.75 * mu[i] + 0.25 * walker[i]
        for i in range(2):
            speed[i] = momentum * speed[i] + (w[i] - mu[i])
            w[i] = w[i] - lr * (w[i] - mu[i] + momentum * speed[i])
    return w


def test_with_the_gradient_as_the_momentums_start_it_is_the_published_code():
    given = {"lr": 0.3, "momentum": 0.9, "gamma": 0.05, "inner_steps": 3, "noise": 0.02, "seed": 4}
    reached = {}
    for start in ("gradient", "zero"):
        problem = Problem(stay=True)
        want = published(problem, 5, **given)
        optimizer = EntropySGD(
            problem.parameters, inner_momentum=0.9, alpha=0.25, scale="none", momentum_start=start, **given
        )
        for _ in range(5):
            optimizer.step(problem.closure)
        reached[start] = max(float((p.detach() - w).abs().max()) for p, w in zip(problem.parameters, want))
    # a few hundred operations on values of order 1 in float64
    assert reached["gradient"] <= ROUNDING
    assert reached["zero"] > 1e-2


def test_the_momentums_start_is_taken_once_and_survives_a_resume():
    given = {"lr": 0.3, "inner_steps": 3, "scale": "none", "momentum_start": "gradient", "seed": 4}
    whole, broken = Problem(stay=True), Problem(stay=True)
    optimizer = EntropySGD(whole.parameters, **given)
    for _ in range(4):
        optimizer.step(whole.closure)
    optimizer = EntropySGD(broken.parameters, **given)
    for _ in range(2):
        optimizer.step(broken.closure)
    again = EntropySGD(broken.parameters, **given)
    again.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        again.step(broken.closure)
    for p, q in zip(whole.parameters, broken.parameters):
        assert torch.equal(p, q)
    # without momentum there is no buffer to begin
    one, two = Problem(), Problem()
    for problem, start in ((one, "gradient"), (two, "zero")):
        settings = {**given, "momentum": 0.0, "nesterov": False, "momentum_start": start}
        EntropySGD(problem.parameters, **settings).step(problem.closure)
    assert torch.equal(one.a, two.a)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 5e-4}, {"momentum": 0.0, "nesterov": False}], ids=str)
def test_without_inner_steps_it_is_torchs_sgd_bit_for_bit(batch, settings):
    x, y = batch(16, torch.float32)
    results = []
    for build in (
        lambda p: torch.optim.SGD(p, lr=0.1, **{"momentum": 0.9, "nesterov": True, **settings}),
        lambda p: EntropySGD(p, lr=0.1, inner_steps=0, **settings),
    ):
        model = network()
        optimizer, losses = build(model.parameters()), []
        for step in range(10):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)

            def closure(optimizer=optimizer, model=model):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        results.append((model.state_dict(), losses))
    (a, first), (b, second) = results
    assert first == second
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_state_of_torchs_sgd_goes_on():
    one, two = Problem(), Problem()
    sgd = torch.optim.SGD(one.parameters, lr=0.1, momentum=0.9, nesterov=True)
    sgd.step(one.closure)
    two.closure()
    for p, q in zip(two.parameters, one.parameters):
        p.data.copy_(q.data)
    other = EntropySGD(two.parameters, lr=0.1, inner_steps=0)
    other.load_state_dict(through_a_file(sgd.state_dict()))
    for _ in range(3):
        sgd.step(one.closure)
        other.step(two.closure)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters, two.parameters))


def test_the_loss_is_that_at_the_weights_and_grad_is_the_outer_gradient():
    problem = Problem(stay=True)
    optimizer = EntropySGD(problem.parameters, lr=1.0, momentum=0.0, nesterov=False, gamma=0.5)
    before = [p.detach().clone() for p in problem.parameters]
    want = problem.value(*before, 0)
    assert optimizer.step(problem.closure) == want
    for p, w in zip(problem.parameters, before):
        assert torch.equal(p.detach(), w - p.grad)


def test_the_learning_rate_is_read_at_each_step():
    one, two = Problem(), Problem()
    a, b = EntropySGD(one.parameters, lr=2.0), EntropySGD(two.parameters, lr=5.0)
    b.param_groups[0]["lr"] = 2.0
    a.step(one.closure), b.step(two.closure)
    assert torch.equal(one.a, two.a)
    b.param_groups[0]["lr"] = 0.0
    keep = two.a.detach().clone()
    b.step(two.closure)
    assert torch.equal(two.a, keep)


def test_groups_have_their_own_settings():
    both, alone = Problem(stay=True), Problem(stay=True)
    optimizer = EntropySGD(
        [{"params": [both.a], "gamma": 0.4, "lr": 0.0001}, {"params": [both.b]}], lr=1.0, gamma=0.1, inner_steps=1,
        noise=0.0,
    )  # fmt: skip
    optimizer.step(both.closure)
    other = EntropySGD(alone.parameters, lr=1.0, gamma=0.1, inner_steps=1, noise=0.0)
    other.step(alone.closure)
    assert torch.equal(both.b, alone.b)
    assert torch.allclose(both.a.grad, 4 * alone.a.grad)
    late = nn.Parameter(numbers(2))
    optimizer.add_param_group({"params": [late]})
    assert [g["t"] for g in optimizer.param_groups] == [1, 1, 1]
    with pytest.raises(ValueError, match="inner_steps is one for all"):
        optimizer.add_param_group({"params": [nn.Parameter(numbers(2))], "inner_steps": 3})


def test_a_parameter_without_gradient_stays():
    problem, idle, frozen = Problem(), nn.Parameter(numbers(3)), nn.Parameter(numbers(2), requires_grad=False)
    optimizer = EntropySGD([idle, *problem.parameters, frozen], lr=1.0, noise=1.0, weight_decay=0.1)
    for _ in range(2):
        optimizer.step(problem.closure)
    assert torch.equal(idle, numbers(3))
    assert torch.equal(frozen, numbers(2))


# ---- scoping


def test_scoping_advances_and_is_held_where_the_walk_would_diverge():
    assert scoped(1e-3, 0.0, 10**9, 0.1) == 1e-3
    assert [scoped(1e-3, 0.5, t, 0.1) for t in range(4)] == pytest.approx([1e-3 * 1.5**t for t in range(4)], rel=1e-14)
    assert scoped(1e-3, 1e-3, 10**7, 0.1) == 10.0
    assert scoped(1e-3, 9.0, 10**9, 0.1) == 10.0
    problem = Problem()
    optimizer = EntropySGD(problem.parameters, lr=0.01, gamma=1e-3, scoping=3.0)
    for t in range(30):
        assert optimizer.param_groups[0]["t"] == t
        optimizer.step(problem.closure)
    assert all(torch.isfinite(p).all() for p in problem.parameters)


def test_at_the_hold_the_outer_gradient_is_the_plain_one():
    """gamma = 1 / inner_lr: one step ends at w - inner_lr grad, and gamma (w - mu) is grad."""
    problem = Problem(stay=True)
    plain = problem.gradient(*problem.parameters, 0)
    optimizer = EntropySGD(problem.parameters, lr=1e-9, inner_steps=1, inner_lr=1e-3, gamma=1e3, alpha=1.0, noise=0.0)
    optimizer.step(problem.closure)
    for p, g in zip(problem.parameters, plain):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-9)


# ---- the local entropy


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_local_entropy_of_a_quadratic_in_closed_form(noise):
    """L = a/2 (w - c)^2: the local entropy is (a gamma / (a + gamma)) / 2 (w - c)^2 + const at every temperature.

    The chain is linear, so its mean has no bias in the step; what is left of the start in the mean is known exactly.
    """
    a, c, gamma, eta, steps, n, at = 2.0, 0.7, 0.5, 0.1, 400, 2000, -0.4
    w = nn.Parameter(torch.full((n,), at, dtype=torch.float64))
    optimizer = EntropySGD([w], lr=1e-12, inner_steps=steps, gamma=gamma, inner_lr=eta, noise=noise, average="ergodic")

    def closure():
        w.grad = a * (w.detach() - c)
        return w.detach().sum()

    optimizer.step(closure)
    limit = gamma * a / (a + gamma) * (at - c)
    keep = 1 - eta * (a + gamma)
    exact = limit * (1 - keep * (1 - keep**steps) / (steps * (1 - keep)))
    # the mean of K correlated iterates of n chains: variance 2 eta noise^2 / ((1 - keep)^2 K n)
    error = gamma * noise * math.sqrt(2 * eta / (steps * n)) / (1 - keep)
    assert w.grad.mean().item() == pytest.approx(exact, abs=4 * error + ROUNDING)
    assert exact == pytest.approx(limit, rel=0.01)


def test_local_entropy_of_a_double_well_by_quadrature():
    """T7: the gradient of -T log int exp(-(L + gamma/2 (w - w')^2) / T) dw' is the chain's mean of gamma (w - w')."""
    gamma, noise, at, n = 1.0, 0.7, 0.8, 4000
    temperature = noise**2
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)

    def local_entropy(w):
        energy = (grid**2 - 1) ** 2 / 4 + gamma / 2 * (w - grid) ** 2
        return -temperature * torch.logsumexp(-energy / temperature, 0).item()

    want = (local_entropy(at + 1e-4) - local_entropy(at - 1e-4)) / 2e-4
    w = nn.Parameter(torch.full((n,), at, dtype=torch.float64))
    optimizer = EntropySGD([w], lr=1e-12, inner_steps=2000, gamma=gamma, inner_lr=0.01, noise=noise, average="ergodic")

    def closure():
        w.grad = w.detach() * (w.detach() ** 2 - 1)
        return w.detach().sum()

    optimizer.step(closure)
    assert w.grad.mean().item() == pytest.approx(want, abs=0.015)
    # the loss itself pulls the other way: it has a minimum at 1, the valleys around it their centre at 0
    assert want > 0.1
    assert at * (at**2 - 1) < -0.1


# ---- calls, state, failure


@pytest.mark.parametrize(
    ("steps", "batches", "calls", "used"),
    [(0, "same", 1, 1), (0, "next", 1, 1), (1, "same", 1, 1), (5, "same", 5, 1), (5, "next", 5, 5)],
)
def test_the_number_of_calls(steps, batches, calls, used):
    problem = Problem()
    optimizer = EntropySGD(problem.parameters, lr=0.1, inner_steps=steps, inner_batches=batches)
    assert (optimizer.calls_per_step, optimizer.batches_per_step) == (calls, used)
    for step in range(1, 4):
        optimizer.step(problem.closure)
        assert problem.calls == step * calls


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EntropySGD, dict(gamma=0.1, scoping=0.1, noise=0.3, seed=5)),
        (EntropySGD, dict(gamma=0.1, average="ergodic", scale="none", inner_momentum=0.5)),
        (SGLD, dict(gamma=0.2, weight_decay=0.1, seed=5)),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_a_resumed_run_is_the_unbroken_one(kind, settings):
    whole, broken = Problem(), Problem()
    optimizer = kind(whole.parameters, lr=0.1, **settings)
    for _ in range(8):
        optimizer.step(whole.closure)
    optimizer = kind(broken.parameters, lr=0.1, **settings)
    for _ in range(3):
        optimizer.step(broken.closure)
    saved = through_a_file({"optimizer": optimizer.state_dict(), "weights": [p.data for p in broken.parameters]})
    resumed = Problem()
    resumed.calls = broken.calls
    for p, w in zip(resumed.parameters, saved["weights"]):
        p.data.copy_(w)
    optimizer = kind(resumed.parameters, lr=0.1, **settings)
    optimizer.load_state_dict(saved["optimizer"])
    torch.manual_seed(99)
    for _ in range(5):
        optimizer.step(resumed.closure)
    assert optimizer.param_groups[0]["t"] == 8
    for p, q, r in zip(whole.parameters, resumed.parameters, broken.parameters):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


@pytest.mark.parametrize("kind", [EntropySGD, SGLD])
def test_a_copy_of_the_state_is_a_copy(kind):
    problem = Problem()
    optimizer = kind(problem.parameters, lr=0.1)
    optimizer.step(problem.closure)
    other = kind(Problem().parameters, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    twin = copy.deepcopy(optimizer)
    optimizer.step(problem.closure)
    assert [o.param_groups[0]["t"] for o in (optimizer, other, twin)] == [2, 1, 1]


@pytest.mark.parametrize("kind", [EntropySGD, SGLD])
def test_seeds_differ_and_the_global_random_state_is_left_alone(kind):
    results, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        problem = Problem()
        optimizer = kind(problem.parameters, lr=0.1, noise=0.5, seed=seed)
        for _ in range(2):
            optimizer.step(problem.closure)
        results.append(problem.a.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_fresh_at_each_step_and_for_each_parameter():
    one, two = torch.zeros(50), torch.zeros(50)
    groups = [{"params": [one, two], "noise": 1.0}, {"params": [one], "noise": 0.0}]
    seen = [d for key in range(3) for d in normals(groups, 0, key)]
    assert [d is None for d in seen] == [False, False, True] * 3
    drawn = torch.stack([d for d in seen if d is not None])
    assert len({tuple(d.tolist()) for d in drawn}) == 6
    assert drawn.std().item() == pytest.approx(1, abs=0.2)


def test_a_closure_that_raises_leaves_everything_as_it_was():
    problem, other = Problem(), Problem()
    optimizer = EntropySGD(problem.parameters, lr=1.0, noise=0.5, gamma=0.2)
    twin = EntropySGD(other.parameters, lr=1.0, noise=0.5, gamma=0.2)
    optimizer.step(problem.closure), twin.step(other.closure)
    before, calls = [p.detach().clone() for p in problem.parameters], problem.calls

    def failing():
        if problem.calls == calls + 3:
            raise RuntimeError("out of memory")
        return problem.closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    assert all(torch.equal(p.detach(), w) for p, w in zip(problem.parameters, before))
    problem.calls = calls
    optimizer.step(problem.closure), twin.step(other.closure)
    assert all(torch.equal(p, q) for p, q in zip(problem.parameters, other.parameters))


# ---- with the training methods


@pytest.mark.parametrize("kind", [ATENT, PGDAT])
@pytest.mark.parametrize("batches", ["same", "next"])
def test_it_trains_with_the_methods(batch, kind, batches):
    x, y = batch(60, torch.float32)
    method = kind(Threat("linf", 0.05), steps=2)
    runs = []
    for _ in range(2):
        model = network().train()
        optimizer = EntropySGD(
            model.parameters(), lr=0.3, scale="none", alpha=0.25, inner_momentum=0.9, inner_steps=3, seed=1,
            inner_batches=batches,
        )  # fmt: skip
        rng, losses, seen = torch.Generator().manual_seed(0), [], []

        def closure(optimizer=optimizer, model=model, rng=rng, seen=seen):
            part = slice(20 * (len(seen) % 3), 20 * (len(seen) % 3) + 20) if batches == "next" else slice(0, 60)
            optimizer.zero_grad()
            seen.append(1)
            return method.backward(model, x[part], y[part], rng=rng, ids=torch.arange(60)[part])["loss"]

        for _ in range(10):
            losses.append(optimizer.step(closure).item())
        assert len(seen) == 10 * optimizer.calls_per_step == 30
        runs.append((losses, model.state_dict()))
    (losses, a), (again, b) = runs
    assert losses == again
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert losses[-1] < 0.6 * losses[0]


# ---- SGLD


@pytest.mark.parametrize(
    ("eta", "precision", "gamma", "decay", "noise"),
    [(0.25, 2.0, 0.0, 0.0, 1.0), (0.05, 2.0, 0.0, 0.0, 1.0), (0.2, 1.0, 1.0, 0.5, 0.6), (0.3, 0.0, 0.0, 2.0, 1.0)],
)
def test_sgld_on_a_gaussian_has_the_variance_of_the_closed_form(eta, precision, gamma, decay, noise):
    """T14: (noise^2 / a) / (1 - eta a / 2) with a the total precision: the target's, and a bias of order eta."""
    n, start, centre = 30_000, 1.5, 0.4
    theta = nn.Parameter(torch.full((n,), start, dtype=torch.float64))
    optimizer = SGLD([theta], lr=eta, noise=noise, gamma=gamma, weight_decay=decay)

    def closure():
        theta.grad = precision * (theta.detach() - centre)
        return theta.detach().sum()

    for _ in range(120):
        optimizer.step(closure)
    total = precision + gamma + decay
    exact = noise**2 / total / (1 - eta * total / 2)
    assert theta.var().item() == pytest.approx(exact, rel=4 * math.sqrt(2 / n))
    mean = (precision * centre + gamma * start) / total
    assert theta.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(exact / n) + 1e-4)
    assert abs(exact * total / noise**2 - 1) < eta * total


def test_the_gradient_of_p_in_place_of_log_p_does_not_sample_p():
    """T9: from exact draws of a standard normal, steps along grad log p keep its law, steps along grad p lose it."""
    spread = {}
    for kind in ("log p", "p"):
        theta = nn.Parameter(numbers(20_000))
        optimizer = SGLD([theta], lr=0.05)

        def closure(theta=theta, kind=kind):
            at = theta.detach()
            density = torch.exp(-(at**2) / 2) / math.sqrt(2 * math.pi) if kind == "p" else 1.0
            theta.grad = at * density
            return at.sum()

        for _ in range(100):
            optimizer.step(closure)
        spread[kind] = theta.var().item()
    assert spread["log p"] == pytest.approx(1 / (1 - 0.05 / 2), rel=4 * math.sqrt(2 / 20_000))
    assert spread["p"] > 5


def test_sgld_without_noise_is_gradient_descent():
    one, two = Problem(), Problem()
    sgld = SGLD(one.parameters, lr=0.1, noise=0.0, weight_decay=0.01)
    sgd = torch.optim.SGD(two.parameters, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        assert sgld.step(one.closure) == sgd.step(two.closure)
    one.closure()
    assert sgld.step() is None
    sgd.step(two.closure)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters, two.parameters))


# ---- bad values


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        *((EntropySGD, {name: value}) for name, value in [
            ("lr", 0.0), ("lr", -1.0), ("lr", math.nan), ("lr", "0.1"), ("momentum", 1.0), ("momentum", -0.1),
            ("momentum", 0.0), ("nesterov", "yes"), ("weight_decay", -1e-4), ("inner_steps", -1), ("inner_steps", 2.5),
            ("gamma", -1e-3), ("gamma", 0.0), ("gamma", 11.0), ("scoping", -0.1), ("scoping", math.inf),
            ("inner_lr", 0.0), ("inner_momentum", 1.0), ("noise", -1.0), ("alpha", 0.0), ("alpha", 1.5),
            ("average", "mean"), ("scale", "lr"), ("inner_batches", "other"), ("momentum_start", "none"), ("seed", 0.5),
            ("seed", -1),
        ]),
        *((SGLD, {name: value}) for name, value in [
            ("lr", 0.0), ("noise", -1.0), ("gamma", -1.0), ("gamma", 21.0), ("weight_decay", math.nan), ("seed", 1.5),
        ]),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else str(v),
)  # fmt: skip
def test_bad_values_are_one_line(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as caught:
        kind([nn.Parameter(torch.zeros(2))], **{"lr": 0.1, **bad})
    assert "\n" not in str(caught.value)


def test_a_step_needs_a_closure_and_an_optimizer_parameters():
    with pytest.raises(ValueError, match="needs a closure"):
        EntropySGD([nn.Parameter(torch.zeros(2))], lr=0.1).step()
    for kind in (EntropySGD, SGLD):
        with pytest.raises(ValueError, match="empty parameter list"):
            kind([], lr=0.1)
