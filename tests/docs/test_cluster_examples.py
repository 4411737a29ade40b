"""The scripts for clusters: their syntax, and what they start, at toy size on the loopback address."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import given
from processes import environment

from atent.cli.trainings import TrainingsOptions

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.iterdir())
TOY = (
    "digits-linf-pgdat", "--name", "shared", "--quiet", "--train.epochs", "1", "--train.device", "cpu",
    "--data.limit", "64", "--data.validation", "40", "--train.batch-size", "16", "--evaluate.attacks", "FGSM",
    "--evaluate.limit", "100",
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.fixture
def place(tmp_path):
    """A folder to run in, with srun and torchrun of this Python first in PATH; srun is a stub: one task, node 0."""
    (tmp_path / "bin").mkdir()
    stubs = {
        "srun": '#!/bin/bash\nSLURM_NODEID=0 exec "$@"\n',
        "torchrun": f'#!/bin/bash\nexec "{sys.executable}" -m torch.distributed.run "$@"\n',
        "python": f'#!/bin/bash\nexec "{sys.executable}" "$@"\n',
    }
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def begin(place, script, *words, **variables):
    env = {**environment(), "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
    return subprocess.Popen(["bash", FOLDER / script, *words], cwd=place, env=env)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_a_sweep_submits_its_trainings(place):
    """What the command makes of the script's words."""
    (place / "bin" / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > words\n')
    script = begin(place, "sweep.sbatch", "digits.toml", "--jobs", "3", PARTITION="gpu", MINUTES="30", GPUS="2")
    assert script.wait(60) == 0
    module, name, command, *words = (place / "words").read_text().splitlines()
    assert [module, name, command] == ["-m", "atent", "sweep"]
    got = given("sweep", *words)
    slurm = ("timeout_min=30", "partition=gpu")
    trainings = TrainingsOptions(jobs=3, backend="slurm", cpus=4, gpus=2.0, slurm=slurm)
    assert (got["file"], got["trainings"]) == ("digits.toml", trainings)


@pytest.mark.slow
def test_two_nodes_train_one_run_which_an_array_evaluates(place):
    shared = {"NODES": "2", "PROCESSES": "1", "MASTER": "127.0.0.1", "PORT": free_port()}
    nodes = [begin(place, "several_nodes.sh", *TOY, NODE=str(node), **shared) for node in range(2)]
    assert [node.wait(200) for node in nodes] == [0, 0]
    assert [path.name for path in (place / "runs").iterdir() if path.is_dir()] == ["shared"]
    run = place / "runs" / "shared"
    for task in ("1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        words = ("runs/shared", "--attacks", "FGSM", "--batch-size", "25", "--out", "array.json")
        assert begin(place, "evaluate_array.sbatch", *words, **array).wait(200) == 0
    assert begin(place, "evaluate_array.sbatch", *words, "--merge").wait(200) == 0
    assert (place / "array.json").is_file() or (run / "array.json").is_file()


@pytest.mark.slow
def test_a_job_of_slurm_and_one_node_train(place):
    slurm = {"SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(FOLDER), "MASTER": "127.0.0.1", "PORT": free_port()}
    assert begin(place, "train.sbatch", *TOY, PROCESSES="2", **slurm).wait(200) == 0
    assert (place / "runs" / "shared" / "best.safetensors").is_file()
    assert begin(place, "one_node.sh", TOY[0], "--name", "alone", *TOY[3:], PROCESSES="2").wait(200) == 0
    assert (place / "runs" / "alone" / "best.safetensors").is_file()
