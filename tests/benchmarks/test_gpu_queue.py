"""The queue of a GPU, on a CPU at toy size: order, slices, kills, parts, and the jobs file of the repository."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import campaign
import campaign_worker
import gpu
import gpu_parts
import gpu_smoke
import gpu_worker
import pytest
import torch
from safetensors.torch import load_file

from atent.experiments import recipes as config
from atent.paper import engine
from atent.paper.layout import Training
from atent.paper.scales import SCALES
from atent.train.interrupt import Interrupted

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

CPU = torch.device("cpu")

TOY = """
scale = "smoke"
[train]
cuda_graphs = true
precision = "bfloat16"
save_minutes = 0.0
[[job]]
name = "smoke"
kind = "smoke"
of = { only = "^(random|method Standard|graph Standard)" }
[[job]]
name = "broken"
kind = "train"
training = "digits-linf-nothing"
[[job]]
name = "smoothed"
kind = "train"
training = "digits-linf-standard"
changes = { method = { label_smoothing = 0.1 } }
of = { speed = "speed", epochs = 3 }
[[job]]
name = "attacked"
kind = "attack"
of = { network = "smoothed", attack = "PGD(steps=2, norm=linf, eps=0.1)", n = 50 }
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "toy.toml").write_text(TOY)
    return tmp_path


def words(place, command="run", *more):
    given = ["--jobs", place / "toy.toml", "--state", place / "state", "--device", "cpu", "--margin", "5", *more]
    return [command, *map(str, given)]


def queue(place, *more):
    """The queue in this process."""
    return gpu.Queue(gpu.parse(words(place, "run", *more)))


def work(place, job, scale="smoke"):
    """What a worker has of a job."""
    record = {
        "name": job.name,
        "scale": scale,
        "job": campaign.asked_of(job),
        "segments": [],
        "commit": "",
        "began": "",
    }
    beat = SimpleNamespace(segment={}, now=lambda: {"core_seconds": 0.0})
    found = campaign_worker.Work(record, campaign.State(place / "state"), place / "state" / "out", beat)
    found.out.mkdir(parents=True, exist_ok=True)
    return found


# ---- the jobs


def test_every_job_of_the_file_can_begin(tmp_path):
    """Recipes, settings and changes are valid, networks that are attacked are trained before, timings exist."""
    jobs = campaign.read_queue(BENCHMARKS / "gpu.toml", (*campaign.KINDS, "smoke", "speed")).jobs
    trained = set()
    for job in jobs:
        if job.kind in ("train", "speed"):
            at = work(tmp_path, job, "paper")
            made = engine.job(at.bench, at.training(), job.seed)
            assert made.train.cuda_graphs or job.name == "speed-resnet20-atent-eager-float32"
            if job.kind == "train":
                trained.add(at.training().name)
                assert made.train.epochs == job.of["epochs"]
                assert job.of["speed"] in [other.name for other in jobs]
        elif job.kind != "smoke":
            assert (job.of.get("network") or job.training) in trained
    assert jobs[0].kind == "smoke"
    with pytest.raises(ValueError, match="kind 'smoke' is not known"):
        campaign.read_queue(BENCHMARKS / "gpu.toml")


def test_what_only_a_gpu_takes_is_left_out_on_a_cpu():
    job = {"train": {"precision": "bfloat16", "cuda_graphs": True, "epochs": 3}}
    assert gpu_worker.adapted(job, CPU)["train"] == {"epochs": 3, "device": "cpu"}
    assert gpu_worker.adapted(job, torch.device("cuda"))["train"] == {**job["train"], "device": "cuda"}


