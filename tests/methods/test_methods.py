"""The contract of a training method, for each entry of the registry; PGDAT and Standard the slow way."""

import copy
import dataclasses
import inspect
import itertools
import math

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.distributed import BatchShard
from atent.distributed.batch_rng import caught
from atent.distributed.batch_shard import under_way
from atent.docstrings import field_docs
from atent.methods import AWP, METHODS, PGDAT, Method, Standard
from atent.methods.awp import may_perturb
from atent.methods.base import correct, warm
from atent.testing import check_method
from atent.testing.methods import PROMISES

EPS = {"l2": 0.8, "linf": 0.2}

# What makes a method's draws vanish, so that a batch can be cut in two; absent: the method has no draws.
# Methods whose adversary never asks the network.
UNASKED = ("Standard", "Gaussian", "CROWNIBP", "Dual", "Free")
# An adversary of a single pass; all others ask the network at least twice.
ONE_PASS = ("FGSMRS",)
# Methods by bounds: they refuse batch-norm and dropout.
FIXED = ("CROWNIBP", "Dual")


pytestmark = pytest.mark.usefixtures("seeded")


def make(name, norm="linf", **given):
    """A method of the registry with a small budget."""
    cls = METHODS[name]
    names = {f.name for f in dataclasses.fields(cls)}
    if "threat" in names:
        given = {"threat": Threat(norm, EPS[norm]), **given}
    if "steps" in names:
        given = {"steps": 3, **given}
    return cls(**given)


def trainable(name, norm=True, dropout=0.3):
    """A network with batch-norm and dropout, where the method takes one."""
    return network() if name in FIXED else network(norm, dropout)


def defined(name, norm):
    """Whether the method's paper defines it for the norm; a method refuses the others."""
    if "threat" not in METHODS[name].__dataclass_fields__:
        return norm == "linf"
    try:
        make(name, norm)
    except ValueError:
        return False
    return True


CASES = [
    pytest.param(name, norm, id=f"{name}-{norm}") for name in METHODS for norm in ("linf", "l2") if defined(name, norm)
]


def run(method, model, x, y, seed=11, grad=None, **given):
    """Metrics and the gradient, on a copy of the model with ``grad`` in all .grad; dropout draws the same."""
    model = copy.deepcopy(model)
    for p in model.parameters():
        p.grad = None if grad is None else torch.full_like(p, grad)
    torch.manual_seed(21)
    state = method.init(100, tuple(x.shape[1:]), x.device)
    metrics = method.backward(model, x, y, rng=stream(seed), ids=torch.arange(len(x)), state=state, **given)
    return metrics, gradient(model)


# -- the contract


def test_the_registry_names_its_classes():
    for name, cls in METHODS.items():
        assert cls.__name__ == name
        assert issubclass(cls, Method)
        assert cls.__doc__
        assert cls.__dataclass_params__.frozen
        assert {"init", "adversary", "loss", "backward"} <= set(dir(cls))
        names = [f.name for f in dataclasses.fields(cls)]
        assert "threat" not in names or names[0] == "threat"
        # Each field explains itself on the command line.
        assert all(map(field_docs(cls).get, names)), name
        for function in ("adversary", "loss", "backward"):
            ours, contract = (inspect.signature(getattr(c, function)).parameters for c in (cls, Method))
            assert [(p.name, p.kind, p.default) for p in ours.values()] == [
                (p.name, p.kind, p.default) for p in contract.values()
            ]


MODES = [
    pytest.param(*case.values, given, id="-".join([case.id, *given.values()]))
    for case in CASES
    for given in (
        [{"mode": "eval"}, {"mode": "train"}] if "mode" in METHODS[case.values[0]].__dataclass_fields__ else [{}]
    )
]


