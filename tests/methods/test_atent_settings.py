"""The settings of ATENT, and that the model and the random numbers come back as they were."""

import dataclasses
import math
import random

import numpy as np
import oracle_atent as oracle
import pytest
import torch
from atent_networks import EPS, NETWORKS, Residual, batch, network, recorded
from kit import ROUNDING, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.methods import ATENT
from atent.rng import Batch

pytestmark = pytest.mark.usefixtures("seeded")


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
