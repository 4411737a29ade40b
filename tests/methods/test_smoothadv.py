"""SmoothAdv against a transcription that takes one sample and one noisy copy at a time."""

import copy
import math

import pytest
import torch
from kit import ROUNDING, distance, gradient, learnt, stream
from kit import batch as _batch
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods.pgdat import PGDAT
from atent.methods.smoothadv import Averaged, SmoothAdv
from atent.methods.standard import Standard

N, CLASSES, EPS, STEPS = 7, 4, 0.8, 5
THREAT = Threat("l2", EPS)


def batch(n=N, seed=5):
    return _batch(n, seed, side=5, classes=CLASSES)


def network(seed=3, dropout=0.0):
    return learnt(*batch(), 5, steps=25, classes=CLASSES, seed=seed, dropout=dropout)


def run(method, model, x, y, **given):
    model = copy.deepcopy(model)
    torch.manual_seed(21)
    metrics = method.backward(model, x, y, rng=stream(), ids=torch.arange(len(x)), state={}, **given)
    return metrics, gradient(model), model


# -- the slow way


def slow_start(method, x, rng):
    """The noise (n, m, ...) and the first points, drawn in the package's order."""
    n, m = len(x), method.samples
    noise = torch.zeros(n, m, *x.shape[1:], dtype=x.dtype)
    if method.sigma > 0:
        draw = torch.randn(n * m, *x.shape[1:], generator=rng, dtype=x.dtype)
        noise = method.sigma * draw.reshape(n, m, *x.shape[1:])
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    begin = x.clone()
    if method.start == "uniform":
        u = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        r = torch.rand(n, 1, generator=rng, dtype=x.dtype)
        for i in range(n):
            begin[i] += EPS * r[i] ** (1 / x[i].numel()) * u[i] / u[i].norm()
    return noise, begin.clamp(0, 1)


def mean_softmax(model, z, noise):
    """z one sample (c, h, w), noise (m, c, h, w)."""
    return torch.stack([F.softmax(model((z + d)[None])[0], 0) for d in noise]).mean(0)


def slow_gradient(model, z, label, noise):
    z = z.clone().requires_grad_()
    p = mean_softmax(model, z, noise)
    return torch.autograd.grad(-p[label].log(), z)[0], int(p.argmax())


def slow_pgd(model, x, label, noise, z, method):
    step = 2 * EPS / method.steps if method.step_size is None else method.step_size
    for _ in range(method.steps):
        g, _ = slow_gradient(model, z, label, noise)
        d = z + step * g / g.norm() - x
        z = (x + d * min(1.0, EPS / float(d.norm()))).clamp(0, 1)
    return z


def slow_ddn(model, x, label, noise, method):
    """The authors' loop, without rounding to levels; the verdict from the mean softmax."""
    worst = float(torch.maximum(x, 1 - x).norm())
    delta, norm, best_norm, best = torch.zeros_like(x), float(method.threat.eps), worst, torch.zeros_like(x)
    for i in range(method.steps):
        g, answer = slow_gradient(model, x + delta, label, noise)
        adversarial = answer != label
        if adversarial and float(delta.norm()) < best_norm:
            best_norm, best = float(delta.norm()), delta.clone()
        lr = 0.01 + 0.99 * (1 + math.cos(math.pi * (i + 1) / method.steps)) / 2
        delta = delta + lr * g / g.norm()
        norm = min(norm * (1 - method.shrink if adversarial else 1 + method.shrink), worst)
        delta = (x + delta * norm / float(delta.norm())).clamp(0, 1) - x
    return x + best * min(1.0, float(method.threat.eps) / max(float(best.norm()), 1e-300))


