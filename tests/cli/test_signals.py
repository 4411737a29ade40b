"""Signals end every command alike: what was good stays, one line says what resumes it, the status is 128 + n."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import replaced
from processes import environment, is_alive, script, started, status_of, stopped, until

from atent import signals
from atent.cli import main
from atent.cli.streams import Steady, steady
from atent.runs import locks

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
TINY = (
    "--data.limit", "64", "--data.test_limit", "40", "--train.device", "cpu", "--train.threads", "1",
    "--train.validate_limit", "20", "--evaluate.limit", "20", "--evaluate.attacks", "FGSM", "--quiet",
)  # fmt: skip


# ---- handlers


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_raises_or_is_noted(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with signals.raising():
        with pytest.raises(signals.Stopped) as caught:
            signal.raise_signal(number)
        assert caught.value.signum == number
        with signals.stop_requests() as outer, signals.stop_requests() as inner:
            assert not inner()
            signal.raise_signal(number)
            assert inner()
            assert outer()
            # A batch system may send several; the second Ctrl-C alone is at once.
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signals.status(1) == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raising(), signals.stop_requests() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_a_finaliser_is_not_lost():
    class Late:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with signals.raising():
        late = Late()
        with pytest.raises(signals.Stopped):  # noqa: PT012
            del late
            time.sleep(20)


def test_a_signal_that_somebody_catches_comes_again(monkeypatch):
    """As where a library tries an import and goes on without it; but never into what cleans up after the first one."""
    monkeypatch.setattr(signals, "_ECHO", 0.05)
    cleaned = []
    with signals.raising():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert not cleaned
        with pytest.raises(signals.Stopped):  # noqa: PT012
            try:
                time.sleep(20)
            finally:
                time.sleep(0.3)
                cleaned.append(True)
        assert cleaned
        # A training that begins after it was caught ends at its next step.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with signals.stop_requests() as asked:
            end = time.monotonic() + 20
            while not asked() and time.monotonic() < end:
                time.sleep(0.01)
            assert asked()
    # Outside none is sent: the handlers are the program's own.
    with signals.raising(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.2)


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut():
    done = []
    with signals.raising(), pytest.raises(signals.Stopped):  # noqa: PT012
        with signals.postponed():
            signal.raise_signal(signal.SIGHUP)
            done.append("inside")
        done.append("after")
    assert done == ["inside"]


@pytest.mark.parametrize("where", ["_locked", "_released"])
def test_a_lock_is_taken_and_given_back_as_a_whole(tmp_path, monkeypatch, where):
    whole = getattr(locks, where)

    def cut(*given):
        signal.raise_signal(signal.SIGINT)
        return whole(*given)

    monkeypatch.setattr(locks, where, cut)
    with signals.raising(), pytest.raises(signals.Stopped), locks.held(tmp_path / "run" / ".lock", "train"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made", ["text", "cause", "later"])
def test_an_error_that_a_signal_led_to_is_the_signal(capsys, monkeypatch, made):
    """A library makes its own error of it, or a module whose import it ended is half there."""
    from atent import cli

    def failing(name, words, plugins):
        cause = None
        try:
            signal.raise_signal(signal.SIGHUP)
        except KeyboardInterrupt as error:
            cause = error if made == "cause" else None
        raise RuntimeError("Stopped: 1" if made == "text" else "half a module") from cause

    monkeypatch.setattr(cli, "_run", failing)
    assert main(["recipes"]) == 129
    assert "interrupted by SIGHUP" in capsys.readouterr().err
    # Without a signal it is what it says.
    monkeypatch.setattr(cli, "_run", lambda *given: 1 / 0)
    assert main(["recipes"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_outside_the_main_thread_nothing_is_handled():
    found = []
    thread = threading.Thread(target=lambda: found.append(signals.handled()))
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_is_stopped_says_what_resumes_it(trained, capsys, monkeypatch, name):
    """In the evaluation on the test set, which is none of the steps of a training, and in `atent evaluate`."""
    (trained / "evaluation.json").unlink(missing_ok=True)  # a finished run is not evaluated again
    from atent.experiments import evaluation, pipeline

    def stopping(*args, **how):
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr(pipeline, "evaluate_model", stopping)
    monkeypatch.setattr(evaluation, "evaluate", stopping)
    for words, how in (
        (["train", "--resume", str(trained), "--quiet"], f"resume with `atent train --resume {trained}`"),
        (
            ["evaluate", str(trained), "--attacks", "FGSM", "--norm", "linf", "--eps", "0.1"],
            "repeating the command resumes",
        ),
    ):
        assert main(words) == status_of(name)
        assert capsys.readouterr().err == f"atent: interrupted by {name}: {how}\n"
    assert not [p for p in trained.rglob(".*") if ".lock" in p.name or ".tmp" in p.name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    place = tmp_path_factory.mktemp("trained")
    words = ["train", "digits-linf-standard", "--no_baseline", "--runs", str(place), "--name", "run", *TINY]
    assert main([*words, "--train.epochs", "1"]) == 0
    return place / "run"


def test_nothing_is_left_of_a_start(here, capsys, monkeypatch):
    from atent.experiments import pipeline

    def stopping(*args, **how):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pipeline, "load_data", stopping)
    assert main(["train", "digits-linf-standard", "--no_baseline", *TINY]) == 143
    assert "nothing was saved yet, repeat the command" in capsys.readouterr().err
    assert not list(here.iterdir())


# ---- children


@pytest.mark.parametrize("kernel", [True, False])
def test_a_child_ends_with_its_parent(kernel):
    if kernel and sys.platform != "linux":
        pytest.skip("the kernel of Linux alone tells a child")
    child = (
        "import time; from atent import signals; "
        + ("" if kernel else "signals._signalled_by_kernel = lambda: False; ")
        + "signals.follow_parent(); print(1, flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time, os\nfrom atent.signals import followed\n"
        f"words, env = [sys.executable, '-c', {child!r}], followed(dict(os.environ))\n"
        "c = subprocess.Popen(words, env=env, stdout=subprocess.PIPE)\n"
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(600)"
    )
    with script(parent) as process:
        pid = int(process.first)
        assert is_alive(pid)
    assert until(lambda: not is_alive(pid), seconds=20)


@pytest.mark.slow
def test_a_comparison_that_is_killed_leaves_no_orphan(here):
    """Its run saves and ends, and the next call resumes it."""
    (here / "plain.toml").write_text(Path(recipe("digits-linf-standard")).read_text())
    words = ["compare", "plain.toml", "digits-linf-standard", "--seeds", "1", "--name", "c", *TINY]
    process = started(*words, "--train.epochs", "400")
    log = here / "runs" / "c" / "plain-seed0" / "metrics.jsonl"
    lock = log.parent / ".lock"
    assert until(log.exists, process)
    pid = json.loads(lock.read_text())["pid"]
    assert is_alive(pid)
    process.kill()
    process.communicate()
    assert until(lambda: not is_alive(pid), seconds=30)
    assert not lock.exists()
    assert not list((here / "runs").rglob(".*.tmp*"))
    done = len(log.read_text().splitlines())
    assert done < 400
    process = started(*words, "--train.epochs", "400")
    assert until(lambda: len(log.read_text().splitlines()) > done, process)
    assert stopped(process, signal.SIGTERM)[0] == 143


def recipe(name):
    import atent

    return Path(atent.__file__).parent / "recipes" / f"{name}.toml"


# ---- output


def test_a_reader_that_has_gone_ends_nothing(here):
    process = subprocess.Popen(
        [
            sys.executable, "-m", "atent", "train", "digits-linf-standard", "--no_baseline", "--name", "run",
            "--train.epochs", "2", *TINY,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (0, "")
    assert (here / "runs" / "run" / "evaluation.json").is_file()


def test_a_closed_stream_is_silent_and_a_full_disk_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    with steady():
        print("nobody reads this")
        assert not sys.stdout.isatty()
    assert sys.stdout is None
    stream = open(tmp_path / "a", "w")  # noqa: SIM115
    stream.close()
    assert Steady(stream).write("text") == 4
    full = Steady(Full())
    with pytest.raises(OSError, match="No space left"):
        full.write("text")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "0.5 \u00b1 0.1 \u732b"), ("latin-1", "0.5 \u00b1 0.1 \\u732b"), ("ascii", "0.5 +- 0.1 \\u732b")],
)
def test_a_stream_writes_what_its_encoding_lacks_in_other_characters(encoding, shown):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, write_through=True)
    print("0.5 \u00b1 0.1 \u732b", file=Steady(stream))
    Steady(stream).writelines(["0.5 \u00b1 ", "0.1 \u732b"])
    assert raw.getvalue().decode(encoding) == shown + "\n" + shown


class Full(io.StringIO):
    """A stream to a disk without space."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


