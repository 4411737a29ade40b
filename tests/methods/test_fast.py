"""FGSM-RS, Free and MART against slow transcriptions, and the watch for catastrophic overfitting."""

import copy
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent import runs as folder
from atent.attacks import FGSM, PGD
from atent.data import DataSettings, load
from atent.methods import AWP, FGSMRS, MART, PGDAT, TRADES, EmbeddingRegularised, EmbeddingTerm, Free, Method, Standard
from atent.models import ModelSettings, make
from atent.optim import Optimizer, Schedule
from atent.train import Interrupted, TrainSettings, fit, load_weights, watch
from atent.train.watch import OK, STOP, WARNING, Watch

EPS = 0.2
LINF = Threat("linf", EPS)


def same_buffers(ours, theirs):
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


# -- FGSM-RS


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("step_size", [None, 0.07])
@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_fgsm_rs_is_its_algorithm(mode, step_size, start):
    model, (x, y) = network(True, 0.0), batch()
    slow = copy.deepcopy(model)
    method = FGSMRS(LINF, step_size, start, mode)
    metrics = method.backward(model, x, y, rng=stream())

    rng = stream()
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    delta = EPS * (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1) * (start == "uniform")
    delta = (x + delta).clamp(0, 1) - x
    probe = copy.deepcopy(slow).train(mode == "train")
    delta.requires_grad_()
    F.cross_entropy(probe(x + delta), y).backward()
    delta = (delta.detach() + (step_size or 1.25 * EPS) * delta.grad.sign()).clamp(-EPS, EPS)
    logits = slow((x + delta).clamp(0, 1))
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert distance(gradient(model), gradient(slow)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
    assert float(metrics["robust"]) == float((logits.argmax(1) == y).double().mean())
    same_buffers(model, slow)


def test_without_a_start_it_is_fgsm():
    """A step of 1.25 eps, cut at eps, from x: every pixel that has a gradient moves by eps."""
    model, (x, y) = network(True), batch()
    x = 0.4 + 0.2 * x
    moved = FGSMRS(LINF, start="zero").adversary(model, x, y, rng=stream()) - x
    assert torch.allclose(moved.abs(), torch.full_like(moved, EPS))


# -- Free


def test_free_is_algorithm_1_over_batches_that_come_again():
    """Two batches of 8 and one of 5, four replays each, with SGD and batch-norm: weights and delta step by step."""
    replays, model = 4, network(True, 0.0)
    slow = copy.deepcopy(model)
    method, steps = Free(LINF, replays), [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (model, slow)]
    state = method.init(100, (1, 6, 6), torch.device("cpu"))
    delta = torch.zeros(N, 1, 6, 6, dtype=torch.float64)
    for n, seed in ((N, 1), (N, 2), (5, 3), (N, 4)):
        x, y = batch(n, seed)
        for _ in range(replays):
            steps[0].zero_grad()
            metrics = method.backward(model, x, y, rng=stream(), ids=torch.arange(n), state=state)
            steps[0].step()

            steps[1].zero_grad()
            z = (x + delta[:n]).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(slow(z), y)
            loss.backward()
            delta[:n] = (delta[:n] + EPS * z.grad.sign()).clamp(-EPS, EPS)
            steps[1].step()
            assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-11)
            torch.testing.assert_close(state["delta"], delta, rtol=0, atol=0)
    assert distance(gradient(model), gradient(slow)) <= 1e-10
    for p, q in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=ROUNDING)
    same_buffers(model, slow)


def test_free_grows_its_ball_and_its_step_over_the_warm_up():
    """delta after each pass is one scaled step further, clipped to the scaled ball; from half way on it is the plain
    method's."""
    method, model, (x, y) = Free(LINF, step_size=0.4 * EPS, eps_warmup=0.5), network(), batch()
    state = method.init(100, (1, 6, 6), torch.device("cpu"))
    delta = torch.zeros(N, 1, 6, 6, dtype=torch.float64)
    for progress, factor in ((0.0, 0.0), (0.05, 0.1), (0.25, 0.5), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)):
        z = (x + delta).clamp(0, 1).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        delta = (delta + 0.4 * EPS * factor * g.sign()).clamp(-EPS * factor, EPS * factor)
        model.zero_grad()
        method.backward(model, x, y, rng=stream(), progress=progress, state=state)
        torch.testing.assert_close(state["delta"], delta, rtol=0, atol=ROUNDING)
    assert float(delta.abs().max()) > 0.9 * EPS


