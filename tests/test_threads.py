"""CPU threads: waiting that leaves the cores to others, and how many a network gains from."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from atent import probe, threads
from atent.cli import main
from atent.data import DataSettings, load
from atent.methods import Standard
from atent.threads import check_threads, choose, cores, wait_passively
from atent.train import TrainSettings, fit, machine

# ---- waiting


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "10"}, {"GOMP_SPINCOUNT": "10"}),
        ({"KMP_BLOCKTIME": "0"}, {"KMP_BLOCKTIME": "0"}),
    ],
)
def test_threads_wait_passively_unless_the_user_decided(before, after):
    wait_passively(before)
    assert before == after


@pytest.mark.parametrize("module", ["atent.cli", "atent.__main__"])
def test_the_command_line_sets_it_before_torch_is_loaded(module):
    clean = {k: v for k, v in os.environ.items() if k not in threads._DECIDED}
    text = (
        "import sys, os; sys.argv = ['atent', '--version']\n"
        f"try:\n    import {module}\nexcept SystemExit:\n    pass\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", text], env=clean, capture_output=True, text=True, check=True)
    assert seen.stdout.splitlines()[-1] == "PASSIVE False"


def test_make_and_the_tests_set_it():
    assert "export OMP_WAIT_POLICY ?= PASSIVE" in (Path(__file__).parents[1] / "Makefile").read_text()
    assert any(name in os.environ for name in threads._DECIDED)


# ---- how many


def test_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(threads, "_quota", lambda path: 2)
    assert cores() == 2
    monkeypatch.setattr(threads, "_quota", lambda path: 64)
    assert cores() == 3


@pytest.mark.parametrize(
    ("text", "whole"),
    [("150000 100000", 1), ("400000 100000\n", 4), ("50000 100000", 1), ("max 100000", 2**20), ("", 2**20)],
)
def test_a_containers_share_of_time_counts_as_whole_cores(tmp_path, text, whole):
    (tmp_path / "cpu.max").write_text(text)
    assert threads._quota(tmp_path / "cpu.max") == whole
    assert threads._quota(tmp_path / "absent") == 2**20


@pytest.mark.parametrize(("one", "many", "chosen"), [(1.0, 0.6, 4), (1.0, 0.95, 1), (1.0, 3.0, 1)])
def test_more_threads_are_chosen_where_they_save_time(monkeypatch, one, many, chosen):
    """The clock moves by ``one`` or ``many`` seconds a pass, after a first pass of each that takes ten more."""
    clock = [0.0]
    passes = {1: 0, 4: 0}

    def work():
        n = torch.get_num_threads()
        clock[0] += (one if n == 1 else many) + (0 if passes[n] else 10)
        passes[n] += 1

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    before = torch.get_num_threads()
    assert choose(work, 4) == chosen
    assert torch.get_num_threads() == before
    assert passes[1] == passes[4]
    assert choose(work, 1) == 1
    with pytest.raises(ZeroDivisionError):
        choose(lambda: 1 / 0, 4)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "all", "2"])
def test_bad_numbers_are_one_line(value):
    with pytest.raises(ValueError, match=f"threads must be at least 1, at most 1024 and whole, or auto, got {value!r}"):
        check_threads(value)
    with pytest.raises(ValueError, match="threads must be"):
        TrainSettings(threads=value)


class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


def test_a_training_measures_once_and_keeps_the_number_when_resumed(monkeypatch, tmp_path):
    data = load(DataSettings(limit=64, validation=40))
    asked, lines = [], []

    def gaining(model, x, low):
        asked.append(len(x))
        return 1

    monkeypatch.setattr(machine, "gaining", gaining)

    def train(threads, **more):
        settings = TrainSettings(epochs=1, batch_size=32, validate_limit=20, device="cpu", threads=threads)
        return fit(
            Net(), data, Standard(), settings=settings, run=tmp_path / "run", progress=False, say=lines.append, **more
        )

    train("auto")
    assert asked == [32]
    assert lines == [f"threads 1 of {cores()} cores"]
    train("auto", resume=True)
    assert asked == [32]
    # A number of the user's needs no measurement.
    train(1, resume=True)
    assert asked == [32]


def test_gaining_leaves_the_model_as_it_was():
    net, x = nn.Sequential(nn.BatchNorm2d(1), Net()).train(), torch.rand(16, 1, 8, 8)
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert probe.gaining(net, x) in {1, cores()}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_commands_take_and_print_it(monkeypatch, tmp_path, capsys):
    from atent.experiments import target

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, "gaining", lambda model, x: 1)
    (tmp_path / "of_threads.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = [
        "evaluate", "of_threads:make", "--data", "digits", "--norm", "linf", "--eps", "0.1", "--attacks", "FGSM",
        "--limit", "20", "--quiet", "--threads",
    ]  # fmt: skip
    assert main([*words, "auto"]) == 0
    assert f"threads 1 of {cores()} cores" in capsys.readouterr().out
    assert main([*words, "0", "--out", "again.json"]) == 2
    assert "threads must be at least 1, at most 1024 and whole, or auto, got 0" in capsys.readouterr().err
