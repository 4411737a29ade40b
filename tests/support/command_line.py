"""Commands that run in this process: what they print, and the error of those that must fail."""

from atent.cli import main

QUICK = [
    "--train.epochs", "2", "--data.limit", "128", "--data.test_limit", "60", "--train.validate_limit", "30",
    "--method.steps", "2", "--evaluate.attacks", "FGSM", "PGD(steps=3)", "--train.device", "cpu", "--quiet",
]  # fmt: skip


def said(capsys, *args):
    """Exit status, standard output and standard error of a command."""
    status = main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


def replaced(words, *more):
    """The words with those of ``more``, whose options replace others of the same name, since none may be given
    twice."""
    kept, keep = [], True
    for word in words:
        keep = word not in more if word.startswith("--") else keep
        kept += [word] * keep
    return [*kept, *more]


def refused(capsys, *args, status=2, lines=1):
    """The error of a command that must fail: so many lines, no traceback."""
    got, _, err = said(capsys, *args)
    assert got == status, err
    reported = err.strip().splitlines()
    assert len(reported) == lines, err
    assert all(line.startswith("atent: ") for line in reported)
    return err


def gaussian_run(root, *, epochs=2, limit=200):
    """A short training under Gaussian noise, and its folder."""
    args = ["--train.epochs", str(epochs), "--data.limit", str(limit), "--evaluate.attacks", "FGSM"]
    quick = ["--evaluate.limit", "20", "--train.device", "cpu", "--quiet", "--train.validate_limit", "20"]
    assert main(["train", "digits-l2-gaussian", *args, *quick, "--runs", str(root)]) == 0
    return root / "digits-l2-gaussian"