@pytest.mark.parametrize(("name", "norm", "given"), MODES)
def test_the_contract(name, norm, given):
    method = make(name, norm, **given)
    own = "" if may_perturb(type(method)) else "AWP"
    assert check_method(method) == [p for p in PROMISES if not own or not p.startswith(own)]


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case.values[0] not in FIXED])
def test_the_contract_on_a_network_with_batch_norm_alone(name, norm):
    x, y = batch()
    assert check_method(make(name, norm), model=network(True), x=x, y=y)


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if METHODS[case.values[0]].divisible])
def test_micro_batches_sum_to_the_batch(name, norm):
    """Also of methods that draw: a part has the numbers that its samples have in the batch."""
    method, model, (x, y) = make(name, norm), network(), batch()
    metrics, full = run(method, model, x, y)
    parts = []
    for rows, w in _cuts():
        with under_way(BatchShard(N, rows)) as now, caught(model, now):
            parts.append(run(method, model, x[rows], y[rows], weight=w))
    assert distance(sum(g for _, g in parts), full) <= ROUNDING
    loss = sum(w * m["loss"] for (m, _), (_, w) in zip(parts, _cuts(), strict=True))
    assert float(loss) == pytest.approx(float(metrics["loss"]), rel=ROUNDING)


def _cuts():
    return [(slice(0, 3), 3 / N), (slice(3, N), (N - 3) / N)]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_adversary_asks_the_network(name, norm):
    """So that the contract's exceptions of the network happen inside the adversary."""
    method, model, (x, y), calls = make(name, norm), network(), batch(), []
    model.register_forward_pre_hook(lambda _module, _args: calls.append(1))
    method.adversary(model, x, y, rng=stream(), ids=torch.arange(N), state=method.init(N, (1, 6, 6), x.device))
    if name in UNASKED:
        assert not calls
    else:
        assert len(calls) == 1 if name in ONE_PASS else len(calls) > 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_two_methods_give_the_same_gradient(norm):
    model, (x, y) = network(), batch()
    # MMA pushes only samples that are right: an untrained network has none, and there MMA is plain training
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    names = [n for n in METHODS if "threat" not in METHODS[n].__dataclass_fields__ or defined(n, norm)]
    # Free's first pass is standard training by definition: its replays are tested with it; DistilledTRADES without a
    # teacher is TRADES
    names = [n for n in names if n not in ("Free", "DistilledTRADES")]
    grads = {name: run(make(name, norm), model, x, y)[1] for name in names}
    for a, b in itertools.combinations(grads, 2):
        assert distance(grads[a], grads[b]) > 1e-2, (a, b)


@pytest.mark.parametrize(
    ("name", "norm"),
    # without an adversary MART and ACL are not standard training, and Free's first pass always is: theirs are tested
    # with them
    [
        c
        for c in CASES
        if "eps_warmup" in METHODS[c.values[0]].__dataclass_fields__ and c.values[0] not in ("ACL", "MART", "Free")
    ],
)
def test_warm_up_begins_at_the_clean_batch_and_ends_at_the_full_eps(name, norm):
    model, (x, y) = network(), batch()
    # noise would not shrink with eps
    still = {"sigma": 0.0} if "sigma" in METHODS[name].__dataclass_fields__ else {}
    method, clean = make(name, norm, eps_warmup=0.5, **still), run(Standard(), model, x, y)
    start = run(method, model, x, y, progress=0.0)
    # ATENT's running average of three equal losses falls short of 1 by (1 - alpha)^3
    factor = sum(method.weights()) if hasattr(method, "weights") else 1.0
    assert float(start[0]["loss"]) == pytest.approx(factor * float(clean[0]["loss"]), rel=1e-10)
    assert distance(start[1], factor * clean[1]) <= 1e-10
    full = run(make(name, norm, **still), model, x, y)[1]
    for progress in (0.5, 1.0):
        assert torch.equal(run(method, model, x, y, progress=progress)[1], full)
    assert distance(run(method, model, x, y, progress=0.25)[1], full) > 1e-3
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="eps_warmup"):
            make(name, norm, eps_warmup=bad)


def test_the_contract_itself_is_no_method():
    with pytest.raises(TypeError, match=r"see atent\.methods\.Method"):
        Method().backward(network(), *batch(), rng=stream())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_method_is_a_frozen_value(name, norm):
    one, other = make(name, norm), make(name, norm)
    assert one == other
    assert hash(one) == hash(other)
    for field in dataclasses.fields(one):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field.name, None)


def test_a_method_names_its_threat_or_none():
    threat = Threat("linf", 0.1)
    assert PGDAT(threat).threat is threat
    assert AWP(PGDAT(threat), gamma=0.01).threat is threat
    assert Standard().threat is None
    assert AWP(Standard(), gamma=0.01).threat is None
    for given in (Standard(), copy.deepcopy(PGDAT(threat))):
        assert not hasattr(given, "thread")
    with pytest.raises(ValueError, match="PGDAT takes a Threat first"):
        PGDAT()


