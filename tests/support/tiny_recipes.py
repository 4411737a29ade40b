"""What the tests of `atent compare` share: two small recipes, and the command on them."""

from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from commands import compare_jobs

from atent.cli import main

TINY = """
[data]
name = "digits"
limit = 64
test_limit = 40
[model]
name = "digits_cnn"
[method]
{method}
[train]
epochs = {epochs}
batch_size = 64
validate_limit = 20
validate_attack = "PGD(steps=1)"
device = "cpu"
threads = 1
[evaluate]
attacks = ["PGD(steps=1)", "FGSM"]
norm = "linf"
eps = {eps}
"""
METHODS = {
    "plain": 'name = "Standard"',
    "pgd": 'name = "PGDAT"\nsteps = 1\nthreat = { norm = "linf", eps = 0.1 }',
}


def recipe(name, method=None, epochs=1, eps=0.1, more=""):
    text = TINY.format(method=METHODS[method or name], epochs=epochs, eps=eps)
    Path(f"{name}.toml").write_text(text + more)


def said(capsys, *args):
    status = main(["compare", "plain.toml", "pgd.toml", "--quiet", *args])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *args, status=2):
    """The one-line error of a command that must fail."""
    got = main(["compare", *args])
    _, err = capsys.readouterr()
    assert got == status, err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("atent: ")
    return err


def times(path):
    """When each file of the runs was written."""
    return {p: p.stat().st_mtime_ns for p in path.glob("*-seed*/**/*") if p.is_file()}


def jobs(*args):
    return compare_jobs(*args)


class Here:
    """A run of a comparison or a sweep in this process, in the place of `atent.experiments.backends.local.Process`: a
    new one imports for longer than a small run takes."""

    def __init__(self, task, environment):
        with open(task.log, "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            self.status = main(list(task.words))

    def poll(self):
        return self.status

    def wait(self):
        pass

    stop = kill = wait
