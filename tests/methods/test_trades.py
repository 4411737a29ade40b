"""TRADES against a slow transcription of its equation."""

import dataclasses

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, stream
from torch import nn
from torch.nn import functional as F
from trades_family import EPS, KL_CASES, SIGMA, network, run, same_buffers, slow_adversary, slow_kl, threat

from atent import Threat
from atent.methods.gaussian import Gaussian
from atent.methods.standard import Standard
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize(
    "given", [{}, {"step_size": 0.07}, {"beta": 1.0, "start_noise": 0.05}, {"steps": 1}, {"box": (0.1, 0.9)}], ids=str
)
def test_trades_equals_a_slow_transcription(norm, batchnorm, given):
    given = {"steps": 4, "beta": 6.0, **given}
    box, beta = given.pop("box", (0.0, 1.0)), given["beta"]
    model, (x, y) = network(batchnorm, 0.3), batch()
    x = x.clamp(*box)
    metrics, grad, buffers = run(TRADES(threat(norm, box=box), **given), model, x, y)
    given.pop("beta")
    x_adv, touched = slow_adversary(model, x, stream(), norm, EPS[norm], **given, box=box)
    # the network must not be so tame that a projection has nothing to do
    assert touched["box"]
    assert norm == "linf" or given["steps"] == 1 or touched["ball"] or "step_size" in given
    torch.manual_seed(21)
    clean = model(x)
    robust = model(x_adv)
    fit = -torch.log(torch.softmax(clean, 1)[torch.arange(N), y]).mean()
    gap = slow_kl(clean, robust).mean()
    (fit + beta * gap).backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    same_buffers(buffers, model.buffers())
    assert float(metrics["loss"]) == pytest.approx((fit + beta * gap).item(), rel=ROUNDING)
    assert float(metrics["clean_loss"]) == pytest.approx(fit.item(), rel=ROUNDING)
    assert float(metrics["robust_loss"]) == pytest.approx(gap.item(), rel=ROUNDING)
    assert float(metrics["clean"]) == float((clean.argmax(1) == y).double().mean())
    assert float(metrics["robust"]) == float((robust.argmax(1) == y).double().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_authors_third_pass_does_not_change_the_gradient(norm):
    model, (x, y) = network(), batch()
    _, grad, buffers = run(TRADES(threat(norm), steps=4), model, x, y)
    x_adv, _ = slow_adversary(model, x, stream(), norm, EPS[norm], 4)
    fit = F.cross_entropy(model(x), y)
    log_q = F.log_softmax(model(x_adv), 1)
    (fit + 6.0 * F.kl_div(log_q, F.softmax(model(x), 1), reduction="sum") / N).backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    # but the statistics of batch-norm take the clean batch once more, as the docstring says
    assert int(model[1].num_batches_tracked) == int(buffers[2]) + 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_runs_through_both_arguments_of_the_kl(norm):
    model, (x, y) = network(), batch()
    method = TRADES(threat(norm), steps=4)
    _, grad, _ = run(method, model, x, y)
    x_adv = method.adversary(model, x, y, rng=stream())
    clean, robust = model(x), model(x_adv)
    for p, q in ((clean.detach(), robust), (clean, robust.detach()), (robust, clean)):
        loss = F.cross_entropy(clean, y) + 6.0 * slow_kl(p, q).mean()
        other = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        assert distance(torch.cat([g.flatten() for g in other]), grad) > 1e-2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_gradient_is_the_slope_of_its_loss(norm):
    model, (x, y) = network(), batch()
    method = TRADES(threat(norm), steps=3)
    _, grad, _ = run(method, model, x, y)
    x_adv = method.adversary(model, x, y, rng=stream())
    values = list(model.parameters())
    directions = [torch.randn(p.shape, generator=stream(2), dtype=p.dtype) for p in values]
    slopes, h = [], 1e-6
    with torch.no_grad():
        for sign in (1, -1):
            for p, d in zip(values, directions, strict=True):
                p += sign * h * d
            slopes.append(method.loss(model, x, y, x_adv)[0])
            for p, d in zip(values, directions, strict=True):
                p -= sign * h * d
    expected = float(grad @ torch.cat([d.flatten() for d in directions]))
    assert float(slopes[0] - slopes[1]) / (2 * h) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [TRADES(threat("linf"), beta=0), TRADES(threat("l2"), beta=0)], ids=["linf", "l2"])
def test_trades_without_beta_is_standard(method):
    model, (x, y) = network(dropout=0.3), batch()
    (a, ours, one), (b, theirs, two) = (run(m, model, x, y) for m in (method, Standard()))
    assert torch.equal(ours, theirs)
    assert torch.equal(a["loss"], b["loss"])
    # the statistics of batch-norm see the clean batch alone
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
    assert set(a) == {"loss", "clean", "clean_loss"}


