"""Callbacks of a training: when they are called, what stops it, and that they change nothing."""

import pytest
import torch
from commands import train_job
from torch import nn

from atent import runs as folder
from atent.data import DataSettings, load
from atent.methods import Standard
from atent.train import Callback, EarlyStopping, TrainSettings, fit


@pytest.fixture(scope="module")
def data():
    return load(DataSettings(limit=64, validation=40))


def train(data, epochs=2, patience=None, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = TrainSettings(
        epochs=epochs, batch_size=32, validate_limit=20, device="cpu", save_minutes=60, patience=patience
    )
    return fit(model, data, Standard(), settings=settings, progress=False, **more)


class Notes(Callback):
    def __init__(self):
        self.calls = []

    def start(self, progress):
        self.calls.append(("start", progress.epoch, len(progress.history)))

    def step(self, progress):
        torch.rand(3)
        self.calls.append(("step", progress.epoch, progress.step))

    def validation(self, progress, row):
        self.calls.append(("validation", row["epoch"], progress.history[-1] is row))

    def checkpoint(self, progress, row):
        assert (progress.run / folder.LAST / "state.pt").is_file()
        self.calls.append(("checkpoint", row["epoch"]))

    def epoch(self, progress, row):
        self.calls.append(("epoch", row["epoch"], progress.share))

    def end(self, progress):
        self.calls.append(("end", progress.epoch))


def test_hooks_come_in_order_and_change_nothing(data, tmp_path):
    notes = Notes()
    seen = train(data, callbacks=[notes], run=tmp_path / "run")
    of = [
        [("step", e, 1), ("step", e, 2), ("validation", e, True), ("checkpoint", e), ("epoch", e, e / 2)]
        for e in (1, 2)
    ]
    assert notes.calls == [("start", 0, 0), *of[0], *of[1], ("end", 2)]
    alone = train(data)
    assert all(torch.equal(a, b) for a, b in zip(seen.model.parameters(), alone.model.parameters(), strict=True))


class Fails(Callback):
    ended = False

    def epoch(self, progress, row):
        raise RuntimeError("mine")

    def end(self, progress):
        self.ended = True


def test_an_error_in_a_callback_ends_the_training_and_loses_nothing(data, tmp_path):
    fails = Fails()
    with pytest.raises(RuntimeError, match="mine"):
        train(data, callbacks=[fails], run=tmp_path / "run")
    assert fails.ended
    resumed = train(data, run=tmp_path / "run", resume=True)
    alone = train(data)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in alone.history]


class Stops(Callback):
    def __init__(self, at):
        self.at = at

    def start(self, progress):
        return "before" if self.at == 0 else None

    def epoch(self, progress, row):
        return "enough" if row["epoch"] == self.at else None


def test_a_reason_stops(data):
    done = train(data, epochs=5, callbacks=[Stops(2)])
    assert done.stopped == "enough"
    assert len(done.history) == 2


def test_a_training_without_an_epoch_is_an_error(data):
    with pytest.raises(ValueError, match="before its first epoch: before"):
        train(data, callbacks=[Stops(0)])


def test_early_stopping_counts_epochs_that_are_not_the_best(data, tmp_path):
    done = train(data, epochs=60, callbacks=[EarlyStopping(2)], run=tmp_path / "run")
    assert len(done.history) < 60
    assert [row["best"] for row in done.history[-3:]] == [True, False, False]
    assert str(len(done.history)) in done.stopped
    again = train(data, epochs=60, callbacks=[EarlyStopping(2)], run=tmp_path / "run", resume=True)
    assert again.history == done.history
    assert again.stopped == done.stopped


def test_patience_is_a_setting(data, tmp_path):
    asked = train(data, epochs=60, callbacks=[EarlyStopping(2)])
    done = train(data, epochs=60, patience=2, run=tmp_path / "run")
    assert (len(done.history), done.stopped) == (len(asked.history), asked.stopped)
    assert folder.read_json(tmp_path / "run" / folder.CONFIG)["train"]["patience"] == 2
    # It is one that a resumed run shares.
    assert train(data, epochs=60, patience=2, run=tmp_path / "run", resume=True).stopped == done.stopped
    with pytest.raises(ValueError, match="trained with other settings"):
        train(data, epochs=60, run=tmp_path / "run", resume=True)
    job = train_job("digits-linf-pgdat", "--train.patience", "3")
    assert job.train.patience == 3
    assert train_job("digits-linf-pgdat").train.patience is None


@pytest.mark.parametrize("patience", [0, 1.5, True])
def test_patience_is_checked(patience):
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience)
    with pytest.raises(ValueError, match="patience"):
        TrainSettings(patience=patience)


def test_what_is_no_callback_is_refused(data):
    with pytest.raises(ValueError, match="Callback"):
        train(data, callbacks=[print])
