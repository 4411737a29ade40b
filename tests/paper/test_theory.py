"""The theory room: identities against independent quadrature, differences and dense Hessians; the supplement's
uncorrected forms must not satisfy them; chains against laws that are known; what is refused."""

import json
import math

import pytest
import torch
from command_line import replaced
from scipy.integrate import quad
from torch import nn

from atent import plots
from atent.attacks.langevin import sampler as resolve
from atent.cli import main
from atent.experiments import recipes as config
from atent.models import build
from atent.paper.theory import (
    chains,
    constants,
    equivalence,
    gradient,
    lemma,
    local_entropy,
    quadrature,
    sampler,
    thermodynamic,
)
from atent.paper.theory.check import Settings, check
from atent.paper.theory.density import Entropic, gradients, loss_field
from atent.paper.theory.network import dense, prepared
from atent.paper.theory.thermodynamic import compare
from atent.paper.theory.thermodynamic import rows as integrated
from atent.report import report
from atent.runs import write_json
from atent.runs.checkpoint import save_weights
from atent.runs.loading import load_file
from atent.sgld import data_entropy_coefficients as coefficients
from atent.threat import Threat

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def net(activation, seed=0, classes=3):
    """A small convolutional chain on (1, 4, 4) inputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), activation(), nn.Conv2d(3, 4, 2, stride=2), activation(), nn.Flatten(),
        nn.Linear(16, classes),
    ).double().requires_grad_(False)  # fmt: skip


def images(n=6, seed=1, classes=3):
    return torch.rand(n, 1, 4, 4, generator=rng(seed), dtype=D), torch.randint(classes, (n,), generator=rng(seed))


# ---- the gradients: exact, and as the supplement prints them ----------------------------------------------


def by_scipy(w, x, gamma, t):
    """T log Z and L_DE of the logistic loss on the line, by adaptive quadrature: nothing shared with the room."""

    def loss(z):
        return math.log1p(math.exp(-(w[0] * z + w[1])))

    def weight(z):
        return math.exp((loss(z) - gamma / 2 * (z - x) ** 2) / t)

    reach = abs(w[0]) / gamma + 12 * math.sqrt(t / gamma)
    span = {"epsabs": 0, "epsrel": 1e-12, "limit": 400, "points": [x]}
    z, _ = quad(weight, x - reach, x + reach, **span)
    top, _ = quad(lambda v: weight(v) * loss(v), x - reach, x + reach, **span)
    return t * math.log(z), top / z


def differences(f, w, h=1e-4):
    # fourth order: the step's error is far below the quadrature's
    out = []
    for i in range(len(w)):
        at = [f([v + s * h * (j == i) for j, v in enumerate(w)]) for s in (-2, -1, 1, 2)]
        out.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h))
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("gamma", "t"), [(1.0, 1.0), (1.0, 0.05), (4.0, 0.3)])
def test_the_identities_hold_and_the_printed_form_does_not(gamma, t):
    w, x = [1.7, -0.4], 0.6
    density = Entropic(gamma, t)
    grid = quadrature.Grid.around(torch.tensor([x], dtype=D), density, 1.7)
    m = quadrature.moments(gradient.logistic, torch.tensor(w, dtype=D), density, grid)
    free = differences(lambda v: by_scipy(v, x, gamma, t)[0], w)
    entropy = differences(lambda v: by_scipy(v, x, gamma, t)[1], w)
    assert gradient.off(m.plain(), free) < 1e-6
    assert gradient.off(m.exact(t), entropy) < 1e-6
    # Neither is the other's gradient, and the supplement's is that of neither.
    assert gradient.off(m.plain(), entropy) > 0.1
    assert gradient.off(m.printed(), entropy) > 0.1
    assert gradient.off(m.printed(), free) > 0.1
    if t != 1:
        assert gradient.off(m.exact(1.0), entropy) > 0.1


@pytest.mark.parametrize(("form", "holds"), [("exact", True), ("printed", False)])
def test_a_constant_in_the_loss_does_not_move_the_gradient(form, holds):
    density, problem = Entropic(2.0, 0.5), gradient.problems()[0]
    grid = quadrature.Grid.around(problem.x, density, problem.lipschitz)
    at = [quadrature.moments(problem.loss, problem.w, density, grid, shift=c) for c in (0.0, 3.0)]
    forms = [m.exact(0.5) if form == "exact" else m.printed() for m in at]
    moved = float((forms[1] - forms[0]).norm())
    assert (moved < 1e-9) is holds
    if not holds:
        assert moved == pytest.approx(3 * float(at[0].slope.norm()), rel=1e-9)


def test_rows_distinguish_printed_from_corrected():
    verdicts = {r.claim: r.verdict for r in gradient.identities(Entropic(1.0, 1.0))}
    assert verdicts[gradient.UPDATE] == verdicts[gradient.EXACT] == "holds"
    assert verdicts[gradient.PRINTED] == "fails"
    assert [r.verdict for r in gradient.shifts(Entropic(2.0, 0.5))] == ["holds", "fails"]
    assert [r.verdict for r in gradient.temperature_matters(Entropic(1.0, 0.05))] == ["fails"]
    assert [r.verdict for r in gradient.variational(Entropic(1.0, 0.5), trials=50)] == ["holds"]


def test_the_least_bound_is_reached_and_below_the_others():
    for high, t in ((3.0, 1.0), (0.5, 1.0), (2.0, 0.3)):
        a = high / (2 * t)
        q = 0.5 + 1 / (4 * a) if a > 0.5 else 1.0
        # L is 0 or R with mass q at R, and the gradient follows the sign of its coefficient
        coefficient = [1 - q * high / t, 1 + (1 - q) * high / t]
        size = (1 - q) * abs(coefficient[0]) + q * abs(coefficient[1])
        assert size == pytest.approx(gradient.least_bound(high, t))
        assert gradient.least_bound(high, t) <= 1 + a <= 1 + high / t
    found = gradient.bounds(trials=300)
    assert {r.verdict for r in found} == {"holds"}
    assert max(r.value for r in found if r.claim == gradient.LEAST) > 0.999


def test_coefficients_are_mean_plus_covariance():
    losses, slopes = torch.randn(7, 4, generator=rng(), dtype=D), torch.randn(7, 4, 5, generator=rng(1), dtype=D)
    t = 0.3
    found = (coefficients(losses, t)[:, :, None] * slopes).sum(0)
    for i in range(4):
        both = torch.cat([losses[:, i : i + 1], slopes[:, i]], 1)
        right = slopes[:, i].mean(0) + torch.cov(both.T)[0, 1:] / t
        torch.testing.assert_close(found[i], right)
        printed = (slopes[:, i] * (1 + losses[:, i : i + 1])).mean(0)
        assert (printed - right).norm() > 0.1
    weights = [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    assert torch.allclose(coefficients(losses, t, weights).sum(0), torch.ones(4, dtype=D))
    torch.testing.assert_close(coefficients(losses + 9, t, weights), coefficients(losses, t, weights))
    torch.testing.assert_close(coefficients(losses, t, [5.0] * 7), coefficients(losses, t))


def test_weighted_covariance_is_unbiased():
    # All pairs of a two-point law, in closed form: E over both independent samples of the estimate is the covariance.
    values, rates, p = torch.tensor([0.0, 2.0], dtype=D), torch.tensor([1.0, 4.0], dtype=D), torch.tensor([0.3, 0.7])
    expected = torch.zeros((), dtype=D)
    for i in range(2):
        for j in range(2):
            c = coefficients(values[[i, j]][:, None], 0.5, [0.9, 0.1])[:, 0]
            expected += p[i] * p[j] * (c * rates[[i, j]]).sum()
    mean = float((p * rates).sum())
    covariance = float((p * values * rates).sum()) - mean * float((p * values).sum())
    assert float(expected) == pytest.approx(mean + covariance / 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "t", "weights", "reported"),
    [
        (torch.zeros(1, 3), 1.0, None, "m >= 2"),
        (torch.zeros(3, 2), 0.0, None, "nothing is sampled"),
        (torch.zeros(3, 2), 1.0, [1.0, 0.0, 0.0], "all weight is on one sample"),
        (torch.zeros(3, 2), 1.0, [1.0, -1.0, 1.0], "at least 0"),
    ],
)
def test_coefficients_refuse(losses, t, weights, reported):
    with pytest.raises(ValueError, match=reported):
        coefficients(losses, t, weights)


# ---- the lemma ---------------------------------------------------------------------------------------------


def hessians(model, z, y):
    def one(v, label):
        return nn.functional.cross_entropy(model(v.view(1, 1, 4, 4)), label.view(1))

    return torch.stack([torch.autograd.functional.hessian(lambda v, t=t: one(v, t), p.flatten()) for p, t in zip(z, y)])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.Sigmoid, lambda: nn.Softplus(beta=5.0)])
def test_certified_constants_bound_dense_hessians(activation):
    model = net(activation)
    bound = constants.of_chain(model, (1, 4, 4))
    x, y = images()
    z = torch.cat([x, 4 * torch.randn(6, 1, 4, 4, generator=rng(2), dtype=D)])
    y = torch.cat([y, y])
    true = torch.linalg.matrix_norm(hessians(model, z, y), 2)
    assert bound.certified
    assert float(true.max()) <= bound.smooth
    assert float(gradients(model, z, y).flatten(1).norm(dim=1).max()) <= bound.lipschitz
    # power iteration from below, near enough
    found, _, _ = constants.curvature(model, z, y, iterations=200)
    assert bool((found <= true * (1 + 1e-9)).all())
    assert bool((found >= 0.97 * true).all())


def test_curves_of_the_activations():
    z = torch.linspace(-8, 8, 160_001, dtype=D)
    for layer in (nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(beta=5.0)):
        first, second = constants._CURVES[type(layer)](layer)
        slope = torch.func.vmap(torch.func.grad(layer))(z)
        bend = torch.func.vmap(torch.func.grad(torch.func.grad(layer)))(z)
        assert float(slope.abs().max()) == pytest.approx(first, rel=1e-3)
        assert float(bend.abs().max()) == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, 1, (6, 5)), (2, 1, (7, 8)), (2, 0, (8, 8)), (3, 2, (7, 7))]
)
def test_convolutions_norm_is_an_upper_bound_and_near(stride, padding, size):
    w = torch.randn(3, 2, 4, 3, generator=rng(stride), dtype=D)
    eye = torch.eye(2 * size[0] * size[1], dtype=D).view(-1, 2, *size)
    matrix = nn.functional.conv2d(eye, w, stride=stride, padding=padding).flatten(1)
    true = float(torch.linalg.matrix_norm(matrix, 2))
    bound = constants.convolution_norm(w, size, (stride, stride), (padding, padding))
    assert true <= bound * (1 + 1e-12)
    assert bound < 1.3 * true


def test_linear_softmax_in_closed_form():
    weight = torch.randn(5, 7, generator=rng(3), dtype=D)
    (steep, bend), (near, low) = (constants.of_linear_softmax(weight)[k] for k in ("norm", "diameter"))
    assert near <= steep
    assert low <= bend
    # two classes, p = 1/2: both are reached
    pair = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=D)
    point = torch.zeros(2, dtype=D)
    hessian = torch.autograd.functional.hessian(lambda v: (pair @ v).logsumexp(0) - (pair @ v)[0], point)
    assert float(torch.linalg.matrix_norm(hessian, 2)) == pytest.approx(
        constants.of_linear_softmax(pair)["diameter"][1]
    )


def test_the_lemma_holds_with_certified_constants_and_fails_with_less():
    model, (x, y) = net(nn.Tanh), images()
    bound = constants.of_chain(model, (1, 4, 4))
    found = lemma.sample(model, x, y, 2.0, bound, n=2000)
    assert found.n >= 2000
    assert set(found.violations.values()) == {0}
    assert 0 < found.smooth <= 1
    assert 0 < found.dissipative < found.sharp <= 1
    assert {r.verdict for r in lemma.rows(found, bound, 2.0, "net")} == {"holds"}
    small = constants.Constants(1e-3, 1e-3, True, "too small")
    low = lemma.sample(model, x, y, 0.01, small, n=1000)
    assert low.violations["smooth"] > 0
    assert low.violations["steep"] > 0
    assert {r.verdict for r in lemma.rows(low, small, 0.01, "net")} >= {"fails"}
    guess = constants.Constants(1e-3, 1e-3, False, "guessed")
    assert "not applicable" in {r.verdict for r in lemma.rows(low, guess, 0.01, "net")}


def test_the_smaller_b_is_the_least():
    gamma, steep, norm = 0.7, 3.0, torch.tensor(2.0, dtype=D)
    m, b = lemma.sharper(gamma, steep, norm)
    length = torch.linspace(0, 60, 600_001, dtype=D)
    # the gradient against x', and x along it: the worst that L alone allows
    worst = (m * length**2 - gamma * length**2 + (steep + gamma * norm) * length).max()
    assert float(worst) == pytest.approx(float(b), rel=1e-9)
    assert float(b) <= float(lemma.dissipativity(gamma, steep, norm)[1])


class Hidden(nn.Module):
    """Kinks that no layer shows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3).double()

    def forward(self, x):
        return nn.functional.relu(self.fc(x.flatten(1)))


