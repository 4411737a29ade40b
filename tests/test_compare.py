"""`atent compare`: what may be compared, what is trained again and what is not, and how its figures are made."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import compare_jobs
from processes import held_elsewhere

import atent
from atent import plots, stats
from atent import runs as run
from atent.cli import main
from atent.cli.words import seconds
from atent.evaluate.outcomes import per_sample
from atent.experiments import migrate
from atent.experiments.backends import local
from atent.experiments.collect import seed_result
from atent.experiments.comparison import INTERVAL, accuracy, caveat, draw, draw_pareto, markdown, measure, winner
from atent.experiments.finished import compare_runs
from atent.experiments.plan import agree
from atent.experiments.results import ComparisonFile, EvaluationFile, LastEpoch, Share, Spread
from atent.runs import manifest

BEFORE = Path(__file__).parent / "before_subsets"

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


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    for name in METHODS:
        recipe(name)
    return tmp_path


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
    assert "seed 1" in refused(capsys, *named, "--seeds", "1")
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
    status, out, err = said(capsys, *args)
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


def jobs(*args):
    return compare_jobs(*args)


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


# ---- the figures


def test_measure_against_hand_numbers():
    assert measure([3.0]) == Spread(3.0, None, None, None)
    cell = measure([1.0, 2.0, 3.0])
    assert (cell.mean, cell.sd) == (2.0, 1.0)
    # t(2 degrees, 0.975) = 4.302653
    assert cell.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert 2 - cell.low == pytest.approx(cell.high - 2)


def shares(*counts, n=100):
    return [stats.share(k, n) for k in counts]


def test_accuracy_takes_the_wider_interval_end_by_end():
    one = accuracy(shares(80))
    assert (one.mean, one.sd) == (0.8, None)
    assert (one.low, one.high) == stats.interval(80, 100)
    # Equal seeds: the t-interval is a point, and three looks at the same 100 images are worth one.
    same = accuracy(shares(80, 80, 80))
    assert (same.mean, same.sd) == (pytest.approx(0.8), pytest.approx(0))
    assert (same.low, same.high) == stats.interval(80, 100)
    # Seeds far apart: the t-interval is the wider one, and ends at the box.
    far = accuracy(shares(60, 80, 100))
    assert far.sd == pytest.approx(0.2)
    assert far.low == pytest.approx(0.8 - 4.302653 * 0.2 / 3**0.5, rel=1e-6)
    assert far.high == 1.0
    # Near the edge the two ends come from different intervals: the counts' low one, t's high one is cut at 1.
    mixed = accuracy(shares(50, 49, 48, n=50))
    assert mixed.low == stats.interval(49, 50)[0]
    assert mixed.high == 1.0


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(0.8, 0.9), (0.6, 0.7)], 0),
        ([(0.6, 0.7), (0.1, 0.2), (0.8, 0.9)], 2),
        ([(0.8, 0.9), (0.7, 0.85)], None),
        ([(0.8, 0.9), (0.8, 0.9)], None),
        ([(0.8, 0.9), (0.7, 0.8)], None),
        ([(0.8, 0.9), (0.1, 0.2), (0.79, 0.81)], None),
        ([(0.5, 1.0), (0.6, 0.7)], None),
        ([(0.8, 0.8), (0.7, 0.79)], 0),
    ],
)
def test_only_a_certain_best_is_marked(ends, expected):
    assert winner([Spread((low + high) / 2, 0.1, low, high) for low, high in ends]) == expected


def test_no_interval_no_mark():
    assert winner([Spread(2.0, None, None, None), Spread(1.0, None, None, None)]) is None


ONE = stats.share(1, 2)
SEED = {
    "seed": 0, "run": "r", "clean": ONE, "attacks": {}, "worst": ONE, "seconds_per_epoch": 1.0, "memory_mb": None,
    "best_epoch": 1,
}  # fmt: skip


def made_up(*values):
    """A comparison whose rows have these cells, under two attacks."""
    cells = [Spread(m, 0.01, low, high) for m, low, high in values]
    best = winner(cells)
    where = {"device": "cpu", "device_name": "a chip", "threads": 2, "commit": "abc", "dirty": False}
    one = {"mean": 1.0, "sd": None, "low": None, "high": None}
    rows = [
        {
            "recipe": f"r{i}", "method": "Standard", "threat": None, "clean": vars(cell), "worst": vars(cell),
            "attacks": {"FGSM": vars(cell), "PGD-2": vars(cell)}, "seconds_per_epoch": one, "memory_mb": None,
            "best_epoch": one, "seeds": [SEED | {"provenance": where}],
            "best": {"clean": best == i, "worst": best == i, "attacks": {"FGSM": best == i, "PGD-2": False}},
        }
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    data = {"name": "digits", "split": "test", "n": 40, "of": 500}
    content = {
        "command": "atent compare r0 r1", "data": data, "model": "m", "epochs": 2, "batch_size": 64, "seeds": [0, 1],
        "threats": ["linf 0.1"], "at_once": 2, "interval": INTERVAL, "caveat": None, "rows": rows, "provenance": {},
    }  # fmt: skip
    return ComparisonFile.from_json(migrate.comparison(content))


def test_markdown_marks_the_certain_best_alone():
    text = markdown(made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6)))
    table = text.splitlines()
    assert table[0] == (
        "| recipe | clean (%) | FGSM (%) | PGD-2 (%) | worst of these (%) | s / epoch | peak MiB | best epoch |"
    )
    assert table[2] == (
        "| r0 (Standard) | **90.0 ± 1.0** [88.0, 92.0] | **90.0 ± 1.0** [88.0, 92.0] | 90.0 ± 1.0 [88.0, 92.0]"
        " | **90.0 ± 1.0** [88.0, 92.0] | 1.00 | - | 1.0 |"
    )
    assert "**" not in table[3]
    for part in ("a chip (cpu, 2 threads), 2 runs at once", "Commit: abc", "2 epochs, batches of 64"):
        assert part in text
    assert "AutoAttack" not in text
    assert "**" not in markdown(made_up((0.9, 0.88, 0.92), (0.89, 0.87, 0.91)))


BARE = {"epoch": 1, "validation_clean": 0.5}


def test_the_last_epoch_is_shown_beside_the_best(monkeypatch, tmp_path):
    found = made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6))
    cells = (Spread(0.85, 0.07, 0.7, 0.95), None)
    found = replace(found, rows=[replace(row, last=cell) for row, cell in zip(found.rows, cells, strict=True)])
    table = markdown(found).splitlines()
    assert "| worst of these (%) | at the last epoch (%) | s / epoch |" in table[0]
    assert "| 85.0 ± 7.0 [70.0, 95.0] | 1.00 |" in table[2]
    assert "| 50.0 ± 1.0 [40.0, 60.0] | - | 1.00 |" in table[3]
    drawn = []
    monkeypatch.setattr(plots, "accuracies", lambda table, title: drawn.append(table) or plots.curves([BARE]))
    draw(tmp_path, found)
    ends = [{k: v["value"] for k, v in row.items() if k.startswith("worst")} for row in drawn[0].values()]
    assert ends == [{"worst,\nbest epoch": 0.9, "worst,\nlast epoch": 0.85}, {"worst,\nbest epoch": 0.5}]
    for threats in (["linf 0.1"], ["linf 0.1", "l2 1"]):
        found = replace(found, rows=found.rows[:1], threats=threats)
        assert ("at the last epoch" in markdown(found)) == (len(threats) == 1)


@pytest.mark.parametrize(
    ("epoch", "last", "expected"), [(2, None, 9), (1, 7, 7), (1, None, None)],
    ids=["the best", "evaluated", "not evaluated"],
)  # fmt: skip
def test_the_last_epochs_figure_of_a_run(here, epoch, last, expected):
    made = here / "r"
    made.mkdir()
    for n in (1, 2):
        run.append_jsonl(made / run.METRICS, {"epoch": n, "seconds": 1.0, "memory_mb": None})
    stored = migrate.evaluation(json.loads((BEFORE / "finished" / "evaluation.json").read_text()))
    stored = EvaluationFile.from_json(stored)
    other = last and LastEpoch(2, stored.clean, {}, Share(**stats.share(last, 10)))
    stored = replace(stored, epoch=epoch, worst=Share(**stats.share(9, 10)), last=other)
    found = seed_result(made, 0, stored).last
    assert (found and found.k) == expected
    # Where it is not asked for, a run whose best epoch is the last has no more than the others.
    assert seed_result(made, 0, stored, last=False).last is None


# ---- by the clock


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


def test_beside_needs_a_finished_comparison(here, capsys):
    err = refused(capsys, "plain.toml", "pgd.toml", "--beside", "runs/nothing")
    assert "--beside the folder of a finished comparison" in err
    assert not (here / "runs").exists()


def test_epochs_may_differ_where_time_is_equal(here):
    recipe("pgd", epochs=3)
    with pytest.raises(ValueError, match=r"train\.epochs \(1 and 3\)"):
        agree(jobs("plain.toml", "pgd.toml"))
    agree(jobs("plain.toml", "pgd.toml", "--budget", "1m"))


def test_the_pareto_plot_shows_what_the_rows_say(monkeypatch, tmp_path):
    found = made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6))
    timed = replace(found, minutes=10.0)
    seen = []
    monkeypatch.setattr(plots, "pareto", lambda panels, robust: seen.append((panels, robust)) or plots.curves([BARE]))
    draw_pareto(tmp_path, [found, timed])
    ((panels, robust),) = seen
    assert list(panels) == ["digits, linf 0.1, 2 epochs each", "digits, linf 0.1, 10 minutes each"]
    share = {"value": 0.9, "low": 0.88, "high": 0.92}
    assert panels["digits, linf 0.1, 2 epochs each"]["r0"] == {"clean": share, "robust": share}
    assert robust == "robust accuracy (%), worst of 2 attacks"
    draw_pareto(tmp_path, [replace(found, minutes=1.0), replace(found, minutes=0.25)])
    assert [name.rsplit(", ")[-1] for name in seen.pop()[0]] == ["60 s each", "15 s each"]
    draw_pareto(tmp_path, [replace(found, threats=["linf 0.1", "l2 1"])])
    assert len(seen) == 1


def test_the_caveat_goes_with_autoattack():
    assert caveat({"FGSM": {"attack": "FGSM"}}) == (
        "Not measured by AutoAttack: a stronger attack may lower these figures."
    )
    assert caveat({"a": {"attack": "FGSM"}, "AutoAttack": {"attack": "AutoAttack"}}) is None


def reported(attack, norm="linf", eps=0.1):
    return {"attack": attack, "threat": {"norm": norm, "eps": eps, "box": [0.0, 1.0]}}


@pytest.mark.parametrize("norm", ["l0", "patch"])
def test_the_caveat_asks_for_no_autoattack_where_there_is_none(norm):
    counted = {"a": reported("PGD", norm, 3.0)}
    assert caveat(counted) == f"There is no AutoAttack for {norm}: a stronger attack may lower these figures."
    assert caveat(counted | {"AutoAttack": reported("AutoAttack")}) == caveat(counted)
    assert "Not measured by AutoAttack:" in caveat(counted | {"b": reported("FGSM")})


def test_the_caveat_stays_beside_a_weakened_autoattack():
    weak = "Not measured by AutoAttack at its standard settings: a stronger attack may lower these figures."
    for text in ("AutoAttack(steps=1)", "AutoAttack(version=rand)", "AutoAttack(queries=500)"):
        assert caveat({"a": reported("FGSM"), "AutoAttack": reported(text)}) == weak
    assert "Not measured by AutoAttack:" in caveat({"a": reported("Transfer(attack=AutoAttack, source=x)")})
    standard = {"a": reported("AutoAttack")}
    assert caveat(standard) is None
    assert "searched in bfloat16" in caveat(standard, "bfloat16")
    # At another radius, or in another norm, it measured something else.
    assert caveat(standard | {"b": reported("FGSM")}) is None
    assert "Not measured by AutoAttack at linf 0.2:" in caveat(standard | {"b": reported("FGSM", eps=0.2)})
    assert "at l2 0.1:" in caveat(standard | {"b": reported("FGSM", "l2")})
    assert caveat(standard | {"b": reported("DDN", "l2", "inf")}) is None
