"""Randomised smoothing: coverage of intervals, known radii, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from atent import Threat
from atent.certify import ABSTAIN, Smoothed, largest_radius, samples_needed
from atent.certify.limits import linf_radius
from atent.certify.smoothing import certificates, predictions

SIGMA = 0.5


class Half(nn.Module):
    """Class 1 where w . x > 0: under noise its probability is Phi(w . x / sigma), its exact radius |w . x|."""

    def __init__(self, dim):
        super().__init__()
        w = torch.randn(dim, generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w / w.norm())

    def forward(self, x):
        z = x @ self.w
        return torch.stack([-z, z], 1)

    def points(self, margins):
        """Points at the given signed distances from the boundary, elsewhere at random along it."""
        x = torch.randn(len(margins), len(self.w), generator=torch.Generator().manual_seed(2))
        w = self.w.detach()
        return x - (x @ w)[:, None] * w + margins[:, None] * w


# ---- coverage


def test_wrong_certificates_are_as_rare_as_alpha_promises():
    """One point, 5,000 trials: its true radius is known, and a valid bound at alpha exceeds it in alpha of them."""
    trials, alpha, margin = 5000, 0.05, 0.4
    model = Half(2)
    x = model.points(torch.tensor([margin])).expand(trials, 2).contiguous()
    classes, radii = Smoothed(model, SIGMA).certify(x, n0=20, n=100, alpha=alpha, batch=20_000)
    wrong = int(((classes == 0) | (radii > margin)).sum())
    assert wrong <= stats.binom.ppf(0.999, trials, alpha)
    # Nor is it conservative: the exact interval at n = 100 misses in 3 % to 5 % of the trials.
    assert wrong >= 0.02 * trials
    assert (classes == 1).double().mean() > 0.98


def test_the_radius_of_a_linear_model_is_never_exceeded_by_more_than_alpha_and_nearly_reached():
    n, alpha = 1000, 0.01
    model = Half(16)
    margins = torch.linspace(0.8, 2.0, 400) * SIGMA
    margins[::2] *= -1
    classes, radii = Smoothed(model, SIGMA).certify(model.points(margins), n0=50, n=n, alpha=alpha, batch=20_000)
    exact = margins.abs().double()
    wrong = (classes != (margins > 0).long()) | (radii > exact)
    assert int(wrong.sum()) <= stats.binom.ppf(0.999, len(margins), alpha)
    allowed = exact.clamp_max(largest_radius(n, alpha, SIGMA))
    assert (radii / allowed).median() >= 0.85


def test_an_attack_inside_the_radius_does_not_change_the_prediction(conv_net, batch):
    x, _ = batch(24, torch.float32)
    smoothed = Smoothed(conv_net(torch.float32), SIGMA)
    classes, radii = smoothed.certify(x, n0=50, n=1000, alpha=0.001)
    sure = (classes != ABSTAIN) & (radii > 0.1)
    assert int(sure.sum()) >= 8
    x, classes, radii = x[sure], classes[sure], radii[sure].float()

    def attacked(limit):
        rng, z = torch.Generator().manual_seed(3), x.clone()
        for _ in range(25):
            z.requires_grad_()
            copies = z.repeat_interleave(32, 0)
            noisy = copies + SIGMA * torch.randn(copies.shape, generator=rng)
            p = smoothed.model(noisy).softmax(1).unflatten(0, (len(z), 32)).mean(1)
            (grad,) = torch.autograd.grad(-p.gather(1, classes[:, None]).log().sum(), z)
            step = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            d = z.detach() + 0.2 * limit.view(-1, 1, 1, 1) * step - x
            z = x + d * (limit / d.flatten(1).norm(dim=1)).clamp_max(1.0).view(-1, 1, 1, 1)
        return smoothed.predict(z.detach(), 2000, 0.001, seed=9)

    inside, far = attacked(0.999 * radii), attacked(6 * radii)
    assert int(((inside != classes) & (inside != ABSTAIN)).sum()) == 0
    assert int(((far != classes) & (far != ABSTAIN)).sum()) >= len(x) // 4


def test_certificates_and_predictions_are_those_of_the_paper():
    """Against a transcription with scipy.stats: the beta quantile, and the two-sided binomial test."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(300, [0.5, 0.4, 0.06, 0.04], size=60)
    counts[0], counts[1], counts[2] = (300, 0, 0, 0), (0, 0, 0, 300), (150, 150, 0, 0)
    chosen = rng.multinomial(20, [0.6, 0.3, 0.1, 0.0], size=60)
    chosen[1] = (0, 0, 0, 20)
    classes, radii = certificates(torch.tensor(chosen), torch.tensor(counts), 0.3, 0.02)
    voted = predictions(torch.tensor(counts), 0.02)
    seen = set()
    for i in range(60):
        top = int(np.argmax(chosen[i]))
        k = int(counts[i, top])
        low = float(stats.beta.ppf(0.02, k, 300 - k + 1)) if k else 0.0
        want = (top, 0.3 * stats.norm.ppf(low)) if low > 0.5 else (ABSTAIN, 0.0)
        assert int(classes[i]) == want[0]
        assert float(radii[i]) == pytest.approx(want[1], rel=1e-9, abs=1e-12)
        order = np.argsort(-counts[i], kind="stable")
        a, b = (int(counts[i, j]) for j in order[:2])
        test = stats.binomtest(a, a + b, 0.5).pvalue
        assert int(voted[i]) == (int(order[0]) if test <= 0.02 else ABSTAIN)
        seen |= {want[0] == ABSTAIN, test <= 0.02}
    assert seen == {True, False}
    # PREDICT abstains where p exceeds alpha, not where they are equal: 10 of 10 have p = 2^-9.
    assert predictions(torch.tensor([[0, 10], [1, 9]]), 2.0**-9).tolist() == [1, ABSTAIN]
    assert (classes.dtype, radii.dtype) == (torch.int64, torch.float64)