def test_kinks_are_found_and_named():
    x, y = images()
    assert constants.kinks(net(nn.Tanh), x) == {}
    assert list(constants.kinks(net(nn.ReLU), x)) == ["1", "3"]
    assert constants.kinks(Hidden(), x) == {"Hidden": "relu"}
    assert constants.of_chain(net(nn.ReLU), (1, 4, 4)).smooth is None
    with pytest.raises(ValueError, match="layer Hidden"):
        constants.of_chain(Hidden(), (1, 4, 4))
    (row,), found, (_, quotients) = lemma.kink_rows(net(nn.ReLU), 4 * x - 2, y)
    assert row.verdict == "not applicable"
    assert "1 (relu)" in row.reason
    assert quotients[-1] > 100 * quotients[0]
    (row,), found, (_, quotients) = lemma.kink_rows(net(nn.Tanh), 4 * x - 2, y)
    assert row.verdict == "holds"
    assert not found
    assert max(quotients) <= constants.of_chain(net(nn.Tanh), (1, 4, 4)).smooth
    assert lemma.counter_example().value == pytest.approx(1 / 4e-8, rel=1e-3)


def test_integrability_holds():
    assert [r.verdict for r in lemma.integrability()] == ["holds", "holds"]


def test_dense_is_the_same_function():
    model, (x, _) = net(nn.Softplus), images()
    torch.testing.assert_close(dense(model, (1, 4, 4))(x), model(x))
    hidden = Hidden()
    assert dense(hidden, (1, 4, 4)) is hidden


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_no_density_without_an_anchor_term(gamma):
    with pytest.raises(ValueError, match=r"gamma must be above 0.*no density to normalise"):
        Entropic(gamma, 1.0)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        local_entropy.local_entropy(local_entropy.well, torch.zeros((), dtype=D), gamma)
    x, y = images()
    with pytest.raises(ValueError, match=r"gamma must be (above 0|a finite number)"):
        check(net(nn.Tanh), x, y, Settings(gamma=gamma))


