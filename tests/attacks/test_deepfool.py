"""DeepFool against a slow transcription, and what its samples cost."""

import math

import pytest
import torch
from minimum_norm import FREE, Recorded, logits_and_gradient

from atent.attacks.deepfool import DeepFool


def slow_deepfool(model, x, label, norm, steps, overshoot, classes):
    logits = model(x[None])[0].detach()
    order = sorted((k for k in range(len(logits)) if k != label), key=lambda k: -float(logits[k]))[: classes - 1]
    total, seen = torch.zeros_like(x), [x]
    for _ in range(steps):
        z = (x + (1 + overshoot) * total).clamp(0, 1)
        logits = model(z[None])[0].detach()
        if int(logits.argmax()) != label:
            return z, seen
        seen.append(z)
        nearest, move = math.inf, None
        for k in order:
            _, w = logits_and_gradient(model, z, lambda v, k=k: v[k] - v[label])
            far = abs(float(logits[k] - logits[label])) / float(w.norm() if norm == "l2" else w.abs().sum())
            if far < nearest:
                nearest, move = far, (far + 1e-4) * (w / w.norm() if norm == "l2" else w.sign())
        total = total + move
    z = (x + (1 + overshoot) * total).clamp(0, 1)
    return (z if int(model(z[None])[0].argmax()) != label else x), seen


@pytest.mark.parametrize("norm", FREE)
@pytest.mark.parametrize("given", [{}, {"classes": 3, "overshoot": 0.3}, {"steps": 1}, {"classes": 50, "steps": 7}])
def test_deepfool_equals_its_transcription(norm, given, five):
    model, x, y = five
    a = DeepFool(FREE[norm], **given)
    found, recorded = a.run(model, x, y), Recorded(model)
    a(recorded, x, y)
    for i in range(len(x)):
        best, seen = slow_deepfool(model, x[i], int(y[i]), norm, a.steps, a.overshoot, a.classes)
        assert (found.x_adv[i] - best).abs().max() <= 1e-9
        # x is ranked before it is looked at, and the verdict takes one more
        assert found.forwards[i] >= len(seen)
    if given == {"steps": 1}:
        assert not found.success.all()


def test_who_has_fallen_leaves_deepfool(conv_net, batch):
    model, (x, y) = conv_net(), batch(30)
    wrong = model(x).argmax(1) != y
    out = DeepFool(FREE["l2"]).run(model, x, y)
    assert (out.backwards[wrong] == 0).all()
    assert (out.forwards[wrong] == 2).all()
    assert set(out.backwards[~wrong].tolist()) <= {9 * k for k in (2, 4, 8, 16)}
