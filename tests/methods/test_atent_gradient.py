"""How ATENT's step hands its gradient over, and what it keeps in memory."""

import oracle_atent as oracle
import pytest
import torch
from atent_networks import EPS, NETWORKS, Residual, batch, network, recorded
from kit import ROUNDING, distance, gradient, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods import ATENT

pytestmark = pytest.mark.usefixtures("seeded")


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