def test_the_state_grows_to_the_largest_batch_and_keeps_what_it_has():
    method, model = Free(LINF), network()
    state = method.init(100, (1, 6, 6), torch.device("cpu"))
    for n in (3, N, 2):
        method.backward(model, *batch(n), rng=stream(), state=state)
    assert state["delta"].shape == (N, 1, 6, 6)
    assert float(state["delta"].abs().max()) == EPS


def test_a_replay_is_not_standard_training_and_the_first_pass_is():
    method, model, (x, y) = Free(LINF), network(), batch()
    state = method.init(100, (1, 6, 6), torch.device("cpu"))
    grads = []
    for _ in range(2):
        model.zero_grad()
        method.backward(model, x, y, rng=stream(), state=state)
        grads.append(gradient(model).clone())
    model.zero_grad()
    Standard().backward(model, x, y, rng=stream())
    assert distance(grads[0], gradient(model)) <= ROUNDING
    assert distance(grads[1], gradient(model)) > 1e-2


class Seen(nn.Module):
    """Remembers the batches that pass in train mode."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.net(x)


def quick(**changes):
    base = {"epochs": 2, "batch_size": 64, "validate_limit": 20, "validate_attack": "none", "device": "cpu"}
    return TrainSettings(**{**base, "watch": "off", **changes})


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=210, validation=60))


def test_the_loop_brings_each_batch_as_often_as_the_method_asks(digits):
    model = Seen()
    fitted = fit(
        model, digits, Free(Threat("linf", 0.05), 3), settings=quick(epochs=1), optimizer=Optimizer(lr=0.1),
        schedule=Schedule("cyclic", unit="step"), augmentation="crop-flip", progress=False,
    )  # fmt: skip
    sizes = [len(x) for x in model.seen]
    assert sizes == [n for n in (64, 64, 64, 18) for _ in range(3)]
    for k in range(0, 12, 3):
        first, *others = model.seen[k : k + 3]
        # the same augmentation, and deltas of at most eps on both sides
        assert all(0 < float((first - x).abs().max()) <= 0.1 + 1e-6 for x in others)
    assert float((model.seen[0][:18] - model.seen[9]).abs().max()) > 0.5
    # twelve steps of a triangle: the last has one of six still to go
    assert fitted.history[0]["lr"] == pytest.approx(0.1 / 6)


def test_a_killed_free_run_goes_on_in_the_midst_of_its_replays(digits, tmp_path):
    method, kept = Free(Threat("linf", 0.05), 3), {"optimizer": Optimizer(lr=0.05), "progress": False}

    class Killed(Seen):
        def forward(self, x):
            if self.training and len(self.seen) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(x)

    Killed.__qualname__ = Seen.__qualname__  # a run resumes with the same layers
    torch.manual_seed(0)
    begin = Seen().state_dict()
    models = [Seen(), Killed(), Seen()]
    for model in models:
        model.load_state_dict(begin)
    whole = fit(models[0], digits, method, settings=quick(), **kept)
    with pytest.raises(Interrupted):
        fit(models[1], digits, method, settings=quick(), run=tmp_path / "run", config=None, **kept)
    assert len(models[1].seen) == 5
    description = folder.read_json(tmp_path / "run" / folder.CONFIG)
    resumed = fit(
        models[2], digits, method, settings=quick(), run=tmp_path / "run", config=description, resume=True, **kept
    )
    assert len(models[2].seen) == len(models[0].seen) - 5
    weights = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


# -- MART


@pytest.mark.parametrize("beta", [6.0, 0.0])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
def test_mart_is_its_equation(beta, batchnorm):
    """The attack as the authors' code runs it; the loss sample by sample, from probabilities."""
    model, (x, y) = network(batchnorm), batch()
    slow, steps, size = copy.deepcopy(model), 3, 0.06
    metrics = MART(LINF, steps, size, beta).backward(model, x, y, rng=stream())

    rng = stream()
    torch.randint(2**62, (), generator=rng)
    z = x + 0.001 * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    slow.eval()
    for _ in range(steps):
        z.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(slow(z), y), [z])
        z = z.detach() + size * g.sign()
        z = torch.minimum(torch.maximum(z, x - EPS), x + EPS).clamp(0, 1)
    slow.train()
    p, q = slow(x).softmax(1), slow(z).softmax(1)
    boosted = robust = 0.0
    for i in range(N):
        others = [k for k in range(q.shape[1]) if k != y[i]]
        boosted = boosted - q[i, y[i]].log() - (1 - max(q[i, k] for k in others)).log()
        divergence = sum(p[i, k] * (p[i, k] / q[i, k]).log() for k in range(q.shape[1]))
        robust = robust + divergence * (1 - p[i, y[i]])
    loss = (boosted + beta * robust) / N
    loss.backward()
    assert distance(gradient(model), gradient(slow)) <= 1e-11
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-11)
    assert float(metrics["boosted_loss"]) == pytest.approx(boosted.item() / N, rel=1e-11)
    assert float(metrics["robust_loss"]) == pytest.approx(robust.item() / N, rel=1e-11)
    same_buffers(model, slow)


