"""Embedding regularisation: divergences against closed forms, the term against its definition, and exact resume."""

import copy
import json
import math
import os
import signal

import pytest
import torch
from commands import train_job
from kit import N, batch, gradient, network, stream, unsealed, without_times
from torch import nn

from atent import Threat
from atent import runs as folder
from atent.attacks import PGD
from atent.cli import main
from atent.data import DataSettings, load
from atent.evaluate import Check
from atent.experiments.evaluation import evaluate_target
from atent.experiments.pipeline import baseline
from atent.experiments.recipes import UsageError, job, read_recipe
from atent.experiments.target import load_target
from atent.methods import (
    ACL,
    ATENT,
    AWP,
    FGSMRS,
    METHODS,
    MMA,
    PGDAT,
    TRADES,
    EmbeddingRegularised,
    EmbeddingTerm,
    Free,
    Gaussian,
    SmoothAdv,
    Standard,
)
from atent.methods.awp import may_perturb
from atent.methods.divergence import CHANCE, Discriminator, mmd, multiquadrics, rbf
from atent.methods.embedding import embed
from atent.models import build
from atent.rng import PerSample
from atent.testing import check_method
from atent.train import Callback, Diverged, TrainSettings, fit
from atent.train.interrupt import Interrupted

LINF = Threat("linf", 0.1)
# Methods by bounds have no adversarial inputs.
BOUNDS = ("CROWNIBP", "Dual")


def normal(n, d, seed, mean=0.0):
    return mean + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the maximum mean discrepancy


def test_mmd_is_its_definition():
    a, b, kernel = normal(5, 3, 0), normal(4, 3, 1), multiquadrics(2.0)

    def k(u, v):
        return sum(2.0 * s / (2.0 * s + float((u - v).square().sum())) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    within = [sum(k(p[i], p[j]) for i in range(len(p)) for j in range(len(p)) if i != j) for p in (a, b)]
    cross = sum(k(u, v) for u in a for v in b) / 20
    assert float(mmd(a, b, kernel)) == pytest.approx(within[0] / 20 + within[1] / 12 - 2 * cross, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_mmd_of_two_gaussians_is_the_closed_form(shift):
    """MMD^2 = 2 (h^2 / (h^2 + 2))^(d/2) (1 - exp(-|mu|^2 / (2 (h^2 + 2)))), within 4 standard errors."""
    d, h = 4, 1.5
    mean = torch.full((d,), shift / d**0.5, dtype=torch.float64)
    wanted = 2 * (h**2 / (h**2 + 2)) ** (d / 2) * (1 - math.exp(-(shift**2) / (2 * (h**2 + 2))))
    found = torch.stack([mmd(normal(200, d, 2 * i), normal(200, d, 2 * i + 1, mean), rbf(h)) for i in range(40)])
    error = float(found.std()) / 40**0.5
    assert abs(float(found.mean()) - wanted) <= 4 * error
    # Without bias: of equal laws about half of the estimates are negative.
    assert bool((found < 0).any()) == (shift == 0)


def test_mmd_needs_two_samples():
    with pytest.raises(ValueError, match="needs at least 2 samples of each distribution, got 1 and 4"):
        mmd(torch.zeros(1, 3), torch.zeros(4, 3), rbf(1.0))


# ---- the discriminator


def test_learning_is_adams():
    """Two hidden layers, five steps: the weights are those of torch's Adam on the same loss."""
    learner, state = Discriminator(6, 2, 0.01, 0.5), {}
    learner.begin(state, normal(2, 3, 0))
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        for i, layer in enumerate(net[::2]):
            layer.weight.copy_(state[f"discriminator.{i}.weight"])
            layer.bias.copy_(state[f"discriminator.{i}.bias"])
    adam = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.5, 0.999))
    for step in range(5):
        samples, prior = normal(7, 3, 10 + step, 0.5), normal(7, 3, 20 + step)
        theirs = -torch.log(torch.sigmoid(net(prior))).mean() - torch.log(1 - torch.sigmoid(net(samples))).mean()
        adam.zero_grad()
        theirs.backward()
        adam.step()
        assert float(learner.learn(state, samples, prior)) == pytest.approx(theirs.item(), rel=1e-10)
    for i, layer in enumerate(net[::2]):
        torch.testing.assert_close(state[f"discriminator.{i}.weight"], layer.weight.detach(), rtol=1e-9, atol=1e-9)


