"""Several processes of torchrun are one job: who writes, who reports, what they agree on, and how it ends."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command_line import replaced
from processes import environment, status_of, until
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser
from two_ranks import TINY, StopAt, network, train

from atent import runs as folder
from atent import signals
from atent.cli import main
from atent.distributed import SINGLE, World, alone, current, each, entered
from atent.distributed import launch as launched
from atent.distributed.failures import Failure, Failures, Peer
from atent.distributed.notes import Notes, Unreachable
from atent.distributed.world import within
from atent.runs import manifest, restarts
from atent.torchrun import Ending, Place, place, quiet, timeout
from atent.train.agreement import Agreement
from atent.train.clock import Clock
from atent.train.fingerprint import fingerprint
from atent.train.interrupt import Interrupted

WHOLE = {
    "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "distributed_kills.py"


@pytest.fixture
def alone_again(monkeypatch):
    """No variables of a job that this test itself may run in."""
    for name in (*WHOLE, "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "ATENT_DISTRIBUTED_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def free_port():
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


# ---- what the environment says


def test_the_place_of_a_process():
    assert place({}) is None
    assert place({"WORLD_SIZE": "1"}) is None
    assert place(WHOLE) == Place(1, 2, 1, 2, "localhost", 29500)
    more = {**WHOLE, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
    assert place(more) == Place(1, 2, 1, 2, "localhost", 29500, agent=True, restarts=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE", "'two'"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE", "'0'"]),
        ({"RANK": ""}, ["WORLD_SIZE is 2", "RANK not set"]),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, ["MASTER_ADDR, MASTER_PORT not set"]),
        ({"RANK": "2"}, ["RANK", "0 to 1", "'2'"]),
        ({"RANK": "-1"}, ["RANK", "'-1'"]),
        ({"LOCAL_RANK": "x"}, ["LOCAL_RANK", "'x'"]),
        ({"MASTER_PORT": "70000"}, ["MASTER_PORT", "'70000'"]),
    ],
)
def test_variables_that_make_no_sense_are_one_line(change, words):
    with pytest.raises(ValueError, match="torchrun") as caught:
        place({**WHOLE, **change})
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words)


def test_rank_0_reports_the_environment():
    assert quiet(WHOLE)
    assert not quiet({**WHOLE, "RANK": "0"})
    assert not quiet({})
    # No other process has this one's number.
    assert not quiet({**WHOLE, "RANK": "7"})


def test_the_timeout_is_a_setting():
    assert timeout({}) == timeout({"ATENT_DISTRIBUTED_TIMEOUT": "600"})
    assert timeout({"ATENT_DISTRIBUTED_TIMEOUT": "30"}) == 30
    for text in ("soon", "0", "nan"):
        with pytest.raises(ValueError, match="ATENT_DISTRIBUTED_TIMEOUT"):
            timeout({"ATENT_DISTRIBUTED_TIMEOUT": text})


def test_a_command_reports_its_environment_in_one_line(alone_again, capsys):
    alone_again.setenv("WORLD_SIZE", "2")
    assert main(["train", "digits-linf-atent"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    alone_again.setenv("RANK", "1")
    assert main(["train", "digits-linf-atent"]) == 2
    assert not capsys.readouterr().err


def test_a_command_that_cannot_use_ranks_runs_on_rank_0(alone_again, capsys):
    for name, value in WHOLE.items():
        alone_again.setenv(name, value)
    for words in (["list", "recipes"], ["--version"], ["train", "--help"]):
        alone_again.setenv("RANK", "1")
        assert main(words) == 0
        assert capsys.readouterr() == ("", "")
        alone_again.setenv("RANK", "0")
        assert main(words) == 0
        assert capsys.readouterr().out


# ---- notes and failures


class Board:
    """`Notes` in this process."""

    def __init__(self, agent=True):
        self.held, self.here = {}, Place(0, 2, 0, 2, "localhost", 1, agent=agent)

    def write(self, name, text=""):
        self.held[name] = text

    def first(self, name, text):
        return self.held.setdefault(name, text)

    def read(self, name):
        return self.held.get(name)

    def there(self, names):
        return self.held.keys() >= set(names)

    def wait(self, name, seconds):
        until(lambda: name in self.held, seconds=seconds)
        return self.held.get(name)


def endings(*own, peers=None):
    """The common ending from the endings of all ranks, each in a thread; None: the rank is gone before it ends."""
    board, me = Board(), Peer.own({})
    peers = peers or dict.fromkeys(range(len(own)), me)
    found = {}

    def end(rank, ending):
        found[rank] = Failures(rank, peers, board, board).agreed(ending)

    threads = [threading.Thread(target=end, args=each) for each in enumerate(own) if each[1] is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def gone():
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Peer(process.pid, Peer.own({}).boot, {})


def test_all_end_well_with_the_status_of_rank_0():
    assert endings(Ending(1), Ending(0)) == {0: Ending(1), 1: Ending(1)}


def test_the_error_of_one_rank_is_reported_by_rank_0_and_ends_all():
    found = endings(Ending(0), Ending(2, "no room on the disk"))
    assert found == {0: Ending(2, "rank 1: no room on the disk"), 1: Ending(2, "")}


def test_what_all_ranks_meet_is_reported_once():
    found = endings(Ending(2, "unknown recipe"), Ending(2, "unknown recipe"))
    assert found == {0: Ending(2, "unknown recipe"), 1: Ending(2, "")}


def test_the_rank_that_is_gone_is_named():
    me = Peer.own({})
    found = endings(Ending(1, "connection closed", lost=True), None, peers={0: me, 1: gone()})
    assert found[0].status == 1
    assert "rank 1 of 2" in found[0].text
    # Nobody else can report that rank 0 is gone.
    found = endings(None, Ending(1, "connection closed", lost=True), peers={0: gone(), 1: me})
    assert "rank 0 of 2" in found[1].text


def test_a_rank_that_waits_for_a_failed_one_is_ended(monkeypatch):
    from atent.distributed import failures

    monkeypatch.setattr(failures, "BEAT", 0.01)
    monkeypatch.setattr(failures, "GRACE", 0.05)
    monkeypatch.setattr(failures, "GONE", 0.2)
    ended = threading.Event()
    statuses, reports = [], []

    def leave(status):
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(failures.os, "_exit", leave)
    # It says nothing, and no sign of its life changes.
    one = Failures(0, dict.fromkeys(range(2), Peer.own({})), Board(), Board())
    with one.watching(reports.append):
        assert ended.wait(30)
    assert set(statuses) == {1}
    assert "rank 1 of 2" in reports[0].text


def test_waiting_for_all_ends_where_one_has_failed():
    board = Board()
    one = Failures(0, dict.fromkeys(range(2), Peer.own({})), board, board)
    board.write("failed", json.dumps(vars(Failure(1, 2, "why", 1))))
    assert one.before(["met/1/1"]) == Failure(1, 2, "why", 1)
    board.write("met/1/1")
    assert one.before(["met/1/1"]) is None


def test_rank_0_waits_for_those_that_read_its_store_and_no_longer():
    me, board = Peer.own({}), Board(agent=False)
    waits = []
    board.wait = lambda name, seconds: waits.append(name) or (board.read(name) if len(waits) > 2 else None)
    Failures(1, {0: me, 1: me}, board, board).leave()
    Failures(0, {0: me, 1: me}, board, board).leave()
    assert waits == ["left/1"] * 3
    # One that is gone does not read.
    Failures(0, {0: me, 1: me, 2: gone()}, board, board).leave()
    assert waits[-1] == "left/2"


def test_other_versions_are_named_with_their_ranks():
    with pytest.raises(ValueError, match=r"torch 2\.11 on rank 0 and 2\.13 on ranks 1, 3"):
        launched._same({i: {"atent": "1", "torch": "2.13" if i % 2 else "2.11"} for i in range(4)})


def test_notes_are_of_one_start_and_some_outlive_it():
    port = free_port()
    here = Place(0, 1, 0, 1, "localhost", port)
    notes = Notes(here, 10, opens=True)
    with pytest.raises(ValueError, match=f"port {port} of localhost is in use"):
        Notes(here, 10, opens=True)
    again = Notes(Place(0, 1, 0, 1, "localhost", port, agent=True, restarts=1), 10)
    before = Notes(Place(0, 1, 0, 1, "localhost", port, agent=True), 10)
    notes.write("failed", "why")
    assert before.wait("failed", 10) == "why"
    assert again.read("failed") is None
    before.kept("run", "runs/mine")
    # A note is on its way for a moment.
    assert until(lambda: again.kept("run") == "runs/mine", seconds=10)
    assert notes.kept("run") is None
    assert [again.first("one", "a"), again.first("one", "b")] == ["a", "a"]
    with pytest.raises(Unreachable, match="rank 0 cannot reach"):
        Notes(Place(0, 1, 0, 1, "localhost", free_port(), agent=True), 1)
    with socket.socket() as held:
        held.bind(("localhost", 0))
        held.listen()
        with pytest.raises(Unreachable, match="no answer as a store"):
            Notes(Place(0, 1, 0, 1, "localhost", held.getsockname()[1], agent=True), 1)


def test_a_job_that_is_started_again_finds_its_run(tmp_path, monkeypatch):
    kept = {}

    def remember(name, text=None):
        return kept.setdefault(name, text) if text is not None else kept.get(name)

    monkeypatch.setattr(launched, "remember", remember)
    (tmp_path / "mine" / "something").mkdir(parents=True)
    with restarts.claimed(tmp_path, "mine", "train") as (run, begun):
        assert [run.name, begun] == ["mine-2", False]
        (run / folder.CONFIG).write_text("{}")
    # What is left of a rank 0 on another machine.
    (run / folder.LOCK).write_text(json.dumps({"host": "elsewhere", "boot": "other", "pid": 1, "what": "train"}))
    with restarts.claimed(tmp_path, "mine", "train") as (again, begun):
        assert [again, begun] == [run, True]
    assert not (run / folder.LOCK).exists()


# ---- what one process does by itself, and decisions


def test_one_process_decides_alone():
    assert alone(lambda: current()) is SINGLE
    assert each(lambda: 3) == [3]
    assert SINGLE.most([1.0, 2.0]) == [1.0, 2.0]
    with launched.joined() as world:
        assert world is SINGLE
    seen = []

    @contextmanager
    def held():
        seen.append("entered")
        yield 5
        seen.append("left")

    with entered(held) as value:
        seen.append(value)
    assert seen == ["entered", 5, "left"]


def test_all_stop_where_one_is_asked_and_rank_0_has_the_clock(monkeypatch):
    said = []
    other = [float(signal.SIGTERM), 1.0, 7.0]

    def most(self, numbers):
        said.append(numbers)
        return [max(pair) for pair in zip(numbers, other, strict=True)]

    monkeypatch.setattr(World, "most", most)
    monkeypatch.setattr(World, "shared", lambda self, value: 9.0)
    with signals.raising(), signals.stop_requests() as asked, within(World(1, 2)):
        agreed, clock = Agreement(asked, lambda: True), Clock(1, 1, minutes=10 / 60)
        clock.start(fresh=True)
        assert not agreed.asked()
        agreed.meet(clock)
        assert agreed.asked()
        assert agreed.due()
        assert clock.seconds() == 7.0
        assert asked()
        assert signals.status(1) == status_of("SIGTERM")
        clock.stop()
        assert clock.elapsed == 9.0
    # Not this rank's: whether a checkpoint is due, and the time.
    assert said == [[0.0, 0.0, 0.0]]


# ---- two processes


def ranks(words, count=2, port=None, **more):
    """Processes of one job, without torchrun."""
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port or free_port())}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**environment(), **job, "RANK": str(rank), "LOCAL_RANK": str(rank), **more},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks found, and what they printed before."""
    place = tmp_path_factory.mktemp("two")
    with pytest.raises(Interrupted):
        train(place / "one", callbacks=[StopAt(2, 2)])
    processes = ranks([Path(__file__).parents[1] / "support" / "two_ranks.py", place, free_port()])
    results = [process.communicate(timeout=240) for process in processes]
    lines = [out.splitlines() for out, _ in results]
    assert all(lines), [err[-2000:] for _, err in results]
    return place, [json.loads(each[-1]) for each in lines], [each[:-1] for each in lines], [err for _, err in results]


