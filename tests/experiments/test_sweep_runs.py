"""Where the trainings of a sweep run, real trainings, and the page about sweeps."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from commands import given
from processes import SOURCE, started, until
from sweeps import LR, STEPS, folder_here, known_runs, swept, trials, written  # noqa: F401 - fixtures

from atent import extras
from atent.cli import main
from atent.cli.words import split_sections
from atent.experiments import migrate, pipeline
from atent.experiments import sweep as package
from atent.experiments.backends import make
from atent.experiments.results import SweepFile
from atent.experiments.sweep.spec import Sweep, read_sweep
from atent.experiments.sweep.study import keeps
from atent.runs import read_jsonl

# ---- backends


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--backend", "rya"], "did you mean 'ray'"),
        (["--address", "auto"], "--address needs --backend ray"),
        (["--slurm", "partition=gpu"], "--slurm needs --backend slurm"),
        (["--cpus", "2"], "use --train.threads"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_an_option_of_another_backend_is_one_line(here, words, part, capsys, monkeypatch):
    monkeypatch.setattr(extras.importlib, "import_module", lambda module: package)
    assert main(["sweep", written(), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_backend_that_is_not_installed_names_its_extra(name, monkeypatch):
    def absent(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=rf"pip install 'atent\[{name}\]'"):
        make(name)


@pytest.mark.parametrize(("value", "others", "kept"), [(0.5, [], True), (0.5, [0.6], False), (0.5, [0.4, 0.3], True)])
def test_asha_keeps_the_best_of_the_first_few(value, others, kept):
    known = dict(enumerate(others))
    assert keeps(value, known, factor=3, maximize=True) == kept
    assert keeps(-value, {n: -v for n, v in known.items()}, factor=3, maximize=False) == kept


def test_asha_keeps_a_third():
    values = [(n * 7) % 30 / 30 for n in range(30)]
    kept = [
        keeps(v, {n: o for n, o in enumerate(values) if n != i}, factor=3, maximize=True) for i, v in enumerate(values)
    ]
    assert sorted(values)[-10:] == sorted(v for v, keep in zip(values, kept) if keep)


# ---- trainings


@pytest.mark.slow
def test_a_killed_sweep_of_trainings_makes_the_same_trials(here):
    """Killed in a training and resumed: the figures of every trial are those of an unbroken sweep."""
    pytest.importorskip("optuna", reason="needs the extra sweep")
    file = written(
        'trials = 3\nseeds = 2\nsampler = "random"\nepochs = 6', f"{LR}\n{STEPS}", '"train.save_minutes" = 0'
    )
    assert main(["sweep", file, "--quiet", "--name", "whole"]) == 0
    broken = here / "runs" / "broken"
    for run in ("trial-000-seed1", "trial-002-seed0"):
        process = started("sweep", file, "--quiet", "--name", "broken")
        assert until(lambda run=run: (broken / run / "validation.jsonl").is_file(), process)
        process.kill()
        process.wait()
    assert main(["sweep", file, "--quiet", "--name", "broken"]) == 0
    found = [migrate.read(here / "runs" / name / "sweep.json", SweepFile) for name in ("whole", "broken")]
    assert trials(found[0]) == trials(found[1])
    assert not list(here.rglob("evaluation.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_cluster_gives_the_figures_of_this_machine(here, name, monkeypatch):
    for library in ("optuna", {"ray": "ray", "slurm": "submitit"}[name]):
        pytest.importorskip(library, reason=f"needs the extra {name}")
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    file = written('trials = 2\nsampler = "random"\nepochs = 2', LR)
    how = ["--slurm", "cluster=local"] if name == "slurm" else []
    assert main(["sweep", file, "--quiet", "--name", "local"]) == 0
    assert main(["sweep", file, "--quiet", "--name", "other", "--jobs", "2", "--backend", name, *how]) == 0
    found = [migrate.read(here / "runs" / each / "sweep.json", SweepFile) for each in ("local", "other")]
    assert trials(found[0]) == trials(found[1])


def test_a_training_without_the_test_set_is_evaluated_later(here, monkeypatch, capsys):
    def refuse(*args, **given):
        raise AssertionError("the test set was evaluated")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_model", refuse)
        words = ["train", "tiny.toml", "--validation-only", "--quiet", "--train.epochs", "2", "--name", "one"]
        words += ["--certifier", "crown", "--method.threat.eps", "1e-5"]
        assert main(words) == 0, capsys.readouterr().err
    run = here / "runs" / "one"
    assert not (run / "evaluation.json").exists()
    rows, metrics = (read_jsonl(run / name) for name in ("validation.jsonl", "metrics.jsonl"))
    assert rows == metrics
    certified = json.loads((run / "validation.json").read_text())
    # Verified images are correctly classified, and no attack within the threat changes that.
    best = next(row for row in reversed(rows) if row["best"])
    assert 0 < certified["validation_certified"] <= best["validation_robust"]
    assert certified["validation_certified_n"] == 20
    assert main(["train", "--resume", str(run), "--validation-only", "--quiet"]) == 0
    assert read_jsonl(run / "validation.jsonl") == metrics
    assert main(["evaluate", str(run), "--quiet"]) == 0
    assert (run / "evaluation.json").is_file()
    assert main(["train", "tiny.toml", "--validation-only", "--baseline"]) == 2


# ---- the page


def test_the_page_is_about_sweeps_that_can_be_made(here, known, capsys):
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    for block in re.findall(r"```toml\n(.*?)```", text, re.S):
        name = re.match(r"# (\S+\.toml)\n", block)[1]
        Path(name).write_text(block)
        read_sweep(name)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    for _, verb, *words in map(shlex.split, lines):
        own, _ = split_sections(words)
        assert given(verb, *own)
    rows = dict(re.findall(r"^\| `(\w+)`(?:, `\w+`)* \| ([^|]*) \|", text, re.M))
    fields = {each.name: each.default for each in dataclasses.fields(Sweep)}
    for name in ("sampler", "trials", "seeds", "pruner", "rung", "startup"):
        assert rows[name].split(",")[0].strip("`") in (json.dumps(fields[name]), str(fields[name]))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    swept("digits-sweep.toml")
    exec(compile(code, "docs/sweeps.md", "exec"), {})
    assert "optimizer.lr" in capsys.readouterr().out
