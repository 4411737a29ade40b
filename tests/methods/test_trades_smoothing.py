"""TRADES with smoothing against a slow transcription of its equation."""

import itertools

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, stream
from trades_family import CASES, EPS, SIGMA, Recorded, network, run, same_buffers, slow_adversary, slow_kl, threat

from atent.methods.gaussian import Gaussian
from atent.methods.standard import Standard
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("given", [{}, {"sigma": 0.5}, {"step_size": 0.07, "beta": 1.0}], ids=str)
def test_trades_smoothing_equals_a_slow_transcription(batchnorm, given):
    given = {"sigma": SIGMA, "beta": 6.0, "step_size": None, **given}
    model, (x, y) = network(batchnorm, 0.3), batch()
    metrics, grad, buffers = run(TRADESSmoothing(threat("l2"), steps=4, **given), model, x, y)
    rng = stream()
    noise = given["sigma"] * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    x_adv, touched = slow_adversary(model, x, rng, "l2", EPS["l2"], 4, given["step_size"], noise)
    assert touched["box"]
    torch.manual_seed(21)
    clean = model(x + noise)
    robust = model(x_adv + noise)
    fit = -torch.log(torch.softmax(clean, 1)[torch.arange(N), y]).mean()
    gap = slow_kl(clean, robust).mean()
    (fit + given["beta"] * gap).backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    same_buffers(buffers, model.buffers())
    assert float(metrics["loss"]) == pytest.approx((fit + given["beta"] * gap).item(), rel=ROUNDING)
    assert float(metrics["clean"]) == float((clean.argmax(1) == y).double().mean())
    assert float(metrics["robust"]) == float((robust.argmax(1) == y).double().mean())


def test_trades_smoothing_adds_one_and_the_same_noise_to_every_pass():
    model, (x, y) = Recorded(network()), batch()
    method = TRADESSmoothing(threat("l2", 0.0), steps=3)
    method.backward(model, x, y, rng=stream())
    noise = SIGMA * torch.randn(x.shape, generator=stream(), dtype=x.dtype)
    assert float(noise.std()) == pytest.approx(SIGMA, rel=0.1)
    for seen, _, _ in (model.seen[k] for k in (0, 2, 3, 4, 5)):
        assert torch.equal(seen, x + noise)
    # the adversary starts beside x, within five times start_noise
    assert 0 < float((model.seen[1][0] - x - noise).abs().max()) < 0.005


def test_trades_smoothing_without_noise_is_trades_bit_for_bit():
    model, (x, y) = network(dropout=0.3), batch()
    pair = TRADESSmoothing(threat("l2"), sigma=0.0, steps=3), TRADES(threat("l2"), steps=3)
    (a, ours, one), (b, theirs, two) = (run(m, model, x, y) for m in pair)
    assert torch.equal(ours, theirs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_trades_smoothing_without_beta_is_gaussian_bit_for_bit():
    model, (x, y) = network(dropout=0.3), batch()
    (_, ours, one), (_, theirs, two) = (run(m, model, x, y) for m in (TRADESSmoothing(beta=0.0), Gaussian(SIGMA)))
    assert torch.equal(ours, theirs)
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_no_two_methods_give_the_same_gradient():
    model, (x, y) = network(), batch()
    methods = [Standard(), *(case.values[0] for case in CASES)]
    grads = [run(m, model, x, y)[1] for m in methods]
    for a, b in itertools.combinations(grads, 2):
        assert distance(a, b) > 1e-2