def test_estimates_come_from_what_was_seen(place):
    """By the file, then by a timing of a like training, then by its own epochs."""
    found = queue(place)
    job = next(job for job in found.jobs if job.name == "smoothed")
    assert found.estimate(replace(job, hours=0.5)) == 1800.0
    (found.results / "speed").mkdir(parents=True)
    (found.results / "speed" / "speed.json").write_text(json.dumps({"seconds_per_epoch": 7.0}))
    assert found.estimate(job) == 21.0
    run = found.state.place / "runs" / "smoke" / "smoothed-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"epochs": 10}}))
    (run / "metrics.jsonl").write_text('{"seconds": 2.0}\n{"seconds": 4.0}\n')
    assert found.estimate(job) == 8 * 3.0
    found.state.write({"name": "smoothed", "status": "done", "segments": []})
    assert found.estimate(job) == 0.0


def test_jobs_wait_for_data_and_for_networks(place, monkeypatch):
    monkeypatch.setenv("ATENT_DATA_ROOT", str(place))
    found = queue(place)
    job = found.jobs[2]
    cifar = replace(job, training="cifar10-l2-atent")
    assert found.blocked(job) == ""
    assert found.blocked(cifar) == "waits for the data cifar10"
    (place / "state" / "data" / "cifar10").mkdir(parents=True)
    assert found.blocked(cifar) == ""
    assert found.blocked(found.jobs[3]) == "waits for the training smoothed"
    run = place / "state" / "runs" / "smoke" / "smoothed-seed0"
    run.mkdir(parents=True)
    (run / "best.safetensors").touch()
    found.state.write({"name": "smoothed", "status": "interrupted", "segments": []})
    assert found.blocked(found.jobs[3]) == "waits for the training smoothed"
    found.state.write({"name": "smoothed", "status": "done", "segments": []})
    assert found.blocked(found.jobs[3]) == ""


