"""Gaussian, TRADES and TRADES with smoothing against slow transcriptions of their equations."""

import contextlib
import copy
import dataclasses
import inspect
import itertools
import math

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, stream
from kit import network as _network
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods.base import Method
from atent.methods.gaussian import Gaussian
from atent.methods.standard import Standard
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

EPS = {"l2": 0.8, "linf": 0.2}
SIGMA = 0.12


pytestmark = pytest.mark.usefixtures("seeded")


def threat(norm, eps=None, box=(0.0, 1.0)):
    return Threat(norm, EPS[norm] if eps is None else eps, box)


CASES = [
    pytest.param(Gaussian(SIGMA), id="Gaussian"),
    pytest.param(TRADES(threat("linf"), steps=3), id="TRADES-linf"),
    pytest.param(TRADES(threat("l2"), steps=3), id="TRADES-l2"),
    pytest.param(TRADESSmoothing(threat("l2"), steps=3), id="TRADESSmoothing"),
]
KL_CASES = CASES[1:]


def run(method, model, x, y, seed=11, **given):
    """Metrics, the gradient and the buffers, on a copy of the model; dropout draws the same."""
    model = copy.deepcopy(model)
    model.zero_grad()
    torch.manual_seed(21)
    metrics = method.backward(model, x, y, rng=stream(seed), ids=torch.arange(len(x)), **given)
    return metrics, gradient(model), list(model.buffers())


def network(norm=True, dropout=0.0, seed=3):
    return _network(norm, dropout, seed)


def same_buffers(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


# -- the contract


@pytest.mark.parametrize("cls", [Gaussian, TRADES, TRADESSmoothing])
def test_keeps_to_the_contract(cls):
    assert issubclass(cls, Method)
    assert cls.__doc__
    assert cls.__dataclass_params__.frozen
    names = [f.name for f in dataclasses.fields(cls)]
    assert "threat" not in names or names[0] == "threat"
    for function in ("adversary", "loss", "backward"):
        ours, contract = (inspect.signature(getattr(c, function)).parameters for c in (cls, Method))
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in contract.values()
        ]
    # each field explains itself on the command line
    source = inspect.getsource(cls)
    for name in names:
        assert '    """' in source.split(f"\n    {name}: ")[1].split("\n")[1], name


def test_the_defaults_are_the_papers():
    method = TRADESSmoothing()
    assert (method.threat, method.sigma, method.beta) == (Threat("l2", 0.435), 0.12, 6.0)
    assert Gaussian().sigma == 0.12
    assert TRADES(threat("linf")).beta == 6.0


