"""A training that is resumed or repeated: what the commands report about the recipe file and the run folders."""

from pathlib import Path

import pytest

from atent.cli import main

QUICK = [
    "--train.epochs", "1", "--data.limit", "64", "--data.test_limit", "40", "--train.validate_limit", "20",
    "--train.device", "cpu", "--evaluate.attacks", "FGSM",
]  # fmt: skip
RECIPE = 'extends = "digits-linf-standard"\n[optimizer]\nlr = {lr}\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    return tmp_path


def said(capsys, *args):
    """Standard output and standard error of a command that succeeds."""
    status = main(list(args))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def test_a_resumed_run_reports_an_edited_recipe(here, capsys):
    recipe = Path("my.toml")
    recipe.write_text(RECIPE.format(lr=0.01))
    said(capsys, "train", "my.toml", *QUICK, "--quiet")
    resume = ["train", "--resume", "runs/my", "--quiet"]

    assert "has changed" not in said(capsys, *resume)[1]

    recipe.write_text("# a comment\n" + RECIPE.format(lr=0.01))
    assert "has changed" not in said(capsys, *resume)[1]

    recipe.write_text(RECIPE.format(lr=0.003))
    err = said(capsys, *resume)[1]
    (line,) = [line for line in err.splitlines() if "has changed" in line]
    for part in ("my.toml", "runs/my/config.json", "optimizer.lr 0.01", "0.003"):
        assert part in line
    assert "train.epochs" not in line, "the command line set it, the file did not change it"

    recipe.write_text("method = 3\n")
    assert "my.toml has changed" in said(capsys, *resume)[1]

    recipe.unlink()
    assert "has changed" not in said(capsys, *resume)[1]


def test_a_recipe_edited_to_the_settings_of_the_run_is_no_change(here, capsys):
    Path("my.toml").write_text(RECIPE.format(lr=0.01))
    said(capsys, "train", "my.toml", *QUICK, "--optimizer.lr", "0.003", "--quiet")
    Path("my.toml").write_text(RECIPE.format(lr=0.003))
    assert "has changed" not in said(capsys, "train", "--resume", "runs/my", "--quiet")[1]


def test_a_recipe_of_the_package_is_not_compared(here, capsys):
    said(capsys, "train", "digits-linf-standard", *QUICK, "--quiet")
    assert "has changed" not in said(capsys, "train", "--resume", "runs/digits-linf-standard", "--quiet")[1]
