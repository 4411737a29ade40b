"""Damage to a file of a run folder is found; a file and its sum change together."""

import json
import random
import shutil
import threading

import pytest
from kit import unsealed
from peak_run import CPU, STATE, content, flip, net, run_to_change, trained, whole_run  # noqa: F401 - fixtures
from safetensors.torch import save_file

from atent import runs as folder
from atent.experiments.inventory import inventory
from atent.report.collect import read
from atent.runs import manifest
from atent.runs.checkpoint import check_best, find_state, load_state, load_weights, read_weights
from atent.runs.manifest import Damaged, check, seal, states

FLIPS = 30


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


def test_damaged_weights_of_another_run_are_called_that(run):
    about, tensors, _ = read_weights(run / "best.safetensors")
    metadata = {"atent": json.dumps({**about, "run": "other"})}
    save_file({k: v.clone() for k, v in tensors.items()}, run / "best.safetensors", metadata)
    with pytest.raises(ValueError, match="is of run other"):
        read_weights(run / "best.safetensors")


def test_weights_that_are_gone_say_what_restores_them(run):
    (run / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no best.safetensors: `atent train --resume"):
        load_weights(net(), run)
    with pytest.raises(Damaged, match=r"has no best\.safetensors"):
        check_best(run)


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