def test_mart_gradient_is_the_finite_difference():
    """x' held fixed, for one weight of each layer; in train mode with batch-norm."""
    model, (x, y) = network(True), batch()
    method = MART(LINF, steps=2)
    x_adv = method.adversary(model, x, y, rng=stream())
    loss, _ = method.loss(model, x, y, x_adv)
    loss.backward()
    h = 1e-6
    for p in model.parameters():
        value = p.grad.flatten()[0]
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[0].add_(sign * h)
                ends.append(float(method.loss(model, x, y, x_adv)[0]))
                p.view(-1)[0].sub_(sign * h)
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(value), rel=1e-5, abs=1e-8)


def test_mart_warms_up():
    model, (x, y) = network(), batch()
    half, whole = MART(LINF, eps_warmup=0.5), MART(LINF)
    assert torch.equal(half.adversary(model, x, y, rng=stream(), progress=0.0), x)
    for progress, other in ((0.25, MART(Threat("linf", EPS / 2))), (0.5, whole), (1.0, whole)):
        ours = half.adversary(model, x, y, rng=stream(), progress=progress)
        assert torch.equal(ours, other.adversary(model, x, y, rng=stream()))


def test_mart_is_finite_where_the_network_is_certain():
    """float32, probabilities that round to 0 and 1, right and wrong."""
    net, x = nn.Linear(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[400.0, -400.0], [-400.0, 400.0], [0.0, 0.0]]))
    method = MART(Threat("linf", 0.1), steps=1)
    metrics = method.backward(net, x, torch.tensor([0, 0]), rng=stream())
    assert all(torch.isfinite(v).all() for v in metrics.values())
    assert torch.isfinite(net.weight.grad).all()


# -- what is refused


@pytest.mark.parametrize("cls", [FGSMRS, Free, MART])
def test_l2_is_refused_in_one_line(cls):
    with pytest.raises(
        ValueError, match=rf"^{cls.__name__} has no form for l2: give a threat in linf, or use one of [^\n]*, PGDAT, "
    ):
        cls(Threat("l2", 1.0))
    with pytest.raises(ValueError, match="finite"):
        cls(Threat("linf", "inf"))


@pytest.mark.parametrize(
    ("cls", "given", "part"),
    [
        (FGSMRS, {"step_size": -0.1}, "step_size"),
        (FGSMRS, {"start": "corner"}, "start"),
        (FGSMRS, {"mode": "test"}, "mode"),
        (FGSMRS, {"step_size": 1e-12}, "float32"),
        (Free, {"replays": 0}, "replays"),
        (Free, {"step_size": -1.0}, "step_size"),
        (Free, {"eps_warmup": 1.5}, "eps_warmup"),
        (MART, {"steps": 0}, "steps"),
        (MART, {"beta": -1.0}, "beta"),
        (MART, {"start_noise": 0.0}, "start_noise"),
    ],
)
def test_bad_settings(cls, given, part):
    with pytest.raises(ValueError, match=part) as caught:
        cls(LINF, **given)
    assert "\n" not in str(caught.value)


