"""The data-entropy objective: against quadrature and finite differences, a slow transcription, and its promises."""

import copy
import dataclasses

import oracle_atent as oracle
import pytest
import torch
from kit import ROUNDING, Syncs, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods import ATENT
from atent.methods.base import Method
from atent.sgld import data_entropy_coefficients

SAMPLES = {"objective": "data-entropy", "variant": "published", "noise": 0.3, "gamma": 2.0}


pytestmark = pytest.mark.usefixtures("seeded")


# -- in the plane, where integrals are sums over a grid

GAMMA, SIDE = 1.0, 5.0
GRID = torch.cartesian_prod(*[torch.linspace(-SIDE, SIDE, 161, dtype=torch.float64)] * 2)
X, Y = torch.tensor([[0.3, -0.4]], dtype=torch.float64), torch.tensor([1])


def planar():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].weight *= 3
    return model


def density(model, temperature, shift=0.0):
    """Losses on the grid, and their probabilities under p ~ exp((L - gamma/2 ||x' - x||^2) / T)."""
    losses = F.cross_entropy(model(GRID), Y.expand(len(GRID)), reduction="none") + shift
    return losses, ((losses - GAMMA / 2 * (GRID - X).pow(2).sum(1)) / temperature).softmax(0)


def mean_loss(model, temperature, shift=0.0):
    losses, p = density(model, temperature, shift)
    return float((p * losses).sum().detach())


def free_energy(model, temperature):
    losses, _ = density(model, temperature)
    exponents = (losses - GAMMA / 2 * (GRID - X).pow(2).sum(1)) / temperature
    return float(temperature * exponents.logsumexp(0).detach())


@torch.no_grad()
def differences(f, model, h=1e-5):
    """Central differences of f over every weight, flat."""
    out = []
    for p in model.parameters():
        flat = p.view(-1)
        for i in range(len(flat)):
            old = float(flat[i])
            flat[i] = old + h
            above = f(model)
            flat[i] = old - h
            out.append((above - f(model)) / (2 * h))
            flat[i] = old
    return torch.tensor(out, dtype=torch.float64)


def slopes(model, points):
    """grad_w L at each point, (points, weights)."""

    def loss(weights, z):
        logits = torch.func.functional_call(model, weights, (z[None],))
        return F.cross_entropy(logits, Y)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), points)
    return torch.cat([each[name].flatten(1) for name, _ in model.named_parameters()], 1).detach()


def standard_error(rows):
    return rows.std(0).norm() / len(rows) ** 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_the_coefficients_give_the_gradient_of_the_mean_loss(temperature):
    model = planar()
    exact = differences(lambda m: mean_loss(m, temperature), model)
    losses, p = (t.detach() for t in density(model, temperature))
    rng = stream()
    ours, supplements, means = [], [], []
    for _ in range(40):
        drawn = torch.multinomial(p, 800, replacement=True, generator=rng)
        grads, at = slopes(model, GRID[drawn]), losses[drawn]
        ours.append(data_entropy_coefficients(at[:, None], temperature)[:, 0] @ grads)
        supplements.append(((1 + at)[:, None] * grads).mean(0))
        means.append(grads.mean(0))
    ours, supplements, means = (torch.stack(rows) for rows in (ours, supplements, means))
    assert standard_error(ours) < 0.05 * exact.norm()
    assert (ours.mean(0) - exact).norm() < 4 * standard_error(ours)
    # the supplement's formula, and the plain mean, are the gradients of something else
    assert (supplements.mean(0) - exact).norm() > 20 * standard_error(supplements)
    assert (means.mean(0) - exact).norm() > 20 * standard_error(means)


