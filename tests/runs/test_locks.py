"""One process at a time works on a run, a measurement and a name; temporary files of dead ones are removed."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import SOURCE, environment, held_elsewhere, is_alive, script, until

from atent.cli import main
from atent.runs import files, locks, stale
from atent.runs.locks import InUse, claimed, held, lock_of


def note(path, **changes):
    """A lock as a process leaves it that was killed."""
    with held(path, "train"):
        found = json.loads(path.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **changes}))


# ---- the lock


def test_a_second_process_is_told_who_is_at_work(tmp_path):
    path = tmp_path / "run" / ".lock"
    with held_elsewhere(path, "train") as other, pytest.raises(InUse) as caught, held(path, "evaluate"):
        pass
    text = str(caught.value)
    assert str(path.parent) in text
    assert f"process {other.pid} on {socket.gethostname()} (train, since " in text
    assert "\n" not in text
    assert isinstance(caught.value, ValueError)


def test_the_same_thread_may_hold_it_again_and_no_other(tmp_path):
    path, raised = tmp_path / "run" / ".lock", []

    def other():
        try:
            with held(path, "evaluate"):
                pass
        except InUse as error:
            raised.append(str(error))

    with held(path, "train"):
        with held(path, "train"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert f"process {os.getpid()}" in raised[0]
        assert path.is_file()
    assert not path.parent.exists()
    with held(path, "train"):
        (path.parent / "kept").touch()
    assert [p.name for p in path.parent.iterdir()] == ["kept"]


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, capfd):
    path = tmp_path / ".lock"
    with held_elsewhere(path):
        pass
    assert json.loads(path.read_text())["what"] == "something"
    with held(path, "train"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert capfd.readouterr() == ("", "")


def test_a_lock_of_another_host_is_taken_over_only_on_demand(tmp_path):
    path = tmp_path / "run" / ".lock"
    note(path, host="elsewhere", boot="another")
    before = path.read_text()
    with pytest.raises(InUse, match=r"on elsewhere .*--steal-lock"), held(path, "train"):
        pass
    assert path.read_text() == before
    with held(path, "train", steal=True):
        assert json.loads(path.read_text())["host"] == socket.gethostname()
    # The name of a container is its own, and the kernel that ends its locks is that of its host.
    if stale.boot():
        note(path, host="container")
        with held(path, "train"):
            pass
    # What a live process of this host holds is never taken.
    with held_elsewhere(path), pytest.raises(InUse), held(path, "train", steal=True):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"text"', b'{"pid": []}', b"0" * 5000])
def test_a_lock_with_any_content_is_taken(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_bytes(content)
    with held(path, "train", steal=True):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "child",
    [
        "pid = os.fork()\n    if not pid: time.sleep(600)",
        "pid = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], close_fds=False).pid",
    ],
    ids=["fork", "spawn"],
)
def test_no_child_inherits_it(tmp_path, child):
    text = (
        "import os, subprocess, sys, time\nfrom atent.runs.locks import held\n"
        f"with held(sys.argv[1], 'train'):\n    {child}\n    print(pid, flush=True)\n    time.sleep(600)"
    )
    with script(text, tmp_path / ".lock") as parent:
        child = int(parent.first)
    try:
        assert is_alive(child)
        with held(tmp_path / ".lock", "train"):
            pass
    finally:
        os.kill(child, 9)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_the_child_of_a_dead_holder_gets_a_moment_to_close_it(tmp_path, monkeypatch):
    """A child has its parent's file until it first runs: here it closes it late, and then never."""
    text = (
        "import os, sys, time\nfrom pathlib import Path\nfrom atent.runs import locks\n"
        "kept = locks._taken(os.path.realpath(sys.argv[1]), 'train', False)\n"
        "path = Path(sys.argv[1]).resolve()\n"
        # Files that filelock does not know of, and so does not close.
        "fds = [fd for fd in os.listdir('/proc/self/fd') if Path('/proc/self/fd', fd).resolve() == path]\n"
        "copies = [os.dup(int(fd)) for fd in fds]\n"
        "pid = os.fork()\nif pid: print(pid, flush=True); time.sleep(600)\n"
        "time.sleep(float(sys.argv[2])); [os.close(fd) for fd in copies]; time.sleep(600)"
    )
    for seconds, grace, free in ((0.5, 60, True), (600, 0.2, False)):
        monkeypatch.setattr(locks, "_GRACE", grace)
        path = tmp_path / str(seconds) / ".lock"
        with script(text, path, seconds) as parent:
            child = int(parent.first)
        try:
            with contextlib.nullcontext() if free else pytest.raises(InUse), held(path, "train"):
                pass
        finally:
            os.kill(child, 9)


