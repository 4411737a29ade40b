"""Places that are not files or folders to write: one line, and nothing is damaged or waits."""

import errno
import json
import os
import shutil
from contextlib import contextmanager

import pytest
import torch

from atent.attacks import FGSM
from atent.certify import rows
from atent.cli import main
from atent.data import from_tensors
from atent.evaluate import evaluate
from atent.experiments import pipeline
from atent.methods import Standard
from atent.runs import append_jsonl, files, read_json, write_atomic
from atent.threat import Threat
from atent.train import Callback, TrainSettings, fit

X, Y = torch.rand(40, 1, 2, 2), torch.arange(40) % 2


def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))


@pytest.fixture
def place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept\n")
    return tmp_path


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "folder"])
def test_a_file_to_write_must_be_a_regular_one(place, name):
    """A device without an end and a pipe without a writer would never be read to their end."""
    path = place / name
    for call in (
        lambda: evaluate(network(), X, Y, [FGSM(Threat("linf", 0.1))], resume=path),
        lambda: write_atomic(path, "x"),
        lambda: append_jsonl(path, {"a": 1}),
    ):
        with pytest.raises(OSError, match="a regular file is required: give") as error:
            call()
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("name", ["file/x", "a" * 300])
def test_a_file_that_cannot_be_is_one_line(place, name):
    with pytest.raises(OSError, match=r"^cannot write [^\n]*$"):
        evaluate(network(), X, Y, [FGSM(Threat("linf", 0.1))], resume=place / name)
    assert (place / "file").read_text() == "kept\n"


@pytest.mark.parametrize("name", ["file", "file/x", "pipe", "a" * 300])
def test_a_run_folder_that_cannot_be_is_one_line(place, name):
    data = from_tensors(X, Y, X, Y, validation=4)
    with pytest.raises(OSError, match=r"^cannot (make|write in) [^\n]*: give another place[^\n]*$"):
        fit(network(), data, Standard(), settings=TrainSettings(epochs=1), progress=False, run=place / name)
    assert (place / "file").read_text() == "kept\n"


