"""Settings at which a method, an attack or a bound is a simpler one."""

import copy

import pytest
import torch
from kit import ROUNDING, batch, distance, gradient, network, stream

from atent import Threat
from atent.attacks import DDN, IFGS, PGD, Langevin
from atent.certify import bounds, margins
from atent.methods import ATENT, FGSMRS, PGDAT, SmoothAdv

EPS = {"linf": 0.2, "l2": 0.8}
STILL = {"noise": 0.0, "gamma": 0.0, "start": "zero", "projection": "every"}
"""A chain without noise and anchor term, from x, projected after each step."""


def run(method, model, x, y):
    """Metrics, gradient and buffers, on a copy of the model."""
    model = copy.deepcopy(model)
    metrics = method.backward(model, x, y, rng=stream())
    return metrics, gradient(model), list(model.buffers())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", ["released", "published"])
def test_without_noise_anchor_and_average_atent_is_pgdat(norm, mode, variant):
    """At alpha 1 the average is the last iterate's loss, and the chain is PGD's."""
    model, (x, y), threat = network(norm=True), batch(), Threat(norm, EPS[norm])
    given = {"steps": 4, "step_size": EPS[norm] / 3, "mode": mode}
    step = {"gradient": "sign" if norm == "linf" else "unit"}
    ours = run(ATENT(threat, alpha=1.0, variant=variant, **STILL, **step, **given), model, x, y)
    theirs = run(PGDAT(threat, start="zero", **given), model, x, y)
    assert distance(ours[1], theirs[1]) <= ROUNDING
    assert float(ours[0]["loss"]) == pytest.approx(float(theirs[0]["loss"]), rel=ROUNDING)
    if mode == "eval":
        # In train mode ATENT's chain updates the statistics of batch-norm too.
        for a, b in zip(ours[2], theirs[2], strict=True):
            torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("start", ["zero", "uniform"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_fgsm_rs_is_pgdat_with_one_step(start, mode):
    model, (x, y), threat = network(norm=True), batch(), Threat("linf", 0.1)
    ours = run(FGSMRS(threat, start=start, mode=mode), model, x, y)
    theirs = run(PGDAT(threat, 1, 1.25 * 0.1, start=start, mode=mode), model, x, y)
    assert torch.equal(ours[1], theirs[1])
    assert all(torch.equal(a, b) for a, b in zip(ours[2], theirs[2], strict=True))


def test_without_noise_the_adversary_of_smoothadv_by_ddn_is_ddn():
    """From the radius as its first norm, and projected onto the ball."""
    model, (x, y), threat = network(norm=True), batch(), Threat("l2", 0.5)
    y = copy.deepcopy(model).eval()(x).argmax(1)
    method = SmoothAdv(threat, sigma=0.0, samples=1, attack="ddn", steps=8, shrink=0.1)
    ours, _ = method.adversary(model, x, y, rng=stream())
    theirs = DDN(Threat("l2", "inf"), steps=8, init_norm=0.5, gamma=0.1)(model, x, y)
    assert float((ours - threat.project(theirs, x)).abs().max()) <= ROUNDING
    assert float(threat.distance(ours, x).max()) > 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_noise_and_anchor_langevin_is_ifgs(norm):
    model, (x, y), threat = network().eval(), batch(), Threat(norm, EPS[norm])
    given = {"steps": 5, "step_size": EPS[norm] / 3}
    chain = Langevin(threat, gradient="sign" if norm == "linf" else "unit", **STILL, **given)(model, x, y)
    assert float((chain - IFGS(threat, **given)(model, x, y)).abs().max()) <= ROUNDING
    assert float((chain - x).abs().max()) > 0.01


@pytest.mark.parametrize(
    "threat",
    [
        Threat("linf", 0.2),
        Threat("l2", 0.8),
        Threat("l1", 3.0),
        Threat("l0", 4),
        Threat("patch", 2, side=2),
    ],
    ids=lambda threat: threat.norm,
)
def test_ifgs_is_pgd_from_x(threat):
    model, (x, y) = network().eval(), batch()
    step = 0.1 if threat.norm in ("linf", "l2") else 1.0
    given = {"steps": 5, "step_size": step}
    assert torch.equal(IFGS(threat, **given)(model, x, y), PGD(threat, start="zero", **given)(model, x, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_steps_alpha_crown_is_crown(norm):
    model, (x, y), threat = network().eval(), batch(), Threat(norm, EPS[norm] / 10)
    with torch.no_grad():
        for ours, theirs in zip(bounds(model, x, threat, "alpha-crown", steps=0), bounds(model, x, threat, "crown")):
            assert torch.equal(ours, theirs)
        ours = margins(model, x, y, threat, "alpha-crown", steps=0)
        assert torch.equal(ours, margins(model, x, y, threat, "crown"))