def test_it_can_be_waited_for(tmp_path):
    path, lines = tmp_path / ".lock", []
    with held_elsewhere(path) as other:

        def wait(line):
            lines.append(line)
            other.kill()

        with held(path, "train", wait=wait):
            assert lines


def test_runs_that_begin_at_once_get_names_of_their_own(tmp_path):
    with held_elsewhere(tmp_path / "a" / ".lock"):
        with claimed(tmp_path, "a", "train") as path:
            assert path.name == "a-2"
        with pytest.raises(InUse), claimed(tmp_path, "a", "train", numbered=False):
            pass
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError), claimed(tmp_path, "a", "train", numbered=False):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


# ---- names of results


def test_no_two_processes_get_one_name(tmp_path):
    text = (
        "import sys\nfrom atent.runs.files import reserved, write_new\nfrom pathlib import Path\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(20): print(write_new(Path(sys.argv[1], 'a.json'), 'x').name)\n"
        "for _ in range(20): print(reserved(Path(sys.argv[1], 'b.png')).name)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    made = [subprocess.Popen([sys.executable, "-c", text, tmp_path], **pipes) for _ in range(2)]
    for process in made:
        process.stdout.readline()
    names = [name for process in made for name in process.communicate("\n")[0].split()]
    assert len(names) == len(set(names)) == 80
    assert {p.name for p in tmp_path.iterdir()} == set(names)


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_whole_and_never_another(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError("no links")))
    path = tmp_path / "a.json"
    assert [files.write_new(path, "1"), files.write_new(path, "2")] == [path, tmp_path / "a-2.json"]
    with pytest.raises(FileExistsError):
        files.write_new(path, "3", numbered=False)
    assert (path.read_text(), (tmp_path / "a-2.json").read_text()) == ("1", "2")
    assert len(list(tmp_path.iterdir())) == 2


# ---- temporary files


def test_temporary_files_of_dead_processes_go_and_others_stay(tmp_path):
    run, gone = tmp_path / "run", []
    (run / "last").mkdir(parents=True)
    with script("import os; print(os.getpid(), flush=True); input()") as process:
        alive = stale.temporary(run / "alive.json")
    old = time.time() - 2 * 24 * 3600
    for folder in (run, run / "last"):
        dead = stale.temporary(folder / "state.pt")
        gone.append(dead.with_name(dead.name.replace(f"-{os.getpid()}-", f"-{process.pid}-")))
        foreign = folder / f".state.ffffff-{process.pid}-0123abcd.tmp.pt"
        former, other = folder / ".state.0123abcd.tmp.pt", folder / ".state.89abcdef.tmp.pt"
        for path in (gone[-1], foreign, former, other):
            path.touch()
        os.utime(former, (old, old))
        gone.append(former)
    alive.touch()
    (run / ".mine.tmp.txt").touch()
    before = set(run.rglob("*"))
    with held(run / ".lock", "train"):
        pass
    assert before - set(run.rglob("*")) == set(gone)


def test_an_atomic_write_that_is_killed_leaves_what_a_lock_removes(tmp_path):
    text = (
        "import sys, time\nfrom atent.runs import atomic\n"
        "with atomic(sys.argv[1]) as half: half.write_text('half'); print('half', flush=True); time.sleep(600)"
    )
    with script(text, tmp_path / "a.json"):
        with held(tmp_path / ".lock", "train"):
            pass
        assert len(list(tmp_path.iterdir())) == 1
    with held(tmp_path / ".lock", "train"):
        pass
    assert not list(tmp_path.iterdir())


# ---- the commands