def test_rank_0_alone_prints_and_writes(two):
    place, found, lines, errors = two
    assert [each["status"] for each in found] == [0, 0]
    assert [each["after"] for each in found] == [1, 1]
    assert [sum(line.startswith("epoch ") for line in each) for each in lines] == [2, 0]
    assert not lines[1]
    assert not errors[1]
    run = place / "runs" / "cli"
    assert [path.name for path in (place / "runs").iterdir()] == ["cli"]
    assert [row["epoch"] for row in folder.read_jsonl(run / folder.METRICS)] == [1, 2]
    manifest.check(run, folder.CONFIG, folder.METRICS, folder.EVALUATION, folder.BEST)
    assert not (run / folder.LOCK).exists()
    made = folder.read_config(run / folder.CONFIG)["provenance"]
    assert [made["processes"], made["backend"]] == [2, "gloo"]


def test_the_ranks_share_the_evaluation_at_the_end(two, alone_again):
    """Batches of two samples; the outcomes are those of one process."""
    place, found, _, _ = two
    run = place / "runs" / "cli"
    stored = json.loads((run / folder.EVALUATION).read_text())
    counts = [each["attacked"] for each in found]
    assert sum(counts) == stored["clean"]["k"] == stored["attacks"]["FGSM"]["attacked"]
    assert abs(counts[0] - counts[1]) <= 2
    alone_words = [
        "--attacks",
        "FGSM",
        "--limit",
        "20",
        "--batch-size",
        "2",
        "--no-cascade",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert main(["evaluate", str(run), *alone_words, "--out", str(place / "one.json")]) == 0
    assert json.loads((place / "one.json").read_text())["outcomes"] == stored["outcomes"]


def test_the_ranks_have_one_network_and_one_history(two):
    _, (one, other), _, _ = two
    assert one["weights"] == other["weights"]
    assert one["rows"] == other["rows"]
    assert one["inside"] == 2


def test_an_interrupted_training_resumes_on_as_many_processes_bit_for_bit(two):
    _, (one, other), _, _ = two
    # A callback of rank 0 asked: both stop at the same step.
    assert one["interrupted"] == other["interrupted"]
    assert one["interrupted"].startswith("Interrupted: interrupted at epoch 2, step")
    assert one["weights"][0] == one["weights"][1]
    assert one["rows"][0] == one["rows"][1]


def test_every_sample_of_a_validation_is_measured_once(two):
    _, found, _, _ = two
    for each_rank in found:
        shared, single = each_rank["counts"]
        assert each_rank["lengths"] == [20]
        # A batch of another size rounds differently, which may change a sample at the boundary.
        assert all(abs(shared[name] - single[name]) <= 1 for name in single)


def test_an_error_of_one_rank_is_raised_on_all(two):
    _, found, _, _ = two
    for each_rank in found:
        assert each_rank["alone"] == "ValueError: only rank 0"
        assert each_rank["each"] == [[0, 1], "ValueError: rank 1"]
        assert "train.average_decay is 0.9 on rank 0 and 0.9625 on rank 1" in each_rank["uneven"]
        assert "1 images of a batch" in each_rank["few"]
        assert each_rank["taken"].startswith("FileExistsError")


def test_one_process_resumes_what_two_began_and_two_what_one_began(two, alone_again):
    place = two[0]
    train(place / "left", resume=True)
    whole = load_file(place / "whole" / "last" / "model.safetensors")
    moved = distance(whole, {name: value.detach() for name, value in network().state_dict().items()})
    for name in ("left", "one"):
        other = load_file(place / name / "last" / "model.safetensors")
        # Sums over ranks round differently; a step too many or too few is a twelfth of the way.
        assert distance(whole, other) < 1e-2 * moved
        assert [row["epoch"] for row in folder.read_jsonl(place / name / folder.METRICS)] == [1, 2, 3]
    # What a training depends on does not tell how many processes it had.
    configs = [folder.read_config(place / name / folder.CONFIG) for name in ("whole", "one")]
    assert [config["provenance"].get("processes") for config in configs] == [2, None]
    assert fingerprint(configs[0]) == fingerprint(configs[1])


def distance(a, b):
    """The norm of the difference of two networks' states."""
    return torch.cat([(a[name].double() - b[name].double()).flatten() for name in a]).norm()


# ---- the page


def test_the_page_runs(tmp_path, monkeypatch, alone_again):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "docs/distributed.md", "exec"), names)
    assert (tmp_path / "runs" / "several" / folder.BEST).is_file()
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines()
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "torchrun"
        read = get_args_parser().parse_args(words[1:])
        assert [read.module, read.training_script, read.training_script_args[0]] == [True, "atent", "train"]
        assert {"digits-linf-atent", "runs/digits-linf-atent"} & set(read.training_script_args)
    assert lines


