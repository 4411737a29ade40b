"""Trackers: what they record of a training, that a resumed run stays one run, and what is said where one is missing."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from atent import runs as folder
from atent.cli import main
from atent.data import DataSettings, load
from atent.integrations.trackers import IDS, TRACKERS, MLflow, TensorBoard, WandB, numbers
from atent.methods import Standard
from atent.train import Callback, TrainSettings, fit


class Fakes:
    """The three libraries, as far as they are used: every call by its name."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.patch = monkeypatch

    def note(self, name, result=None):
        def call(*args, **given):
            self.calls.append((name, args, given))
            return result

        return call

    def named(self, name):
        return [(args, given) for called, args, given in self.calls if called == name]

    def install(self, path, **contents):
        module = ModuleType(path)
        module.__dict__.update(contents)
        self.patch.setitem(sys.modules, path, module)

    def tensorboard(self):
        def writer(*args, **given):
            self.note("SummaryWriter")(*args, **given)
            return SimpleNamespace(**{name: self.note(name) for name in ("add_scalar", "add_text", "close")})

        self.install("torch.utils.tensorboard", SummaryWriter=writer)

    def mlflow(self):
        results = {
            "get_experiment_by_name": None, "create_experiment": "7",
            "create_run": SimpleNamespace(info=SimpleNamespace(run_id="abc")),
        }  # fmt: skip
        others = ("update_run", "set_tag", "log_param", "log_metric", "set_terminated")
        client = SimpleNamespace(**{n: self.note(n, results.get(n)) for n in (*results, *others)})
        self.install("mlflow", MlflowClient=lambda: client)

    def wandb(self):
        run = SimpleNamespace(log=self.note("log"), finish=self.note("finish"))
        self.install("wandb", init=self.note("init", run))


@pytest.fixture
def fakes(monkeypatch):
    made = Fakes(monkeypatch)
    for name in TRACKERS:
        getattr(made, name)()
    return made


@pytest.fixture(scope="module")
def data():
    return load(DataSettings(limit=64, validation=40))