def test_warm():
    assert [warm(0.5, p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert warm(0.0, 0.0) == 1.0
    logits = torch.eye(4)
    assert float(correct(logits, torch.tensor([0, 1, 3, 3]))) == 0.75


# -- Standard


@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
def test_standard_is_cross_entropy(batchnorm):
    model, (x, y) = network(batchnorm, 0.3), batch()
    metrics, grad = run(Standard(), model, x, y)
    torch.manual_seed(21)
    logits = model(x)
    loss = -F.log_softmax(logits, 1)[torch.arange(N), y].mean()
    loss.backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
    assert float(metrics["clean"]) == float((logits.argmax(1) == y).double().mean())


# -- PGDAT


def slow_pgd(model, x, y, rng, norm, eps, steps, *, step_size=None, start="uniform"):
    """PGD one sample at a time, as Madry et al. state it, in eval mode; the iterates [x^0, ..., x^K]."""
    step_size = 2.5 * eps / steps if step_size is None else step_size
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    z = x.clone()
    if start == "uniform" and norm == "linf":
        z = x + eps * (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1)
    elif start == "uniform":
        u = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        r = torch.rand(len(x), 1, generator=rng, dtype=x.dtype)
        z = torch.stack([
            x[i] + eps * r[i] ** (1 / x[i].numel()) * u[i] / u[i].norm() for i in range(len(x))
        ])  # fmt: skip
    z = z.clamp(0, 1)
    iterates = [z]
    was = model.training
    model.eval()
    for _ in range(steps):
        new = []
        for i in range(len(x)):
            zi = z[i : i + 1].clone().requires_grad_()
            F.cross_entropy(model(zi), y[i : i + 1]).backward()
            g = zi.grad[0]
            if norm == "linf":
                zi = z[i] + step_size * g.sign()
                zi = torch.minimum(torch.maximum(zi, x[i] - eps), x[i] + eps)
            else:
                zi = z[i] + step_size * g / g.norm()
                d = zi - x[i]
                zi = x[i] + d * min(1.0, eps / float(d.norm()))
            new.append(zi.clamp(0, 1))
        z = torch.stack(new)
        iterates.append(z)
    model.train(was)
    for p in model.parameters():
        p.grad = None
    return iterates


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("given", [{}, {"start": "zero"}, {"step_size": 0.07}], ids=str)
def test_pgdat_equals_a_slow_transcription(norm, batchnorm, given):
    model, (x, y) = network(batchnorm, 0.3), batch()
    theirs = copy.deepcopy(model)
    torch.manual_seed(21)
    metrics = PGDAT(Threat(norm, EPS[norm]), steps=4, **given).backward(model, x, y, rng=stream())
    torch.manual_seed(21)
    last = slow_pgd(theirs, x, y, stream(), norm, EPS[norm], 4, **given)[-1]
    logits = theirs(last)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert distance(gradient(model), gradient(theirs)) <= 1e-10
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-10)
    assert float(metrics["robust"]) == float((logits.argmax(1) == y).double().mean())
    for a, b in zip(model.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=ROUNDING)


def test_pgdat_in_train_mode_attacks_as_the_loop_of_robust_overfitting():
    """Its attack sees batch statistics; there each pass moves the running ones, here the loss's pass alone does."""
    model, (x, y) = network(True), batch()
    theirs, eps, step = copy.deepcopy(model), 0.1, 0.04
    before = [b.clone() for b in model.buffers()]
    PGDAT(Threat("linf", eps), steps=3, step_size=step, start="zero", mode="train").backward(model, x, y, rng=stream())
    delta = torch.zeros_like(x)
    for _ in range(3):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(theirs(x + delta), y), delta)
        delta = (delta.detach() + step * g.sign()).clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
    moved = int(theirs[1].num_batches_tracked)
    F.cross_entropy(theirs(x + delta), y).backward()
    assert distance(gradient(model), gradient(theirs)) <= 1e-10
    count = int(before[-1])
    assert (int(model[1].num_batches_tracked), moved) == (count + 1, count + 3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgdat_keeps_the_iterate_with_the_highest_loss(norm):
    model, (x, y) = network(True), batch(n=32)
    # a step far too long, so that the last iterate is not the best for all
    given = {"steps": 5, "step_size": 3 * EPS[norm]}
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    best = PGDAT(Threat(norm, EPS[norm]), keep="best", **given).adversary(model, x, y, rng=stream())
    handle.remove()
    assert len(seen) == 6
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(copied(z), y, reduction="none") for z in seen[1:]])
        found = F.cross_entropy(copied(best), y, reduction="none")
    assert torch.equal(found, losses.amax(0))
    assert torch.equal(best, torch.stack(seen[1:])[losses.argmax(0), torch.arange(len(x))])
    assert (losses.argmax(0) != 4).any()
    last = PGDAT(Threat(norm, EPS[norm]), keep="last", **given).adversary(model, x, y, rng=stream())
    assert torch.equal(last, seen[-1])


