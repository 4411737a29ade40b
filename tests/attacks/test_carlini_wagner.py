"""Carlini and Wagner's attack against a slow transcription."""

import math

import pytest
import torch
from minimum_norm import FREE, runner_up

from atent.attacks.carlini_wagner import CarliniWagner


def slow_cw(model, x, label, a):
    """The best point, and the number of points looked at."""
    best, best_norm, looks, tenth = x, math.inf, 0, max(1, a.steps // 10)
    if int(model(x[None])[0].argmax()) != label:
        best_norm = 0.0
    c, lower, upper = a.initial_const, 0.0, math.inf
    for repeat in range(a.search_steps):
        if a.search_steps >= 10 and repeat == a.search_steps - 1 and upper < math.inf:
            c = upper
        w = (0.999999 * (2 * x - 1)).atanh()
        mean, square, won, last = torch.zeros_like(x), torch.zeros_like(x), False, math.inf
        for k in range(a.steps):
            w = w.detach().requires_grad_()
            z = 0.5 * w.tanh() + 0.5
            logits = model(z[None])[0]
            gap = logits[label] - logits[runner_up(logits, label)]
            objective = ((z - x) ** 2).sum() + c * (gap + a.confidence).clamp_min(0)
            (g,) = torch.autograd.grad(objective, w)
            looks += 1
            here, objective = float((z - x).detach().norm()), objective.item()
            if gap.item() < -a.confidence:
                won = True
                if here < best_norm:
                    best, best_norm = z.detach(), here
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
            w = w - a.step_size * mean / (1 - 0.9 ** (k + 1)) / ((square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            if a.abort_early and (k + 1) % tenth == 0:
                if objective > 0.9999 * last:
                    break
                last = objective
        if won:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        c = (lower + upper) / 2 if upper < math.inf else 10 * c
    return best, looks


@pytest.mark.parametrize(
    "given",
    [
        {}, {"abort_early": True}, {"confidence": 0.7, "abort_early": True}, {"search_steps": 11, "steps": 10},
        {"initial_const": 50.0, "steps": 25, "abort_early": True},
    ],
    ids=str,
)  # fmt: skip
def test_carlini_wagner_equals_its_transcription(given, five):
    model, x, y = five
    settings = {"steps": 30, "search_steps": 4, "step_size": 0.05, "initial_const": 0.05, **given}
    a = CarliniWagner(FREE["l2"], **settings)
    out = a.run(model, x, y)
    aborted = False
    for i in range(len(x)):
        best, looks = slow_cw(model, x[i], int(y[i]), a)
        assert (out.x_adv[i] - best).abs().max() <= 1e-9
        assert (out.forwards[i], out.backwards[i]) == (looks + 2, looks)
        aborted |= looks < a.steps * a.search_steps
    assert aborted or not a.abort_early
    if a.confidence:
        logits = model(out.x_adv)
        own = logits.gather(1, y[:, None]).squeeze(1)
        found = (out.x_adv != x).flatten(1).any(1)
        assert found.sum() >= 3
        assert (logits.amax(1) - own > a.confidence)[found].all()