# ---- places that fail during the work


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def no_space(monkeypatch):
    """Files that are written get no name."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "link", full)
        patch.setattr(files.os, "replace", full)
        yield


class After(Callback):
    """Calls a function at the end of the first epoch."""

    def __init__(self, call):
        self.call = call

    def epoch(self, progress, row):
        if len(progress.history) == 1:
            self.call()


def trained(run, **how):
    torch.manual_seed(0)
    settings = TrainSettings(epochs=3, save_minutes=0.0)
    data = from_tensors(X, Y, X, Y, validation=4)
    return fit(network(), data, Standard(), settings=settings, progress=False, run=run, **how)


def test_a_training_that_cannot_write_names_the_remedy_and_resumes_exactly(tmp_path, monkeypatch):
    whole = trained(tmp_path / "a").model.state_dict()
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"^cannot write") as error:
        trained(tmp_path / "b", callbacks=[After(lambda: patch.setattr(files.os, "fsync", full))])
    assert "free some space" in str(error.value)
    assert f"resume with fit(..., run={str(tmp_path / 'b')!r}, resume=True)" in str(error.value)
    assert "\n" not in str(error.value)
    again = trained(tmp_path / "b", resume=True).model.state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_run_folder_that_vanishes_is_one_line(tmp_path):
    with pytest.raises(OSError, match=r"^cannot write [^\n]*: give another place[^\n]*$"):
        trained(tmp_path / "a", callbacks=[After(lambda: shutil.rmtree(tmp_path / "a"))])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("places")
    words = ["--train.epochs", "1", "--data.limit", "100", "--evaluate.limit", "10", "--runs", str(path)]
    assert main(["train", "digits-linf-atent", "--no-baseline", "--evaluate.attacks", "FGSM", *words, "--quiet"]) == 0
    return path / "digits-linf-atent"


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def evaluate_words(run):
    return ["evaluate", str(run), "--attacks", "FGSM", "--limit", "10", "--quiet"]


def test_an_evaluation_that_cannot_be_written_is_printed_and_resumes(copy, monkeypatch, capsys):
    with no_space(monkeypatch):
        assert main(evaluate_words(copy)) == 1
    shown, error = capsys.readouterr()
    assert "after FGSM" in shown
    assert "clean" in shown
    assert "free some space" in error
    assert "repeating the command resumes" in error
    assert read_json(copy / "evaluation.json")
    assert not list(copy.glob("evaluation-*"))
    assert list(copy.glob("*.partial.jsonl"))
    assert main(evaluate_words(copy)) == 0
    assert not list(copy.glob("*.partial.jsonl"))


def test_a_result_that_cannot_be_written_is_printed_as_json_too(copy, monkeypatch, capsys):
    with no_space(monkeypatch):
        assert main([*evaluate_words(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["n"] == 10


def test_bounds_that_cannot_be_written_are_printed(copy, monkeypatch, capsys):
    with no_space(monkeypatch):
        assert main(["certify", str(copy), "--method", "ibp", "--limit", "10", "--quiet"]) == 1
    shown, error = capsys.readouterr()
    assert "verified" in shown
    assert "free some space" in error
    assert not list(copy.glob("certificate*"))


def test_rows_of_a_certificate_that_cannot_be_written_name_their_file(copy, monkeypatch, capsys):
    words = ["certify", str(copy), "--sigma", "0.25", "--limit", "10", "--n", "100", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", lambda paths: None)
        patch.setattr(rows.os, "fsync", full)
        assert main(words) == 1
    error = capsys.readouterr().err
    assert f"cannot write {copy}" in error
    assert "repeating the command resumes" in error
    assert main(words) == 0


def test_a_training_prints_the_evaluation_that_it_cannot_write(copy, monkeypatch, capsys):
    (copy / "evaluation.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_json", unwritable)
        assert main(["train", "--resume", str(copy), "--no-baseline", "--quiet"]) == 1
    shown, error = capsys.readouterr()
    assert "FGSM" in shown
    assert f"resume with `atent train --resume {copy}`" in error


def unwritable(path, content):
    raise files.write_error(path, None, OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_an_error_of_the_system_names_the_path_and_a_remedy(run, capsys, command):
    name = "a" * 300
    assert main([command, str(run), "--out", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"atent: {name}: ")
    assert error.endswith(": give another place\n")


def no_figure(figure, path):
    raise files.write_error(path, None, OSError(errno.ENOSPC, "No space left on device"))


def test_a_figure_that_cannot_be_written_leaves_no_empty_file(copy, monkeypatch, capsys):
    monkeypatch.setattr("atent.plots.save", no_figure)
    assert main([*evaluate_words(copy), "--radius", "0.1", "--json"]) == 1
    shown, error = capsys.readouterr()
    assert json.loads(shown)["sweep"]
    assert f"cannot write {copy / 'security.png'}" in error
    assert (copy / "evaluation-2.json").is_file()
    assert not (copy / "security.png").exists()


@pytest.mark.parametrize("words", [["transfer", "{run}", "{run}"], ["attack", "{run}", "--attack", "FGSM"]])
def test_a_matrix_and_counts_that_cannot_be_written_are_printed(copy, monkeypatch, capsys, tmp_path, words):
    other = shutil.copytree(copy, tmp_path / "other")
    words = [word.format(run=run) for word, run in zip(words, [None, copy, other, None])]
    monkeypatch.chdir(tmp_path)
    with no_space(monkeypatch):
        assert main([*words, "--limit", "10", "--quiet"]) == 1
    shown, error = capsys.readouterr()
    assert "other" in shown or "misclassified" in shown
    assert "free some space" in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".npz", ".tmp") or "transfer.json" in path.name]


def test_theory_refuses_a_place_before_its_chains(run, place, monkeypatch, capsys):
    monkeypatch.setattr("atent.paper.theory.command.of_run", lambda *args, **how: pytest.fail("computed"))
    assert main(["theory", str(run), "--out", str(place / "file" / "x.json")]) == 1
    assert "a file is in its path" in capsys.readouterr().err