@pytest.mark.parametrize("method", CASES)
def test_backward_adds_weight_times_the_gradient(method):
    model, (x, y) = network(dropout=0.3), batch()
    metrics, full, _ = run(method, model, x, y)
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.grad = torch.full_like(p, -3.0)
    torch.manual_seed(21)
    weighted = method.backward(copied, x, y, rng=stream(), weight=0.25)
    assert distance(gradient(copied) + 3.0, 0.25 * full) <= ROUNDING
    torch.testing.assert_close(weighted["loss"], metrics["loss"], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("method", CASES)
def test_the_same_random_numbers_give_the_same_bits_and_others_do_not(method):
    model, (x, y) = network(dropout=0.3), batch()
    (a, one, _), (b, two, _) = (run(method, model, x, y) for _ in range(2))
    assert torch.equal(one, two)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert distance(run(method, model, x, y, seed=12)[1], one) > 1e-8


@pytest.mark.parametrize("method", KL_CASES)
@pytest.mark.parametrize("fails", [0, 1, 2, 4], ids=["ends", "first", "second", "last"])
def test_adversary_leaves_the_model_as_found(method, fails):
    model, (x, y) = network(dropout=0.3), batch()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    clean, random_state, calls = x.clone(), torch.get_rng_state(), []

    def hook(_module, _args):
        calls.append(1)
        if len(calls) == fails:
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="stop") if fails else contextlib.nullcontext():
        method.adversary(model, x, y, rng=stream(), ids=torch.arange(N))
    assert len(calls) == (fails or 4)
    handle.remove()
    assert [m.training for m in model.modules()] == modes
    for p, (flag, grad) in zip(model.parameters(), flags, strict=True):
        assert p.requires_grad == flag
        assert p.grad is grad
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("method", CASES)
def test_backward_leaves_the_input_the_modes_and_the_weights(method):
    model, (x, y) = network(dropout=0.3), batch()
    clean, modes = x.clone(), [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    method.backward(model, x, y, rng=stream())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


class Recorded(nn.Module):
    """Remembers each input, its mode and whether a graph was built, and counts passes backwards."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen, self.backwards = net, [], 0

    def forward(self, x):
        self.seen.append((x.detach().clone(), self.training, torch.is_grad_enabled()))
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self.back)
        return out

    def back(self, grad):
        self.backwards += 1


@pytest.mark.parametrize("method", KL_CASES)
def test_makes_k_plus_3_forwards_and_no_more(method):
    model, (x, y) = Recorded(network()), batch()
    method.backward(model, x, y, rng=stream())
    # the clean logits once in eval mode, without a graph; K input gradients; clean and perturbed in train mode
    assert [(training, graph) for _, training, graph in model.seen] == [
        (False, False), *[(False, True)] * 3, (True, True), (True, True)
    ]  # fmt: skip
    assert model.backwards == 3 + 2
    first, clean, robust = model.seen[0][0], model.seen[4][0], model.seen[5][0]
    assert torch.equal(first, clean)
    noise = clean - x
    assert (noise.norm() == 0) == isinstance(method, TRADES)
    assert method.threat.contains((robust - noise).clamp(0, 1), x).all()
    assert float((robust - clean).abs().max()) > 0.01


def test_without_a_kl_only_the_clean_batch_is_seen():
    for method in (Gaussian(), TRADES(threat("l2"), beta=0), TRADESSmoothing(beta=0)):
        model = Recorded(network())
        method.backward(model, *batch(), rng=stream())
        assert [(training, graph) for _, training, graph in model.seen] == [(True, True)]
        assert model.backwards == 1


@pytest.mark.parametrize("method", CASES)
def test_metrics_say_what_loss_says(method):
    model, (x, y) = network(), batch()
    found, grad, _ = run(method, model, x, y)
    assert all(v.shape == () and not v.requires_grad and torch.isfinite(v) for v in found.values())
    loss, metrics = method.loss(model, x, y, method.adversary(model, x, y, rng=stream()))
    assert float(found["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
    for key, value in metrics.items():
        torch.testing.assert_close(found[key], value, rtol=ROUNDING, atol=ROUNDING)
    if isinstance(method, Gaussian):
        assert set(found) == {"loss", "noisy"}
        return
    assert set(found) == {"loss", "clean", "robust", "clean_loss", "robust_loss"}
    parts = float(found["clean_loss"]) + method.beta * float(found["robust_loss"])
    assert float(found["loss"]) == pytest.approx(parts, rel=ROUNDING)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert distance(grad, expected) <= 1e-10


# -- Gaussian


@pytest.mark.parametrize("sigma", [0.12, 1.5])
def test_gaussian_is_cross_entropy_at_noisy_inputs_outside_the_box_too(sigma):
    model, (x, y) = network(dropout=0.3), batch()
    metrics, grad, buffers = run(Gaussian(sigma), model, x, y)
    noisy = x + sigma * torch.randn(x.shape, generator=stream(), dtype=x.dtype)
    assert noisy.min() < 0
    assert noisy.max() > 1
    torch.manual_seed(21)
    logits = model(noisy)
    loss = -torch.log_softmax(logits, 1)[torch.arange(N), y].mean()
    loss.backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
    assert float(metrics["noisy"]) == float((logits.argmax(1) == y).double().mean())
    same_buffers(buffers, model.buffers())


def test_gaussian_without_noise_is_standard_bit_for_bit_and_draws_nothing():
    model, (x, y) = network(dropout=0.3), batch()
    (a, ours, one), (b, theirs, two) = (run(m, model, x, y) for m in (Gaussian(0.0), Standard()))
    assert torch.equal(ours, theirs)
    assert torch.equal(a["loss"], b["loss"])
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
    rng = stream()
    Gaussian(0.0).backward(model, x, y, rng=rng)
    assert torch.equal(rng.get_state(), stream().get_state())


# -- TRADES


def slow_kl(p_logits, q_logits):
    """KL(softmax(p_logits) || softmax(q_logits)) of each row, as it is written."""
    p, q = torch.softmax(p_logits, 1), torch.softmax(q_logits, 1)
    return (p * (p.log() - q.log())).sum(1)


def slow_adversary(model, x, rng, norm, eps, steps, step_size=None, noise=0.0, start_noise=0.001, box=(0.0, 1.0)):
    """The inner maximisation one sample at a time, in eval mode, the clean logits anew for each step."""
    step_size = 2.5 * eps / steps if step_size is None else step_size
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    begin = x + start_noise * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    was = model.training
    model.eval()
    out, touched = [], {"ball": False, "box": False}
    for i in range(len(x)):
        xi, z = x[i : i + 1], begin[i : i + 1]
        n = noise[i : i + 1] if isinstance(noise, torch.Tensor) else noise
        for _ in range(steps):
            z = z.detach().requires_grad_()
            slow_kl(model(xi + n).detach(), model(z + n)).sum().backward()
            g = z.grad
            with torch.no_grad():
                if norm == "linf":
                    z = z + step_size * torch.sign(g)
                    z = torch.minimum(torch.maximum(z, xi - eps), xi + eps)
                else:
                    z = z + step_size * g / g.norm()
                    if (z - xi).norm() > eps:
                        touched["ball"] = True
                        z = xi + (z - xi) * (eps / (z - xi).norm())
                touched["box"] |= bool((z < box[0]).any() or (z > box[1]).any())
                z = torch.clamp(z, *box)
        out.append(z.detach())
    model.train(was)
    model.zero_grad()
    return torch.cat(out), touched


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


# -- TRADES with smoothing


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


# -- bad settings


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"steps": 2.5}, {"step_size": -1.0}, {"step_size": math.nan}, {"beta": -0.1}, {"beta": math.inf},
        {"start_noise": 0.0}, {"start_noise": -1.0}, {"start_noise": math.nan}, {"eps_warmup": -0.5},
        {"eps_warmup": 2.0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cls", [TRADES, TRADESSmoothing])
def test_refuses_bad_settings_in_one_line(cls, bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        cls(threat("l2"), **bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", [Gaussian, TRADESSmoothing])
@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, "0.1", True])
def test_refuses_a_bad_sigma_in_one_line(cls, sigma):
    with pytest.raises(ValueError, match="sigma") as error:
        cls(sigma=sigma)
    assert "\n" not in str(error.value)


def test_trades_smoothing_refuses_other_norms_and_names_l2():
    with pytest.raises(ValueError, match="l2") as error:
        TRADESSmoothing(threat("linf"))
    assert "\n" not in str(error.value)