# -- the watch


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        # PGD accuracy falls at once while the training's attack does not notice
        ([(0.5, 0.6), (0.55, 0.62), (0.05, 0.9)], [OK, OK, STOP]),
        # in two steps of less than the limit, the fall is counted from the best
        ([(0.5, 0.6), (0.38, 0.7), (0.27, 0.8)], [OK, WARNING, STOP]),
        # both fall: a training that diverges, or a harder eps, is another matter
        ([(0.5, 0.6), (0.1, 0.2), (0.1, 0.1)], [OK, OK, OK]),
        # what the training's attack lost is taken off
        ([(0.5, 0.6), (0.1, 0.5)], [OK, STOP]),
        ([(0.5, 0.6), (0.25, 0.5)], [OK, WARNING]),
        # noise of a few images
        ([(0.5, 0.6), (0.42, 0.6), (0.45, 0.6)], [OK, OK, OK]),
    ],
)
def test_the_verdict(digits, rows, verdicts):
    watcher = Watch(FGSMRS(LINF), digits, TrainSettings(), LINF)
    found = []
    for epoch, (pgd, own) in enumerate(rows, 1):
        row = {"epoch": epoch, "watch_robust": pgd, "watch_training": own}
        row["watch"] = watcher.assess(row)
        found.append(row["watch"])
        if row["watch"] != OK:
            line = watcher.line(row)
            assert f"epoch {epoch}: {100 * pgd:.1f} %" in line
            assert "\n" not in line
            assert line.split(" became ")[1].startswith(f"{100 * own:.1f} %")
    assert found == verdicts


def test_who_is_watched(digits):
    settings = TrainSettings()
    assert watch.watch(FGSMRS(LINF), digits, settings, LINF) is not None
    assert watch.watch(Free(LINF), digits, settings, LINF) is not None
    for method in (PGDAT(LINF), TRADES(LINF), MART(LINF), Standard()):
        assert watch.watch(method, digits, settings, LINF) is None
    assert watch.watch(FGSMRS(LINF), digits, TrainSettings(watch="off"), LINF) is None
    assert watch.watch(PGDAT(LINF), digits, TrainSettings(watch="on"), LINF) is not None
    with pytest.raises(ValueError, match="needs a method with a threat, got Standard"):
        watch.watch(Standard(), digits, TrainSettings(watch="on"), LINF)
    for name, bad in (("", "yes"), ("_limit", 0), ("_steps", 0), ("_drop", 0.0), ("_drop", math.nan)):
        with pytest.raises(ValueError, match="watch"):
            TrainSettings(**{f"watch{name}": bad})


@dataclass(frozen=True)
class Named(Method):
    """A method of the user, whose `attack` is not that of the built-in methods."""

    threat: Threat

    def attack(self, model, x, y):
        raise AssertionError("called")


