"""What a run folder keeps is found whole, or named; a resume loses nothing of it."""

import hashlib
import itertools
import json
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import unsealed
from safetensors.torch import save_file
from torch import nn

from atent import runs as folder
from atent.cli import main
from atent.data import from_tensors
from atent.experiments.inventory import accept_files, inventory
from atent.experiments.target import load_target
from atent.methods import Standard
from atent.report.collect import read
from atent.runs import manifest
from atent.runs.checkpoint import check_best, export, find_state, load_state, load_weights, read_weights, save_state
from atent.runs.loading import load
from atent.runs.manifest import Damaged, check, record, seal, states
from atent.train import Callback, TrainSettings, fit
from atent.train.fingerprint import difference
from atent.train.run_files import Keeper

BEFORE = Path(__file__).parent / "before_subsets"
CPU = torch.device("cpu")
STATE, PREVIOUS = "last/state.pt", "last/previous.pt"
FLIPS = 30


BEST_EPOCH, EPOCHS, STEPS = 2, 4, 3


def data():
    """Images whose first pixel is their class."""
    rng = torch.Generator().manual_seed(1)

    def part(n):
        x, y = torch.rand(n, 1, 3, 3, generator=rng), torch.arange(n) % 3
        x[:, 0, 0, 0] = y / 2
        return x, y

    return from_tensors(*part(32 * STEPS), *part(30), validation=30)