def test_pgdat_never_keeps_the_start():
    class Peak(nn.Module):
        """The loss of class 0 is highest in the middle of the box."""

        def forward(self, x):
            d = (x - 0.5).flatten(1).pow(2).sum(1)
            return torch.stack([d, torch.zeros_like(d)], 1)

    model, x, y = (
        Peak(),
        torch.full((N, 1, 3, 3), 0.5, dtype=torch.float64),
        torch.zeros(N, dtype=torch.int64),
    )
    # each step jumps over the middle to the sphere, below every start inside it
    best = PGDAT(Threat("l2", 0.3), steps=3, step_size=0.6, keep="best").adversary(model, x, y, rng=stream())
    torch.testing.assert_close((best - x).flatten(1).norm(dim=1), torch.full((N,), 0.3, dtype=torch.float64))


def test_pgdat_shrinks_a_given_step_with_eps():
    method = PGDAT(Threat("l2", 1.0), steps=5, step_size=0.2, eps_warmup=0.5)
    for progress, factor in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)]:
        attack = method.attack(progress)
        assert (attack.threat.eps, attack.resolved_step) == pytest.approx((factor, 0.2 * factor))
    assert PGDAT(Threat("l2", 1.0), steps=5, eps_warmup=0.5).attack(0.25).resolved_step == pytest.approx(0.25)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["zero", "uniform"])
def test_pgdat_stays_in_the_ball_and_the_box(norm, start):
    model, (x, y) = network(True), batch()
    threat = Threat(norm, EPS[norm])
    assert threat.contains(PGDAT(threat, start=start).adversary(model, x, y, rng=stream()), x).all()


def test_pgdat_modes_differ_with_batchnorm():
    model, (x, y) = network(True), batch()
    a, b = (PGDAT(Threat("l2", 0.8), mode=mode).adversary(model, x, y, rng=stream()) for mode in ("eval", "train"))
    assert float((a - b).abs().max()) > 1e-3


def test_pgdat_in_train_mode_moves_batchnorm_once_per_batch():
    model, (x, y) = network(True), batch()
    before = {k: v.clone() for k, v in model[1].named_buffers()}
    last = PGDAT(Threat("l2", 0.8), mode="train").adversary(model, x, y, rng=stream())
    assert all(torch.equal(v, before[k]) for k, v in model[1].named_buffers())
    theirs = copy.deepcopy(model)
    PGDAT(Threat("l2", 0.8), mode="train").backward(model, x, y, rng=stream())
    theirs(last)
    for a, b in zip(model.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=0)


def test_the_adversarys_loss_is_above_the_clean_one():
    model, (x, y) = network(), batch()
    clean = run(Standard(), model, x, y)[0]["loss"]
    for norm in EPS:
        assert run(PGDAT(Threat(norm, EPS[norm])), model, x, y)[0]["loss"] > clean


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"step_size": -1.0}, {"step_size": math.nan}, {"start": "corner"}, {"start": "nowhere"},
        {"keep": "first"}, {"mode": "as-is"}, {"mode": "foo"}, {"eps_warmup": -0.5}, {"eps_warmup": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_pgdat_refuses_bad_settings_in_one_line(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        PGDAT(Threat("l2", 1.0), **bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["SmoothAdv", "TRADESSmoothing"])
def test_smoothing_methods_refuse_linf_and_name_l2(name):
    with pytest.raises(ValueError, match="l2") as caught:
        make(name, "linf")
    assert "\n" not in str(caught.value)
