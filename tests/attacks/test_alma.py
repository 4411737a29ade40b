"""ALMA against a slow transcription; its penalty, constraint and memory."""

import math

import pytest
import torch
from minimum_norm import FREE, assert_same_walk, logits_and_gradient, runner_up

from atent.attacks.alma import ALMA, alpha_of, penalty_slope


def penalty(g, rho, m, cubic):
    if g < 0:
        return m * g / (1 - rho * g)
    return m * g + m * rho * g**2 + (rho**2 * g**3 / 6 if cubic else 0)


def slow_alma(model, x, label, a):
    def constraint(v):
        top = v.sort(descending=True).values
        gap = v[label] - v[runner_up(v, label)] + a.tolerance
        return gap / (top[0] - top[2] + 1e-8) if dlr else gap

    alpha = min(0.9, max(0.2, 0.9 + 0.4 * math.log10(a.steps / 1000))) if a.alpha is None else a.alpha
    first_step, dlr = a.first_step or 0.1, a.constraint in (None, "dlr")
    rho, m, square, momentum = a.rho_init, a.multiplier_init, torch.ones_like(x), torch.zeros_like(x)
    z, best, best_norm, found_at, rho_grew, seen = x, x, math.inf, None, 0, []
    for k in range(a.steps):
        seen.append(z)
        logits, slope = logits_and_gradient(model, z, constraint)
        g = float(constraint(logits))
        if k == 0:
            before = g
        elif (k + 1) % a.check_steps == 0:
            if found_at is None and g >= a.tau * before:
                rho, rho_grew = a.gamma * rho, rho_grew + 1
            before = g

        def lagrangian(rho, m, g=g):
            h = torch.tensor(g, dtype=torch.float64, requires_grad=True)
            return float(torch.autograd.grad(penalty(h, rho, m, a.penalty == "p2"), h)[0])

        if k:
            m = min(max(alpha * m + (1 - alpha) * lagrangian(rho, m), 1e-6), 1e12)
        here = float((z - x).norm())
        if g < 0:
            found_at = k if found_at is None else found_at
            if here < best_norm:
                best, best_norm = z, here
        descent = lagrangian(rho, m) * slope
        if k == 0:
            low, high = 0.0, 1.0
            while float(((x - high * descent).clamp(0, 1) - x).norm()) <= first_step:
                high *= 2
            for _ in range(200):
                mid = (low + high) / 2
                near = float(((x - mid * descent).clamp(0, 1) - x).norm()) <= first_step
                low, high = (mid, high) if near else (low, mid)
            rate = high
        else:
            descent = descent + (z - x) / here
        square = alpha * square + (1 - alpha) * descent**2
        momentum = alpha * momentum + descent / (square.sqrt() + 1e-8)
        decay = 1.0 if found_at is None else a.final_rate ** ((k - found_at) / (a.steps - found_at))
        z = (z - rate * decay * momentum).clamp(0, 1)
    return best, seen, rho_grew


@pytest.mark.parametrize(
    "given",
    [
        {}, {"alpha": 0.9, "penalty": "p3"},
        {"constraint": "margin", "rho_init": 0.3, "multiplier_init": 0.2, "tolerance": 0.05},
        {"alpha": 0.5, "check_steps": 3, "tau": 0.999, "gamma": 1.5, "first_step": 0.02, "final_rate": 0.1},
        {"alpha": 0.9, "multiplier_init": 1e-3, "first_step": 0.01, "check_steps": 4, "tau": 0.5, "gamma": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_alma_equals_its_transcription(given, five):
    model, x, y = five
    attack, grew = ALMA(FREE["l2"], steps=40, **given), []

    def slow(*args):
        out = slow_alma(*args, attack)
        grew.append(out[2])
        return out

    assert_same_walk(attack, slow, model, x, y)
    if given.get("tau") == 0.5:
        assert max(grew) > 0  # the penalty's growth was seen


def test_the_penalty_slope_is_a_derivative():
    g = torch.linspace(-3, 3, 13, dtype=torch.float64)
    rho, m, h = torch.full_like(g, 0.7), torch.full_like(g, 1.3), 1e-6
    for cubic in (False, True):
        found = penalty_slope(g, rho, m, cubic)
        for v, slope in zip(g.tolist(), found.tolist()):
            difference = (penalty(v + h, 0.7, 1.3, cubic) - penalty(v - h, 0.7, 1.3, cubic)) / (2 * h)
            assert slope == pytest.approx(difference, rel=1e-5)


def test_alma_on_two_classes_takes_the_margin_unless_the_ratio_is_asked_for(two_class):
    model, x, y, _ = two_class()
    margin = ALMA(FREE["l2"], steps=30, constraint="margin")(model, x, y)
    assert torch.equal(ALMA(FREE["l2"], steps=30)(model, x, y), margin)
    with pytest.raises(ValueError, match=r"needs 3 classes or more: use constraint='margin', got 2 classes"):
        ALMA(FREE["l2"], steps=3, constraint="dlr")(model, x, y)


def test_almas_memory_grows_with_its_budget():
    assert [round(alpha_of(steps), 3) for steps in (2, 10, 100, 1000, 5000)] == [0.2, 0.2, 0.5, 0.9, 0.9]
