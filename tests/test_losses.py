import math

import pytest
import torch

from atent.losses import LOSSES, boosted_cross_entropy, dlr, kl, margin


def logits(n=40, classes=6, seed=0, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, classes, generator=g, dtype=torch.float64)
    return z, torch.randint(classes, (n,), generator=g)


def slow_log_softmax(row):
    top = max(row)
    total = math.log(math.fsum(math.exp(v - top) for v in row))
    return [v - top - total for v in row]


def slow(name, row, y):
    log_p = slow_log_softmax(row)
    other = max(v for i, v in enumerate(row) if i != y)
    if name == "ce":
        return -log_p[y]
    if name == "margin":
        return other - row[y]
    if name == "dlr":
        ordered = sorted(row, reverse=True)
        return (other - row[y]) / (ordered[0] - ordered[2])
    best = max(p for i, p in enumerate(map(math.exp, log_p)) if i != y)
    return -log_p[y] - math.log(1 - best)


ALL = {**LOSSES, "bce": boosted_cross_entropy}


@pytest.mark.parametrize("name", ALL)
def test_losses_match_slow_transcriptions(name):
    z, y = logits()
    got = ALL[name](z, y)
    assert got.shape == (40,)
    assert got.tolist() == pytest.approx([slow(name, r, c) for r, c in zip(z.tolist(), y.tolist())], rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_is_positive_exactly_where_the_sample_is_wrong(classes):
    z, y = logits(200, classes, seed=1)
    assert torch.equal(margin(z, y) > 0, z.argmax(1) != y)
    assert 0 < int((margin(z, y) > 0).sum()) < 200


@pytest.mark.parametrize("name", ALL)
def test_gradients_match_finite_differences(name):
    z, y = logits(12, seed=2)
    grad = torch.autograd.functional.jacobian(lambda v: ALL[name](v, y).sum(), z)
    h = 1e-5
    for j in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, j] = h
        fd = (ALL[name](z + step, y) - ALL[name](z - step, y)) / (2 * h)
        assert (grad[:, j] - fd).abs().max() <= 1e-7
    assert grad.abs().sum() > 1


@pytest.mark.parametrize("name", ALL)
def test_each_sample_is_independent(name):
    z, y = logits(seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:7]
    assert (ALL[name](z[order], y[order]) - ALL[name](z, y)[order]).abs().max() <= 1e-14


def test_dlr_is_unchanged_by_shift_and_scale():
    z, y = logits(seed=4)
    for scale, shift in ((1.0, 100.0), (1e-3, 0.0), (1e4, -7.0)):
        assert dlr(scale * z + shift, y).tolist() == pytest.approx(dlr(z, y).tolist(), rel=1e-7)
    right = z.argmax(1)
    assert (dlr(z, right) <= 0).all()
    assert (dlr(z, right) >= -1).all()


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes, got 2: use the margin loss"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


def test_dlr_of_equal_logits_is_finite():
    z = torch.zeros(1, 4, requires_grad=True)
    value = dlr(z, torch.tensor([1]))
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert value.item() == 0
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_raised_to_float32_first(name, dtype):
    z, y = logits(seed=5)
    half = z.to(dtype)
    got = ALL[name](half, y)
    assert got.dtype == torch.float32
    # rounded logits, but a loss without further rounding to half
    assert got.tolist() == pytest.approx(ALL[name](half.double(), y).tolist(), rel=1e-4, abs=1e-5)
    assert ALL[name](z.float(), y).dtype == torch.float32
    assert ALL[name](z, y).dtype == torch.float64


def test_kl_matches_its_definition():
    (z, _), (r, _) = logits(seed=6), logits(seed=7)
    expected = []
    for a, b in zip(z.tolist(), r.tolist()):
        q, p = slow_log_softmax(a), slow_log_softmax(b)
        expected.append(math.fsum(math.exp(v) * (v - w) for v, w in zip(p, q)))
    assert kl(z, r).tolist() == pytest.approx(expected, rel=1e-9)
    assert kl(z, z).abs().max() <= 1e-15
    assert (kl(z, r) >= 0).all()
    assert kl(z.bfloat16(), r.bfloat16()).dtype == torch.float32
    # a class of probability 0 in the reference adds nothing
    assert kl(torch.zeros(1, 2), torch.tensor([[0.0, -1e4]])).item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boosted_cross_entropy_of_saturated_logits(dtype):
    z = torch.tensor([[0.0, 1000.0, 3.0], [1000.0, 0.0, 3.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 0])
    value = boosted_cross_entropy(z, y)
    # wrong and sure: -log p_y = 1000, and 1 - p_max = (1 + e^3) e^-1000; right and sure: nothing to pay
    assert value.tolist() == pytest.approx([2000 - math.log(1 + math.exp(3)), 0.0], rel=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), z)
    share = math.exp(3) / (1 + math.exp(3))
    assert grad[0].tolist() == pytest.approx([-1 - (1 - share), 2.0, -share], rel=1e-5)
    assert grad[1].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_boosted_cross_entropy_is_exact_near_certainty():
    for gap in (5.0, 15.0, 16.0, 17.0, 30.0, 80.0):
        z = torch.tensor([[0.0, gap]])
        assert boosted_cross_entropy(z, torch.tensor([0])).item() == pytest.approx(
            2 * (gap + math.log1p(math.exp(-gap))), rel=1e-5
        )
