import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from atent import load, messages, stats
from atent import runs as run
from atent.runs import files, origin


def fail(number):
    def failing(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    return failing


@pytest.fixture
def small_files():
    """No file beyond 100 kB: real failing writes, without a real full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- atomic files


def test_write_atomic_writes_text_and_bytes(tmp_path):
    path = tmp_path / "a.txt"
    run.write_atomic(path, "one\n")
    assert path.read_bytes() == b"one\n"
    run.write_atomic(str(path), b"two\x00")
    assert path.read_bytes() == b"two\x00"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_written_files_obey_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        run.write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_the_earlier_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    run.write_json(path, {"a": 1})
    monkeypatch.setattr(files.os, call, fail(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device") as caught:
        run.write_json(path, {"a": 2})
    line = f"cannot write {path}: No space left on device; the earlier file is intact: free some space"
    assert str(caught.value).startswith(line)
    assert caught.value.errno == errno.ENOSPC
    assert run.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failing_first_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", fail(errno.EDQUOT))
    with pytest.raises(OSError, match="nothing was written"):
        run.write_atomic(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named_once(tmp_path):
    with pytest.raises(OSError, match="No such file or directory; nothing was written") as caught:
        run.write_atomic(tmp_path / "no" / "a", "x")
    assert ".tmp" not in str(caught.value)


def test_a_file_too_large_for_the_disk(tmp_path, small_files):
    path = tmp_path / "a"
    run.write_atomic(path, "old")
    with pytest.raises(OSError, match="the earlier file is intact"):
        run.write_atomic(path, b"x" * 200_000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def save_tensors(path, library):
    from safetensors.torch import save_file

    tensors = {"w": torch.zeros(50_000)}
    with run.atomic(path) as temporary:
        if library == "torch":
            torch.save(tensors, temporary)
        elif library == "safetensors":
            save_file(tensors, temporary)
        else:
            with open(temporary, "wb") as file:
                torch.save(tensors, file)


@pytest.mark.parametrize("library", ["torch", "torch to a file", "safetensors"])
def test_libraries_that_run_out_of_disk(tmp_path, small_files, library):
    path = tmp_path / run.BEST
    path.write_text("old")
    with pytest.raises(OSError, match="cannot write") as caught:
        save_tensors(path, library)
    assert "\n" not in str(caught.value)
    assert "the earlier file is intact" in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [run.BEST]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_atomic_keeps_the_suffix_and_passes_other_errors_on(tmp_path, error):
    def stop():
        with run.atomic(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".png"
            temporary.write_text("half")
            raise error

    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(error):
        stop()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]


# ---- JSON


@dataclass(frozen=True)
class Settings:
    eps: Fraction
    steps: int


def test_json_keeps_what_was_meant(tmp_path):
    path = tmp_path / "a.json"
    run.write_json(
        path,
        {
            "z": 0.1,
            "a": (1, 2),
            "path": Path("x/y"),
            "eps": Fraction(8, 255),
            "none": None,
            "yes": True,
            "float32": np.float32(0.1),
            "tensor": torch.tensor([0.1, 0.2]),
            "int": np.int64(3),
            "class": {0: 1},
            "flag": np.bool_(True),
            "attack": Settings(Fraction(1, 2), 3),
            "float64": np.float64(0.1),
        },
    )
    read = run.read_json(path)
    assert read == {
        "z": 0.1,
        "a": [1, 2],
        "path": str(Path("x/y")),
        "eps": "8/255",
        "none": None,
        "yes": True,
        "float32": 0.1,
        "tensor": [0.1, 0.2],
        "int": 3,
        "class": {"0": 1},
        "flag": True,
        "attack": {"eps": "1/2", "steps": 3},
        "float64": 0.1,
    }
    assert list(read)[:2] == ["z", "a"]
    assert path.read_text().startswith('{\n  "z": 0.1,\n')


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan"), np.float64("-inf"), torch.tensor(math.nan)])
def test_nan_is_refused_by_its_key_path(tmp_path, bad):
    path = tmp_path / "a.json"
    run.write_json(path, 1)
    with pytest.raises(ValueError, match=r"^a\.json: attacks\[1\]\.value is (nan|-?inf)"):
        run.write_json(path, {"attacks": [{"value": 1.0}, {"value": bad}]})
    assert run.read_json(path) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": {1, 2}}, "a is a set"),
        ({"a": {(1, 2): 3}}, "a has the key"),
        ({1: 2, "1": 3}, "twice"),
        (object(), "the value is a object"),
    ],
)
def test_what_json_lacks_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        run.write_json(tmp_path / "a.json", bad)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_file_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON") as caught:
        run.read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        run.read_json(tmp_path / "none.json")


def test_rows_are_appended(tmp_path):
    path = tmp_path / run.METRICS
    for epoch in range(1, 5):
        run.append_jsonl(path, {"epoch": epoch, "loss": np.float32(0.1)})
    assert run.read_jsonl(path) == [{"epoch": e, "loss": 0.1} for e in range(1, 5)]
    assert os.listdir(tmp_path) == [run.METRICS]


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_torn_last_line_is_dropped_and_appended_over(tmp_path, cut):
    path = tmp_path / run.METRICS
    path.write_bytes(b'{"epoch": 1}\n' + b'{"epoch": 2}'[:cut])
    # cut at the last brace, only the newline is missing and the row is whole
    whole = [{"epoch": 1}, {"epoch": 2}] if cut == 12 else [{"epoch": 1}]
    assert run.read_jsonl(path) == whole
    run.append_jsonl(path, {"epoch": 3})
    assert run.read_jsonl(path) == [*whole, {"epoch": 3}]


@pytest.mark.parametrize("line", [b'{"epoch":', b"3", b'{"loss": NaN}'])
def test_a_broken_line_elsewhere_is_one_line(tmp_path, line):
    path = tmp_path / run.METRICS
    path.write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match="line 2: ") as caught:
        run.read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_a_failing_append_leaves_the_rows(tmp_path, small_files):
    path = tmp_path / run.METRICS
    run.append_jsonl(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(OSError, match="the earlier file is intact"):
        run.append_jsonl(path, {"epoch": 2, "text": "x" * 200_000})
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"metrics\.jsonl: loss is nan"):
        run.append_jsonl(path, {"loss": math.nan})
    assert path.read_bytes() == before


# ---- folders


def test_create_takes_new_and_empty_folders_only(tmp_path):
    path = run.create(tmp_path / "runs" / "a")
    assert path.is_dir()
    assert run.create(path) == path
    (path / run.CONFIG).write_text("{}")
    with pytest.raises(FileExistsError, match=r"choose another name .*--name, in Python run=.*resume=True"):
        run.create(path)
    with pytest.raises(FileExistsError):
        run.create(path / run.CONFIG)


def test_free_name_counts_on(tmp_path):
    for expected in ("a", "a-2", "a-3"):
        path = run.free_name(tmp_path, "a")
        assert path == tmp_path / expected
        assert not path.exists()
        (run.create(path) / run.CONFIG).write_text("{}")
    for bad in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="a folder name without slashes"):
            run.free_name(tmp_path, bad)


# ---- provenance


@pytest.fixture
def fresh_checkout():
    origin._checkout.cache_clear()
    yield
    origin._checkout.cache_clear()


def test_provenance_is_json_and_complete(fresh_checkout):
    found = run.provenance(seed=3, device=torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        "version",
        "commit",
        "dirty",
        "python",
        "torch",
        "numpy",
        "device",
        "device_name",
        "threads",
        "seed",
        "time",
    ]
    assert (found["seed"], found["device"], found["torch"]) == (3, "cpu", torch.__version__)
    assert found["device_name"]
    assert len(found["time"]) == len("2026-01-01T00:00:00+00:00")


def test_commit_is_that_of_the_checkout(fresh_checkout):
    folder = Path(origin.__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no git")
    commit = run.provenance()["commit"]
    held = subprocess.run(
        ["git", "ls-tree", "HEAD", Path(origin.__file__).name], cwd=folder, capture_output=True, text=True
    )
    if done.returncode or not held.stdout:
        assert commit is None
        pytest.skip("the package lies in no checkout with a commit that holds it")
    assert commit == done.stdout.strip()


def test_git_is_asked_once_without_the_hook_s_repository(fresh_checkout, monkeypatch):
    calls = []

    def answer(command, **keywords):
        calls.append((command, keywords))
        text = "abc\ndef\n" if "rev-parse" in command else " M run.py\n"
        return subprocess.CompletedProcess(command, 0, text)

    monkeypatch.setenv("GIT_DIR", "elsewhere")
    monkeypatch.setattr(origin.subprocess, "run", answer)
    for _ in range(3):
        found = run.provenance()
        assert (found["commit"], found["dirty"]) == ("abc", True)
    assert len(calls) == 2
    assert all(keywords["timeout"] and "GIT_DIR" not in keywords["env"] for _, keywords in calls)


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_git_never_raises(fresh_checkout, monkeypatch, error):
    def failing(*arguments, **keywords):
        raise error

    monkeypatch.setattr(origin.subprocess, "run", failing)
    found = run.provenance()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_a_gpu_that_is_not_there_is_named_as_given():
    found = run.provenance(device="cuda:99")
    assert found["device"] == found["device_name"] == "cuda:99"


def test_version_falls_back(monkeypatch):
    def missing(name):
        raise origin.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(origin.importlib.metadata, "version", missing)
    assert run.provenance()["version"] == "unknown"


# ---- numbers and names


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (4930, 10_000), (1, 9999)])
def test_interval_is_clopper_pearson(k, n, level):
    from scipy.stats import beta, binom

    low, high = stats.interval(k, n, level)
    tail = (1 - level) / 2
    assert low == pytest.approx(0 if k == 0 else beta.ppf(tail, k, n - k + 1), rel=1e-9)
    assert high == pytest.approx(1 if k == n else beta.ppf(1 - tail, k + 1, n - k), rel=1e-9)
    # what the ends are defined by: as extreme a count as k has the probability of one tail there
    if k > 0:
        assert binom.sf(k - 1, n, low) == pytest.approx(tail, rel=1e-6)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(tail, rel=1e-6)
    assert stats.interval(n - k, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_interval_at_the_ends_in_closed_form():
    assert stats.interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert stats.interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert stats.share(np.int64(5), 10) == {
        "value": 0.5,
        "low": pytest.approx(0.1870860, abs=1e-6),
        "high": pytest.approx(0.8129140, abs=1e-6),
        "k": 5,
        "n": 10,
    }
    assert type(stats.share(np.int64(5), 10)["k"]) is int


@pytest.mark.parametrize(("k", "n", "level"), [(2, 1, 0.95), (-1, 1, 0.95), (0, 0, 0.95), (0.5, 1, 0.95), (0, 1, 1)])
def test_interval_refuses(k, n, level):
    with pytest.raises(ValueError, match=r"must|needs"):
        stats.interval(k, n, level)


def test_unknown_names_the_nearest():
    names = ["resnet18", "resnet20", "small_cnn"]
    assert messages.nearest("ResNt20", names) == "resnet20"
    assert messages.nearest("zzz", names) is None
    assert messages.unknown("model", "resnt20", iter(names)) == (
        "unknown model 'resnt20': did you mean 'resnet20'? (known: resnet18, resnet20, small_cnn)"
    )
    many = [f"resnet{depth}" for depth in range(40)]
    line = messages.unknown("model", "zzz", many, "atent list models")
    assert line.startswith("unknown model 'zzz' (known: resnet")
    assert line.endswith("..., 40 in all: `atent list models`)")
    assert line.count("resnet") == 6
    assert messages.unknown("model", "zzz", []) == "unknown model 'zzz' (known: none)"


def test_import_is_cheap():
    # loaded as a lone file, so that only this room is on trial
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('room', sys.argv[1]); "
        "m = u.module_from_spec(s); sys.modules['room'] = m; s.loader.exec_module(m); "
        "print({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, files.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_line_of_the_method_has_the_terms_of_the_field():
    from atent.experiments.introduction import method_line
    from atent.methods import ATENT
    from atent.threat import Threat

    def line(method):
        threat = {"norm": method.threat.norm, "eps": method.threat.eps}
        about = {"chain": method.chain().describe()}
        return method_line({"method": {"name": "ATENT", "threat": threat}, "about": about, "train": {}})

    l2 = line(ATENT(Threat("l2", 0.5), steps=10))
    assert l2.startswith("ATENT, l2 eps 0.5, 10 Langevin steps of 0.1, anchor term 0.05 (x - x')")
    assert "noise 0.001 (effective_noise " in l2
    assert l2.endswith("no projection")
    linf = line(ATENT(Threat("linf", 0.1), steps=10))
    assert "no anchor term" in linf
    assert linf.endswith("projected after the last step")


def test_what_is_not_a_run_names_the_run_that_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.json").write_text("{}")
    for given in ("runs/frist", "first"):
        assert run.no_run(Path(given)) == (
            f"{given} is not a run folder (no config.json; did you mean {Path('runs/first')}?)"
        )
    assert run.no_run(Path("other")) == "other is not a run folder (no config.json)"
    with pytest.raises(FileNotFoundError, match=r"did you mean runs.first"):
        load("first")