def test_a_constant_in_the_loss_changes_the_supplements_form_alone():
    model, temperature, shift = planar(), 1.0, 5.0
    losses, p = (t.detach() for t in density(model, temperature))
    grads = slopes(model, GRID)
    before, after = (differences(lambda m, c=c: mean_loss(m, temperature, c), model) for c in (0.0, shift))
    assert distance(after, before) < 1e-6
    ours = [data_entropy_coefficients(losses[:, None] + c, temperature, p)[:, 0] @ grads for c in (0.0, shift)]
    assert distance(ours[1], ours[0]) < ROUNDING
    spread = 1 - float(p.pow(2).sum())
    # with the grid's own probabilities the covariance needs no correction
    exact = data_entropy_coefficients(losses[:, None], temperature / spread, p)[:, 0] @ grads
    assert distance(exact, before) < 1e-6
    supplements = [(p * (1 + losses + c)) @ grads for c in (0.0, shift)]
    torch.testing.assert_close(supplements[1] - supplements[0], shift * (p @ grads), rtol=1e-10, atol=ROUNDING)
    assert distance(supplements[1], supplements[0]) > 0.5


@pytest.mark.parametrize("objective", ["free-energy", "data-entropy"])
def test_a_long_chain_descends_its_objective(objective):
    """Means over eight batches of chains, against finite differences of the integrals."""
    temperature = 0.5
    method = ATENT(
        Threat("l2", 1.0, box=(-SIDE, SIDE)), variant="published", objective=objective, steps=120, burn_in=60,
        chains=100, step_size=0.05, gamma=GAMMA, temperature=temperature,
    )  # fmt: skip
    model = planar()
    found, values = [], []
    for seed in range(8):
        model.zero_grad()
        values.append(method.backward(model, X, Y, rng=stream(seed))["loss"])
        found.append(gradient(model))
    found = torch.stack(found)
    targets = {
        "free-energy": differences(lambda m: free_energy(m, temperature), model),
        "data-entropy": differences(lambda m: mean_loss(m, temperature), model),
    }
    own, other = targets.pop(objective), next(iter(targets.values()))
    error = (found.mean(0) - own).norm()
    assert error < 4 * standard_error(found) + 0.04 * own.norm()
    assert (found.mean(0) - other).norm() > 4 * error
    # both report the mean loss of their samples
    assert float(torch.stack(values).mean()) == pytest.approx(mean_loss(model, temperature), rel=0.03)


# -- the coefficients


