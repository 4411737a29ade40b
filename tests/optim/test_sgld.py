import math

import pytest
import torch

from atent.sgld import effective_noise, langevin_step, noise_for


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.6])
def test_a_step_is_the_written_formula(weight, noise):
    z, g, a, n = (draws(4, 5, seed=s) for s in range(4))
    keep = z.clone()
    got = langevin_step(z, g, a, step_size=0.3, weight=weight, noise=noise, normal=n)
    for i in range(4):
        for j in range(5):
            zij = keep[i, j].item()
            want = zij + 0.3 * g[i, j].item() + weight * (a[i, j].item() - zij)
            want += noise * math.sqrt(0.6) * n[i, j].item()
            assert got[i, j].item() == pytest.approx(want, rel=1e-13, abs=1e-14)
    assert torch.equal(z, keep)


def test_what_is_not_used_may_be_left_out():
    z, g = draws(2, 3), draws(2, 3, seed=1)
    assert torch.equal(langevin_step(z, g, step_size=0.5), z + 0.5 * g)


@pytest.mark.parametrize(("curvature", "weight"), [(0.0, 0.5), (0.0, 0.05), (2.0, 0.0), (1.5, 0.2)])
def test_the_stationary_variance_of_the_discrete_chain(curvature, weight):
    # target L(z) = -curvature/2 z^2: z' = (1 - step curvature - pull) z + noise sqrt(2 step) N
    step, noise, n = 0.2, 0.7, 40_000
    g = torch.Generator().manual_seed(2)
    z = torch.zeros(n, dtype=torch.float64)
    for _ in range(150):
        z = langevin_step(
            z, -curvature * z, torch.zeros_like(z), step_size=step, weight=weight, noise=noise,
            normal=torch.randn(n, generator=g, dtype=torch.float64),
        )  # fmt: skip
    keep = 1 - step * curvature - weight
    exact = 2 * step * noise**2 / (1 - keep**2)
    # standard error of a variance: sqrt(2 / n)
    assert z.var().item() == pytest.approx(exact, rel=4 * math.sqrt(2 / n))
    assert abs(z.mean().item()) < 4 * math.sqrt(exact / n)


def test_small_steps_sample_at_temperature_noise_squared():
    # pull = step gamma: variance noise^2 / gamma up to a bias of order step
    gamma, noise = 3.0, 0.4
    for step in (0.1, 0.01, 0.001):
        discrete = effective_noise(step, noise) ** 2 / (1 - (1 - step * gamma) ** 2)
        assert discrete == pytest.approx(noise**2 / gamma, rel=step * gamma)


def test_effective_noise():
    assert effective_noise(0.02175, 0.577) == pytest.approx(0.1203, abs=5e-5)
    assert noise_for(0.02175, 0.12) == pytest.approx(0.5754, abs=5e-5)
    for step, noise in ((0.1, 1e-3), (2.0, 0.3), (1e-4, 7.0)):
        assert noise_for(step, effective_noise(step, noise)) == pytest.approx(noise, rel=1e-14)
    assert noise_for(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"an effective noise of 0.1 needs a step size above 0, got 0"):
        noise_for(0.0, 0.1)
