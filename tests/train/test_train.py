"""The loop: what it promises about resuming, selecting, stopping and failing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from kit import without_times
from processes import environment
from torch import nn

from atent import runs as folder
from atent.data import DataSettings, from_tensors, load
from atent.methods import ATENT, PGDAT, Standard
from atent.models import build
from atent.optim import Optimizer, Schedule, lr_factor
from atent.threat import Threat
from atent.train import Diverged, Interrupted, TrainSettings, fit, load_weights
from atent.train import load as load_run
from atent.train.callbacks import Callback
from atent.train.validation import Validation

LINF = Threat("linf", 0.1)


class Net(nn.Module):
    """Batch-norm and dropout: everything that an inexact resume would betray."""

    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(128, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def network(seed=0):
    torch.manual_seed(seed)
    return Net()


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=192, validation=60))


def settings(**changes):
    quick = {"epochs": 3, "batch_size": 64, "validate_limit": 40, "validate_attack": "PGD(steps=2)", "device": "cpu"}
    return TrainSettings(**{**quick, **changes})


def train(data, path=None, method=None, model=None, **changes):
    kept = {k: changes.pop(k) for k in ("resume", "report", "optimizer", "schedule", "augmentation") if k in changes}
    return fit(
        model or network(), data, method or ATENT(LINF, steps=2), optimizer=kept.pop("optimizer", Optimizer(lr=0.05)),
        settings=settings(**changes), run=path, progress=False, **kept,
    )  # fmt: skip


# ---- the run folder


def test_a_run_folder_is_complete(digits, tmp_path):
    seen = []
    fitted = train(digits, tmp_path / "run", report=seen.append)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {folder.CONFIG, folder.METRICS, folder.BEST, folder.LAST} <= names
    rows = folder.read_jsonl(tmp_path / "run" / folder.METRICS)
    assert rows == seen == fitted.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    wanted = {
        "loss", "lr", "robust", "distance_q10", "distance_median", "distance_q90", "train_clean", "train_robust",
        "validation_clean", "validation_robust", "validation_robust_low", "validation_robust_high", "best", "seconds",
        "memory_mb",
    }  # fmt: skip
    assert all(wanted <= set(row) for row in rows)
    config = folder.read_json(tmp_path / "run" / folder.CONFIG)
    assert config["method"]["name"] == "ATENT"
    assert config["about"]["chain"]["effective_noise"] == pytest.approx((2 * 0.125) ** 0.5 * 1e-3)
    assert config["provenance"]["seed"] == 0


def test_distance_quantiles_are_those_of_the_batches(digits):
    """linf, projection at every step: nobody is farther than eps, and most are at it."""
    row = train(digits, epochs=1, method=ATENT(LINF, steps=3, projection="every")).history[0]
    assert 0 < row["distance_q10"] <= row["distance_median"] <= row["distance_q90"] <= 0.1 + 1e-6


def test_the_best_epoch_is_the_best_of_validation(digits):
    fitted = train(digits, epochs=4)
    scores = [(row["validation_robust"], row["validation_clean"], -row["epoch"]) for row in fitted.history]
    assert fitted.best["epoch"] == -max(scores)[2]
    flagged = [row["epoch"] for row in fitted.history if row["best"]]
    assert flagged[-1] == fitted.best["epoch"]


def test_the_best_weights_come_back(digits, tmp_path):
    """The model that is returned has the accuracy that the best row says."""
    from atent.evaluate import evaluate

    fitted = train(digits, tmp_path / "run", epochs=4)
    part = digits.validation.first(40)
    x, y = part.batch(torch.arange(len(part)))
    assert evaluate(fitted.model, x, y, []).clean["value"] == fitted.best["validation_clean"]
    other = network(1)
    about = load_weights(other, tmp_path / "run")
    assert about["epoch"] == fitted.best["epoch"]
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), fitted.model.state_dict().values()))


def test_a_training_that_collapsed_says_so_once_and_not_at_its_first_evaluation(digits):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0))

        def forward(self, x):
            return self.bias + 0 * x.flatten(1)[:, :1]

    said = []
    fit(Constant(), digits, Standard(), settings=settings(validate_attack="none"), progress=False, say=said.append)
    (line,) = said
    assert line.startswith("warning at epoch 2: the network gives class ")
    assert "to all 40 validation images" in line
    assert "steps" in line
    assert "train.batch_size" in line
    part = Validation(digits, settings(validate_attack="none"), None, robust=False)
    advice = [part.measure(Constant(), steps, progress=False)[1].partition("images: ")[2] for steps in (299, 300)]
    assert [("299 steps" in line, "optimizer.lr" in line) for line in advice] == [(True, False), (False, True)]
    said.clear()
    fit(network(), digits, Standard(), settings=settings(validate_attack="none"), progress=False, say=said.append)
    assert not said


class Standardised(nn.Module):
    """A fixed network that is right on standardised images and nearly blind on raw ones."""

    def __init__(self, data):
        super().__init__()
        x, y = data.sample("validation", 40).batch(torch.arange(40))
        std, mean = torch.std_mean(x.double(), (0, 2, 3), correction=0)
        self.register_buffer("known", ((x - mean.to(x)) / std.to(x)).flatten(1))
        self.register_buffer("labels", nn.functional.one_hot(y, 10).to(x))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        near = -(torch.cdist(x.flatten(1), self.known) ** 2)
        blind = (x.flatten(1).amin(1, keepdim=True) >= 0) * torch.arange(10.0).to(x)
        return self.scale * (near.softmax(1) @ self.labels) + 1e3 * blind


def test_only_a_training_that_begins_with_a_file_is_checked_for_normalised_inputs(digits):
    part = Validation(digits, settings(validate_attack="none"), None, robust=False)
    assert "normalised" not in (part.measure(Standardised(digits), 1000, progress=False)[1] or "")
    for weights, checked in (("runs/pretrained", False), ("published.pt", True), (None, False)):
        config = {"model": {"name": "resnet20", "weights": weights}}
        part = Validation(digits, settings(validate_attack="none"), None, robust=False, config=config)
        hint = part.measure(Standardised(digits), 1000, progress=False)[1] or ""
        assert ("expect normalised inputs" in hint) is checked


def test_select_last_and_clean(digits):
    assert train(digits, select="last").best["epoch"] == 3
    clean = train(digits, select="clean")
    assert clean.best["validation_clean"] == max(r["validation_clean"] for r in clean.history)


def test_standard_training_is_selected_by_clean_accuracy_and_evaluated_under_a_threat(digits):
    fitted = fit(
        network(), digits, Standard(), threat=LINF, settings=settings(), optimizer=Optimizer(lr=0.05), progress=False
    )
    assert all("validation_robust" in row for row in fitted.history)
    assert fitted.best["validation_clean"] == max(r["validation_clean"] for r in fitted.history)


def test_the_users_random_state_is_left_alone(digits):
    model = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(digits, model=model, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_same_seed_same_run_other_seed_other_run(digits):
    a, b, c = (without_times(train(digits, epochs=2, seed=s).history) for s in (0, 0, 1))
    assert a == b
    assert a != c


# ---- resuming


@pytest.mark.parametrize(
    "method", [ATENT(LINF, steps=2), PGDAT(LINF, steps=2), Standard()], ids=lambda m: type(m).__name__
)
def test_resumed_after_an_interrupt_equals_unbroken(digits, tmp_path, method, monkeypatch):
    """Stopped by SIGINT in the middle of the second epoch; weights, metrics and the best epoch agree bit for bit."""
    whole = train(digits, tmp_path / "whole", method)
    original, calls = type(method).backward, []

    def interrupting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(method), "backward", interrupting)
    with pytest.raises(Interrupted, match=r"epoch 2, step 2.*resume=True"):
        train(digits, tmp_path / "broken", method)
    assert len(calls) == 5
    monkeypatch.undo()
    resumed = train(digits, tmp_path / "broken", method, model=network(7), resume=True)
    assert without_times(resumed.history) == without_times(whole.history)
    assert resumed.history[1]["seconds"] >= 0.5  # the time before the interruption is the epoch's too
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(a, b)
    for name in (folder.BEST, f"{folder.LAST}/model.safetensors"):
        one, two = network(1), network(2)
        load_weights(one, tmp_path / "whole" / name)
        load_weights(two, tmp_path / "broken" / name)
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_train import *
from atent.methods import ATENT
original, calls = ATENT.backward, []
def dying(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
ATENT.backward = dying
torch.set_num_threads(1)
train(load(DataSettings(limit=192, validation=60)), {path!r}, save_minutes=0)
"""