def test_coefficients_of_two_samples_by_hand():
    losses = torch.tensor([[1.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    # means 2 and 4; half of 1 + (L - mean) / (T / 2)
    expected = torch.tensor([[0.5 * (1 - 1 / 0.25), 0.5], [0.5 * (1 + 1 / 0.25), 0.5]], dtype=torch.float64)
    torch.testing.assert_close(data_entropy_coefficients(losses, 0.5), expected)


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.7, 0.0, 1.0]])
def test_coefficients_sum_to_one_and_see_no_constant(weights):
    losses = torch.rand(5, 7, generator=stream(), dtype=torch.float64)
    found = data_entropy_coefficients(losses, 0.3, weights)
    torch.testing.assert_close(found.sum(0), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(data_entropy_coefficients(losses + 9.0, 0.3, weights), found)
    assert distance(found, found.mean(0)) > 0.1


@pytest.mark.parametrize(
    ("losses", "temperature", "weights", "said"),
    [
        ((1, 3), 1.0, None, "m >= 2 samples"), ((4,), 1.0, None, "m >= 2 samples"), ((4, 2), 0.0, None, "above 0"),
        ((2, 3), 1.0, [1.0], "2 numbers"), ((2, 3), 1.0, [1.0, -1.0], "at least 0"),
        ((2, 3), 1.0, [0, 1], "one sample"),
    ],
)  # fmt: skip
def test_coefficients_refuse_what_has_no_covariance(losses, temperature, weights, said):
    with pytest.raises(ValueError, match=said):
        data_entropy_coefficients(torch.zeros(losses), temperature, weights)


# -- the step of training


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("given", [{}, {"burn_in": 0}, {"chains": 3, "burn_in": 4}], ids=str)
def test_equals_a_slow_transcription(mode, norm, given):
    eps, steps, noise = {"l2": 1.0, "linf": 0.3}[norm], 5, 0.3
    # the two modes differ by batch-norm
    model, (x, y) = network(norm=True), batch()
    theirs = copy.deepcopy(model)
    extra = {"gradient": "raw", "projection": "every", "gamma": 2.0, "noise": noise, "mode": mode}
    method = ATENT(Threat(norm, eps), steps, variant="published", objective="data-entropy", **extra, **given)
    metrics = method.backward(model, x, y, rng=stream(), weight=0.5)
    s = oracle.settings(norm, eps, steps, "published", **extra)
    burn_in = given.get("burn_in", 2)
    expected, loss = oracle.data_entropy(theirs, x, y, stream(), s, noise, burn_in, given.get("chains", 1))
    assert distance(gradient(model), 0.5 * expected) <= 1e-10
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=ROUNDING)
    # batch-norm has seen the second pass alone
    for a, b in zip(model.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_adversary_and_loss(mode):
    ours = network(norm=True)
    theirs, (x, y) = copy.deepcopy(ours), batch()
    method = ATENT(Threat("l2", 1.0), steps=6, chains=2, mode=mode, **SAMPLES)
    a = method.backward(ours, x, y, rng=stream())
    aux = method.adversary(theirs, x, y, rng=stream())
    assert len(aux.iterates) == len(aux.losses) == 6
    assert aux.iterates[0].shape == (2 * len(x), *x.shape[1:])
    loss, metrics = method.loss(theirs, x, y, aux)
    loss.backward()
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert float(a.pop("loss")) == pytest.approx(loss.item(), rel=ROUNDING)
    assert a.keys() == metrics.keys() == {"robust", "distance", "tilt"}
    for name in a:
        torch.testing.assert_close(a[name], metrics[name], rtol=ROUNDING, atol=0)


def test_the_chain_is_that_of_the_free_energy():
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), steps=4, **SAMPLES)
    free = dataclasses.replace(method, objective="free-energy")
    for a, b in zip(
        method.adversary(model, x, y, rng=stream()).iterates, free.adversary(model, x, y, rng=stream()), strict=True
    ):
        assert torch.equal(a, b)


def test_hot_samples_have_no_tilt_and_both_objectives_one_gradient():
    model, (x, y) = network(), batch()
    method = ATENT(
        Threat("l2", 1.0), steps=6, **{**SAMPLES, "noise": 100.0, "gamma": 2e4, "burn_in": 2, "step_size": 1e-6}
    )
    found = {}
    for objective in ("free-energy", "data-entropy"):
        model.zero_grad()
        metrics = dataclasses.replace(method, objective=objective).backward(model, x, y, rng=stream())
        found[objective] = gradient(model)
    assert float(metrics["tilt"].max()) < 1e-4
    assert distance(found["data-entropy"], found["free-energy"]) < 1e-3


def test_tilt_is_the_deviation_of_the_loss_in_temperatures():
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), steps=6, **SAMPLES)
    kept = method.adversary(model, x, y, rng=stream()).iterates[3:]
    losses = torch.stack([F.cross_entropy(model(z), y, reduction="none") for z in kept]).detach()
    expected = (losses - losses.mean(0)).pow(2).sum(0).div(2).sqrt() / 0.09
    torch.testing.assert_close(method.backward(model, x, y, rng=stream())["tilt"], expected)


def test_weights_after_a_burn_in_are_equal():
    threat = Threat("l2", 1.0)
    assert ATENT(threat, steps=4, **SAMPLES).weights() == [0, 0, 0, 0.5, 0.5]
    assert ATENT(threat, steps=4, burn_in=0).weights() == [0, 0.25, 0.25, 0.25, 0.25]
    assert ATENT(threat, steps=4, burn_in=3).weights() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("given", [{}, {"mode": "eval"}, {"dropout": "fresh"}], ids=str)