def test_quadrature_refuses_images_and_zero_temperature():
    with pytest.raises(ValueError, match=r"1 or 2 numbers, got 64.*thermodynamic"):
        quadrature.Grid.around(torch.zeros(64, dtype=D), Entropic(1.0, 1.0), 1.0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Entropic(1.0, 0.0)


def test_hessian_products_that_are_not_finite():
    class Root(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3].sqrt()

    x, y = images()
    x[0] = 0
    with pytest.raises(ValueError, match="Hessian-vector products are not finite"):
        constants.curvature(Root(), x, y)


# ---- chains ------------------------------------------------------------------------------------------------


def autoregression(phi, shape, seed=0):
    noise = torch.randn(shape, generator=rng(seed), dtype=D)
    out = [noise[:, 0] / math.sqrt(1 - phi**2)]
    for k in range(1, shape[1]):
        out.append(phi * out[-1] + noise[:, k])
    return torch.stack(out, 1)


def test_diagnostics_on_a_known_process():
    samples = autoregression(0.8, (8, 4000))
    assert chains.time_constant(samples) == pytest.approx(9, rel=0.12)
    assert chains.effective(samples) == pytest.approx(8 * 4000 / 9, rel=0.12)
    assert chains.autocorrelation(samples, 5).tolist() == pytest.approx([0.8**k for k in range(6)], abs=0.03)
    assert chains.split_rhat(samples) < 1.01
    apart = samples + torch.arange(8, dtype=D)[:, None]
    assert chains.split_rhat(apart) > 1.5
    assert not chains.mean(apart).converged
    assert chains.split_rhat(torch.arange(12, dtype=D).view(3, 4) // 4 * 1.0 + torch.zeros(3, 4, dtype=D)) == math.inf
    with pytest.raises(ValueError, match="at least 3 chains"):
        chains.split_rhat(samples[:2])


def test_the_error_of_a_mean_is_right():
    truth = [chains.mean(autoregression(0.8, (4, 800), seed)) for seed in range(60)]
    inside = sum(abs(m.value) <= m.error for m in truth)
    # 95 % of 60 is 57; fewer than 50 has a probability below 1e-3
    assert inside >= 50


def flat(z):
    return torch.zeros(len(z), dtype=D), torch.zeros_like(z)


@pytest.mark.parametrize(("walk", "factor"), [(chains.metropolis, 1.0), (chains.langevin, 1 / (1 - 0.5 * 2.0 / 2))])
def test_chains_have_their_stationary_law(walk, factor):
    density, x = Entropic(2.0, 0.3), torch.zeros(600, 2, dtype=D)
    trace = walk(flat, x.clone(), x, density, 0.5, 120, lambda z, _: z, rng=rng(), burn=60)
    assert float(trace.kept.var()) == pytest.approx(factor * 0.15, rel=0.06)


def test_stationary_laws_and_recursions():
    assert {r.verdict for r in sampler.stationary(chains=10_000)} == {"holds"}
    # the law without the step's own term is distinguished
    var = sampler._variance(40_000, 1.0, 1.0, 1.0, rng())
    assert abs(var / 2 - 1) < 0.03


def test_thermodynamic_integration_meets_quadrature():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).double().requires_grad_(False)
    with torch.no_grad():
        model[1].weight *= 4
    x, y = torch.tensor([[0.4, -0.3]], dtype=D), torch.tensor([1])
    density = Entropic(2.0, 0.4)
    found = compare(model, x, y, density, chains=48, steps=200, burn=60, nodes=4, curvature=4.0)
    norm = float(model[1].weight.norm())
    grid = quadrature.Grid.around(x[0], density, 2 * norm)

    def loss(_, points):
        return nn.functional.cross_entropy(model(points), y.expand(len(points)), reduction="none")

    w = torch.zeros(1, dtype=D)
    # T log of the integral of exp(-gamma/2 ||x' - x||^2 / T) over the plane: the free energy of a loss of 0.
    zero = density.temperature * math.log(2 * math.pi * density.temperature / density.gamma)
    level = float(quadrature.free_energy(loss, w, density, grid)) - zero
    assert found.level[0] == pytest.approx(level, abs=4 * found.level[1])
    verdicts = [r.verdict for r in integrated(found, density, "linear")]
    assert verdicts == ["holds", "holds", "fails", "not applicable"]


def test_chains_that_disagree_print_no_figure():
    model, (x, y) = net(nn.Tanh), images()
    found = sampler.mix(model, x, y, Entropic(2.0, 0.1), chains=3, steps=12, curvature=500.0)
    assert not found.converged
    reported = sampler.mixing_rows(found, 10, "net")
    short = compare(model, x[:1], y[:1], Entropic(2.0, 0.1), chains=3, steps=12, burn=1, nodes=2)
    reported += integrated(short, Entropic(2.0, 0.1), "net")
    assert {r.verdict for r in reported} == {"not converged"}
    assert all(r.value is None and r.error is None and "R-hat" in r.reason for r in reported)


def test_conditions_of_convergence():
    threat = Threat("l2", 1.0)
    good = resolve(threat, variant="published", steps=10**7, step_size=1e-4, gamma=1.0, temperature=0.1)
    assert all(sampler.conditions("good", good, True, 1.0, clamped=False).met.values())
    released = resolve(Threat("l2", 1.0), noise=0.0)
    found = sampler.conditions("released", released, False, 1.0)
    for lacking in ("raw gradient", "noise above 0", "no box", "smooth network", "step size", "steps"):
        assert not found.met[lacking]
    assert found.gamma == pytest.approx(0.05 / 0.2)
    rows = sampler.convergence_rows(
        {"good": sampler.conditions("good", good, True, 1.0, clamped=False), "released": found}
    )
    assert [r.verdict for r in rows] == ["holds", "not applicable"]
    assert (
        sampler.conditions("big", resolve(threat, variant="published", step_size=0.2, gamma=0.05), True, 1.0).met[
            "step size"
        ]
        is False
    )
    recipes = config.chains()
    assert recipes["digits-l2-atent-softplus"][1]
    assert not recipes["cifar10-l2-atent"][1]


# ---- Entropy-SGD, PGD, batches -----------------------------------------------------------------------------


def test_the_local_entropys_rows():
    reported = {r.claim: r.verdict for r in local_entropy.local()}
    assert reported.pop(local_entropy.CHAIN) == "fails"
    assert set(reported.values()) == {"holds"}
    assert len(reported) == 4


@pytest.mark.parametrize("make", [local_entropy.algorithm, local_entropy.grad_p])
def test_corrected_forms_sample_and_printed_ones_do_not(make):
    reported = {r.claim: r.verdict for r in make(chains=6000)}
    printed = [v for claim, v in reported.items() if "as printed" in claim]
    corrected = [v for claim, v in reported.items() if "as printed" not in claim]
    assert (printed, corrected) == (["fails"], ["holds"])


def test_pgd_is_atent_without_noise_under_the_soft_anchor_term_alone():
    x, y = images()
    soft, hard = equivalence.without_noise(net(nn.Tanh), x, y, gamma=1.0, eps=0.5, box=(0.0, 1.0))
    assert (soft.verdict, hard.verdict) == ("holds", "fails")
    assert soft.value < 1e-12 < 1e-3 < hard.value


def test_batches_are_exact_until_batchnorm_couples_them():
    x, y = images(8)
    model = net(nn.Tanh)
    for each in (model, equivalence.with_batchnorm(model, x)):
        torch.testing.assert_close(each.eval()(x), model(x))
        alone, coupled = equivalence.batches(each, x, y, gamma=1.0)
        assert (alone.verdict, coupled.verdict) == ("holds", "fails")
        assert coupled.value > 0.01


# ---- the whole ---------------------------------------------------------------------------------------------

SMALL = ["--samples", "200", "--steps", "20", "--chains", "3", "--limit", "8", "--quiet"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def smooth(act=nn.Tanh):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), act(), nn.Linear(8, 10))\n\n"
        "def kinked():\n    return smooth(nn.ReLU)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # one small problem in the place of three
    monkeypatch.setattr(gradient, "problems", lambda seed=0, all_of=gradient.problems: all_of(seed)[:1])
    return tmp_path