def test_of_two_gaussians_it_learns_the_logistic_of_a_linear_function():
    """Equal covariances: the best log-odds are z -> -mu z + |mu|^2 / 2, prior at 0 and samples at mu."""
    learner, state, mu = Discriminator(1, 0, 0.02, 0.5), {}, torch.tensor([0.8, -0.6], dtype=torch.float64)
    for step in range(500):
        samples, prior = normal(500, 2, 2 * step, mu), normal(500, 2, 2 * step + 1)
        learner.begin(state, samples)
        learner.learn(state, samples, prior)
    torch.testing.assert_close(state["discriminator.0.weight"][0], -mu, rtol=0, atol=0.1)
    assert float(state["discriminator.0.bias"]) == pytest.approx(0.5, abs=0.1)


def test_of_equal_laws_it_stays_at_chance():
    learner, state = Discriminator(16, 1, 0.003, 0.5), {}
    for step in range(200):
        samples, prior = normal(256, 2, 2 * step), normal(256, 2, 2 * step + 1)
        learner.begin(state, samples)
        loss = learner.learn(state, samples, prior)
    assert float(loss) == pytest.approx(CHANCE, abs=0.05)
    assert float(learner.logits(state, normal(256, 2, 999)).sigmoid().sub(0.5).abs().mean()) < 0.1


def test_samples_that_are_not_finite_teach_nothing():
    learner, state = Discriminator(4, 1, 0.01, 0.5), {}
    learner.begin(state, normal(3, 2, 0))
    learner.learn(state, normal(3, 2, 1), normal(3, 2, 2))
    before = {name: value.clone() for name, value in state.items()}
    learner.learn(state, torch.full((3, 2), math.nan, dtype=torch.float64), normal(3, 2, 2))
    assert all(torch.equal(value, before[name]) for name, value in state.items())


# ---- where the embedding is taken


def test_the_embedding_is_the_input_of_the_last_linear_or_a_named_output():
    model, (x, _) = network().eval(), batch()
    last = [m for m in model if isinstance(m, nn.Linear)][-1]
    assert torch.equal(last(embed(model, x)), model(x))
    assert torch.equal(embed(model, x, "3"), model[3](model[2](model[1](model[0](x)))).flatten(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    vit = build("vit_tiny", shape=(1, 8, 8), patch=4)
    assert embed(vit, torch.rand(2, 1, 8, 8)).shape == (2, 32)


class Skips(nn.Module):
    """Has a layer that its forward pass does not call."""

    def __init__(self):
        super().__init__()
        self.body, self.spare = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), nn.Linear(2, 2)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("model", "layer", "line"),
    [
        (nn.Sequential(nn.Conv2d(1, 5, 6), nn.Flatten()), None, "no Linear layer: set train.embedding.layer"),
        (network().float(), "fc", "unknown module of the network 'fc'"),
        (Skips(), None, "spare does not return an embedding of the 4 inputs"),
    ],
)
def test_no_embedding_is_one_line(model, layer, line):
    with pytest.raises(ValueError, match=line) as caught:
        embed(model, torch.rand(4, 1, 6, 6), layer)
    assert "\n" not in str(caught.value)


# ---- the term


def run(method, model, weight=1.0, progress=1.0, state=None):
    model, (x, y) = copy.deepcopy(model), batch()
    torch.manual_seed(21)
    given = {"ids": torch.arange(N), "weight": weight, "progress": progress, "state": state}
    return method.backward(model, x, y, rng=stream(), **given), model


@pytest.mark.parametrize("method", [PGDAT(LINF, steps=2), TRADES(LINF, steps=2), ATENT(LINF, steps=2), Standard()])
def test_weight_zero_is_the_method_bit_for_bit(method):
    model = network(True, 0.3)
    (a, one), (b, two) = (run(m, model, 0.7) for m in (method, EmbeddingRegularised(method)))
    assert torch.equal(gradient(one), gradient(two))
    assert all(torch.equal(u, v) for u, v in zip(one.buffers(), two.buffers(), strict=True))
    assert a.keys() == b.keys()


