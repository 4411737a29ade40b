"""The campaign: order, failures, kills and pauses, on toy jobs; and the jobs file that the repository ships."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaign
import pytest
import torch
from safetensors.torch import load_file

from atent import runs as folder
from atent.experiments import recipes as config
from atent.paper import engine
from atent.paper.layout import Training
from atent.paper.scales import CIFAR, SCALES
from atent.paper.tables import TABLES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TOY = """
scale = "smoke"
[train]
save_minutes = 0.0
[[job]]
name = "first"
kind = "train"
training = "digits-linf-standard"
hours = 0.5
[[job]]
name = "broken"
kind = "train"
training = "digits-linf-nothing"
[[job]]
name = "last"
kind = "command"
argv = ["recipes"]
hours = 1.0
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "toy.toml").write_text(TOY)
    return tmp_path


def start(place, *words, **more):
    return subprocess.Popen(
        [
            sys.executable, str(BENCHMARKS / "campaign.py"), *words, "--jobs", str(place / "toy.toml"),
            "--state", str(place / "state"), "--out", str(place / "out"), "--in-place", "--nice", "0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more,
    )  # fmt: skip


def finish(place, *words):
    process = start(place, *words)
    text = process.communicate(timeout=900)[0]
    assert process.returncode == 0, text
    return text


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def record(place, name):
    return campaign.State(place / "state").record(name)


def beat(place, name):
    path = campaign.State(place / "state").beat_file(name)
    return json.loads(path.read_text()) if path.is_file() else None


def unbroken(place):
    """The same training in this process, without a stop."""
    bench = engine.Bench(SCALES["smoke"], place / "runs", config.job, config.read_recipe)
    training = Training("digits-linf-standard", {"train": {"save_minutes": 0.0}})
    torch.set_num_threads(1)  # as the worker: more threads sum in another order
    return engine.train(bench, training, 0)


@pytest.mark.slow
def test_a_killed_job_resumes_to_equal_bits_and_a_failed_one_stops_no_other(place):
    checkpoint = place / "state" / "runs" / "smoke" / "digits-linf-standard-seed0" / "last" / "state.pt"
    parent = start(place, "run")
    until(checkpoint.is_file)
    os.kill(beat(place, "first")["pid"], signal.SIGKILL)
    text = parent.communicate(timeout=900)[0]
    assert parent.returncode == 0, text
    # Order: the killed job first again, then the others.
    started = [line.split()[2] for line in text.splitlines() if "  start  " in line]
    assert started == ["first", "first", "broken", "last"]
    assert [record(place, name)["status"] for name in ("first", "broken", "last")] == ["done", "failed", "done"]
    assert "unknown recipe 'digits-linf-nothing'" in record(place, "broken")["error"]
    # Both segments count, and the results stand beside what they cost.
    reported = json.loads((place / "out" / "first" / "job.json").read_text())
    assert len(reported["segments"]) == len(record(place, "first")["segments"]) == 2
    assert reported["core_hours"] == pytest.approx(
        sum(s["core_seconds"] for s in reported["segments"]) / 3600, abs=1e-3
    )
    assert (reported["epochs"], reported["images_seen"]) == (3, 3 * 1097)
    assert reported["segments"][0]["instructions"] == torch.backends.cpu.get_cpu_capability()
    whole = load_file(unbroken(place) / folder.BEST)
    resumed = load_file(checkpoint.parents[1] / folder.BEST)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    half = load_file(place / "out" / "first" / folder.BEST)
    assert {v.dtype for v in half.values() if v.is_floating_point()} == {torch.float16}
    assert (place / "out" / "first" / "curves.png").is_file()


@pytest.mark.slow
def test_pause_resume_and_a_stopped_campaign_lose_nothing(place):
    metrics = place / "state" / "runs" / "smoke" / "digits-linf-standard-seed0" / "metrics.jsonl"
    parent = start(place, "run")
    until(metrics.is_file)
    assert "paused" in finish(place, "pause")
    assert record(place, "first")["status"] == "interrupted"
    assert beat(place, "first") is None
    assert "paused" in finish(place, "status")
    second = start(place, "run")
    assert "a campaign is running" in second.communicate(timeout=60)[0]
    assert second.returncode == 1
    assert "resumed" in finish(place, "resume")
    until(lambda: beat(place, "first") is not None)
    parent.terminate()
    assert parent.wait(timeout=60) == 0
    assert record(place, "first")["status"] == "interrupted"
    finish(place, "run")
    assert record(place, "first")["status"] == "done"
    whole = load_file(unbroken(place) / folder.BEST)
    resumed = load_file(metrics.with_name(folder.BEST))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    # A failed job is tried again on request only, and a finished one is not.
    assert "queued again" in finish(place, "retry", "broken")
    refused = start(place, "retry", "first")
    assert "first is done: only failed jobs" in refused.communicate(timeout=60)[0]


KINDS = """
scale = "smoke"
[[job]]
name = "curve"
kind = "curves"
training = "figure-s1-digits"
[[job]]
name = "times"
kind = "timing"
[[job]]
name = "digits-linf-atent"
kind = "train"
[[job]]
name = "measures"
kind = "measure"
training = "digits-linf-atent"
[[job]]
name = "fine"
kind = "table"
[job.of]
what = "finetune"
scale = "smoke"
seeds = 1
only = ["atent"]
own = { "digits-finetune-atent" = { train = { epochs = 1 } } }
"""


@pytest.mark.slow
def test_every_kind_of_job_leaves_its_results(place):
    (place / "toy.toml").write_text(KINDS)
    finish(place, "run")
    left = {path.name: {file.name for file in path.iterdir()} for path in (place / "out").iterdir()}
    network = {"best.safetensors", "config.json", "curves.png", "job.json", "manifest.json", "metrics.jsonl"}
    assert left == {
        "curve": network | {"test.jsonl"},
        "times": {"job.json", "timing-l2.json", "timing-linf.json"},
        "digits-linf-atent": network,
        "measures": {"job.json", "measures.json"},
        "fine": {"finetune.json", "finetune.md", "finetune.png", "job.json"},
    }
    runs = place / "state" / "runs" / "fine" / "smoke"
    assert len(folder.read_jsonl(runs / "digits-finetune-atent-seed0" / "metrics.jsonl")) == 1


def test_a_job_that_begins_with_another_network_needs_it(place):
    text = '[[job]]\nname = "digits-finetune-pgdat"\nkind = "train"\n'
    (place / "toy.toml").write_text(f'scale = "smoke"\n{text}')
    assert "failed digits-finetune-pgdat" in finish(place, "run")
    reason = record(place, "digits-finetune-pgdat")["error"]
    assert "digits-linf-standard-seed0 is not trained: its job comes first, in the same jobs file" in reason


def test_what_is_under_the_results_is_not_run_again_after_the_loss_of_the_state(place):
    shipped_run = BENCHMARKS.parent / "results" / "cifar" / "cifar10-l2-pgdat"
    text = 'scale = "cifar"\n[[job]]\nname = "cifar10-l2-pgdat"\nkind = "train"\n'
    (place / "toy.toml").write_text(text)
    shutil.copytree(shipped_run, place / "out" / shipped_run.name)
    assert "found  cifar10-l2-pgdat" in finish(place, "run")
    found = record(place, "cifar10-l2-pgdat")
    assert (found["status"], found["commit"]) == ("done", json.loads((shipped_run / "job.json").read_text())["commit"])
    run = place / "state" / "runs" / "cifar" / "cifar10-l2-pgdat-seed0"
    assert (run / folder.BEST).read_bytes() == (shipped_run / folder.BEST).read_bytes()
    begun = {**found, "status": "interrupted", "segments": []}
    (place / "state" / "jobs" / "cifar10-l2-pgdat.json").write_text(json.dumps(begun))
    (run / folder.BEST).write_bytes(b"of an earlier epoch")
    assert "found  cifar10-l2-pgdat" in finish(place, "run"), "another queue finished what this one began"
    assert record(place, "cifar10-l2-pgdat")["status"] == "done"
    assert (run / folder.BEST).read_bytes() == (shipped_run / folder.BEST).read_bytes()
    shutil.rmtree(place / "state")
    (place / "toy.toml").write_text(text + "seed = 1\n")
    refused = start(place, "run")
    assert "job.json is of another job" in refused.communicate(timeout=60)[0]
    assert refused.returncode == 1


def test_a_job_keeps_the_code_of_its_commit(tmp_path, monkeypatch):
    """The clone of a commit stays as it was while the checkout moves on, and needs the repository no more."""
    repository = tmp_path / "repository"
    (repository / "benchmarks").mkdir(parents=True)
    monkeypatch.setattr(campaign, "HERE", repository / "benchmarks")

    def git(*words):
        return campaign.git("-c", "user.name=n", "-c", "user.email=e@example.org", *words, at=repository)

    git("init", "--quiet")
    commits = []
    for text in ("old", "new"):
        (repository / "benchmarks" / "code.py").write_text(text)
        git("add", ".")
        git("commit", "--quiet", "-m", text)
        commits.append(git("rev-parse", "HEAD"))
    state = campaign.State(tmp_path / "state")
    clone = campaign.pinned(state, commits[0])
    assert (clone / "benchmarks" / "code.py").read_text() == "old"
    assert campaign.git("rev-parse", "HEAD", at=clone) == commits[0]
    (repository / "benchmarks" / "code.py").write_text("newest")
    repository.rename(tmp_path / "gone")
    assert campaign.pinned(state, commits[0]) == clone
    with pytest.raises(ValueError, match="git clone failed"):
        campaign.pinned(state, "0" * 40)


def test_expected_ends_follow_from_what_was_spent(place):
    """Half an hour spent on 3 of 15 epochs leaves two; the pace is 0.8 core hours an hour."""
    queue, state = campaign.read_queue(place / "toy.toml"), campaign.State(place / "state")
    run = place / "state" / "runs" / "smoke" / "digits-linf-standard-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"epochs": 15}}))
    (run / "metrics.jsonl").write_text("{}\n" * 3)
    job = {"training": "digits-linf-standard", "seed": 0}
    segments = [{"core_seconds": 1800.0, "seconds": 2250.0}]
    state.write({"name": "first", "status": "interrupted", "scale": "smoke", "job": job, "segments": segments})
    first, broken, last = campaign.table(queue, state)
    assert (first["epochs"], first["spent"], first["left"]) == ("3/15", 0.5, pytest.approx(2.0))
    assert (broken["left"], last["left"]) == (0.0, 1.0)
    ends = [campaign.datetime.datetime.fromisoformat(row["end"]) for row in (first, last)]
    # Ends are printed to the minute.
    assert (ends[1] - ends[0]).total_seconds() == pytest.approx(3600 / 0.8, abs=60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "command"', 'kind = "dance"'), "kind 'dance' is not known, use one of train"),
        (('name = "last"', 'name = "first"'), "two jobs named first"),
        (("hours = 1.0", "ours = 1.0"), "job last: unknown field 'ours', known are name"),
        (("hours = 1.0", 'hours = "x"'), "job last: hours 'x' is of the wrong type"),
        (('argv = ["recipes"]', 'argv = "recipes"'), "job last: argv 'recipes' is of the wrong type"),
        (('name = "last"', 'name = "../last"'), "job ../last: a name is letters, digits"),
        (('name = "last"\n', ""), "job None: a name is letters, digits"),
        (('scale = "smoke"', 'scale = "smok"'), "scale 'smok' is not known, use one of smoke"),
        (("[[job]]", "[[jobs]]"), "has no jobs"),
        (("[train]", "[train"), "is not valid TOML"),
    ],
)
def test_a_jobs_file_that_cannot_work_is_refused(place, change, message):
    (place / "toy.toml").write_text(TOY.replace(*change))
    with pytest.raises(ValueError, match=message):
        campaign.read_queue(place / "toy.toml")