def test_free_energy_of_several_chains_is_their_mean(given):
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), steps=3, burn_in=1, chains=2, noise=0.1, **given)
    iterates = method.adversary(model, x, y, rng=stream())
    metrics = method.backward(model, x, y, rng=stream())
    loss = sum(F.cross_entropy(model(z), torch.cat([y, y])) / 2 for z in iterates[1:])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert distance(gradient(model), expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)


def test_nothing_waits_for_the_device():
    model, (x, y) = network(True, 0.3), batch()
    counts = []
    for steps in (4, 12):
        with Syncs() as syncs:
            ATENT(Threat("l2", 1.0), steps=steps, **SAMPLES).backward(model, x, y, rng=stream())
        counts.append(len(syncs.seen))
    assert counts[0] == counts[1] <= 1


def test_micro_batches_sum_to_the_batch():
    """Without a start and with one draw for all, a batch can be cut in two."""
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), steps=4, start="zero", **SAMPLES)
    aux = method.adversary(model, x, y, rng=stream())
    method.descend(model, x, y, aux)
    whole = gradient(model)
    model.zero_grad()
    for part in (slice(0, 3), slice(3, len(x))):
        cut = type(aux)(*[[t[part] for t in tensors] for tensors in aux])
        method.descend(model, x[part], y[part], cut, weight=len(x[part]) / len(x))
    assert distance(gradient(model), whole) <= ROUNDING


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"noise": 0.0}, "needs noise above 0, got 0: without noise the chain does not sample p"),
        ({"noise": "0.1..0"}, "needs noise above 0"),
        ({"temperature": 0.0, "noise": None}, "needs noise above 0"),
        ({"gradient": "unit"}, "needs gradient 'raw', got 'unit'"),
        ({"gradient": "sign"}, "needs gradient 'raw', got 'sign'"),
        ({"variant": "released"}, "needs gradient 'raw', got 'unit'"),
        ({"threat": Threat("linf", 0.3)}, "needs gradient 'raw', got 'sign'"),
        ({"projection": "last"}, "needs projection 'never' or 'every', got 'last'"),
        ({"burn_in": 9}, "at least 2 samples"),
        ({"burn_in": 10}, "burn_in must be below steps=10, got 10"),
        ({"burn_in": -1}, "burn_in must be at least 0, got -1"),
        ({"chains": 0}, "chains must be at least 1, got 0"),
        ({"objective": "entropy"}, "objective 'entropy' is not known"),
    ],
    ids=str,
)
def test_chains_that_do_not_sample_are_refused_with_the_reason(given, said):
    with pytest.raises(ValueError, match=said) as error:
        ATENT(**{"threat": Threat("l2", 1.0), **SAMPLES, **given})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_one_sample_of_each_of_two_chains_is_enough():
    ATENT(Threat("l2", 1.0), burn_in=9, chains=2, **SAMPLES)


def test_frozen_parameters_and_modes_stay():
    model, (x, y) = network(True, 0.3), batch()
    model[0].weight.requires_grad_(False)
    modes, clean = [m.training for m in model.modules()], x.clone()
    ATENT(Threat("l2", 1.0), steps=4, **SAMPLES).backward(model, x, y, rng=stream())
    assert model[0].weight.grad is None
    assert model[7].weight.grad is not None
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(x, clean)


def test_the_contracts_backward_is_the_same():
    ours = network()
    theirs, (x, y) = copy.deepcopy(ours), batch()
    method = ATENT(Threat("l2", 1.0), steps=4, **SAMPLES)
    method.backward(ours, x, y, rng=stream(), weight=0.7)
    aux = method.adversary(theirs, x, y, rng=stream())
    Method.descend(method, theirs, x, y, aux, weight=0.7)
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