@pytest.mark.parametrize(
    ("method", "divergence"),
    [
        (PGDAT(LINF, steps=1), "mmd"),
        (PGDAT(LINF, steps=1), "discriminator"),
        (ATENT(LINF, steps=2), "discriminator"),
        (Gaussian(0.1), "mmd"),
        (MMA(Threat("l2", 0.5), steps=2), "mmd"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_it_keeps_the_contract(method, divergence):
    term = EmbeddingTerm(0.3) if divergence == "mmd" else EmbeddingTerm(0.3, divergence, width=8, depth=1, lr=0.01)
    assert "AWP wraps it and restores the weights" in check_method(EmbeddingRegularised(method, term))


def test_the_term_is_the_divergence_at_clean_and_adversarial_inputs():
    """Its gradient is that of the difference of the losses, its value the mean over both parts; statistics stay."""
    model, (x, y), method = network(True), batch(), PGDAT(LINF, steps=2)
    around = EmbeddingRegularised(method, EmbeddingTerm(0.3, kernel="rbf", sigma=2.0))
    metrics, made = run(around, model)
    aux = around.adversary(model, x, y, rng=stream())
    points = around.points(x, aux)
    assert torch.equal(points, aux[0])
    prior = 2 * PerSample(int(aux[1]), torch.arange(2 * N)).normal(torch.zeros(2 * N, 24, dtype=torch.float64))
    free = copy.deepcopy(model)
    clean, moved = (free[:7](inputs).flatten(1) for inputs in (x, points))
    kernel = rbf((24 * 4) ** 0.5)
    value = (mmd(clean, prior[:N], kernel) + mmd(moved, prior[N:], kernel)) / 2
    assert float(metrics["embedding"]) == pytest.approx(value.item(), rel=1e-9)
    nn.functional.cross_entropy(free(points), y).add(0.3 * value).backward()
    torch.testing.assert_close(gradient(made), gradient(free), rtol=1e-9, atol=1e-11)
    # Batch-norm saw the method's own pass alone.
    once = copy.deepcopy(model)
    once(points)
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), once.buffers(), strict=True))


def test_the_discriminators_term_is_its_formula():
    """-E log g(Z) over both parts, in value and gradient, by g as it was; its step on the same samples comes after."""
    model, (x, y), method, state = network(True), batch(), PGDAT(LINF, steps=2), {}
    term = EmbeddingTerm(0.3, "discriminator", width=4, depth=1, sigma=2.0, lr=0.01)
    term.discriminator.begin(state, torch.zeros(1, 24, dtype=torch.float64))
    before, g = copy.deepcopy(state), nn.Sequential(nn.Linear(24, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for i, layer in enumerate(g[::2]):
            layer.weight.copy_(before[f"discriminator.{i}.weight"])
            layer.bias.copy_(before[f"discriminator.{i}.bias"])
    around = EmbeddingRegularised(method, term)
    metrics, made = run(around, model, state=state)
    points, key = around.adversary(model, x, y, rng=stream())
    prior = 2 * PerSample(int(key), torch.arange(2 * N)).normal(torch.zeros(2 * N, 24, dtype=torch.float64))
    free = copy.deepcopy(model)
    z = torch.cat([free[:7](inputs).flatten(1) for inputs in (x, points)])
    value = -torch.log(torch.sigmoid(g(z))).mean()
    own = -torch.log(torch.sigmoid(g(prior))).mean() - torch.log(1 - torch.sigmoid(g(z))).mean()
    assert float(metrics["embedding"]) == pytest.approx(value.item(), rel=1e-9)
    assert float(metrics["discriminator_loss"]) == pytest.approx(own.item(), rel=1e-9)
    nn.functional.cross_entropy(free(points), y).add(0.3 * value).backward()
    torch.testing.assert_close(gradient(made), gradient(free), rtol=1e-9, atol=1e-11)
    term.discriminator.learn(before, z.detach(), prior)
    for name, wanted in before.items():
        torch.testing.assert_close(state[name], wanted, rtol=1e-9, atol=1e-11)


def attacking():
    """The methods that the term supports and whose adversary evaluates the network."""
    around = [name for name, kind in METHODS.items() if kind.labelled and may_perturb(kind)]
    return [name for name in around if "threat" in METHODS[name].__dataclass_fields__ and name not in BOUNDS]


@pytest.mark.parametrize("name", attacking())
def test_every_adversary_names_the_inputs_of_the_term(name):
    kind, model, (x, y) = METHODS[name], network(True), batch()
    norm = kind.norms[0]
    method = kind(Threat(norm, 0.1 if norm == "linf" else 0.5))
    around = EmbeddingRegularised(method, EmbeddingTerm(0.3))
    state = method.init(N, tuple(x.shape[1:]), x.device)
    points = around.points(x, around.adversary(model, x, y, rng=stream(), ids=torch.arange(N), state=state))
    assert points is not None
    assert points.shape[1:] == x.shape[1:]
    assert ((points.view(-1, *x.shape) - x).abs() > 1e-6).any()


@pytest.mark.parametrize(
    "method",
    [SmoothAdv(Threat("l2", 0.1), sigma=0.001, samples=3, steps=2), ATENT(Threat("l2", 0.1), steps=2, chains=3)],
    ids=lambda method: type(method).__name__,
)
def test_several_inputs_of_a_sample_are_copies_of_the_batch_one_after_the_other(method):
    """The order in which processes that share a batch exchange rows, and select the rows of dropout's masks."""
    model, (x, y) = network(), batch()
    points = method.points(x, method.adversary(model, x, y, rng=stream(), ids=torch.arange(N))).detach()
    assert len(points) == 3 * N
    # Every input is nearest to its own sample.
    nearest = torch.cdist(points.flatten(1), x.flatten(1)).argmin(1)
    assert torch.equal(nearest, torch.arange(N).repeat(3))


def test_the_weight_grows_over_the_ramp():
    model, factors = network(), []
    plain, _ = run(Standard(), model)
    for progress in (0.0, 0.25, 0.5, 1.0):
        metrics, _ = run(EmbeddingRegularised(Standard(), EmbeddingTerm(0.4, ramp=0.5)), model, progress=progress)
        factors.append(float((metrics["loss"] - plain["loss"]) / metrics["embedding"]))
    assert factors == pytest.approx([0, 0.2, 0.4, 0.4], abs=1e-9)


def test_the_discriminator_learns_once_per_batch_also_inside_awp():
    model, state = network(), {}
    term = EmbeddingTerm(0.3, "discriminator", width=4, depth=1)
    around = EmbeddingRegularised(PGDAT(LINF, steps=2), term)
    first, _ = run(around, model, state=state)
    assert float(state["discriminator.steps"]) == 1
    run(AWP(around, 0.01), model, state=state)
    assert float(state["discriminator.steps"]) == 2
    assert {"embedding", "discriminator_loss"} <= first.keys()


# ---- in a training


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=96, validation=20))