def test_it_abstains_where_the_samples_do_not_decide():
    model = Half(3)
    x = model.points(torch.tensor([0.0, 3.0]))
    smoothed = Smoothed(model, SIGMA)
    classes, radii = smoothed.certify(x, n0=30, n=200)
    assert classes.tolist() == [ABSTAIN, 1]
    assert radii[0] == 0
    assert float(radii[1]) == pytest.approx(largest_radius(200, 0.001, SIGMA))
    assert smoothed.predict(x, 200).tolist() == [ABSTAIN, 1]


def test_the_choice_and_the_estimate_have_different_samples():
    """CERTIFY chooses the class by other noise samples: with the same ones the estimate would be biased upwards."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    Smoothed(Spy(), 1.0).two_votes(torch.zeros(1, 3), 100, 200)  # certify also tests the dependence on the batch
    first, *rest = seen
    rest = torch.cat(rest)
    assert len(first) == 100
    assert len(rest) == 200
    assert not any((row == rest).all(1).any() for row in first)


# ---- what a number of noise samples can certify


def test_the_arithmetic_of_the_paper():
    assert samples_needed(0.435, 0.12, 0.001) == 47_808
    reach = [largest_radius(n, 0.001, 0.12) for n in (100_000, 10_000, 1000)]
    assert [round(r, 3) for r in reach] == [0.457, 0.384, 0.296]
    assert round(255 * linf_radius(0.435, 3072), 2) == 2.0
    assert samples_needed(0, 0.12, 0.001) == 10
    assert largest_radius(9, 0.001, 0.12) == 0 < largest_radius(10, 0.001, 0.12)
    # At alpha = 2^-k, k samples give exactly 1/2, and abstain.
    assert largest_radius(5, 2.0**-5, 1.0) == 0
    assert samples_needed(0, 1.0, 2.0**-5) == 6


@pytest.mark.parametrize("sigma", [0.12, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 2.5, 3.6])
def test_samples_needed_is_the_smallest_number(share, sigma):
    n = samples_needed(share * sigma, sigma, 0.01)
    assert largest_radius(n, 0.01, sigma) >= share * sigma
    assert n == 1 or largest_radius(n - 1, 0.01, sigma) < share * sigma or largest_radius(n - 1, 0.01, sigma) == 0


def test_what_cannot_be_certified_is_refused_with_the_numbers():
    smoothed, x = Smoothed(Half(3), 0.12), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"0\.435 cannot be certified: n = 1,000 .* 0\.2956 .* n >= 47,808"):
        smoothed.certify(x, n=1000, radius=0.435)
    with pytest.raises(ValueError, match=r"larger sigma$"):
        smoothed.certify(x, n=1000, radius=1.0)
    with pytest.raises(ValueError, match=r"n = 9 .* 0\.4642, not above 1/2; give n >= 10"):
        smoothed.certify(x, n0=5, n=9)
    with pytest.raises(ValueError, match=r"n = 10 noise samples always abstain .* give n >= 11"):
        smoothed.predict(x, 10)
    assert smoothed.predict(x + 5, 11).shape == (1,)
    with pytest.raises(ValueError, match="give sigma >= "):
        samples_needed(1.0, 0.12, 0.001)
    # Radii that can be certified pass, as numbers, fractions and threats.
    for radius in (0.29, "1/4", Threat("l2", 0.29)):
        smoothed.certify(x, n=1000, radius=radius)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, x: Smoothed(s.model, 0.0), "sigma must be above 0, got 0"),
        (lambda s, x: Smoothed(s.model, -1.0), "sigma must be above 0, got -1"),
        (lambda s, x: Smoothed(s.model, math.nan), "sigma must be a finite number, got nan"),
        (lambda s, x: s.certify(x, alpha=0.0), "alpha must be above 0, got 0"),
        (lambda s, x: s.certify(x, alpha=1.0), r"alpha must lie in \(0, 1\), got 1"),
        (lambda s, x: s.predict(x, alpha=2.0), r"alpha must lie in \(0, 1\), got 2"),
        (lambda s, x: s.certify(x, n0=100, n=99), "n must be at least n0, got n = 99 and n0 = 100: give a larger n"),
        (lambda s, x: s.certify(x, n0=0), "n0 must be at least 1, got 0"),
        (lambda s, x: s.certify(x, n=1e5), "n must be an integer, got 100000.0"),
        (lambda s, x: s.certify(x, radius=Threat("linf", 0.1)), r"certifies in l2, got a radius in linf: .* 0\.1732"),
        (lambda s, x: s.certify(x, radius=-1), "radius must be finite and at least 0"),
        (lambda s, x: s.votes(x, 5, batch=0), "batch must be at least 1"),
        (lambda s, x: s.votes(x, 5, seed=0.5), "seed must be an integer"),
        (lambda s, x: s.votes(x, 5, ids=torch.tensor([1, 2])), "ids must be 1 int64"),
        (lambda s, x: s.votes(x.int(), 5), "inputs must be floats"),
        (lambda s, x: s.votes(x / 0, 5), "NaN"),
        (lambda s, x: s.votes(x[:0], 5), "no samples"),
        (lambda s, x: Smoothed(nn.Flatten(0), 1.0).votes(x, 5), r"logits \(n, classes\), got shape \(15,\)"),
        (lambda s, x: Smoothed(Nan(), 1.0).votes(x, 5), "NaN or infinite logits"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(Smoothed(Half(3), 0.5), torch.zeros(1, 3))
    assert "\n" not in str(error.value)


class Nan(nn.Module):
    def forward(self, x):
        return x * math.nan