def slow(method, model, x, y):
    """Loss, gradient and adversarial inputs."""
    model = copy.deepcopy(model)
    noise, begin = slow_start(method, x, stream())
    model.eval()
    found = []
    for i in range(len(x)):
        if method.attack == "pgd":
            found.append(slow_pgd(model, x[i], int(y[i]), noise[i], begin[i], method))
        else:
            found.append(slow_ddn(model, x[i], int(y[i]), noise[i], method))
    model.train()
    for p in model.parameters():
        p.grad = None
    copies = torch.stack([found[i] + noise[i, j] for i in range(len(x)) for j in range(method.samples)])
    labels = torch.tensor([int(y[i]) for i in range(len(x)) for _ in range(method.samples)])
    loss = sum(-F.log_softmax(z, 0)[label] for z, label in zip(model(copies), labels, strict=True)) / len(labels)
    loss.backward()
    return loss.item(), gradient(model), torch.stack(found)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"samples": 1}, {"samples": 4, "sigma": 0.5}, {"sigma": 0.0, "samples": 3}, {"start": "uniform"},
        {"step_size": 0.3}, {"attack": "ddn"}, {"attack": "ddn", "samples": 3, "sigma": 0.4, "shrink": 0.3},
        {"attack": "ddn", "samples": 1, "steps": 12},
    ],
    ids=str,
)  # fmt: skip
def test_equals_a_slow_transcription(given):
    method = SmoothAdv(THREAT, **{"steps": STEPS, **given})
    model, (x, y) = network(), batch()
    metrics, found, ours = run(method, model, x, y)
    loss, expected, x_adv = slow(method, model, x, y)
    assert distance(found, expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss, rel=ROUNDING)
    torch.testing.assert_close(metrics["distance"], (x_adv - x).flatten(1).norm(dim=1), rtol=ROUNDING, atol=ROUNDING)
    assert int(ours[1].num_batches_tracked) == int(model[1].num_batches_tracked) + 1


def test_ddn_from_beyond_the_farthest_corner():
    method = SmoothAdv(Threat("l2", 4.5), attack="ddn", steps=8, samples=1)
    model, (x, y) = network(), batch()
    assert (torch.maximum(x, 1 - x).flatten(1).norm(dim=1) < 4.5).all()
    metrics, found, _ = run(method, model, x, y)
    _, expected, x_adv = slow(method, model, x, y)
    torch.testing.assert_close(metrics["distance"], (x_adv - x).flatten(1).norm(dim=1), rtol=ROUNDING, atol=ROUNDING)
    assert distance(found, expected) <= ROUNDING


def test_ddn_meets_both_verdicts():
    """Otherwise the test above would not see how the norm moves."""
    method = SmoothAdv(THREAT, attack="ddn", steps=12, samples=1)
    norms = run(method, network(), *batch())[0]["distance"]
    assert (norms == 0).any()
    assert ((norms > 0) & (norms < EPS)).any()
    assert (norms <= EPS * (1 + 1e-12)).all()


# -- identities


