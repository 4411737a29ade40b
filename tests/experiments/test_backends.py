"""Where trainings run: the loop that keeps a backend at work, and what runs on the machine of a task."""

import os
import signal

import pytest

from atent.experiments.backends import Local, Task, drive, make
from atent.experiments.backends import worker as room
from atent.experiments.backends.base import reason
from atent.signals import raising
from atent.train.interrupt import Interrupted


class Child:
    """Ends after so many looks."""

    def __init__(self, looks, status=0):
        self.looks, self.status, self.done = looks, status, []

    def poll(self):
        self.looks -= 1
        return None if self.looks > 0 and not self.done else self.status

    def stop(self):
        self.done.append("stop")

    def wait(self):
        self.done.append("wait")

    def kill(self):
        self.done.append("kill")


class Fake:
    pause = 0.0

    def __init__(self, children, at_once=1):
        self.children, self.at_once = children, at_once
        self.most, self.begun = 0, []

    def start(self, task):
        self.begun.append(task)
        return self.children[task.run.name]


def tasks(tmp_path, names):
    return [Task(tmp_path / name, ("--version",), tmp_path / f"{name}.log") for name in names]


def test_tasks_run_in_order_and_so_many_at_a_time(tmp_path):
    waiting, running, ended = tasks(tmp_path, "abc"), [], []
    fake = Fake({"a": Child(3), "b": Child(1), "c": Child(1, 5)}, at_once=2)
    drive(
        fake, lambda: waiting.pop(0) if waiting else None, lambda task, *end: ended.append((task.run.name, end[0])),
        changed=lambda now: running.append([task.run.name for task in now]), interrupted=str,
    )  # fmt: skip
    assert ended == [("b", 0), ("c", 5), ("a", 0)]
    assert running == [["a"], ["a", "b"], ["a"], ["a", "c"], ["a"], []]


def test_a_task_that_is_unwanted_is_stopped_and_ends(tmp_path):
    (task,), ended = tasks(tmp_path, "a"), []
    child, waiting = Child(10**9, 143), [task]
    drive(
        Fake({"a": child}), lambda: waiting.pop() if waiting else None, lambda *end: ended.append(end[1]),
        unwanted=lambda task: True, interrupted=str,
    )  # fmt: skip
    assert (child.done, ended) == (["stop"], [143])


def test_a_signal_stops_what_runs_and_is_no_failure_of_it(tmp_path):
    """The child that the same signal ended is not reported as one that failed."""
    waiting, ended, child = tasks(tmp_path, "a"), [], Child(10**9, -signal.SIGTERM)

    def sent(running):
        if running:
            child.done.append("signal")
            os.kill(os.getpid(), signal.SIGTERM)

    with raising(), pytest.raises(Interrupted, match="as it was"):
        drive(
            Fake({"a": child}), lambda: waiting.pop() if waiting else None, lambda *end: ended.append(end),
            changed=sent, interrupted=lambda: "as it was",
        )  # fmt: skip
    assert (child.done, ended) == (["signal", "stop", "wait", "kill"], [])


def test_an_error_of_the_caller_stops_what_runs(tmp_path):
    waiting, slow = tasks(tmp_path, "ab"), Child(10**9)

    def failed(task, status, seconds):
        raise ChildProcessError(reason(task, status))

    with pytest.raises(ChildProcessError, match="b failed: no output"):
        drive(
            Fake({"a": slow, "b": Child(1, 1)}, at_once=2), lambda: waiting.pop(0) if waiting else None, failed,
            interrupted=str,
        )  # fmt: skip
    assert slow.done == ["stop", "wait", "kill"]


def test_cores_are_shared(monkeypatch):
    from atent.experiments.backends import local

    monkeypatch.setattr(local, "cores", lambda: 8)
    assert [Local(n).threads() for n in (1, 3, 20)] == [None, 2, 1]


# ---- on the machine of a task


def test_work_runs_a_command_with_the_environment_of_who_asked(tmp_path, monkeypatch):
    seen = {}

    class Process(Child):
        def __init__(self, task, environment):
            super().__init__(2)
            seen.update(environment)

    monkeypatch.setattr(room, "Process", Process)
    monkeypatch.setattr(room, "_PAUSE", 0.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("OTHER", "of the worker")
    monkeypatch.chdir(tmp_path)
    (task,) = tasks(tmp_path, "a")
    assert room.work(task, str(tmp_path), {"CUDA_VISIBLE_DEVICES": "0", "OTHER": "mine", "MORE": "1"}) == 0
    assert {key: seen[key] for key in ("CUDA_VISIBLE_DEVICES", "OTHER", "MORE")} == {
        "CUDA_VISIBLE_DEVICES": "3", "OTHER": "mine", "MORE": "1",
    }  # fmt: skip


def test_the_file_stops_a_command_and_one_that_has_not_begun(tmp_path, monkeypatch):
    (task,), made = tasks(tmp_path, "a"), []

    class Process(Child):
        def __init__(self, task, environment):
            super().__init__(10**9, 143)
            made.append(self)
            task.stop.touch()

    monkeypatch.setattr(room, "Process", Process)
    monkeypatch.setattr(room, "_PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    assert room.work(task, str(tmp_path), {}) == 143
    assert made[0].done == ["stop", "wait", "kill"]
    assert not task.stop.exists()
    task.stop.touch()
    assert room.work(task, str(tmp_path), {}) == 143
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray", "slurm"])
def test_each_backend_runs_and_stops_commands(tmp_path, monkeypatch, name):
    """One command ends well, one badly, and one, which trains for long, is stopped and says so."""
    from processes import SOURCE

    if name != "local":
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[name], reason=f"needs the extra {name}")
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.chdir(tmp_path)
    long = ("train", "digits-linf-standard", "--no_baseline", "--quiet", "--name", "c", "--train.epochs", "500")
    words = {"a": ("--version",), "b": ("train", "nothing"), "c": long}
    waiting = [Task(tmp_path / "runs" / n, words[n], tmp_path / "runs" / f"{n}.log") for n in words]
    (tmp_path / "runs").mkdir()
    ended = {}
    with make(name, at_once=3, slurm=["cluster=local"] if name == "slurm" else []) as backend:
        drive(
            backend, lambda: waiting.pop(0) if waiting else None, lambda task, s, _: ended.update({task.run.name: s}),
            unwanted=lambda task: (tmp_path / "runs" / "c" / "config.json").is_file(), interrupted=str,
        )  # fmt: skip
    assert ended == {"a": 0, "b": 2, "c": 128 + signal.SIGTERM}
    assert (tmp_path / "runs" / "a.log").read_text().startswith("atent ")
    assert "unknown recipe" in (tmp_path / "runs" / "b.log").read_text()
    assert "interrupted at epoch" in (tmp_path / "runs" / "c.log").read_text()