def train(data, run, epochs=2, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = TrainSettings(epochs=epochs, batch_size=32, validate_limit=20, device="cpu", save_minutes=60)
    return fit(model, data, Standard(), settings=settings, progress=False, run=run, **more)


class Stop(Callback):
    def epoch(self, progress, row):
        return "enough"


def test_each_records_the_figures_of_every_epoch_once(data, tmp_path, fakes):
    run = tmp_path / "run"
    train(data, run, callbacks=[*(kind() for kind in TRACKERS.values()), Stop()])
    done = train(data, run, resume=True, callbacks=[kind() for kind in TRACKERS.values()])
    rows = [numbers(row) for row in done.history]
    assert {"loss", "validation_clean", "lr"} <= rows[0].keys()
    assert not {"epoch", "best"} & rows[0].keys()
    scalars = [args for args, _ in fakes.named("add_scalar")]
    assert scalars == [(k, v, epoch) for epoch, row in enumerate(rows, 1) for k, v in row.items()]
    metrics = [(key, value, given["step"]) for (_, key, value), given in fakes.named("log_metric")]
    assert metrics == scalars
    assert [args for args, _ in fakes.named("log")] == [({"epoch": e, **row},) for e, row in enumerate(rows, 1)]
    assert [len(fakes.named(name)) for name in ("close", "set_terminated", "finish")] == [2, 2, 2]


def test_a_resumed_run_is_the_same_run(data, tmp_path, fakes):
    run = tmp_path / "run"
    for resume in (False, True):
        train(data, run, resume=resume, callbacks=[kind() for kind in TRACKERS.values()] + [Stop()] * (not resume))
    first, second = (given for _, given in fakes.named("init"))
    assert first["id"] == second["id"] == folder.read_json(run / IDS)["wandb"]
    assert first["resume"] == "allow"
    assert [args for args, _ in fakes.named("create_run")] == [("7",)]
    assert [args for args, _ in fakes.named("update_run")] == [("abc",)]
    assert [given["purge_step"] for _, given in fakes.named("SummaryWriter")] == [1, 2]
    assert {args[0] for args, _ in fakes.named("SummaryWriter")} == {str(run / "tensorboard")}


def test_each_records_the_configuration_and_the_run(data, tmp_path, fakes, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tmp_path / "run"
    train(data, run, callbacks=[kind() for kind in TRACKERS.values()])
    params = dict(args[1:] for args, _ in fakes.named("log_param"))
    assert params["train.batch_size"] == "32"
    assert params["method.name"] == "Standard"
    assert ("abc", "atent.run", str(run)) in [args for args, _ in fakes.named("set_tag")]
    ((_, given),) = fakes.named("init")
    assert given["config"]["train"]["batch_size"] == 32
    assert given["mode"] == "offline"
    texts = dict(args for args, _ in fakes.named("add_text"))
    assert '"batch_size": 32' in texts["config"]
    assert texts["run"] == "run"


def test_the_command_records_the_evaluation_too(tmp_path, fakes, capsys):
    words = [
        "digits-linf-standard", "--data.limit", "64", "--data.validation", "40", "--train.epochs", "1",
        "--train.device", "cpu", "--train.validate-limit", "20", "--evaluate.limit", "20", "--evaluate.attacks", "FGSM",
    ]  # fmt: skip
    log = ["--runs", str(tmp_path), "--name", "run", "--quiet", "--no-baseline", "--log", "tensorboard", "wandb"]
    assert main(["train", *words, *log]) == 0
    found = folder.read_json(tmp_path / "run" / folder.EVALUATION)
    scalars = {args[0]: args[1] for args, _ in fakes.named("add_scalar")}
    assert scalars["test/clean"] == found["clean"]["value"]
    assert scalars["test/FGSM"] == found["attacks"]["FGSM"]["robust"]["value"]
    ((last,), _) = fakes.named("log")[-1]
    assert last["test/clean"] == found["clean"]["value"]
    assert [name for name, *_ in fakes.calls][-2:] == ["close", "finish"]
    assert not fakes.named("create_run")
    assert main(["train", *words, "--runs", str(tmp_path), "--log", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_library_is_said_in_one_line(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    assert main(["train", "digits-linf-standard", "--runs", str(tmp_path), "--no-baseline", "--log", name]) == 2
    err = capsys.readouterr().err
    assert f"pip install 'atent[{name}]'" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tensorboard_needs_a_folder(data, fakes, tmp_path):
    with pytest.raises(ValueError, match="needs a folder"):
        train(data, None, callbacks=[TensorBoard()])
    train(data, None, callbacks=[TensorBoard(tmp_path / "events")])
    assert fakes.named("SummaryWriter")[-1][0] == (str(tmp_path / "events"),)


# ---- against the libraries themselves


def real(name):
    try:
        return importlib.import_module(TRACKERS[name].module)
    except ImportError:
        pytest.skip(f"{name} is not installed")


def both(data, run, kind):
    train(data, run, callbacks=[kind(), Stop()])
    return train(data, run, resume=True, callbacks=[kind()])


def test_tensorboard_itself(data, tmp_path):
    real("tensorboard")
    done = both(data, tmp_path / "run", TensorBoard)
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["epoch"], pytest.approx(row["loss"], rel=1e-6)) for row in done.history]


def test_mlflow_itself(data, tmp_path, monkeypatch):
    mlflow = real("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = both(data, tmp_path / "run", MLflow)
    client = mlflow.MlflowClient()
    found = client.get_run(folder.read_json(tmp_path / "run" / IDS)["mlflow"])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.batch_size"] == "32"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(row["epoch"], row["loss"]) for row in done.history]


def test_wandb_itself(data, tmp_path, monkeypatch):
    real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    both(data, tmp_path / "run", WandB)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