def test_the_command_writes_the_table(here, capsys, monkeypatch):
    bounds, rows = [], thermodynamic.rows
    monkeypatch.setattr(thermodynamic, "rows", lambda *args: bounds.append(args[-1]) or rows(*args))
    assert main(["theory", "own:smooth", "--data", "digits", "--out", "theory.json", *SMALL]) == 0
    out = capsys.readouterr().out
    found = json.loads((here / "theory.json").read_text())
    seen = {row["statement"] for row in found["rows"]}
    assert seen == {f"T{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)}
    assert {row["verdict"] for row in found["rows"]} <= {"holds", "fails", "not applicable", "not converged"}
    for row in found["rows"]:
        assert (row["value"] is None) <= (row["verdict"] in ("not applicable", "not converged"))
        assert row["basis"] != "sampled" or row["note"] == "a sampled check, not a proof"
        assert row["value"] is None or row["n"]
    assert (found["n"], found["dim"], found["warnings"]) == (8, 64, [])
    assert found["provenance"]["seed"] == 0
    assert (here / "theory-zoom.png").stat().st_size > 1000
    assert "but not prove" in out
    certified = [r for r in found["rows"] if r["statement"] in ("T1", "T2") and "certified constants" in r["checked"]]
    assert len(certified) >= 3
    assert {r["verdict"] for r in certified} == {"holds"}
    # The bound of T3 on an image: L(x) + L sqrt(dT/gamma) + L^2/(2 gamma) with the certified L.
    steep, s = found["constants"]["certified"]["lipschitz"], found["settings"]
    (bound,) = bounds
    rest = steep * (64 * s["temperature"] / s["gamma"]) ** 0.5 + steep**2 / (2 * s["gamma"])
    assert rest < bound < rest + 10
    assert main(["theory", "own:smooth", "--data", "digits", "--out", "theory.json", *SMALL]) == 2


def test_kinks_warn_and_the_report_shows_the_table(here, capsys):
    tables = config.read_recipe("digits-l2-atent")
    tables["method"]["steps"] = 2
    tables["train"] |= {"epochs": 1, "validate_limit": 10, "device": "cpu"}
    tables["data"] |= {"limit": 64}
    tables["evaluate"] |= {"attacks": ["FGSM"], "limit": 10}
    from atent.experiments.pipeline import run_job

    run_job(config.job(tables, "digits-l2-atent"), here / "run", progress=False)
    assert "atent theory" in report([here / "run"], images=0, progress=False)
    assert main(["theory", "run", "--data", "digits", *SMALL]) == 0
    err = capsys.readouterr().err
    assert "warning: run has kinks, in relu1 (relu), relu2 (relu)" in err
    found = json.loads((here / "run" / "theory.json").read_text())
    assert found["settings"]["k"] == 2
    assert found["settings"]["temperature"] == pytest.approx(10 / 64)
    page = report([here / "run"], images=0, progress=False)
    assert "Checks of the theory" in page
    assert page.count("a sampled check, not a proof") == sum(r["basis"] == "sampled" for r in found["rows"])
    write_json(here / "run" / "theory-2.json", found | {"rows": [{}]})
    with pytest.raises(ValueError, match="statement"):
        report([here / "run"], images=0, progress=False)
    assert main(["theory", "run", "--data", "moons", *SMALL]) == 2


@pytest.mark.parametrize(
    ("args", "reported"),
    [
        (["--gamma", "0"], "gamma must be above 0"),
        (["--limit", "3"], "at least 4 images"),
        (["--chains", "2"], "chains"),
        (["--temperature", "0"], "temperature must be above 0"),
    ],
)
def test_mistakes_are_one_line(here, capsys, args, reported):
    assert main(["theory", "own:smooth", "--data", "digits", *replaced(SMALL, *args)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert reported in err[0]


def test_prepared_is_a_copy():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    copied = prepared(model)
    assert copied[0].weight.dtype == D
    assert not copied.training
    assert model.training
    assert model[0].weight.requires_grad


def test_loss_field_is_the_gradient():
    model, (x, y) = net(nn.Tanh), images()
    value, slope = loss_field(model, y)(x)
    z = x.clone().requires_grad_()
    expected = nn.functional.cross_entropy(model(z), y, reduction="none")
    (right,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, right)


# ---- smooth networks ---------------------------------------------------------------------------------------


def test_activations_can_be_chosen_and_come_back_from_a_file(tmp_path):
    x = torch.rand(2, 1, 8, 8)
    model = build("digits_cnn", activation="softplus").eval()
    assert constants.kinks(model, x) == {}
    assert list(constants.kinks(build("digits_cnn"), x)) == ["relu1", "relu2", "relu3", "relu4"]
    about = {"model": {"name": "digits_cnn", "activation": "softplus"}}
    save_weights(tmp_path / "w.safetensors", model, about)
    again, _ = load_file(tmp_path / "w.safetensors", classes=10, shape=(1, 8, 8))
    torch.testing.assert_close(again(x), model(x))
    with pytest.raises(ValueError, match=r"unknown activation 'tanhh': did you mean 'tanh'"):
        build("digits_cnn", activation="tanhh")
    with pytest.raises(ValueError, match=r"activation of lenet5 cannot be chosen.*digits_cnn"):
        build("lenet5", activation="tanh")


def test_a_picture_needs_lines():
    curve = {"title": "t", "x": "x", "y": "y", "log": "xy", "lines": {"a": ([1, 2], [3, 4])}, "mark": 1.5}
    (axes,) = plots.lines(curve).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [list(part) for part in axes.lines[0].get_data()] == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="no lines"):
        plots.lines(curve | {"lines": {}})