@pytest.mark.parametrize("start", ["zero", "uniform", "sphere", "cube"])
@pytest.mark.parametrize("samples", [1, 3])
def test_without_noise_it_is_pgdat(start, samples):
    given = {"steps": STEPS, "step_size": 0.25, "start": start}
    model, (x, y) = network(), batch()
    metrics, found, _ = run(SmoothAdv(THREAT, sigma=0.0, samples=samples, **given), model, x, y)
    theirs, expected, _ = run(PGDAT(THREAT, **given), model, x, y)
    assert distance(found, expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(float(theirs["loss"]), rel=ROUNDING)
    assert float(metrics["robust"]) == float(theirs["robust"])


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_eps_zero_is_gaussian_augmentation(attack):
    method, model, (x, y) = SmoothAdv(Threat("l2", 0.0), attack=attack, steps=STEPS), network(), batch()
    metrics, found, _ = run(method, model, x, y)
    noise, _ = slow_start(method, x, stream())
    noisy = (x[:, None] + noise).flatten(0, 1)
    theirs, expected, _ = run(Standard(), model, noisy, y.repeat_interleave(2))
    assert distance(found, expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(float(theirs["loss"]), rel=ROUNDING)
    assert (metrics["distance"] == 0).all()


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_warm_up_scales_the_threat(attack):
    model, (x, y) = network(), batch()
    warming = SmoothAdv(THREAT, attack=attack, steps=STEPS, eps_warmup=0.5)
    for progress, eps in [(0.0, 0.0), (0.25, EPS / 2), (0.5, EPS), (1.0, EPS)]:
        plain = SmoothAdv(Threat("l2", eps), attack=attack, steps=STEPS)
        assert torch.equal(run(warming, model, x, y, progress=progress)[1], run(plain, model, x, y)[1])


def test_averaged_is_the_mean_softmax_also_where_it_is_tiny():
    x = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    noise = torch.tensor([[0.0], [0.1], [0.2], [0.3]], dtype=torch.float64)
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1000.0], [-1000.0]]))
        model.bias.zero_()
    expected = []
    for i in range(2):
        gaps = [-2000.0 * float(x[i] + noise[2 * i + j]) for j in range(2)]
        top = max(gaps)  # log of the mean of two sigmoids, far in the tail
        expected.append(top + math.log(sum(math.exp(g - top) for g in gaps)) - math.log(2))
    x.requires_grad_()
    found = Averaged(model, noise)(x)
    assert found[:, 1].tolist() == pytest.approx(expected, rel=1e-12)
    (grad,) = torch.autograd.grad(found[:, 1].sum(), x)
    assert grad.flatten().tolist() == pytest.approx([-2000.0, -2000.0], rel=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_averaged_raises_half_precision(dtype):
    out = Averaged(nn.Linear(3, 2).to(dtype), torch.zeros(8, 3, dtype=dtype))(torch.rand(4, 3).to(dtype))
    assert out.shape == (4, 2)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# -- what it leaves behind, and what it costs


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"), [("pgd", STEPS + 1, STEPS + 1), ("ddn", STEPS + 1, STEPS)]
)
def test_makes_no_pass_more_than_it_needs(attack, forwards, backwards):
    model, (x, y) = network(), batch()
    sizes, back, modes = [], [], []

    def seen(module, args, out):
        sizes.append(len(args[0]))
        modes.append(module.training)
        if out.requires_grad:
            out.register_hook(lambda g: back.append(1))

    model.register_forward_hook(seen)
    SmoothAdv(THREAT, attack=attack, steps=STEPS, samples=3).backward(model, x, y, rng=stream())
    assert (len(sizes), len(back)) == (forwards, backwards)
    assert set(sizes) == {3 * N}
    assert modes == [False] * (forwards - 1) + [True]


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
def test_adversary_leaves_the_model_as_found(attack, fails):
    model, (x, y) = network(dropout=0.3), batch()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    clean, random_state, calls = x.clone(), torch.get_rng_state(), []

    def hook(_module, _args):
        calls.append(1)
        if fails and len(calls) == 2:
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    method = SmoothAdv(THREAT, attack=attack, steps=STEPS)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            method.adversary(model, x, y, rng=stream())
    else:
        x_adv, noise = method.adversary(model, x, y, rng=stream())
        assert THREAT.contains(x_adv, x).all()
        assert noise.shape == (2 * N, *x.shape[1:])
        assert not x_adv.requires_grad
    handle.remove()
    assert [m.training for m in model.modules()] == modes
    for p, (flag, grad) in zip(model.parameters(), flags, strict=True):
        assert p.requires_grad == flag
        assert p.grad is grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, clean)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_same_samples_serve_all_steps_and_the_loss():
    model, (x, y) = network(), batch()
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().unflatten(0, (N, 2))))
    SmoothAdv(THREAT, steps=3).backward(model, x, y, rng=stream())
    gaps = [z[:, 1] - z[:, 0] for z in seen]
    assert len(gaps) == 4
    assert all(torch.allclose(gap, gaps[0], rtol=0, atol=1e-14) for gap in gaps)
    assert gaps[0].abs().max() > 0.01


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma": -0.1}, {"sigma": math.nan}, {"sigma": math.inf}, {"samples": 0}, {"samples": 1.5}, {"attack": "fgsm"},
        {"steps": 0}, {"steps": 2.5}, {"step_size": -1.0}, {"step_size": math.nan}, {"start": "corner"},
        {"start": "nowhere"}, {"shrink": -0.1}, {"shrink": 1.0}, {"eps_warmup": -0.5}, {"eps_warmup": 2.0},
        {"steps": 1, "attack": "ddn"}, {"step_size": 0.1, "attack": "ddn"}, {"start": "uniform", "attack": "ddn"},
    ],
    ids=str,
)  # fmt: skip
def test_refuses_bad_settings_in_one_line(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        SmoothAdv(THREAT, **bad)
    assert "\n" not in str(error.value)


def test_refuses_another_norm_in_one_line():
    with pytest.raises(ValueError, match="l2") as error:
        SmoothAdv(Threat("linf", 0.1))
    assert "\n" not in str(error.value)
