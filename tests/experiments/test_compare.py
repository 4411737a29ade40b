"""`atent compare`: which recipes may be compared, and which runs are trained again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from command_line import replaced
from processes import held_elsewhere
from tiny_recipes import METHODS, Here, jobs, recipe, refused, said, times

import atent
from atent import runs as run
from atent import stats
from atent.cli import main
from atent.evaluate.outcomes import per_sample
from atent.experiments.backends import local
from atent.experiments.compare import without
from atent.experiments.comparison import caveat
from atent.experiments.finished import compare_runs
from atent.experiments.plan import agree
from atent.experiments.results import ComparisonFile
from atent.runs import manifest


@pytest.fixture
def here(here):
    """The current folder has the recipes."""
    for name in METHODS:
        recipe(name)
    return here


# ---- the whole path


def by_hand(path, one, other, seeds):
    """For each image, over the seeds: how often the one is robust less how often the other is."""
    total = [0] * 40
    for name, sign in ((one, 1), (other, -1)):
        for seed in range(seeds):
            kept = json.loads((path / f"{name}-seed{seed}/evaluation.json").read_text())["outcomes"]
            for i, row in enumerate(per_sample(kept)):
                total[i] += sign * (row["right"] and "fooled" not in row["attacks"].values())
    return total


def test_compare_trains_once_and_reuses(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no column is wrapped, however long the times are
    # The first run is a process of its own, as all would be; the others begin in no time.
    kinds = iter((local.Process, Here, Here, Here))
    monkeypatch.setattr(local, "Process", lambda *given: next(kinds)(*given))
    status, out, err = said(capsys, "--seeds", "2", "--jobs", "2")
    assert status == 0, err
    path = here / "runs" / "compare"
    assert {p.name for p in path.iterdir() if p.is_dir()} == {f"{m}-seed{k}" for m in METHODS for k in (0, 1)}
    assert all((path / f"{m}-seed{k}.log").stat().st_size for m in METHODS for k in (0, 1))
    found = json.loads((path / "comparison.json").read_text())
    assert ComparisonFile.from_json(found).to_json() == found
    assert [(r["recipe"], r["method"]) for r in found["rows"]] == [("plain", "Standard"), ("pgd", "PGDAT")]
    assert found["seeds"] == [0, 1]
    assert (found["data"]["name"], found["data"]["n"]) == ("digits", 40)
    assert found["command"] == "atent compare plain.toml pgd.toml --quiet --seeds 2 --jobs 2"
    assert found["provenance"]["version"] == atent.__version__
    for row in found["rows"]:
        assert list(row["attacks"]) == ["PGD-1", "FGSM"]
        seeds = row["seeds"]
        made = [json.loads((path / s["run"] / "evaluation.json").read_text()) for s in seeds]
        assert [s["clean"] for s in seeds] == [m["clean"] for m in made]
        assert [s["attacks"]["FGSM"] for s in seeds] == [m["attacks"]["FGSM"]["robust"] for m in made]
        assert row["clean"]["mean"] == pytest.approx(sum(m["clean"]["k"] for m in made) / 80)
        # the only epoch is the last one, and the best
        assert row["last"] == row["worst"]
        assert row["clean"]["low"] <= row["clean"]["mean"] <= row["clean"]["high"]
        assert all(s["seconds_per_epoch"] > 0 and s["best_epoch"] == 1 for s in seeds)
        assert all(s["memory_mb"] > 1 for s in seeds)
        assert json.loads((path / seeds[1]["run"] / "config.json").read_text())["train"]["seed"] == 1
    text = (path / "comparison.md").read_text()
    images = "digits, test images: a stratified sample of 40 of 500 (seed 0); "
    for part in ("| plain (Standard) |", "FGSM (%)", images, "2 seeds (0, 1)", "linf 0.1", "t-interval"):
        assert part in text
    for part in ("clean (%)", "s / epoch", "peak MiB", "result folder: runs/compare"):
        assert part in out
    assert caveat({}) in text
    assert caveat({}) in out
    assert (path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    # The finished runs, compared from Python, give the same rows, paired by seed and image.
    whole = ComparisonFile.from_json(found)
    again = compare_runs(sorted(path.glob("*-seed?")))
    assert {r.recipe: r for r in again.rows} == {r.recipe: r for r in whole.rows}
    assert (again.data, again.model, again.epochs, again.seeds) == (whole.data, whole.model, whole.epochs, whole.seeds)
    assert (again.cascade, again.differs, again.threats) == (False, [], whole.threats)
    (pair,), (row, other) = whole.pairs, whole.rows
    assert (pair.one, pair.other, pair.basis) == ("plain", "pgd", "over 2 seeds and 40 images")
    assert pair.worst.value == pytest.approx(row.worst.mean - other.worst.mean)
    gaps = by_hand(path, "plain", "pgd", 2)
    assert pair.worst.p == stats.mcnemar(sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
    assert pair.worst.low <= pair.worst.value <= pair.worst.high
    assert "less" in out
    status = main(["compare", *map(str, sorted(path.glob("*-seed?"))), "--runs", "other", "--json"])
    text = capsys.readouterr()
    assert status == 0, text.err
    assert json.loads(text.out)["rows"] == again.to_json()["rows"]
    assert json.loads(Path("other/compare/comparison.json").read_text()) == json.loads(text.out)

    # The same again trains nothing; neither does a narrower machine or another place of the data.
    before = times(path)
    assert main(["compare", "plain.toml", "pgd.toml", "--seeds", "2", "--data.root", ".", "--train.threads", "2"]) == 0
    assert "4 runs, 4 finished before" in capsys.readouterr().out
    assert times(path) == before
    assert not (here / "runs" / "compare-2").exists()

    # Where the earlier comparison was named, other settings are refused; nothing was touched.
    named = ["plain.toml", "pgd.toml", "--name", "compare", "--seeds", "2"]
    err = refused(capsys, *named, "--optimizer.lr", "0.5")
    assert "optimizer.lr" in err
    assert "0.5" in err
    assert "another --name" in err
    assert "seed 1" in refused(capsys, *replaced(named, "--seeds", "1"))
    assert "not a comparison" in refused(capsys, *named[:3], "plain-seed0", *named[4:], "--runs", str(path))
    saved = run.read_json(path / "pgd-seed1" / "config.json")
    saved["method"]["steps"] = 7
    manifest.write_json(path / "pgd-seed1" / "config.json", saved)
    err = refused(capsys, *named)
    assert "pgd-seed1 was trained with other settings (method.steps 7, not 1)" in err


@pytest.mark.slow
def test_compare_goes_on_after_an_interruption(here, capsys):
    args = ["--seeds", "1", "--train.epochs", "20", "--name", "mine"]
    path = here / "runs" / "mine"
    state = path / "plain-seed0" / "metrics.jsonl"

    def stop():
        end = time.monotonic() + 120
        while not state.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    status, _, err = said(capsys, *args)
    thread.join()
    assert status == 130
    assert len(err.strip().splitlines()) == 1
    assert "0 of 2 runs finished" in err
    assert "repeating the command resumes" in err
    done = len((path / "plain-seed0" / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 20
    assert not (path / "comparison.json").exists()
    torn = path / "plain-seed0" / "config.json"
    before = torn.stat().st_mtime_ns

    # A run that was killed before it had anything to go on from begins anew.
    (path / "pgd-seed0").mkdir()
    (path / "pgd-seed0" / ".config.1234.tmp.json").write_text("{")
    status = main(["compare", "plain.toml", "pgd.toml", *args])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "2 runs, 1 started before" in out
    assert torn.stat().st_mtime_ns == before
    assert len((path / "plain-seed0" / "metrics.jsonl").read_text().splitlines()) == 20
    assert "1 seed (0)" in out
    assert "no standard deviation" in out
    row = json.loads((path / "comparison.json").read_text())["rows"][0]
    share = row["seeds"][0]["clean"]
    assert row["clean"] == {"mean": share["value"], "sd": None, "low": share["low"], "high": share["high"]}
    assert all(torch.isfinite(v).all() for v in atent.load(path / "plain-seed0").state_dict().values())


@pytest.fixture
def fake(here, monkeypatch):
    """fake(script): what stands in the place of python for the runs."""

    def use(script):
        path = here / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


def test_a_failing_run_stops_the_others(here, capsys, fake):
    fake(
        'case "$*" in *pgd.toml*) sleep 0.5; echo "atent: the loss is not finite" >&2; exit 1;; *) exec sleep 60;; esac'
    )
    begun = time.perf_counter()
    err = refused(capsys, "plain.toml", "pgd.toml", "--quiet", "--jobs", "2", status=1)
    assert time.perf_counter() - begun < 30
    assert "pgd-seed0 failed: the loss is not finite" in err
    assert "pgd-seed0.log" in err
    assert "resumes" in err
    fake("kill -9 $$")
    assert "was ended by SIGKILL" in refused(capsys, "plain.toml", "pgd.toml", "--quiet", status=1)
    fake("exit 0")
    assert "ended without a result" in refused(capsys, "plain.toml", "pgd.toml", "--quiet", status=1)


def test_what_the_runs_are_given(here, capsys, fake, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 7)
    Path("pgd.toml").write_text(Path("pgd.toml").read_text().replace("threads = 1\n", ""))
    fake('echo "$@"; sleep 0.5; exit 1')
    refused(capsys, "plain.toml", "pgd.toml", "--first_seed", "4", "--jobs", "2", "--optimizer.lr", "1", status=1)
    reported = {m: (here / "runs" / "compare" / f"{m}-seed4.log").read_text().strip() for m in METHODS}
    for name, text in reported.items():
        start = f"-P -m atent train {name}.toml --runs runs/compare --name {name}-seed4 --train.seed 4"
        assert text.startswith(start + " --no_baseline --optimizer.lr 1")
    assert "--train.threads" not in reported["plain"]
    assert reported["pgd"].endswith("--train.threads 3")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_auto_is_measured_by_one_run_on_one_machine(here, capsys, fake, elsewhere):
    """The second run waits for the first one's choice, and is given it, also where the command said auto."""
    made = {**run.provenance(device="cpu"), **({"device_name": "another"} if elsewhere else {})}
    run.write_json("chosen.json", {"train": {"precision": "bfloat16", "channels_last": True}, "provenance": made})
    fake(
        'case "$*" in *plain.toml*) mkdir -p runs/compare/plain-seed0; sleep 0.3; cp chosen.json'
        ' runs/compare/plain-seed0/config.json; sleep 1; exit 1;; *) echo "$@"; exit 1;; esac'
    )
    given = ("--train.precision", "auto")
    refused(capsys, "plain.toml", "pgd.toml", "--jobs", "2", *given, "--train.channels_last", "auto", status=1)
    log = here / "runs" / "compare" / "pgd-seed0.log"
    words = log.read_text().split() if log.is_file() else []
    if elsewhere:
        assert not words
        return
    assert words[-4:] == ["--train.precision", "bfloat16", "--train.channels_last", "True"]
    (job,) = jobs("pgd.toml", *words[words.index("--train.precision") :]).values()
    assert (job.train.precision, job.train.channels_last) == ("bfloat16", True)