def train(digits, path=None, *, seed=0, method=None, **more):
    torch.manual_seed(seed)
    term = more.pop("embedding", EmbeddingTerm(0.2, "discriminator", "fc1", width=16, depth=1, lr=0.003))
    settings = TrainSettings(epochs=2, batch_size=32, device="cpu", validate_limit=20, embedding=term)
    return fit(
        build("digits_cnn"), digits, method or PGDAT(LINF, steps=1), settings=settings, run=path, progress=False, **more
    )  # fmt: skip


def test_resumed_after_an_interrupt_equals_unbroken(digits, tmp_path):
    class Interrupts(Callback):
        def step(self, progress):
            if (progress.epoch, progress.step) == (2, 1):
                os.kill(os.getpid(), signal.SIGINT)

    whole = train(digits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(digits, tmp_path / "broken", callbacks=[Interrupts()])
    resumed = train(digits, tmp_path / "broken", seed=7, resume=True)
    assert without_times(resumed.history) == without_times(whole.history)
    assert "discriminator_loss" in whole.history[0]
    one, two = (torch.load(tmp_path / name / folder.LAST / "state.pt") for name in ("whole", "broken"))
    assert one["method"].keys() == two["method"].keys()
    assert "discriminator.1.weight.second" in one["method"]
    assert all(torch.equal(one["method"][name], two["method"][name]) for name in one["method"])


def test_the_settings_and_the_method_say_the_same(digits, tmp_path):
    term = EmbeddingTerm(0.2, layer="fc1")
    one = train(digits, tmp_path / "one", embedding=term)
    around = EmbeddingRegularised(PGDAT(LINF, steps=1), term)
    two = train(digits, tmp_path / "two", embedding=EmbeddingTerm(), method=around)
    assert without_times(one.history) == without_times(two.history)
    configs = [folder.read_json(tmp_path / name / folder.CONFIG) for name in ("one", "two")]
    assert configs[0]["train"] == configs[1]["train"]
    assert configs[0]["method"] == configs[1]["method"]
    with pytest.raises(ValueError, match="set twice"):
        train(digits, embedding=term, method=around)


def test_a_run_made_before_resumes(digits, tmp_path):
    run = tmp_path / "run"
    train(digits, run, embedding=EmbeddingTerm())
    state = torch.load(run / folder.LAST / "state.pt")
    kept = json.loads(state["mark"]["config"])
    del kept["train"]["embedding"]
    state["mark"]["config"] = folder.dumps(kept)
    torch.save(state, unsealed(run) / folder.LAST / "state.pt")
    train(digits, run, embedding=EmbeddingTerm(), resume=True)
    with pytest.raises(ValueError, match="other settings"):
        train(digits, run, resume=True)


def test_a_diverging_discriminator_is_one_line(digits):
    term = EmbeddingTerm(1e-3, "discriminator", "fc1", width=16, depth=2, lr=1e4)
    with pytest.raises(
        Diverged, match=r"the discriminator of the embeddings has diverged.*lower train.embedding.lr"
    ) as e:
        train(digits, embedding=term)
    assert "\n" not in str(e.value)


# ---- settings


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"weight": -1}, "weight .of embedding. must be at least 0"),
        ({"weight": 1, "divergence": "wasserstein"}, "divergence 'wasserstein' is not known: use one of mmd"),
        ({"weight": 1, "sigma": 0}, "sigma .of embedding. must be above 0"),
        ({"weight": 1, "ramp": 2}, "in .0, 1., got 2"),
        ({"weight": 1, "depth": -1}, "depth .of the discriminator. must be at least 0"),
        ({"weight": 1, "beta1": 1.0}, "beta1"),
        ({"ramp": 0.5}, "ramp .of embedding. has no effect without a weight"),
        ({"weight": 1, "width": 8}, "width .of embedding. has no effect with divergence mmd"),
        ({"weight": 1, "divergence": "discriminator", "kernel": "rbf"}, "kernel .of embedding. has no effect"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(given, line):
    with pytest.raises(ValueError, match=line) as caught:
        EmbeddingTerm(**given)
    assert "\n" not in str(caught.value)


def test_a_method_of_a_single_step_stays_one():
    assert EmbeddingRegularised(FGSMRS(LINF), EmbeddingTerm(0.1)).single_step
    assert not EmbeddingRegularised(PGDAT(LINF), EmbeddingTerm(0.1)).single_step


def test_what_it_does_not_go_around_is_one_line():
    term = EmbeddingTerm(0.1)
    with pytest.raises(ValueError, match="does not support Free, which overrides backward"):
        EmbeddingRegularised(Free(LINF), term)
    with pytest.raises(ValueError, match="does not support ACL, which trains without labels"):
        EmbeddingRegularised(ACL(LINF), term)
    with pytest.raises(ValueError, match="must be inside AWP"):
        EmbeddingRegularised(AWP(PGDAT(LINF)), term)
    with pytest.raises(ValueError, match=r"term must be an EmbeddingTerm, got 0\.1"):
        EmbeddingRegularised(PGDAT(LINF), 0.1)
    tables = read_recipe("digits-linf-free")
    tables["train"] = {**tables["train"], "embedding": {"weight": 0.1}}
    with pytest.raises(UsageError, match="embedding: embedding regularisation does not support Free"):
        job(tables, "mine")


def test_a_recipe_and_options_ask_for_it(capsys):
    made = train_job("digits-linf-pgdat", "--train.embedding.weight", "0.2", "--train.embedding.layer", "fc1")
    assert made.train.embedding == EmbeddingTerm(0.2, layer="fc1")
    assert made.title == "PGDAT-ER"
    assert baseline(made, made.method.threat).train.embedding == EmbeddingTerm()
    switched = train_job("digits-linf-pgdat-er", "--method.name", "Free")
    assert switched.train.embedding == EmbeddingTerm()
    assert "Free takes no embedding" in capsys.readouterr().err


def test_the_recipes_evaluate_with_the_checks():
    for name in ("digits-linf-pgdat-er", "digits-linf-pgdat-er-discriminator"):
        made = train_job(name)
        assert made.evaluate.checks
        assert {text.partition("(")[0] for text in made.evaluate.attacks} >= {"APGD", "Square"}


def test_a_recipe_with_checks_has_them_in_its_evaluation(tmp_path, monkeypatch, capsys):
    asked = []

    def checks(model, x, y, threat, *, attack, seed, batch, **_):
        asked.append((threat, attack))
        return [Check("black-box", False, "3 of 4", "gradients are masked")]

    monkeypatch.setattr("atent.experiments.evaluation.masking_checks", checks)
    monkeypatch.chdir(tmp_path)
    small = ["--data.limit", "60", "--train.epochs", "1", "--train.validate-limit", "10", "--evaluate.limit", "5"]
    words = [*small, "--method.steps", "1", "--evaluate.attacks", "FGSM", "PGD(steps=2)", "--train.device", "cpu"]
    assert main(["train", "digits-linf-pgdat-er", "--quiet", "--name", "er", *words]) == 0
    ((threat, attack),) = asked
    assert (threat.norm, threat.eps, attack) == ("linf", 0.15, PGD(threat, steps=2))
    kept = folder.read_json("runs/er/evaluation.json")["checks"]
    assert [(check["name"], check["passed"]) for check in kept] == [("black-box", False)]
    assert "gradients are masked" in capsys.readouterr().out
    # The run keeps asking for them.
    assert evaluate_target(load_target("runs/er", device="cpu"), progress=False).checks[0].name == "black-box"