def test_a_spent_budget_begins_nothing(place):
    (place / "state").mkdir()
    (place / "state" / "slices.json").write_text(json.dumps([{"began": 0.0, "seconds": 100.0, "device": "cpu"}]))
    assert 190 < queue(place, "--slice", "9m", "--budget", "5m").left() < 196
    spent = queue(place, "--slice", "9m", "--budget", "90")
    assert spent.left() < 0
    spent.run()
    assert not list(spent.state.jobs())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--slice", "soon"], "'soon' is not a valid duration"),
        (["--slice", "30s", "--margin", "40"], "leaves no time of --slice 30 s"),
        (["--part-size", "0"], "--part-size must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(place, given, message, capsys):
    with pytest.raises(SystemExit):
        gpu.parse([*words(place), *given])
    assert message in capsys.readouterr().err


# ---- checks


def test_a_failed_check_stops_no_other(place, monkeypatch):
    """Nor does one in which an earlier process died; each is made once."""
    called = []

    def check(name, error=None):
        def made(device):
            called.append(name)
            if error:
                raise error
            return {"figure": 1.0}

        return made

    every = {
        "died": check("died"), "fails": check("fails", RuntimeError("CUDA error: an illegal memory access")),
        "skips": check("skips", gpu_smoke.Skipped("needs CUDA")), "works": check("works"),
    }  # fmt: skip
    monkeypatch.setattr(gpu_smoke, "checks", lambda: every)
    job = campaign.Job("smoke", "smoke")
    path = place / "state" / "out" / "smoke" / "smoke.json"
    with pytest.raises(Interrupted):
        gpu_worker.smoke(work(place, job), 0.0, CPU)
    path.write_text(json.dumps({"died": {"status": "begun"}}))
    for _ in range(2):
        gpu_worker.smoke(work(place, job), time.time() + 60, CPU)
    found = json.loads(path.read_text())
    assert {name: entry["status"] for name, entry in found.items()} == {
        "died": "died", "fails": "failed", "skips": "skipped", "works": "ok",
    }  # fmt: skip
    assert "illegal memory access" in found["fails"]["error"]
    assert called == ["fails", "skips", "works"]


def test_checks_after_their_minutes_are_not_run(place, monkeypatch):
    monkeypatch.setattr(gpu_smoke, "checks", lambda: {"late": lambda device: {}})
    path = place / "state" / "out" / "smoke" / "smoke.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"long": {"status": "ok", "seconds": 70.0}}))
    gpu_worker.smoke(work(place, campaign.Job("smoke", "smoke", of={"minutes": 1.0})), time.time() + 60, CPU)
    assert json.loads(path.read_text())["late"]["status"] == "not run"


@pytest.mark.parametrize("name", ["random words", "float32 rounding", "method ATENT", "autocast AWP"])
def test_a_check_of_the_cpu_against_itself(name):
    gpu_smoke.checks()[name](CPU)


def test_a_check_sees_another_answer(monkeypatch):
    """A method that errs by a thousandth on one side fails."""
    monkeypatch.setattr(
        gpu_smoke, "step", lambda *given, calls=[]: (1.0 + 1e-3 * len(calls.append(0) or calls), torch.ones(3))
    )
    with pytest.raises(gpu_smoke.Failed, match="loss"):
        gpu_smoke.method("Standard", CPU)


def test_a_timing_is_of_steps_alone(place):
    """As many as are timed, of the training as it is; validation and checkpoints are left out."""
    job = campaign.Job("speed", "speed", training="digits-linf-standard", train={"epochs": 5, "device": "cpu"})
    gpu_worker.speed(work(place, job), time.time() + 60, CPU)
    found = json.loads((place / "state" / "out" / "speed" / "speed.json").read_text())
    assert len(found["blocks"]["seconds_per_step"]) == gpu_worker.BLOCKS
    assert found["seconds_per_epoch"] == pytest.approx(found["seconds_per_step"] * -(-48_928 // found["batch_size"]))
    assert (found["method"], found["model"], found["one_step"]["waits"]) == ("Standard", "digits_cnn", 0)
    with pytest.raises(ValueError, match="give it more epochs"):
        gpu_worker.speed(
            work(place, replace(job, train={"epochs": 1, "batch_size": 500, "device": "cpu"})), time.time() + 60, CPU
        )


@pytest.mark.slow
def test_every_check_passes_on_the_cpu():
    skipped = 0
    for check in gpu_smoke.checks().values():
        try:
            check(CPU)
        except gpu_smoke.Skipped:
            skipped += 1
    assert skipped == len(gpu_smoke.GRAPHS) + 1 + 5  # compile, and the attack from another network in five norms


# ---- parts


def folder_of(place, sizes):
    for name, size in sizes.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return [place / name for name in sizes]


def test_parts_come_in_any_order_and_over_several_calls(tmp_path):
    files = folder_of(tmp_path / "root" / "cifar10", {"a.bin": 70_000, "deep/b.bin": 1})
    parts = gpu_parts.pack("data", tmp_path / "root", files, tmp_path / "out", 0.03)
    assert len(parts) == 3
    assert all(part.stat().st_size <= 0.03 * 2**20 for part in parts)
    place, into = tmp_path / "place", {"data": tmp_path / "data"}
    gpu_parts.keep([parts[2], parts[0]], place)
    (line,) = gpu_parts.unpack(place, into)
    assert line.endswith("waits for part 2 of 3")
    gpu_parts.keep([tmp_path / "out"], place)
    gpu_parts.unpack(place, into)
    assert all((tmp_path / "data" / f.relative_to(tmp_path / "root")).read_bytes() == f.read_bytes() for f in files)
    # What is unpacked is not taken in again.
    gpu_parts.keep([tmp_path / "out"], place)
    assert not list(place.glob("*.part"))


def test_damaged_and_foreign_parts_are_refused(tmp_path):
    (part,) = gpu_parts.pack("data", tmp_path, folder_of(tmp_path, {"a": 10}), tmp_path / "out", 1)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    gpu_parts.keep([part], tmp_path / "place")
    with pytest.raises(ValueError, match="are damaged: carry them again"):
        gpu_parts.unpack(tmp_path / "place", {"data": tmp_path / "data"})
    assert not (tmp_path / "data").exists()
    (tmp_path / "x.part").touch()
    with pytest.raises(ValueError, match="is not a part"):
        gpu_parts.keep([tmp_path / "x.part"], tmp_path / "place")


def test_what_does_not_fit_goes_back_after_the_next_slice(place):
    """1 MiB of room, less what the report may take: the large result waits, in parts, for two more slices."""
    out = place / "back"
    found = queue(place, "--out", str(out), "--mib", "2", "--part-size", "0.9", "--files", "4")
    folder_of(found.results, {"big/best.safetensors": 2_000_000})
    seen = []
    for _ in range(4):
        found.send()
        seen += [path.name for path in out.glob("results-*.part")]
        assert len(list(out.iterdir())) <= 4
        assert sum(path.stat().st_size for path in out.iterdir()) <= 2 * 2**20
        for path in out.iterdir():
            (place / "parts").mkdir(exist_ok=True)
            path.rename(place / "parts" / path.name)
    assert len(seen) == len(set(seen)) == 3
    (line,) = [text for text in gpu_parts.unpack(place / "parts", {"results": place / "got"}) if "results" in text]
    assert "unpacked" in line
    assert (place / "got" / "big" / "best.safetensors").stat().st_size == 2_000_000


# ---- slices


def start(place, *more):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *words(place, "run", *more)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def until(what, seconds=240):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_carried_to_another_machine_the_queue_ends_as_unbroken(place):
    """A parent killed inside a training, a slice that is too short, and a machine that begins from what came back."""
    state = place / "state" / "runs" / "smoke" / "smoothed-seed0" / "last" / "state.pt"
    parent = start(place, "--slice", "10m")
    until(state.is_file)
    os.kill(parent.pid, signal.SIGKILL)
    text = parent.communicate(timeout=60)[0]
    until(lambda: campaign.State(place / "state").beat_file("smoothed").is_file())
    (place / "back").mkdir()
    second = start(place, "--slice", "25s", "--out", str(place / "back"))
    text = second.communicate(timeout=240)[0]
    assert second.returncode == 0, text
    assert [line.split()[2].rstrip(",") for line in text.splitlines() if "  start  " in line][:1] in (["smoothed"], [])
    # The first machine is gone: another one has what came back alone.
    (place / "state").rename(place / "gone")
    third = start(place, "--slice", "10m", "--take", str(place / "back"), "--out", str(place / "end"))
    text = third.communicate(timeout=280)[0]
    assert third.returncode == 0, text
    report = json.loads((place / "end" / "report.json").read_text())
    status = {name: entry["status"] for name, entry in report["jobs"].items()}
    assert status == {"smoke": "done", "broken": "failed", "smoothed": "done", "attacked": "done"}
    assert "unknown recipe 'digits-linf-nothing'" in report["jobs"]["broken"]["error"]
    assert report["jobs"]["smoke"]["smoke"]["graph Standard"]["status"] == "skipped"
    torch.set_num_threads(1)
    bench = engine.Bench(SCALES["smoke"], place / "runs", config.job, config.read_recipe)
    changes = {"method": {"label_smoothing": 0.1}, "train": {"save_minutes": 0.0, "device": "cpu"}}
    whole = engine.train(bench, Training("digits-linf-standard", changes, "smoothed"), 0)
    resumed = load_file(state.parents[1] / "best.safetensors")
    assert all(torch.equal(resumed[key], value) for key, value in load_file(whole / "best.safetensors").items())
    # The results come back in float16, and nothing is done twice.
    gpu_parts.keep([place / "end", place / "back"], place / "parts")
    gpu_parts.unpack(place / "parts", {"results": place / "got"})
    half = load_file(place / "got" / "smoothed" / "best.safetensors")
    assert {v.dtype for v in half.values() if v.is_floating_point()} == {torch.float16}
    assert (place / "got" / "attacked" / "measures.json").is_file()
    last = start(place, "--slice", "10m")
    assert "  start  " not in last.communicate(timeout=60)[0]