# ---- torchrun, signals and kills


def torchrun(where, *words, **options):
    """A training of torchrun on two processes, whose lines go to a file."""
    named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *named, "-m", "atent", *words]
    with (where / "log").open("w") as log:
        return subprocess.Popen(command, cwd=where, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def said(where):
    """What atent reported as errors, a line each."""
    return [line for line in (where / "log").read_text().splitlines() if line.startswith("atent: ")]


def rows(run):
    path = run / folder.METRICS
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_torchrun_saves_once_and_is_resumed(tmp_path, name):
    words = ("train", "digits-linf-atent", *replaced(TINY, "--train.epochs", "300"), "--name", "one")
    process = torchrun(tmp_path, *words, master_port=free_port())
    run = tmp_path / "runs" / "one"
    assert until(lambda: rows(run) > 1, process)
    process.send_signal(getattr(signal, name))
    process.wait(timeout=60)
    assert len(said(tmp_path)) == 1
    assert "resume with `atent train --resume runs/one`" in said(tmp_path)[0]
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    assert state["mark"]["epoch"] == rows(run)
    assert not (run / folder.LOCK).exists()


@pytest.mark.slow
def test_ranks_that_are_killed_are_started_again_and_lose_no_epoch(tmp_path):
    command = [sys.executable, str(BENCHMARK), str(tmp_path), "--kills", "2", "--epochs", "20"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    same = dict.fromkeys(("rows", "best.safetensors", "last/model.safetensors"), True)
    assert found.items() >= {"kills": 2, "epochs": 20, **same}.items()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_others_in_seconds(tmp_path, killed):
    words = ["-m", "atent", "train", "digits-linf-atent", *replaced(TINY, "--train.epochs", "500")]
    processes = ranks([*words, "--runs", tmp_path, "--name", "one"])
    try:
        assert until(lambda: rows(tmp_path / "one") > 1, processes[0])
        processes[killed].kill()
        begun = time.monotonic()
        _, err = processes[1 - killed].communicate(timeout=60)
        assert time.monotonic() - begun < 30
        assert processes[1 - killed].returncode == 1
        lines = [line for line in err.splitlines() if line.startswith("atent: ")]
        assert len(lines) == 1
        assert f"rank {killed} of 2" in lines[0]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_an_error_of_rank_0_alone_and_a_rank_that_never_comes(tmp_path):
    (tmp_path / "taken" / "something").mkdir(parents=True)
    words = ["-m", "atent", "train", "digits-linf-atent", *TINY, "--runs", tmp_path, "--name", "taken"]
    processes = ranks(words)
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert [err.count("\n") for _, err in results] == [1, 0]
    first, other = ranks(words, ATENT_DISTRIBUTED_TIMEOUT="3", count=2)
    other.kill()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 2
    assert err.splitlines() == [
        "atent: rank 1 of 2 did not start within 3 s: start all ranks, or set ATENT_DISTRIBUTED_TIMEOUT"
    ]


@pytest.mark.slow
def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as held:
        held.bind(("localhost", 0))
        held.listen()
        words = ["-m", "atent", "train", "digits-linf-atent", *TINY, "--runs", tmp_path]
        first, other = ranks(words, port=held.getsockname()[1], ATENT_DISTRIBUTED_TIMEOUT="5")
        _, err = first.communicate(timeout=120)
        _, beside = other.communicate(timeout=120)
    assert [first.returncode, other.returncode] == [2, 2]
    # Rank 0 cannot know what the other met.
    assert "rank 1 cannot reach" in beside
    assert "is in use" in err
    assert err.count("\n") == 1