def test_two_commands_do_not_share_a_folder(here, capsys):
    with held_elsewhere(here / "runs" / "mine" / ".lock"):
        assert "runs/mine is in use by" in refused(capsys, "plain.toml", "pgd.toml", "--name", "mine")
        assert [p.name for p in (here / "runs" / "mine").iterdir()] == [".lock"]


# ---- what may be compared


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["two or more recipes"]),
        (["plain.toml"], ["two or more recipes"]),
        (["plain.toml", "plain.toml"], ["plain.toml is given twice"]),
        (["plain.toml", "sub/plain.toml"], ["the same name"]),
        (["plain.toml", "pgd.toml", "--seeds", "0"], ["seeds must be at least 1, got 0"]),
        (["plain.toml", "pgd.toml", "--seeds", "3", "4"], ["got 3 4", "write --seeds 2 --first-seed 3"]),
        (["plain.toml", "pgd.toml", "--jobs", "0"], ["jobs must be at least 1, got 0"]),
        (["plain.toml", "pgd.toml", "--first_seed", "-1"], ["first-seed must be at least 0"]),
        (["plain.toml", "pgd.toml", "--run", "x"], ["'--run'", "did you mean '--name'"]),
        (["plain.toml", "pgd.toml", "--seedz", "2"], ["--seedz", "did you mean '--seeds'"]),
        (["plain.toml", "pgd.toml", "--train.epoch", "2"], ["plain.toml", "did you mean '--train.epochs'"]),
        (["plain.toml", "pgd.toml", "--train.seed", "2"], ["--first-seed"]),
        (["plain.toml", "pgd.toml", "--resume", "x"], ["--resume"]),
        (["plain.toml", "pgd.toml", "--method.steps", "2"], ["plain.toml", "--method.steps"]),
        (["plain.toml", "pgd.toml", "--evaluate.attacks", "PDG"], ["did you mean 'PGD'"]),
        (["plain.toml", "pgd.toml", "--name", "a/b"], ["without slashes"]),
        (["plain.toml", "pgdd.toml"], ["no recipe file pgdd.toml"]),
    ],
)
def test_mistakes_are_one_line(here, capsys, args, parts):
    Path("sub").mkdir()
    recipe("sub/plain", "plain")
    err = refused(capsys, *args)
    for part in parts:
        assert part in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"epochs": 3}, ["train.epochs (1 and 3)", "--train.epochs 1"]),
        ({"eps": 0.2}, ["evaluate.eps (0.1 and 0.2)", "--evaluate.eps 0.1"]),
        ({"more": "limit = 30\nseed = 2"}, ["evaluate.limit (1000 and 30), evaluate.seed (0 and 2)"]),
    ],
)
def test_a_mismatch_names_field_values_and_fix(here, capsys, change, parts):
    recipe("other", "pgd", **change)
    err = refused(capsys, "plain.toml", "other.toml")
    for part in ("recipes plain.toml and other.toml differ in ", *parts):
        assert part in err
    assert not (here / "runs").exists()