class Peaks(nn.Module):
    """Right on every image after `BEST_EPOCH` epochs, and at no other time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 3)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.steps += self.training
        peak = -10 * (2 * x[:, 0, 0, :1] - torch.arange(3)).square()
        constant = torch.tensor([[10.0, 0.0, 0.0]])
        return torch.where(self.steps == BEST_EPOCH * STEPS, peak, constant) + 1e-3 * self.linear(x.flatten(1)).tanh()


def net(seed=0):
    torch.manual_seed(seed)
    return Peaks()


def trained(path, *, resume=False, epochs=EPOCHS, seed=0, callbacks=(), said=None, **more):
    settings = TrainSettings(epochs=epochs, batch_size=32, seed=seed, validate_limit=30, device="cpu", **more)
    lines = [] if said is None else said
    return fit(
        net(9 if resume else 0), data(), Standard(), settings=settings, run=path, resume=resume, progress=False,
        callbacks=callbacks, say=lines.append,
    )  # fmt: skip


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


def flip(path, bit):
    """The file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def content(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training to its end, and its folder."""
    path = tmp_path_factory.mktemp("manifest") / "whole"
    fitted = trained(path)
    manifest.write_json(path / folder.EVALUATION, {"accuracy": 0.5})
    return fitted, path


@pytest.fixture
def run(whole, tmp_path):
    """A copy to change."""
    shutil.copytree(whole[1], tmp_path / "copy")
    return tmp_path / "copy"


# ---- damage is found


READERS = {
    folder.BEST: lambda run: load_weights(net(), run),
    "last/model.safetensors": lambda run: load_weights(net(), run, which="last"),
    folder.METRICS: lambda run: folder.read_rows(run / folder.METRICS),
    folder.CONFIG: lambda run: folder.read_config(run / folder.CONFIG),
    folder.EVALUATION: lambda run: manifest.read_json(run / folder.EVALUATION),
    folder.MANIFEST: lambda run: check(run),
}


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_is_found(run, name):
    bits, rng = 8 * (run / name).stat().st_size, random.Random(0)
    READERS[name](run)
    for bit in rng.sample(range(bits), FLIPS):
        flip(run / name, bit)
        with pytest.raises(Damaged) as caught:
            READERS[name](run)
        assert str(run / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        flip(run / name, bit)


def test_a_flipped_bit_in_a_checkpoint_leads_to_the_one_before(run):
    bits, rng = 8 * (run / STATE).stat().st_size, random.Random(0)
    epoch = load_state(run, CPU)["mark"]["epoch"]
    for bit in rng.sample(range(bits), FLIPS):
        flip(run / STATE, bit)
        state, line = find_state(run, CPU)
        assert state["mark"]["epoch"] == epoch - 1
        assert line.startswith(f"{run / STATE} is damaged")
        flip(run / STATE, bit)


def test_a_file_that_the_manifest_does_not_know_is_read(run):
    (run / "evaluation-2.json").write_text("{}")
    assert manifest.read_json(run / "evaluation-2.json") == {}
    assert states(run)["evaluation-2.json"] == "not covered"
    (run / folder.EVALUATION).unlink()
    assert states(run)[folder.EVALUATION] == "missing"


def test_a_folder_without_a_manifest_is_read_with_one_line(run, capsys):
    for _ in range(2):
        load_weights(net(), unsealed(run))
    err = capsys.readouterr().err
    assert str(run) in err
    assert err.count("\n") == 1


def test_a_later_manifest_is_not_called_damaged(run):
    (run / folder.MANIFEST).write_text(json.dumps({"schema": 2}))
    with pytest.raises(ValueError, match="later version") as caught:
        check(run, folder.BEST)
    assert not isinstance(caught.value, Damaged)


# ---- a file and its sum change together


@pytest.mark.parametrize("after", [1, 2])
def test_a_kill_around_the_rename_leaves_the_file_and_the_manifest_whole(run, monkeypatch, after):
    """After the first writing of the manifest, or before the second: the file has one of the two sums."""
    original, writings = manifest._update, []

    def killed(*args):
        writings.append(1)
        if after == 1:
            original(*args)
        if len(writings) == after:
            raise SystemExit
        original(*args)

    monkeypatch.setattr(manifest, "_update", killed)
    with pytest.raises(SystemExit):
        manifest.write_json(run / folder.EVALUATION, {"accuracy": 1})
    monkeypatch.undo()
    assert manifest.read_json(run / folder.EVALUATION) == {"accuracy": 0.5 if after == 1 else 1}
    assert "next" in manifest.sums(run)[folder.EVALUATION]
    manifest.write_json(run / folder.EVALUATION, {"accuracy": 2})
    assert "next" not in manifest.sums(run)[folder.EVALUATION]
    assert states(run)[folder.EVALUATION] == "whole"


def fills_the_disk(path):
    with seal(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")


def test_what_fails_to_be_written_changes_nothing(run):
    before = content(run)
    with pytest.raises(OSError, match="No space left"):
        fills_the_disk(run / folder.EVALUATION)
    assert content(run) == before


def test_several_processes_record_at_once(run):
    names = [f"evaluation-{i}.json" for i in range(40)]

    def write(own):
        for name in own:
            manifest.write_json(run / name, {"name": name})

    threads = [threading.Thread(target=write, args=(names[i::4],)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(states(run)[name] == "whole" for name in names)


def test_a_reader_meets_a_file_that_is_being_replaced(run):
    """Reading and writing at once is no damage."""
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            manifest.write_json(run / folder.EVALUATION, {"accuracy": (number := number + 1)})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(100):
            check(run, folder.EVALUATION)
    finally:
        stop.set()
        thread.join()


# ---- resume


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


def test_weights_of_another_run_are_refused(run, tmp_path):
    trained(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / folder.BEST, run / folder.BEST)
    own = folder.read_json(run / folder.CONFIG)["id"]
    with pytest.raises(ValueError, match=f"{folder.BEST} is of run .*, and .* is run {own}"):
        load_weights(net(), run)
    (run / folder.EVALUATION).unlink()  # for the report, it is not one
    unsealed(run)
    for reader in (lambda: load_weights(net(), run), lambda: check_best(run), lambda: read(run)):
        with pytest.raises(ValueError, match=f"{folder.BEST} is of run .*, and .* is run {own}"):
            reader()
    assert {e.name: e.state for e in inventory(run).files}[folder.BEST] == "of another run"


def test_a_report_needs_what_it_shows(run):
    (run / folder.EVALUATION).unlink()
    assert read(run).rows
    (run / folder.METRICS).rename(run / "aside")
    with pytest.raises(Damaged, match="is missing"):
        read(run)
    (run / "aside").rename(run / folder.METRICS)
    flip(run / folder.BEST, 70)
    with pytest.raises(Damaged, match=folder.BEST):
        read(run)


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


# ---- copies


def test_an_exported_copy_has_its_sums(run, tmp_path):
    copy = export(run, tmp_path / "export")
    assert states(copy) == dict.fromkeys(sorted(["best.safetensors", "config.json", "metrics.jsonl"]), "whole")
    flip(copy / folder.BEST, 8 * (copy / folder.BEST).stat().st_size - 3)
    with pytest.raises(Damaged):
        load_weights(net(), copy)
    flip(run / folder.METRICS, 100)
    with pytest.raises(Damaged):
        export(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_loading_a_run_checks_it(tmp_path):
    import atent

    fit(
        net(), data(), Standard(), settings=TrainSettings(epochs=1, device="cpu"), run=tmp_path / "run",
        progress=False, builder="test_manifest:net",
    )  # fmt: skip
    assert load is atent.load
    load(tmp_path / "run")
    flip(tmp_path / "run" / folder.CONFIG, 11)
    with pytest.raises(ValueError, match="config"):
        load(tmp_path / "run")


def test_show_names_each_file_and_its_state(run, capsys):
    def shown(*args):
        status = main(["show", str(run), "--json", *args])
        found = json.loads(capsys.readouterr().out)
        return status, {entry["name"]: entry for entry in found["files"]}

    status, files = shown()
    assert status == 0
    assert {entry["state"] for entry in files.values()} == {"whole"}
    digest = hashlib.sha256((run / folder.BEST).read_bytes()).hexdigest()
    assert files[folder.BEST]["sha256"] == digest
    flip(run / folder.BEST, 7)
    assert (shown()[0], shown()[1][folder.BEST]["state"]) == (1, "damaged")


def test_changed_data_are_named(tmp_path, monkeypatch, capsys):
    """Where a run of an earlier version is evaluated."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    load_target("finished", device="cpu", trust_code=True)
    assert "SHA-256" not in capsys.readouterr().err
    arrays = dict(np.load("sorted.npz"))
    arrays["x_test"][0] ^= 1
    np.savez("sorted.npz", **arrays)
    load_target("finished", device="cpu", trust_code=True)
    assert "sorted.npz of npz has a different SHA-256" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_changed_data():
    text = folder.dumps({"method": {"name": "Standard"}, "model": {}, "train": {}, "data": {}, "files": {"a": 1}})
    other = text.replace('"a": 1', '"a": 2')
    changed = text.replace('"data": {}', '"data": {"name": "npz"}')

    def now(config, code="a", samples="b"):
        return {"config": config, "code": {"mine": code}, "samples": samples}

    assert difference(now(text), now(text), Standard()) is None
    assert "SHA-256" in difference(now(text), now(other), Standard())
    assert "config.json" in difference(now(text), now(changed), Standard())
    assert "mine has changed" in difference(now(text), now(text, code="c"), Standard())
    assert "samples have changed" in difference(now(text), now(text, samples="c"), Standard())
    # Earlier versions recorded the settings only.
    assert difference({"config": text}, now(text), Standard()) is None
    assert "SHA-256" in difference({"config": text}, now(other), Standard())


def test_a_history_that_is_missing_says_what_restores_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing: `atent train --resume"):
        folder.read_rows(tmp_path / "metrics.jsonl")


def test_show_compares_the_data(tmp_path, monkeypatch):
    """Of the run of an earlier version."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert [entry.state for entry in inventory("finished").data] == ["whole"]
    flip(tmp_path / "sorted.npz", 20000)
    assert [entry.state for entry in inventory("finished").data] in (["changed"], ["not found"])
    (tmp_path / "sorted.npz").unlink()
    assert [entry.state for entry in inventory("finished").data] == ["not found"]
    assert {entry.state for entry in inventory("finished").files} == {"not covered"}


def test_an_edit_of_ones_own_is_accepted(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "recipe": "mine"}))
    assert main(["show", str(run), "--accept", "nothing.json"]) == 2
    assert "has no file nothing.json: give one of" in capsys.readouterr().err
    with pytest.raises(Damaged, match=r"config.json was changed .* `atent show .* --accept config.json`"):
        folder.read_config(run / "config.json")
    assert main(["show", str(run), "--accept", "config.json"]) == 0
    assert folder.read_config(run / "config.json")["recipe"] == "mine"
    # What was moved away on purpose is no longer missing.
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert main(["show", str(run)]) == 1
    assert "1 missing" in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        accept_files(tmp_path, ["config.json"])
    accept_files(run, ["metrics.jsonl"])
    assert states(run).get("metrics.jsonl") is None


def test_weights_that_are_gone_say_what_restores_them(run):
    (run / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no best.safetensors: `atent train --resume"):
        load_weights(net(), run)
    with pytest.raises(Damaged, match=r"has no best\.safetensors"):
        check_best(run)


def test_damaged_weights_of_another_run_are_called_that(run):
    about, tensors, _ = read_weights(run / "best.safetensors")
    metadata = {"atent": json.dumps({**about, "run": "other"})}
    save_file({k: v.clone() for k, v in tensors.items()}, run / "best.safetensors", metadata)
    with pytest.raises(ValueError, match="is of run other"):
        read_weights(run / "best.safetensors")