@pytest.mark.parametrize("method", KL_CASES)
def test_the_adversary_raises_the_kl(method):
    model, (x, y) = network(), batch(64)
    found = method.adversary(model, x, y, rng=stream())
    x_adv, noise = found if isinstance(found, list) else (found, torch.zeros_like(x))
    eps = float(method.threat.eps)
    direction = torch.randn(x.shape, generator=stream(3), dtype=x.dtype)
    if method.threat.norm == "linf":
        aimless = x + eps * direction.sign()
    else:
        aimless = x + eps * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    model.eval()
    with torch.no_grad():
        clean = model(x + noise)
        start, chance, end = (
            slow_kl(clean, model(z + noise)) for z in (x + 0.001 * direction, aimless.clamp(0, 1), x_adv)
        )
    assert (end > 100 * start).all()
    assert end.mean() > 2 * chance.mean()
    assert (end > chance).double().mean() > 0.9


def test_more_steps_raise_the_kl_further():
    model, (x, y) = network().eval(), batch(64)
    gaps = []
    for steps in (1, 3, 20):
        x_adv = TRADES(threat("l2"), steps=steps, step_size=0.1).adversary(model, x, y, rng=stream())
        with torch.no_grad():
            gaps.append(float(slow_kl(model(x), model(x_adv)).mean()))
    assert gaps[0] < gaps[1] < gaps[2]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
def test_trades_stays_in_the_ball_and_the_box(norm, box):
    model, (x, y) = network(), batch()
    for eps in (0.0, 1e-4, EPS[norm]):
        method = TRADES(threat(norm, eps, box), steps=3)
        x_adv = method.adversary(model, x, y, rng=stream())
        assert method.threat.contains(x_adv, x).all()
        assert eps > 0 or torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_zero_gradient_moves_nothing(norm):
    model, (x, y) = network(), batch()
    with torch.no_grad():
        model[7].weight.zero_()
    x_adv = TRADES(threat(norm), steps=3).adversary(model, x, y, rng=stream())
    rng = stream()
    torch.randint(2**62, (), generator=rng)
    start = (x + 0.001 * torch.randn(x.shape, generator=rng, dtype=x.dtype)).clamp(0, 1)
    torch.testing.assert_close(x_adv, start, rtol=0, atol=ROUNDING)
    metrics, grad, _ = run(TRADES(threat(norm), steps=3), model, x, y)
    assert float(metrics["robust_loss"]) == 0
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_flat_sample_leaves_the_others_alone(norm):
    class Gated(nn.Module):
        """The first sample of the batch gives the same logits whatever its input."""

        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            gate = torch.ones(len(x), 1, dtype=x.dtype)
            gate[0] = 0
            return self.net(x) * gate

    model, (x, y) = Gated(), batch()
    found = TRADES(threat(norm), steps=3).adversary(model, x, y, rng=stream())
    plain = TRADES(threat(norm), steps=3).adversary(model.net, x, y, rng=stream())
    torch.testing.assert_close(found[1:], plain[1:], rtol=0, atol=1e-10)
    assert float((found[0] - x[0]).abs().max()) < 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_saturated_logits_in_float32_stay_finite(norm):
    model, (x, y) = network().float(), batch()
    with torch.no_grad():
        model[7].weight.mul_(1e4)
    metrics, grad, _ = run(TRADES(threat(norm), steps=3), model, x.float(), y)
    assert torch.isfinite(grad).all()
    assert all(torch.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize("method", KL_CASES)
def test_warm_up_begins_at_the_clean_batch_and_ends_at_the_full_eps(method):
    model, (x, y) = network(False), batch()
    warming = dataclasses.replace(method, eps_warmup=0.5)
    plain = Gaussian(SIGMA) if isinstance(method, TRADESSmoothing) else Standard()
    clean, start = run(plain, model, x, y), run(warming, model, x, y, progress=0.0)
    assert float(start[0]["loss"]) == pytest.approx(float(clean[0]["loss"]), rel=ROUNDING)
    assert distance(start[1], clean[1]) <= ROUNDING
    full = run(method, model, x, y)[1]
    for progress in (0.5, 1.0):
        assert torch.equal(run(warming, model, x, y, progress=progress)[1], full)
    half = dataclasses.replace(method, threat=method.threat.scaled(0.5))
    assert torch.equal(run(warming, model, x, y, progress=0.25)[1], run(half, model, x, y)[1])
    assert distance(run(half, model, x, y)[1], full) > 1e-3


def test_a_given_step_shrinks_with_eps():
    method = TRADES(Threat("l2", 1.0), steps=5, step_size=0.2, eps_warmup=0.5)
    for progress, factor in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)]:
        attack = method.attack(progress)
        assert (attack.threat.eps, attack.resolved_step) == pytest.approx((factor, 0.2 * factor))
    assert TRADES(Threat("l2", 1.0), steps=5, eps_warmup=0.5).attack(0.25).resolved_step == pytest.approx(0.25)
    assert TRADES(Threat("linf", 0.1), steps=5).attack(1.0).resolved_step == pytest.approx(0.05)