def test_resumed_after_a_kill_equals_unbroken(digits, tmp_path):
    """SIGKILL in the middle of an epoch, between two checkpoints inside it."""
    code = KILLED.format(here=os.path.dirname(__file__), path=str(tmp_path / "killed"))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = train(digits, tmp_path / "whole")
    resumed = train(digits, tmp_path / "killed", model=network(3), resume=True)
    assert without_times(resumed.history) == without_times(whole.history)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(a, b)


def test_resume_after_the_end_changes_nothing(digits, tmp_path):
    first = train(digits, tmp_path / "run")
    again = train(digits, tmp_path / "run", model=network(9), resume=True)
    assert again.history == first.history
    assert again.best["epoch"] == first.best["epoch"]


def test_resume_refuses_other_settings(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"other settings \(train.batch_size \d+, not 32\): resume with"):
        train(digits, tmp_path / "run", epochs=1, batch_size=32, resume=True)


def test_load_names_the_way_for_an_own_network(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"got a \w+: for your own network use atent.train.load_weights"):
        load_run(tmp_path / "run", model=network(0))


def test_resume_needs_something_to_resume(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(digits, tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="run folder"):
        train(digits, resume=True)


def test_a_damaged_state_is_one_line(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    for name in ("state.pt", "previous.pt"):
        (tmp_path / "run" / folder.LAST / name).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match="is damaged, and so is previous") as caught:
        train(digits, tmp_path / "run", epochs=1, resume=True)
    assert "\n" not in str(caught.value)


# ---- failing well


def test_a_diverging_loss_stops_and_keeps_what_was_saved(digits, tmp_path):
    train(digits, tmp_path / "good", epochs=1)
    with pytest.raises(Diverged, match="not finite at epoch") as caught:
        train(digits, tmp_path / "bad", optimizer=Optimizer(lr=1e38), method=Standard())
    assert "\n" not in str(caught.value)
    state = tmp_path / "bad" / folder.LAST / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        assert all(torch.isfinite(v).all() for v in saved["model"].values() if v.is_floating_point())


def test_an_existing_run_folder_is_refused_and_untouched(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(FileExistsError, match="exists"):
        train(digits, tmp_path / "run", epochs=1)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}


def test_a_full_disk_leaves_the_last_checkpoint_whole(digits, tmp_path, monkeypatch):
    saves = []
    original = torch.save

    def failing(state, path):
        if isinstance(path, os.PathLike):
            saves.append(1)
        if len(saves) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        original(state, path)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="No space left") as caught:
        train(digits, tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not list((tmp_path / "run" / folder.LAST).glob(".*"))
    resumed = train(digits, tmp_path / "run", resume=True, model=network(4))
    assert without_times(resumed.history) == without_times(train(digits, tmp_path / "whole").history)


def test_a_second_interrupt_is_immediate(digits):
    from atent.train.interrupt import stop_requests

    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_bad_input_is_one_line(digits):
    cases = [
        (dict(model=Net(classes=7)), "7 outputs"),
        (dict(method=ATENT(Threat("linf", 0.1, (-1.0, 1.0)), steps=2)), "box"),
        (dict(device="cuda:99"), "device"),
        (dict(validate_attack="PGD(stepz=3)"), "stepz"),
        (dict(augmentation="mirror"), "mirror"),
    ]
    for changes, part in cases:
        with pytest.raises(ValueError, match=part) as caught:
            train(digits, **changes)
        assert "\n" not in str(caught.value)
    for field in ("epochs", "batch_size", "validate_every", "threads"):
        with pytest.raises(ValueError, match=f"{field} must be (at least|whole and from) 1"):
            settings(**{field: 0})
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        train(digits, model=frozen)


# ---- pieces


def test_augmentation_reaches_the_method(digits):
    shifted = train(digits, epochs=1, method=Standard(), augmentation="crop-flip").history
    plain = train(digits, epochs=1, method=Standard()).history
    assert shifted[0]["loss"] != plain[0]["loss"]


def test_gradients_only_reach_trainable_parameters(digits):
    model = network()
    model.body[0].requires_grad_(False)
    before = model.body[0].weight.clone()
    fitted = train(digits, model=model, epochs=1)
    assert torch.equal(fitted.model.body[0].weight, before)


def test_schedules():
    def rates(schedule, epochs=4, steps=2):
        return [round(lr_factor(schedule, s, steps, epochs), 6) for s in range(epochs * steps)]

    assert rates(Schedule()) == [1] * 8
    assert rates(Schedule("step", every=2, factor=0.5)) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert rates(Schedule("multistep", milestones=(1, 3))) == [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert rates(Schedule("multistep", unit="step", milestones=(3,))) == [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert rates(Schedule("multistep", milestones=(1, 3), factors=(0.3, 0.1))) == [1, 1, 0.3, 0.3, 0.3, 0.3, 0.1, 0.1]
    cosine = rates(Schedule("cosine", unit="step"))
    assert cosine[0] == 1
    assert cosine[4] == 0.5
    assert cosine == sorted(cosine, reverse=True)
    assert rates(Schedule("cosine")) == [1, 1, 0.853553, 0.853553, 0.5, 0.5, 0.146447, 0.146447]
    assert rates(Schedule(warmup=2))[:6] == [0.5, 0.5, 1, 1, 1, 1]
    assert rates(Schedule("cyclic", unit="step")) == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    early = rates(Schedule("cyclic", unit="step", peak=0.25))
    assert early == [0, 0.5, 1, *(round(k / 6, 6) for k in (5, 4, 3, 2, 1))]


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "step"},
        {"kind": "multistep"},
        {"kind": "multistep", "milestones": (3, 1)},
        {"factor": 0},
        {"kind": "multistep", "milestones": (1, 2), "factors": (0.1,)},
        {"warmup": -1},
        {"kind": "cyclic"},
        {"kind": "cyclic", "unit": "step", "warmup": 2},
        {"kind": "cyclic", "unit": "step", "peak": 1.0},
    ],
)
def test_bad_schedules(bad):
    with pytest.raises(ValueError, match=r"needs|must") as caught:
        Schedule(**bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "sgdd"},
        {"lr": 0},
        {"momentum": 1.0},
        {"weight_decay": -1},
        {"nesterov": True, "momentum": 0.0},
        {"clip_norm": 0.0},
    ],
)
def test_bad_optimizers(bad):
    with pytest.raises(ValueError, match=r"needs|must|did you mean") as caught:
        Optimizer(**bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_sgd_in_the_loop_is_torchs_sgd(digits, clip):
    """One epoch against a loop written out by hand, with the loop's own order and draws; a gradient that is longer than
    clip_norm is brought down to it."""
    from atent.rng import fold

    given, norms = Optimizer(lr=0.1, weight_decay=1e-3, clip_norm=clip), []
    fitted = train(digits, epochs=1, method=Standard(), select="last", optimizer=given)
    model = network().train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    rng = torch.Generator().manual_seed(fold(0, "order", 0))
    order = torch.randperm(len(digits.train), generator=rng)
    for step, index in enumerate(order.split(64)):
        torch.manual_seed(fold(0, "model", step, 0))
        x, y = digits.train.batch(index)
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        norms.append(sum((p.grad**2).sum() for p in model.parameters()).sqrt().item())
        for p in model.parameters():
            p.grad *= min(1.0, (clip or 1e6) / norms[-1])
        sgd.step()
    assert 0.5 < min(norms) <= max(norms) < 1e6
    for a, b in zip(model.state_dict().values(), fitted.model.state_dict().values()):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_your_own_network_and_data(tmp_path):
    """The example of the README: a user's module and tensors in, a robust model out."""
    torch.manual_seed(0)
    x, y = torch.rand(300, 1, 8, 8), torch.arange(300) % 3
    x[torch.arange(300), 0, y, y] = 1.0
    data = from_tensors(x[:200], y[:200], x[200:], y[200:], validation=40)
    assert len(data.train) == 160
    assert data.classes == 3
    mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    fitted = fit(
        mine, data, ATENT(Threat("l2", 0.3), steps=3), settings=TrainSettings(epochs=3, device="cpu"), progress=False,
        run=tmp_path / "mine",
    )  # fmt: skip
    assert fitted.model is mine
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    with pytest.raises(ValueError, match="load_weights"):
        load_run(tmp_path / "mine")
    assert (
        load_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tmp_path / "mine")["epoch"] == fitted.best["epoch"]
    )