def test_agreement_is_of_settings_not_of_text(here):
    pgd = Path("pgd.toml").read_text()
    Path("a.toml").write_text(pgd.replace('"FGSM"', '"PGD( steps = 20 )", "FGSM"').replace("eps = 0.1\n", ""))
    Path("b.toml").write_text(pgd.replace('"FGSM"', '"FGSM()", "PGD(steps=20)"').replace('norm = "linf"\n', ""))
    agree(jobs("a.toml", "b.toml", "--data.augment", "flip"))
    Path("c.toml").write_text(pgd.replace('"FGSM"', '"FGSM", "PGD(steps=20, eps=0.2)"'))
    with pytest.raises(ValueError, match=r"'PGD\( steps = 20 \)' FGSM and 'PGD\(steps=1\)' FGSM 'PGD\(steps=20, eps"):
        agree(jobs("a.toml", "c.toml"))
    # The mend works, also where the first recipe lacks the value.
    Path("d.toml").write_text(Path("plain.toml").read_text().replace('norm = "linf"\neps = 0.1\n', ""))
    with pytest.raises(ValueError, match=r"by --evaluate.norm linf --evaluate.eps 0\.1$"):
        agree(jobs("d.toml", "pgd.toml"))
    agree(jobs("d.toml", "pgd.toml", "--evaluate.norm", "linf", "--evaluate.eps", "0.1"))


def test_help_is_light():
    code = "import sys; from atent.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_help_of_compare(capsys):
    assert main(["compare", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--seeds", "--first-seed", "--jobs", "--name"):
        assert option in out


def test_what_a_comparison_has_chosen_replaces_what_was_given():
    """An option may be given once: a setting that is measured once for all runs was given as auto."""
    given = ["--train.precision", "auto", "--train.channels-last=auto", "--train.epochs", "2", "--no_baseline"]
    chosen = {"train.precision": "float32", "train.channels_last": "False"}
    assert list(without(given, chosen)) == ["--train.epochs", "2", "--no_baseline"]
