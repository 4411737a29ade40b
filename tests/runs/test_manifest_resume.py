"""A run that was killed, or whose files are damaged, resumes without loss."""

import itertools
import os
import shutil

import pytest
import torch
from kit import save_state, unsealed
from peak_run import BEST_EPOCH, CPU, EPOCHS, PREVIOUS, STATE, content, flip, net, run_to_change, trained, whole_run  # noqa: F401 - fixtures

from atent import runs as folder
from atent.methods import Standard
from atent.runs import manifest
from atent.runs.checkpoint import load_state, read_weights
from atent.runs.manifest import Damaged, record, states
from atent.train import Callback, TrainSettings
from atent.train.fingerprint import difference
from atent.train.run_files import Keeper


class Stops(Callback):
    """Ends the training without a save, as a kill does, after a step of an epoch."""

    def __init__(self, epoch, step):
        self.at = epoch, step

    def step(self, progress):
        if (progress.epoch, progress.step) == self.at:
            raise SystemExit


def same(fitted, path, whole, there):
    """Equal histories, but for times, and equal bits in the weights of both folders."""
    aside = ("seconds", "memory_mb", "elapsed")
    kept = [[{k: v for k, v in row.items() if k not in aside} for row in f.history] for f in (fitted, whole)]
    assert kept[0] == kept[1]
    assert [row["epoch"] for row in folder.read_rows(path / folder.METRICS)] == [r["epoch"] for r in whole.history]
    for name in (folder.BEST, "last/model.safetensors"):
        one, two = (read_weights(run / name) for run in (path, there))
        assert one[0]["epoch"] == two[0]["epoch"]
        assert all(torch.equal(one[1][key], two[1][key]) for key in two[1])
    assert set(states(path).values()) <= {"whole", "not covered"}
    assert not any("next" in entry for entry in manifest.sums(path).values())


def test_a_run_that_is_killed_in_its_first_epoch_resumes(whole, tmp_path):
    with pytest.raises(SystemExit):
        trained(tmp_path / "run", callbacks=[Stops(1, 1)])
    assert load_state(tmp_path / "run", CPU)["mark"]["step"] == 0
    same(trained(tmp_path / "run", resume=True), tmp_path / "run", *whole)


