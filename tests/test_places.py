"""Places that are not files or folders to write: one line, and nothing is damaged or waits."""

import os

import pytest
import torch

from atent.attacks import FGSM
from atent.data import from_tensors
from atent.evaluate import evaluate
from atent.methods import Standard
from atent.runs import append_jsonl, write_atomic
from atent.threat import Threat
from atent.train import TrainSettings, fit

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