QUICK = ("--data.limit", "64", "--train.epochs", "1", "--train.device", "cpu", "--evaluate.limit", "10", "--quiet")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    place = tmp_path_factory.mktemp("trained")
    status = main(["train", "digits-linf-standard", "--no_baseline", "--runs", str(place), "--name", "run", *QUICK])
    assert status == 0
    return place / "run"


def refused(capsys, *words):
    status = main(list(words))
    err = capsys.readouterr().err
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1
    assert "is in use by process" in err


def test_a_run_at_work_is_not_touched(trained, capsys):
    with held_elsewhere(trained / ".lock", "train"):
        before = content(trained)
        refused(capsys, "train", "--resume", str(trained), "--quiet")
        named = ("--runs", str(trained.parent), "--name", "run")
        refused(capsys, "train", "digits-linf-standard", "--no_baseline", *named, *QUICK)
        refused(capsys, "pretrain", "digits-acl", *named, *QUICK)
        assert content(trained) == before


SLOW = "PGD(steps=500, restarts=200)"
SAME = ("--norm", "linf", "--eps", "0.1", "--limit", "20", "--batch-size", "5", "--device", "cpu", "--quiet")


def test_one_process_measures_a_request(trained, capsys):
    """The second of two alike is refused; another request runs beside it, into a file of its own."""
    words = ("evaluate", str(trained), *SAME, "--attacks", SLOW)
    other = subprocess.Popen([sys.executable, "-m", "atent", *words], env=environment())
    try:
        assert until(lambda: list(trained.glob(".evaluation*.lock")), other)
        refused(capsys, *words)
        assert main(["evaluate", str(trained), *SAME, "--attacks", "FGSM"]) == 0
        assert (trained / "evaluation-2.json").is_file()
    finally:
        other.kill()
        other.wait()
    # What the killed one left waits for the same request, and its lock goes with the next that is taken.
    assert len(list(trained.glob("evaluation*.partial*"))) <= 1
    with held(trained / ".lock", "train"):
        assert not list(trained.glob(".evaluation*.lock"))


def test_files_that_options_name_have_one_writer(trained, tmp_path, capsys):
    for words in (("evaluate", "--attacks", "FGSM", "--out"), ("attack", "--attack", "FGSM", "--out")):
        out = tmp_path / ("a.npz" if words[0] == "attack" else "a.json")
        with held_elsewhere(lock_of(out), "write"):
            refused(capsys, words[0], str(trained), *SAME, *words[1:], str(out))


def test_the_other_commands(trained, tmp_path, capsys, monkeypatch):
    """certify and transfer hold a lock that is named by what is asked of them."""
    from atent.experiments import certificate
    from atent.experiments import transfer as matrix

    asked = []

    def find(*args, **how):
        asked.extend(p for p in trained.glob(".*.lock"))
        raise ValueError("asked")

    monkeypatch.setattr(certificate, "certify_run", find)
    monkeypatch.setattr(certificate, "_verified", find)
    monkeypatch.setattr(matrix, "measure_transfer", find)
    second = shutil.copytree(trained, tmp_path / "second")
    few = ("--limit", "4", "--device", "cpu", "--quiet")
    commands = (
        ("certify", str(trained), "--sigma", "0.1", "--n", "100", *few),
        ("certify", str(trained), "--method", "ibp", "--norm", "linf", "--radius", "0.01", *few),
        ("transfer", str(trained), str(second), "--attack", "FGSM", "--norm", "linf", "--eps", "0.1", *few),
    )
    for words in commands:
        asked.clear()
        assert main(list(words)) == 2
        capsys.readouterr()
        (lock,) = asked
        assert not lock.exists()
        with held_elsewhere(lock, "certify"):
            refused(capsys, *words)


def test_the_option_reaches_the_lock(trained, capsys):
    words = ["train", "--resume", str(trained), "--quiet"]
    note(trained / ".lock", host="elsewhere", boot="another")
    assert main(words) == 2
    assert "--steal-lock" in capsys.readouterr().err
    assert main([*words, "--steal-lock"]) == 0
    assert not (trained / ".lock").exists()


def test_importing_a_lock_needs_no_torch():
    code = "import sys, atent.signals; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env={**environment(), "PYTHONPATH": SOURCE}).returncode == 0
