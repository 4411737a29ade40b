"""`atent compare` where each training gets the same time."""

import json

import pytest
from tiny_recipes import METHODS, jobs, recipe, refused, said, times

from atent import runs as run
from atent.cli.words import seconds
from atent.experiments.plan import agree


@pytest.fixture
def here(here):
    """The current folder has the recipes."""
    for name in METHODS:
        recipe(name)
    return here


@pytest.mark.slow
def test_a_budget_of_time(here, capsys):
    """Each training gets the same time, and the table says how many epochs it came to."""
    recipe("pgd", epochs=3)
    args = ["--train.validations", "2", "--seeds", "1"]
    status, _, err = said(capsys, *args, "--train.epochs", "1", "--name", "epochs")
    assert status == 0, err
    status, _, err = said(capsys, *args, "--budget", "2s", "--name", "time", "--beside", "runs/epochs")
    assert status == 0, err
    path = here / "runs" / "time"
    found = json.loads((path / "comparison.json").read_text())
    assert found["minutes"] == pytest.approx(2 / 60)
    plain, pgd = found["rows"]
    # an epoch of one batch each: plain training comes farther in the same time
    assert plain["passes"]["mean"] > pgd["passes"]["mean"] > 3
    for row in found["rows"]:
        (seed,) = row["seeds"]
        rows = run.read_jsonl(path / seed["run"] / run.METRICS)
        assert rows[-1]["elapsed"] == pytest.approx(2.0, abs=0.5)
        assert seed["passes"] == rows[-1]["passes"]
        assert row["minutes"]["mean"] == pytest.approx(2 / 60, abs=1 / 60)
        assert sum("validation_clean" in r for r in rows) == 2
    reported = (path / "comparison.md").read_text()
    assert "2 s of training each" in reported
    assert "| epochs |" in reported.splitlines()[0]
    assert all((here / "runs" / name / "pareto.png").read_bytes().startswith(b"\x89PNG") for name in ("epochs", "time"))
    # the same again trains nothing
    before = times(path)
    status, _, err = said(capsys, *args, "--budget", "2s", "--name", "time", "--beside", "runs/epochs")
    assert status == 0, err
    assert times(path) == before
    assert "train.minutes" in refused(capsys, "plain.toml", "pgd.toml", *args, "--budget", "3s", "--name", "time")


@pytest.mark.parametrize(
    ("text", "expected"), [("10m", 600), ("90s", 90), ("1h30m", 5400), ("2m30s", 150), ("45", 45), ("1h", 3600)]
)
def test_times_are_written_as_people_do(text, expected):
    assert seconds(text, "--budget") == expected


@pytest.mark.parametrize("text", ["", "0s", "10 minutes", "-5m", "1.5h", "m"])
def test_what_is_no_time_is_refused(here, capsys, text):
    assert "is not a valid duration: write it as 10m" in refused(capsys, "plain.toml", "pgd.toml", f"--budget={text}")


def test_a_budget_and_the_setting_that_it_makes_are_refused_by_both_names(here, capsys):
    for minutes in (["--train.minutes", "3"], ["--train.minutes=3"]):
        err = refused(capsys, "plain.toml", "pgd.toml", "--budget", "10m", *minutes)
        assert "--budget and --train.minutes are the same option: omit one" in err
    assert not (here / "runs").exists()


def test_beside_needs_a_finished_comparison(here, capsys):
    err = refused(capsys, "plain.toml", "pgd.toml", "--beside", "runs/nothing")
    assert "--beside the folder of a finished comparison" in err
    assert not (here / "runs").exists()


def test_epochs_may_differ_where_time_is_equal(here):
    recipe("pgd", epochs=3)
    with pytest.raises(ValueError, match=r"train\.epochs \(1 and 3\)"):
        agree(jobs("plain.toml", "pgd.toml"))
    agree(jobs("plain.toml", "pgd.toml", "--budget", "1m"))