def test_vectors_are_data_too():
    data = load(DataSettings("moons", limit=200))
    mine = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    threat = Threat("linf", 0.1, data.box)
    fitted = fit(mine, data, ATENT(threat, steps=3), settings=TrainSettings(epochs=2, device="cpu"), progress=False)
    assert fitted.history[-1]["validation_clean"] > 0.6


def test_weights_of_another_architecture_are_named(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"another architecture: .* is missing") as caught:
        load_weights(build("digits_cnn"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_weights(network(), tmp_path / "absent.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "run" / folder.BEST).read_bytes()[:50])
    with pytest.raises(ValueError, match="not a complete safetensors"):
        load_weights(network(), tmp_path / "torn.safetensors")


def test_half_precision_weights_are_raised(digits, tmp_path):
    from safetensors.torch import save_file

    model = network()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    other = network(1)
    assert load_weights(other, tmp_path / "half.safetensors") == {}
    assert all(p.dtype == torch.float32 for p in other.parameters())
    assert torch.equal(other.body[0].weight, model.body[0].weight.half().float())


def test_channels_last_agrees_up_to_rounding(digits, tmp_path):
    a = train(digits, epochs=1, method=Standard()).history[0]
    b = train(digits, tmp_path / "run", epochs=1, method=Standard(), channels_last=True).history[0]
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_metrics_are_json(digits, tmp_path):
    train(digits, tmp_path / "run", epochs=1)
    for line in (tmp_path / "run" / folder.METRICS).read_text().splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"method": "PGDAT"}, "method must be a method .* got 'PGDAT'"),
        ({"method": PGDAT}, "method must be a method .* got PGDAT"),
        ({"settings": {"epochs": 3}}, r"settings must be TrainSettings\(\.\.\.\), got a dict"),
        ({"optimizer": "SGD"}, r"optimizer must be Optimizer\(\.\.\.\), got a str"),
        ({"callbacks": Callback()}, "callbacks must be a list, got a Callback: give a list"),
    ],
)
def test_arguments_of_another_type_are_one_line(wrong, line):
    given = {"method": Standard(), **wrong}
    with pytest.raises(ValueError, match=line):
        fit(nn.Linear(4, 2), load(DataSettings("digits", limit=40)), **given)


@pytest.mark.parametrize("epochs", [1.5, "3"])
def test_epochs_are_whole_numbers(epochs):
    with pytest.raises(ValueError, match="epochs must be an integer"):
        TrainSettings(epochs=epochs)
