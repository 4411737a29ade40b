"""Files of interrupted measurements that a repeated command no longer resumes, and those that it leaves alone."""

import hashlib
import json
import os
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

import pytest
from processes import held_elsewhere

from atent.evaluate.lines import Lines
from atent.experiments.partial_files import unfinished
from atent.runs import dumps
from atent.runs.locks import lock_of, steal


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test here depends on writes that reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


ABOUT = {"model": "m1", "inputs": "x", "attacks": [["fgsm", "FGSM(norm=linf, eps=0.1)", 0.0, 1.0]], "version": "1"}
REQUEST = {"network": ["run", "best"], "definitions": 1}


def interrupted(place, about, **request):
    """What the measurement of a request leaves: its file, with a part."""
    with suppress(KeyboardInterrupt), unfinished(place, "evaluation", about, **{**REQUEST, **request}) as path:
        Lines(path, "evaluation", about).add({"key": "a"})
        Lines(path.with_suffix(".sweep.jsonl"), "sweep", about).add({"key": "a"})
        raise KeyboardInterrupt
    return path


@pytest.mark.parametrize(
    ("about", "request_", "differs"),
    [
        ({"model": "m2"}, {}, "weights"),
        ({"version": "2", "model": "m2"}, {}, "weights and version of atent"),
        ({"attacks": [[*ABOUT["attacks"][0], "code"]]}, {}, "code"),
        ({}, {"definitions": 2}, "weights, code or definitions"),
    ],
)
def test_what_a_repeated_command_no_longer_resumes_is_removed_with_one_line(
    tmp_path, capsys, about, request_, differs
):  # fmt: skip
    place = tmp_path / "evaluation.json"
    old = interrupted(place, ABOUT)
    capsys.readouterr()
    new = interrupted(place, {**ABOUT, **about}, **request_)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{old.name} is of an evaluation that was interrupted with other {differs}: removed" in line
    assert {path for path in tmp_path.iterdir() if path.is_file()} == {new, new.with_suffix(".sweep.jsonl")}


@pytest.mark.parametrize(
    ("about", "request_"),
    [
        ({}, {}),
        ({"inputs": "other"}, {}),
        ({"attacks": [["fgsm", "FGSM(norm=linf, eps=0.2)", 0.0, 1.0]]}, {}),
        ({"model": "m2"}, {"network": ["run", "last"]}),
    ],
)
def test_the_file_of_another_request_is_kept_without_a_word(tmp_path, capsys, about, request_):
    place = tmp_path / "evaluation.json"
    old = interrupted(place, ABOUT)
    interrupted(place, {**ABOUT, **about}, **request_)
    assert old.exists()
    assert "removed" not in capsys.readouterr().err


def test_a_file_in_use_is_not_removed(tmp_path, capsys):
    place = tmp_path / "evaluation.json"
    old = interrupted(place, ABOUT)
    with held_elsewhere(lock_of(old)):
        interrupted(place, {**ABOUT, "model": "m2"})
    assert old.exists()
    assert "removed" not in capsys.readouterr().err


def test_a_file_that_another_host_locked_is_not_removed_by_steal_lock(tmp_path, capsys):
    place = tmp_path / "evaluation.json"
    old = interrupted(place, ABOUT)
    lock_of(old).write_text(json.dumps({"host": "elsewhere", "pid": 1, "boot": "other"}))
    copy_context().run(lambda: (steal(True), interrupted(place, {**ABOUT, "model": "m2"})))
    assert old.exists()
    assert lock_of(old).exists()
    assert "removed" not in capsys.readouterr().err


def test_a_file_that_cannot_be_removed_stops_nothing(tmp_path, capsys, monkeypatch):
    place, unlink = tmp_path / "evaluation.json", Path.unlink
    old = interrupted(place, ABOUT)

    def refusing(self, *args, **kwargs):
        if self == old:
            raise PermissionError(13, "Permission denied")
        unlink(self, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", refusing)
    assert interrupted(place, {**ABOUT, "model": "m2"}).exists()
    assert old.exists()
    assert "removed" not in capsys.readouterr().err


def test_a_folder_of_such_a_name_is_left_alone(tmp_path):
    place = tmp_path / "evaluation.json"
    own = interrupted(place, ABOUT).with_suffix(".mine.jsonl")
    own.mkdir()
    interrupted(place, {**ABOUT, "model": "m2"})
    assert own.is_dir()


def earlier(place, **request):
    """A file with a part, under the name that the version before networks were part of a request gave it."""
    digest = hashlib.sha256(dumps(["evaluation", ABOUT, request]).encode()).hexdigest()[:12]
    path = place.with_suffix(f".{digest}.partial.jsonl")
    Lines(path, "evaluation", ABOUT).add({"key": "a"})
    Lines(path.with_suffix(".sweep.jsonl"), "sweep", ABOUT).add({"key": "a"})
    return path


def test_a_file_of_an_earlier_version_is_resumed_under_its_present_name(tmp_path, capsys):
    place = tmp_path / "evaluation.json"
    old, other = earlier(place, checks=True), earlier(place, checks=False)
    content = old.read_text()
    with unfinished(place, "evaluation", ABOUT, network=["run", "best"], checks=True) as path:
        assert path.read_text() == content
        assert path.with_suffix(".sweep.jsonl").is_file()
        assert not old.exists()
    assert {each for each in tmp_path.iterdir() if each.is_file()} == {other, other.with_suffix(".sweep.jsonl")}
    assert not capsys.readouterr().err


def test_a_file_of_an_earlier_version_with_the_first_definitions_is_removed_with_one_line(tmp_path, capsys):
    place = tmp_path / "evaluation.json"
    old = earlier(place, checks=True)
    new = interrupted(place, ABOUT, definitions=2, network=["run", "best"], checks=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{old.name} is of an evaluation that was interrupted with other weights, code or definitions" in line
    assert {each for each in tmp_path.iterdir() if each.is_file()} == {new, new.with_suffix(".sweep.jsonl")}