def test_the_probe_is_pgd_and_the_trainings_attack_on_the_first_validation_images(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.train()
    threat = Threat("linf", 0.05)
    settings = TrainSettings(watch_limit=40, watch_steps=3, seed=5)
    part = digits.validation.first(40)
    x, y = part.batch(torch.arange(40))
    own = {
        FGSMRS(threat): PGD(threat, 1, 1.25 * 0.05), Free(threat): FGSM(threat), PGDAT(threat, 7): PGD(threat, 7),
        AWP(PGDAT(threat, 7)): PGD(threat, 7), Named(threat): FGSM(threat),
        EmbeddingRegularised(FGSMRS(threat), EmbeddingTerm(weight=0.1)): PGD(threat, 1, 1.25 * 0.05),
    }  # fmt: skip
    for method, attack in own.items():
        found = Watch(method, digits, settings, threat).measure(model)
        for name, by in (("watch_robust", PGD(threat, 3)), ("watch_training", attack)):
            x_adv = by(model, x, y, seed=5, ids=part.ids)
            right = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
            assert found[name] == float(right.double().mean())
    assert model.training


def rigged(monkeypatch, values):
    """The probe's answers, epoch by epoch, and a training's attack that notices nothing."""
    left = list(values)
    reported = lambda self, model: {"watch_robust": left.pop(0), "watch_training": 0.7}  # noqa: E731
    monkeypatch.setattr(Watch, "measure", reported)


@pytest.mark.parametrize("select", ["auto", "clean", "last"])
def test_a_collapse_warns_stops_and_keeps_the_best_weights(digits, monkeypatch, tmp_path, select):
    rigged(monkeypatch, [0.5, 0.6, 0.49, 0.02])
    said, path = [], tmp_path / "run"
    kept = {"optimizer": Optimizer(lr=0.05), "progress": False, "say": said.append, "run": path}
    settings = quick(epochs=9, watch="auto", select=select, validate_attack="PGD(steps=2)")
    method = FGSMRS(Threat("linf", 0.03))
    torch.manual_seed(0)
    model = Seen()
    fitted = fit(model, digits, method, settings=settings, **kept)
    rows = fitted.history
    assert [row["watch"] for row in rows] == [OK, OK, WARNING, STOP]
    assert [row["watch_robust"] for row in rows] == [0.5, 0.6, 0.49, 0.02]
    assert [line.split()[0] for line in said] == ["warning", "stopped"]
    assert fitted.stopped == said[1]
    assert fitted.best["epoch"] < 4
    assert not rows[3]["best"]
    if select == "last":
        assert fitted.best["epoch"] == 3
    again = Seen()
    assert load_weights(again, path)["epoch"] == fitted.best["epoch"]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fitted.model.parameters(), strict=True))
    # to go on with a stopped run changes nothing
    config = folder.read_json(path / folder.CONFIG)
    resumed = fit(Seen(), digits, method, settings=settings, config=config, resume=True, **kept)
    assert resumed.history == rows
    assert resumed.stopped == fitted.stopped
    assert len(said) == 2


def test_nothing_is_said_where_all_is_well_and_multi_step_methods_are_not_asked(digits, monkeypatch):
    rigged(monkeypatch, [0.5, 0.6])
    said = []
    kept = {"optimizer": Optimizer(lr=0.05), "progress": False, "say": said.append}
    fitted = fit(Seen(), digits, FGSMRS(Threat("linf", 0.03)), settings=quick(watch="auto"), **kept)
    assert [row["watch"] for row in fitted.history] == [OK, OK]
    assert fitted.stopped is None
    fitted = fit(Seen(), digits, PGDAT(Threat("linf", 0.03), 2), settings=quick(watch="auto"), **kept)
    assert not any("watch" in row for row in fitted.history)
    assert not said


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute on an idle core
def test_fgsm_without_a_random_start_collapses_on_mnist_and_is_stopped():
    """Nothing rigged: at linf 0.3 PGD comes to fool what FGSM does not, and the training ends there."""
    if not os.environ.get("ATENT_DATA_ROOT") or not (Path(os.environ["ATENT_DATA_ROOT"]) / "mnist").is_dir():
        pytest.skip("ATENT_DATA_ROOT holds no mnist")
    data = load(DataSettings("mnist", limit=3000, validation=300))
    model = make(ModelSettings("digits_cnn"), classes=10, shape=data.shape, seed=0)
    said = []
    settings = quick(epochs=24, watch="auto", watch_limit=100, select="clean")
    method = FGSMRS(Threat("linf", 0.3), start="zero", eps_warmup=0.4)
    fitted = fit(
        model, data, method, optimizer=Optimizer(lr=0.05), settings=settings, progress=False, say=said.append
    )  # fmt: skip
    before, end = max(fitted.history, key=lambda row: row["watch_robust"]), fitted.history[-1]
    assert fitted.stopped == said[-1]
    assert len(fitted.history) < 24
    assert end["watch"] == STOP
    assert before["watch_robust"] - end["watch_robust"] > 0.2
    assert end["watch_training"] > 0.6
    assert end["watch_training"] > before["watch_training"] - 0.1
    assert fitted.best["epoch"] < end["epoch"]
