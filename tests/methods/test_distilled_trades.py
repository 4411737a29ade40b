"""Distilled-TRADES against a slow transcription of its formula, and where it becomes another method."""

import copy
from contextlib import nullcontext

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, network, stream
from trades_family import EPS, slow_adversary, slow_kl, threat

from atent.data import DataSettings, load
from atent.methods import TRADES, DistilledTRADES
from atent.models import build
from atent.train import calibration, preflight

BETA = 3.0
# Samples of the batch, by their numbers in the training set.
IDS = torch.arange(N) + 4


def teacher():
    """Logits of a teacher on a training set of 20 images."""
    return torch.randn(20, 5, dtype=torch.float64, generator=stream(4))


def run(method, model, x, y, **given):
    model = copy.deepcopy(model)
    model.zero_grad()
    metrics = method.backward(model, x, y, rng=stream(), ids=IDS, **given)
    return metrics, gradient(model), list(model.buffers())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("share", "tau"), [(0.3, 2.0), (1.0, 0.5), (0.0, 2.0)])
def test_it_equals_a_slow_transcription(norm, share, tau):
    model, (x, y), logits = network(norm=True), batch(), teacher()
    method = DistilledTRADES(threat(norm), share=share, temperature=tau, steps=4, beta=BETA)
    metrics, grad, buffers = run(method, model, x, y, state={"teacher": logits})
    x_adv, _ = slow_adversary(model, x, stream(), norm, EPS[norm], 4)
    clean, robust = model(x), model(x_adv)
    hard = soft = gap = 0.0
    for i, z in enumerate(clean):
        t = logits[int(IDS[i])]
        hard = hard - torch.log(torch.softmax(z, 0)[int(t.argmax())]) / N
        soft = soft + tau**2 * slow_kl(t[None] / tau, z[None] / tau)[0] / N
        gap = gap + slow_kl(z[None], robust[i : i + 1])[0] / N
    fit = (1 - share) * hard + share * soft
    (fit + BETA * gap).backward()
    assert distance(grad, gradient(model)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx((fit + BETA * gap).item(), rel=ROUNDING)
    assert float(metrics["clean_loss"]) == pytest.approx(fit.item(), rel=ROUNDING)
    assert float(metrics["robust_loss"]) == pytest.approx(gap.item(), rel=ROUNDING)
    # The labels of the training set are used for the accuracies alone.
    assert float(metrics["clean"]) == float((clean.argmax(1) == y).double().mean())
    for ours, theirs in zip(buffers, model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_pseudo_labels_alone_it_is_trades_on_them(norm):
    model, (x, y), logits = network(norm=True), batch(), teacher()
    given = {"steps": 3, "beta": BETA}
    ours = run(DistilledTRADES(threat(norm), share=0.0, **given), model, x, y, state={"teacher": logits})
    theirs = run(TRADES(threat(norm), **given), model, x, logits[IDS].argmax(1))
    assert torch.equal(ours[1], theirs[1])
    assert all(torch.equal(a, b) for a, b in zip(ours[2], theirs[2], strict=True))


def test_a_certain_teacher_that_is_right_gives_the_gradient_of_trades():
    """Softmax of logits 0 and 1000 is one-hot in float64: the divergence is the cross-entropy of the label."""
    model, (x, y) = network(), batch()
    logits = 1000.0 * torch.eye(5, dtype=torch.float64)[y]
    state = {"teacher": torch.cat([torch.zeros(4, 5, dtype=torch.float64), logits])}
    ours = run(
        DistilledTRADES(threat("linf"), share=0.6, temperature=1.0, steps=2, beta=BETA), model, x, y, state=state
    )
    theirs = run(TRADES(threat("linf"), steps=2, beta=BETA), model, x, y)
    assert distance(ours[1], theirs[1]) <= ROUNDING
    assert float(ours[0]["loss"]) == pytest.approx(float(theirs[0]["loss"]), rel=ROUNDING)


@pytest.mark.parametrize("given", [{}, {"state": {}, "ids": IDS}, {"state": {"teacher": teacher()}}])
def test_a_loop_that_lacks_the_teachers_predictions_does_not_train_on_the_labels(given):
    model, (x, y) = network(), batch()
    with pytest.raises(ValueError, match="the predictions of the teacher runs/none are missing") as error:
        DistilledTRADES(threat("linf"), "runs/none", steps=1).backward(model, x, y, **given)
    assert "\n" not in str(error.value)
    assert all(p.grad is None for p in model.parameters())


def test_a_step_on_trial_needs_no_teacher():
    """A resumed training reads the predictions after the trial, which must have the result of the first start."""
    data, model = load(DataSettings("digits", limit=20)), build("digits_cnn")
    method = DistilledTRADES(threat("linf"), "runs/none", share=0.2, temperature=1.5, steps=1)
    step = preflight.gradient_of(calibration.stand_in(method), data, {}, nullcontext(), model)
    step(1)
    step(2)