def test_a_run_that_is_killed_before_it_has_a_configuration_begins_again(whole, tmp_path, monkeypatch):
    original = os.replace

    def killed(source, target):
        if os.fspath(target).endswith(folder.CONFIG):
            raise SystemExit
        original(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        trained(tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run" / STATE).is_file()
    same(trained(tmp_path / "run"), tmp_path / "run", *whole)
    ids = (folder.read_json(tmp_path / "run" / name) for name in (folder.MANIFEST, folder.CONFIG))
    assert next(ids)["run"] == next(ids)["id"]


class KilledAt(Callback):
    """Ends the training at a rename of the checkpoint after an epoch."""

    def __init__(self, rename, epoch):
        self.left, self.at, self.saving, self.original = rename, epoch, False, os.replace

    def step(self, progress):
        self.saving = progress.epoch == self.at and progress.last

    def checkpoint(self, progress, row):
        self.saving = False

    def replace(self, source, target):
        self.left -= self.saving
        if self.saving and not self.left:
            raise SystemExit
        self.original(source, target)


def killed_at(rename, epoch, path, monkeypatch):
    """Whether there are so many renames."""
    kill = KilledAt(rename, epoch)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill.replace)
        # Of the best epoch's weights in memory until the next checkpoint.
        patch.setattr(Keeper, "affordable", lambda self: len(self._lines) != BEST_EPOCH or epoch == BEST_EPOCH)
        try:
            trained(path, callbacks=[kill])
        except SystemExit:
            return True
    return False


@pytest.mark.parametrize("epoch", [BEST_EPOCH, BEST_EPOCH + 1])
def test_a_kill_between_any_two_renames_of_a_checkpoint_loses_nothing(whole, tmp_path, monkeypatch, epoch):
    """Of the one that writes new best weights, with the checkpoint of their epoch or of the next."""
    for rename in itertools.count(1):
        path = tmp_path / str(rename)
        if not killed_at(rename, epoch, path, monkeypatch):
            break
        same(trained(path, resume=True), path, *whole)
    assert rename > 6


def test_checkpoints_that_cost_too_much_are_left_out(whole, tmp_path, monkeypatch):
    """What is there in the end is the same."""
    monkeypatch.setattr(Keeper, "affordable", lambda self: False)
    saved = []

    class Saved(Callback):
        def checkpoint(self, progress, row):
            saved.append(row["epoch"])

    same(trained(tmp_path / "run", callbacks=[Saved()]), tmp_path / "run", *whole)
    assert saved == [EPOCHS]
    with pytest.raises(SystemExit):
        trained(tmp_path / "killed", callbacks=[Stops(BEST_EPOCH + 1, 1)])
    assert load_state(tmp_path / "killed", CPU)["mark"]["epoch"] == 0
    same(trained(tmp_path / "killed", resume=True), tmp_path / "killed", *whole)


def test_resume_falls_back_to_the_checkpoint_before(whole, run):
    for damage in (b"", b"PK\x03\x04 not a checkpoint", (run / STATE).read_bytes()[:-100], None):
        (run / STATE).unlink()
        if damage is not None:
            (run / STATE).write_bytes(damage)
        said = []
        same(trained(run, resume=True, said=said), run, *whole)
        assert said[0].startswith(f"{run / STATE} is {'missing' if damage is None else 'damaged'}: resuming from")


@pytest.mark.parametrize("sealed", [True, False])
def test_two_bad_checkpoints_are_one_line_and_nothing_changes(run, sealed):
    for name in (STATE, PREVIOUS):
        (run / name).write_bytes(b"")
    if not sealed:
        unsealed(run)
    before = content(run)
    with pytest.raises(Damaged, match="is damaged, and so is previous") as caught:
        trained(run, resume=True)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert content(run) == before


@pytest.mark.parametrize("damage", ["deleted", "cut", "changed", "twice"])
def test_the_history_comes_from_the_checkpoint(whole, tmp_path, damage):
    with pytest.raises(SystemExit):
        trained(tmp_path / "run", callbacks=[Stops(4, 1)])
    path = tmp_path / "run" / folder.METRICS
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.unlink()
    changed = {"cut": text[: len(text) // 2], "changed": text.replace('"best": true', '"best": false')}
    if damage != "deleted":
        path.write_text(changed.get(damage, lines[0] + text))
    said = []
    same(trained(tmp_path / "run", resume=True, said=said), tmp_path / "run", *whole)
    assert said[:1] == [f"{path} is not the history of the checkpoint: restored"]


def test_rows_that_wait_for_the_next_checkpoint_are_no_damage(whole, tmp_path):
    """A stop within an epoch writes the checkpoint, and the rows of short epochs before it with the next one."""
    with pytest.raises(SystemExit):
        trained(tmp_path / "run", callbacks=[Stops(4, 1)])
    path = tmp_path / "run" / folder.METRICS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    record(tmp_path / "run", folder.METRICS)
    said = []
    same(trained(tmp_path / "run", resume=True, said=said), tmp_path / "run", *whole)
    assert not [line for line in said if "history" in line]


def test_lost_best_weights_are_found_before_the_training(whole, run, tmp_path):
    trained(tmp_path / "other", seed=1)
    for damage, says in ((None, "is missing"), (b"cut", "is damaged"), (tmp_path / "other", "is of another run")):
        (run / folder.BEST).unlink(missing_ok=True)
        if isinstance(damage, bytes):
            (run / folder.BEST).write_bytes(damage)
        elif damage is not None:
            shutil.copy(damage / folder.BEST, run / folder.BEST)
            record(run, folder.BEST)
        before = content(run)
        with pytest.raises(Damaged, match=f"{says}.*epoch,? {BEST_EPOCH}") as caught:
            trained(run, resume=True)
        assert "\n" not in str(caught.value)
        assert content(run) == before


def test_best_weights_are_restored_from_the_checkpoint_of_their_epoch(whole, tmp_path):
    path, said = tmp_path / "run", []
    with pytest.raises(SystemExit):
        trained(path, callbacks=[Stops(BEST_EPOCH + 1, 1)])
    (path / folder.BEST).unlink()
    flip(path / "last/model.safetensors", 4000)
    same(trained(path, resume=True, said=said), path, *whole)
    files = (path / folder.BEST, path / "last/model.safetensors")
    assert said[:2] == [f"{files[0]} is missing: restored", f"{files[1]} is damaged: restored"]


def test_the_best_weights_that_the_checkpoint_before_knows_are_kept(whole, tmp_path):
    """Of a run whose newest checkpoint is of a new best epoch, and is damaged: the best so far is the one before."""
    path, said = tmp_path / "run", []
    with pytest.raises(SystemExit):
        trained(path, callbacks=[Stops(BEST_EPOCH + 1, 1)])
    flip(path / STATE, 5000)
    with pytest.raises(SystemExit):
        trained(path, callbacks=[Stops(BEST_EPOCH, 1)], resume=True, said=said)
    assert said[1] == f"{path / folder.BEST} is of epoch {BEST_EPOCH}: restored"
    assert read_weights(path / folder.BEST)[0]["epoch"] == BEST_EPOCH - 1
    same(trained(path, resume=True), path, *whole)


def test_a_checkpoint_without_history_needs_every_row(whole, run):
    state = load_state(run, CPU)
    del state["metrics"]
    save_state(run, state)
    rows = (run / folder.METRICS).read_text().splitlines(keepends=True)
    for lines in ([], rows[:-1], rows[1:], [rows[0], *rows], [*rows[:2], '{"epoch": true}\n']):
        (unsealed(run) / folder.METRICS).write_text("".join(lines))
        before = content(run)
        with pytest.raises(Damaged, match="does not have all 4 epochs"):
            trained(run, resume=True)
        assert content(run) == before
    (run / folder.METRICS).write_text("".join(rows))
    trained(run, resume=True)


def test_a_checkpoint_is_due_when_saving_costs_a_hundredth(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("atent.train.run_files.time.perf_counter", lambda: now[0])

    def due(seconds, at, minutes=None):
        keeper = Keeper(tmp_path, net(), None, None, TrainSettings(save_minutes=minutes), CPU, print)
        now[0] = 0.0
        keeper.start()
        keeper._seconds, now[0] = seconds, at
        return keeper.due()

    assert not due(0.1, 59)
    assert due(0.1, 61)
    assert not due(2.0, 199)
    assert due(2.0, 201)
    assert due(2.0, 7, minutes=0.1)
    assert not due(0.1, 119, minutes=2)


def test_the_ends_of_epochs_are_saved_within_a_hundredth_of_the_time(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("atent.train.run_files.time.perf_counter", lambda: now[0])
    for minutes, seconds, spent, at, want in (
        (None, 0.1, 0.4, 5, True), (None, 0.1, 0.55, 5, False), (None, 0.1, 0.55, 66, True),
        (None, 1.0, 10.0, 1099, False), (None, 1.0, 10.0, 1101, True), (5, 1.0, 10.0, 5, True),
    ):  # fmt: skip
        now[0] = 0.0
        keeper = Keeper(tmp_path, net(), None, None, TrainSettings(save_minutes=minutes), CPU, print)
        keeper._seconds, keeper._spent, now[0] = seconds, spent, at
        assert keeper.affordable() == want


def test_a_run_is_not_resumed_with_changed_data():
    text = folder.dumps({"method": {"name": "Standard"}, "model": {}, "train": {}, "data": {}, "files": {"a": 1}})
    other = text.replace('"a": 1', '"a": 2')
    changed = text.replace('"data": {}', '"data": {"name": "npz"}')

    def now(config, code="a", **data):
        return {"config": config, "code": {"mine": code}, "samples": "b", "split": "d", **data}

    assert difference(now(text), now(text), Standard()) is None
    assert "SHA-256" in difference(now(text), now(other), Standard())
    assert "config.json" in difference(now(text), now(changed), Standard())
    assert "mine has changed" in difference(now(text), now(text, code="c"), Standard())
    assert "samples have changed" in difference(now(text), now(text, samples="c"), Standard())
    assert "split_seed" in difference(now(text), now(text, split="c"), Standard())
    # Earlier versions recorded the settings only.
    assert difference({"config": text}, now(text), Standard()) is None
    assert "SHA-256" in difference({"config": text}, now(other), Standard())


def test_a_history_that_is_missing_says_what_restores_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing: `atent train --resume"):
        folder.read_rows(tmp_path / "metrics.jsonl")
