"""DDN against a slow transcription."""

import math

import pytest
import torch
from minimum_norm import FREE, assert_same_walk, logits_and_gradient
from torch.nn import functional as F

from atent.attacks.ddn import DDN


def slow_ddn(model, x, label, steps, init, gamma, levels):
    delta, norm, best, best_norm, seen = torch.zeros_like(x), init, x, math.inf, []
    farthest = float(torch.maximum(x, 1 - x).norm())
    for k in range(steps):
        z = x + delta
        seen.append(z)
        logits, g = logits_and_gradient(model, z, lambda v: -F.log_softmax(v, 0)[label])
        adversarial = int(logits.argmax()) != label
        if adversarial and float(delta.norm()) < best_norm:
            best, best_norm = z, float(delta.norm())
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * (k + 1) / steps)) / 2
        delta = delta + rate * g / g.norm()
        norm = min(norm * (1 - gamma if adversarial else 1 + gamma), farthest)
        z = (x + norm * delta / delta.norm()).clamp(0, 1)
        delta = (z if levels is None else (z * (levels - 1)).round() / (levels - 1)) - x
    return best, seen


@pytest.mark.parametrize("levels", [None, 17, 40])
def test_ddn_equals_its_transcription(levels, five):
    model, x, y = five
    attack = DDN(FREE["l2"], steps=40, init_norm=0.5, gamma=0.07, levels=levels)
    found = assert_same_walk(attack, lambda m, z, label: slow_ddn(m, z, label, 40, 0.5, 0.07, levels), model, x, y)
    assert (found != x).flatten(1).any(1).tolist() == [True, True, False, True, True]
    if levels is not None:
        assert ((found[0] * (levels - 1)) - (found[0] * (levels - 1)).round()).abs().max() < 1e-9
