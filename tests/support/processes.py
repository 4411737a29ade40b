"""Processes of their own for the tests of locks and signals."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import atent

SOURCE, SUPPORT = str(Path(atent.__file__).parent.parent), str(Path(__file__).parent)


def started(*words, **how):
    """`atent` of these words, in a process of its own; its output is piped."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    return subprocess.Popen([sys.executable, "-m", "atent", *words], env=environment(), **pipes)


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, SUPPORT]), "OMP_NUM_THREADS": "1"}


def until(condition, process=None, seconds=120):
    """Wait for a condition; that it came while the process lived."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


@contextmanager
def script(text, *words):
    """A Python process that has printed its first line; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, words)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        process.first = process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def held_elsewhere(path, what="something"):
    """Another process holds the lock at ``path``."""
    return script(
        "import sys, time\nfrom atent.runs.locks import held\n"
        "with held(sys.argv[1], sys.argv[2]): print('held', flush=True); time.sleep(600)",
        path, what,
    )  # fmt: skip


def is_alive(pid):
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def stopped(process, signum, seconds=60):
    """Send a signal; the status and stderr of the process that it ends."""
    process.send_signal(signum)
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err


def status_of(name):
    """The exit status of a command that this signal ends."""
    return 128 + getattr(signal, name)
