"""Gaussian training against its definition."""

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, stream
from trades_family import network, run, same_buffers

from atent.methods.gaussian import Gaussian
from atent.methods.standard import Standard

pytestmark = pytest.mark.usefixtures("seeded")


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
