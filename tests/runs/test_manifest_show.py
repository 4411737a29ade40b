"""Exported copies are checked; `atent show` names each file and its state, and accepts an edit."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from peak_run import data, flip, net, run_to_change, whole_run  # noqa: F401 - fixtures

from atent import runs as folder
from atent.cli import main
from atent.experiments.inventory import accept_files, inventory
from atent.experiments.target import load_target
from atent.methods import Standard
from atent.runs.checkpoint import export, load_weights
from atent.runs.loading import load
from atent.runs.manifest import Damaged, states
from atent.train import TrainSettings, fit

BEFORE = Path(__file__).parents[1] / "files" / "before_subsets"


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
        progress=False, builder="peak_run:net",
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