# ---- the grid: each command, each signal, at several moments


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("grid")
    words = ["train", "digits-linf-standard", "--no_baseline", "--runs", str(place / "runs"), *TINY]
    for name in ("a", "b"):
        assert main([*words, "--name", name, "--train.epochs", "1"]) == 0
    return place


def grid(place, name):
    """The words of a command that takes long, in whatever phase."""
    a, b = str(place / "runs" / "a"), str(place / "runs" / "b")
    # At this eps hardly an image is fooled, so that the attack does not end early on a fast machine.
    under = ("--norm", "linf", "--eps", "0.001", "--limit", "all", "--device", "cpu", "--quiet")
    heavy = "PGD(steps=1000, restarts=20)"
    new = ("--runs", "runs", "--train.epochs", "300", *TINY)
    return {
        "train": ["train", "digits-linf-atent", "--no_baseline", "--name", "t", *new],
        "test set": [
            "train", "digits-linf-standard", "--no_baseline", "--name", "t", "--runs", "runs", *replaced(
                TINY, "--train.epochs", "1", "--evaluate.norm", "linf", "--evaluate.eps", "0.001",
                "--evaluate.attacks", heavy,
            ),
        ],
        "pretrain": ["pretrain", "digits-acl", "--name", "t", *new],
        "compare": ["compare", "digits-linf-standard", "digits-linf-pgdat", "--name", "t", "--seeds", "1", *new],
        "evaluate": ["evaluate", a, *under, "--batch-size", "10", "--attacks", heavy],
        "attack": ["attack", a, *under, "--attack", heavy, "--out", "x.npz"],
        "transfer": ["transfer", a, b, *under, "--batch-size", "10", "--attack", heavy],
        # Each case resumes the certificate of the one before: all of them together must not finish it.
        "certify": ["certify", a, "--sigma", "0.1", "--n", "10000000", "--limit", "all", "--device", "cpu", "--quiet"],
        "reproduce": ["reproduce", "table-s1", "--runs", "runs", "--out", "out", "--quiet"],
    }[name]  # fmt: skip


COMMANDS = ("train", "test set", "pretrain", "compare", "evaluate", "attack", "transfer", "certify", "reproduce")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1.0, 4.0, 9.0])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_at_every_moment(prepared, here, command, name, moment):
    process = started(*grid(prepared, command))
    time.sleep(moment * float(os.environ.get("ATENT_SLOWER", "1")))
    assert process.poll() is None
    status, err = stopped(process, getattr(signal, name))
    assert status == status_of(name), err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if "interrupted" in line)
    assert any(word in line for word in ("resume", "starts again", "repeat the command"))
    assert not [p for place in (here, prepared) for p in place.rglob(".*") if ".lock" in p.name or ".tmp" in p.name]