# ---- the shipped jobs


def test_jobs_of_other_scales_name_what_there_is():
    for job in shipped().jobs:
        if job.kind == "table":
            assert set(job.of) <= {"what", "scale", "seeds", "only", "own"}
            table = TABLES[job.of["what"]](SCALES[job.of["scale"]])
            assert set(job.of.get("only", ())) <= {row.key for row in table.rows()}
            assert set(job.of.get("own", {})) <= {training.recipe for training in table.trainings()}
        for word in job.argv:
            path = Path(word.format(out="", runs="", code=BENCHMARKS.parent))
            if path.suffix == ".toml":
                found = config.job(config.read_recipe(str(path)), path.stem)
                assert found.method.gamma == 1.0


def shipped():
    return campaign.read_queue(BENCHMARKS / "cifar.toml")


def made(name):
    """The settings of a training of the scale."""
    found = {t.name: t for key, table in TABLES.items() if key not in CIFAR.without for t in table(CIFAR).trainings()}
    bench = engine.Bench(CIFAR, Path("runs"), config.job, config.read_recipe)
    return engine.job(bench, found.get(name, Training(name)), 0)


def test_the_shipped_jobs_can_be_made_and_cover_the_tables():
    queue = shipped()
    assert queue.scale == "cifar"
    assert all(job.hours > 0 for job in queue.jobs)
    trained = {job.training or job.name for job in queue.jobs if job.kind in ("train", "curves")}
    for name in trained:
        assert made(name).data.name == "cifar10"
    tables = ("table-s1", "table-s2", "table-s3", "finetune")
    wanted = {t.name for key in tables for t in TABLES[key](CIFAR).trainings()}
    assert wanted <= trained
    # A row finds its network by the name of the run.
    every = [t for key, table in TABLES.items() if key not in CIFAR.without for t in table(CIFAR).trainings()]
    assert {t.name for t in every if t.recipe in trained} <= trained
    # What another job begins from is trained before it.
    order = [job.training or job.name for job in queue.jobs]
    for table in (TABLES["finetune"](CIFAR),):
        for training in table.trainings():
            if training.after is not None:
                assert order.index(training.after.name) < order.index(training.name)


def test_every_method_of_the_cifar_scale_has_the_same_aids():
    """Network, epochs, batch size, schedule, optimizer and averaging differ where the scale says so alone."""
    own = set(CIFAR.own)
    names = {job.training or job.name for job in shipped().jobs if job.kind in ("train", "curves")}
    settings = {}
    for name in names:
        job = made(name)
        assert (job.train.average, job.train.select_weights) == ("ema", "average")
        if name not in own or name in ("cifar10-linf-pgdat", "cifar10-linf-trades"):
            assert job.model.name == "resnet20"
            train = job.train
            settings[name] = (
                job.optimizer, job.schedule, train.epochs, train.batch_size, train.average_decay, train.validate_attack,
                train.validate_limit,
            )  # fmt: skip
        if "-linf-" in name and job.method.threat is not None:
            # CROWN-IBP trains at 1.1 times the radius, as its authors do.
            expected = {"cifar10-linf-crown-ibp-2": 2.2, "cifar10-linf-dual-2": 2}.get(name, 8)
            assert float(job.method.threat.eps) == pytest.approx(expected / 255)
    assert len(settings) >= 11
    assert len({repr(s) for s in settings.values()}) == 1
