"""Image folders that stay on disk: samples, batches and weights as in memory, and one line for each failure."""

import copy
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import train_job
from processes import environment
from torch import nn

from atent.cli import main
from atent.data import AUGMENTATIONS, DataSettings, augment, cache, images, load
from atent.data import folder as loader
from atent.data.stored import Stored
from atent.methods import PGDAT, Free, Standard
from atent.optim import Optimizer, Walk
from atent.threat import Threat
from atent.train import Interrupted, TrainSettings, fit

Image = pytest.importorskip("PIL.Image")
LINF = Threat("linf", 0.1)
WALKS = Optimizer("EntropySGD", lr=0.05, walk=Walk(inner_steps=2, inner_batches="next"))


def write(root, n=6, classes=("cat", "dog"), size=(8, 8), mode="L", seed=0, suffix="png", **how):
    """Images of random pixels, n of each class."""
    random = np.random.RandomState(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = random.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i:03}.{suffix}", **how)
    return root


def settings(root, **more):
    return DataSettings("folder", root=str(root), **{"resident": False, "workers": 2, **more})


def same(a, b):
    """Two data sets have the same samples, as batches, in all parts."""
    assert (a.shape, a.classes, a.box) == (b.shape, b.classes, b.box)
    for one, other in zip((a.train, a.validation, a.test), (b.train, b.validation, b.test), strict=True):
        every = torch.arange(len(one))
        assert torch.equal(one.ids, other.ids)
        for x, z in zip(one.batch(every), other.batch(every), strict=True):
            assert torch.equal(x, z)


@pytest.fixture
def tree(tmp_path):
    write(tmp_path / "train", 40)
    write(tmp_path / "test", 5, seed=1)
    return tmp_path


@pytest.fixture
def decodes(monkeypatch):
    """The files that were decoded so far, in blocks of 8 images of 64 pixels."""
    seen, original = [], images.decode

    def counted(part, i, form, out):
        seen.append(part.names[i])
        return original(part, i, form, out)

    monkeypatch.setattr(images, "decode", counted)
    monkeypatch.setattr(images, "_TOGETHER", 512)
    return seen


# ---- the same samples


@pytest.mark.parametrize("how", [{}, {"cache": "off"}, {"cache": "off", "workers": 0}, {"workers": 0}], ids=str)
def test_samples_on_disk_are_those_in_memory(tmp_path, how):
    """Grey and colour images, of one level, so that the test split is drawn; with limits and subsets."""
    write(tmp_path, 20)
    write(tmp_path, 7, ("emu",), mode="RGB", suffix="jpeg", quality=90)
    given = {"limit": 20, "test_limit": 6, "validation": 8, "split_seed": 3}
    memory = load(settings(tmp_path, resident=True, **given))
    disk = load(settings(tmp_path, **given, **how))
    assert isinstance(disk.train.x, Stored)
    same(memory, disk)
    index = [3, 1, 1, 0]
    for part in ("train", "validation"):
        a, b = memory.sample(part, 5), disk.sample(part, 5)
        assert torch.equal(a.batch(index)[0], b.batch(index)[0])
        assert torch.equal(a.take([4, 2]).batch([1])[0], b.take([4, 2]).batch([1])[0])
        assert torch.equal(a.first(2).batch([1])[0], b.first(2).batch([1])[0])
    assert disk.to("meta").train.x.device.type == "meta"
    assert torch.equal(copy.deepcopy(disk).train.batch([0])[0], memory.train.batch([0])[0])
    if "cache" not in how:  # the files are known by their contents, as in memory
        assert disk.about == memory.about


@pytest.mark.parametrize("cache", [None, "off"])
def test_images_of_several_sizes_become_squares(tmp_path, cache):
    write(tmp_path, 6, size=(20, 12), mode="RGB")
    write(tmp_path, 6, ("emu",), size=(9, 30))
    memory = load(settings(tmp_path, resident=True, size=6))
    assert memory.shape == (3, 6, 6)
    same(memory, load(settings(tmp_path, size=6, cache=cache)))
    # The central square alone is seen, and a uniform image stays uniform.
    wide = np.zeros((6, 18, 3), np.uint8)
    wide[:, 6:12] = 200
    for i in range(6):
        Image.fromarray(wide).save(tmp_path / "cat" / f"{i:03}.png")
    data = load(settings(tmp_path, size=3, cache=cache))
    seen = data.train.x.index_select(0, (data.train.y == 0).nonzero()[:, 0])
    assert seen.unique().tolist() == [200]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGBA", "LA"])
def test_kinds_of_images_are_those_of_a_folder_in_memory(tmp_path, mode):
    write(tmp_path, 4, mode=mode, suffix="jpg" if mode == "CMYK" else "png")
    memory = load(settings(tmp_path, resident=True))
    assert memory.shape[0] == (1 if mode == "1" else 3)
    same(memory, load(settings(tmp_path)))


def test_a_photograph_with_its_preview_is_one_image(tmp_path):
    write(tmp_path, 3, mode="RGB")
    photo = Image.new("RGB", (8, 8), (9, 9, 9))
    photo.save(tmp_path / "cat" / "photo.jpg", format="MPO", save_all=True, append_images=[photo])
    assert len(load(settings(tmp_path)).train.x.pixels) == 7


# ---- the same training


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))

    def forward(self, x):
        return self.body(x)


def train(data, path=None, method=None, resume=False, optimizer=None, **more):
    torch.manual_seed(0)
    given = TrainSettings(epochs=2, batch_size=9, validate_limit=6, validate_attack="none", device="cpu", **more)
    return fit(
        Net(), data, method or PGDAT(LINF, steps=1), optimizer=optimizer or Optimizer(lr=0.05), settings=given,
        augmentation="crop-flip", run=path, progress=False, resume=resume,
    )  # fmt: skip


def test_training_is_the_same_bit_for_bit(tree, tmp_path, monkeypatch):
    """In memory, from the cache, decoded on the way, and interrupted in an epoch and resumed from elsewhere; most
    batches are read before they are asked for, also those after the resume."""
    memory = load(settings(tree, resident=True, validation=8))
    whole = train(memory).model.state_dict()
    early, original = [], Stored._read

    def noted(self, at):
        early.append(threading.current_thread().name.startswith("atent-batches"))
        return original(self, at)

    monkeypatch.setattr(Stored, "_read", noted)
    for more in ({}, {"cache": "off"}):
        early.clear()
        found = train(load(settings(tree, validation=8, **more))).model.state_dict()
        assert all(torch.equal(whole[k], found[k]) for k in whole)
        assert sum(early) == 16  # two epochs of eight batches
    calls, backward = [], PGDAT.backward

    def interrupting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(PGDAT, "backward", interrupting)
    disk = load(settings(tree, validation=8))
    with pytest.raises(Interrupted, match="epoch 2, step 3"):
        train(disk, tmp_path / "run")
    early.clear()
    again = train(disk, tmp_path / "run", resume=True)
    assert sum(early) == 5
    assert all(torch.equal(whole[k], v) for k, v in again.model.state_dict().items())


@pytest.mark.parametrize("more", [{"method": Free(LINF, replays=3)}, {"optimizer": WALKS}])
def test_batches_that_come_again_are_the_same(tree, more):
    memory, disk = (load(settings(tree, resident=r, validation=8)) for r in (True, False))
    one, other = (train(data, **{"method": Standard(), **more}).model.state_dict() for data in (memory, disk))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_may_be_resumed_with_its_data_on_disk(tree, tmp_path):
    from atent.train.fingerprint import fingerprint

    def config(**more):
        given = settings(tree, **more)
        about = {"data": {"files": load(given).about["files"]}}
        sections = {name: {} for name in ("method", "optimizer", "schedule", "model", "train")}
        return {**sections, "data": vars(given), "about": about}

    begun = fingerprint(config(resident=True, workers=None))
    assert begun == fingerprint(config(cache=str(tmp_path / "cache")))
    assert begun != fingerprint(config(size=4))


def test_announced_batches_are_read_ahead_and_others_when_asked_for():
    """The announcement changes no value: in order, again, skipped, as parts of a batch, or against it."""
    x, read = np.arange(60, dtype=np.uint8).reshape(20, 3, 1, 1), []

    class Pixels:
        shape, workers = (3, 1, 1), 1

        def __len__(self):
            return 20

        def read(self, at):
            read.append(at.tolist())
            return x[at]

    stored, order = Stored(Pixels(), torch.arange(19, -1, -1)), torch.randperm(20)
    wanted = torch.from_numpy(x).flip(0)
    parts = [slice(0, 6), slice(6, 12), slice(12, 18), slice(18, 20)]
    stored.expect(order, parts)
    for index in (order[:6], order[:6], order[12:18], order[6:12], order[12:15], order.clone()[18:], order[18:], order):
        assert torch.equal(stored.index_select(0, index), wanted[index])
    ahead = [(19 - order[part]).tolist() for part in parts]
    assert all(read.count(at) >= 1 for at in ahead)
    assert read.count(ahead[0]) == 1  # the second time it was still there
    stored.expect(order[:0], [])
    assert torch.equal(stored.index_select(0, order[:6]), wanted[order[:6]])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_rows_are_augmented_as_in_their_batch(name):
    """Equal for what moves pixels; the bilinear weights of a rotation may round by the size of the batch."""
    x, whole, part = torch.rand(7, 3, 6, 8), torch.Generator(), torch.Generator()
    every = augment(name)(x, whole.manual_seed(5))
    for rows in (slice(0, 3), slice(3, 7), slice(7, 7)):
        some = augment(name)(x[rows], part.manual_seed(5), within=(rows, 7))
        assert torch.allclose(some, every[rows], rtol=0, atol=1e-6 if name == "rotate-flip" else 0)
        assert torch.equal(whole.get_state(), part.get_state())
    if name != "none":
        with pytest.raises(ValueError, match="got 7 images"):
            augment(name)(x, whole, within=(slice(0, 3), 7))


# ---- the cache


def test_a_cache_is_made_once_and_belongs_to_its_files(tree, tmp_path, decodes, capsys):
    given = settings(tree, cache=str(tmp_path / "cache"))
    load(given)
    assert sorted(decodes) == sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.png"))
    assert capsys.readouterr().err.count("caching 90 images of 1 x 8 x 8 once, 5.76 kB") == 1
    (place,) = (tmp_path / "cache").iterdir()
    assert {p.name for p in place.iterdir()} == {"train.npy", "test.npy", "index.json"}
    assert np.load(place / "train.npy", mmap_mode="r").shape == (80, 1, 8, 8)
    decodes.clear()
    load(replace(given, workers=1, limit=20))
    assert not decodes
    write(tree / "train", 1, ("cat",), seed=9)  # the same name, another content
    changed = load(given)
    assert len(decodes) == 90
    same(changed, load(replace(given, resident=True, cache=None)))


def test_a_cache_that_was_killed_continues(tree, decodes, monkeypatch):
    memory, counted = load(settings(tree, resident=True)), images.decode
    decodes.clear()

    def killed(*args):
        if len(decodes) == 20:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(images, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        load(settings(tree, workers=1))
    (half,) = (tree / ".atent-cache").iterdir()
    assert half.suffix == ".part"
    with open(half / "train.npy.jsonl", "a") as log:
        log.write('{"begin": 16, "sha')  # the process ended in the midst of a line
    monkeypatch.setattr(images, "decode", counted)
    decodes.clear()
    data = load(settings(tree))
    assert len(decodes) == 90 - 16
    same(memory, data)
    assert data.about == memory.about


def test_one_makes_the_cache_and_others_wait(tree, decodes):
    found, given = [], settings(tree, workers=1)
    threads = [threading.Thread(target=lambda: found.append(load(given))) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(decodes) == 90
    assert len(found) == 3
    same(found[0], found[2])


def test_data_that_do_not_fit_stay_on_disk(tree, monkeypatch, capsys):
    monkeypatch.setattr(loader, "_free", lambda: 90 * 64 * 3 * 2)
    assert isinstance(load(settings(tree, resident="auto")).train.x, torch.Tensor)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(loader, "_free", lambda: 90 * 64 * 3 * 2 - 1)
    assert isinstance(load(settings(tree, resident="auto")).train.x, Stored)
    assert "stay on disk" in capsys.readouterr().err.splitlines()[0]
    monkeypatch.undo()
    assert loader._free() is None or loader._free() > 2**20


# ---- one line for each failure


def fails(given, *parts, use=load):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        use(given)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


@pytest.mark.parametrize("how", [{}, {"resident": True}, {"cache": "off"}], ids=str)
def test_bad_images(tree, how):
    """In the file at fault's name, before anything is trained on it; of a cache nothing is left."""
    path, given = tree / "train" / "dog" / "007.png", settings(tree, **how)
    sound = path.read_bytes()

    def read(given):
        data = load(given)
        data.train.batch(range(len(data.train)))
        data.validation.batch(range(len(data.validation)))

    path.write_bytes(sound[:-40])
    fails(given, path, "not a readable image", use=read)
    path.write_bytes(b"")
    fails(given, path, "not a readable image", use=read)
    Image.new("L", (7, 5)).save(path)
    fails(given, path, "7 x 5 pixels", "8 x 8", "--data.size", use=read)
    Image.new("L", (8, 8)).save(path, save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    fails(given, path, "an animation of 2 images", use=read)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    fails(given, path, "I;16", use=read)
    if how == {"cache": "off"}:
        Image.new("RGB", (8, 8)).save(path)
        fails(given, path, "in colour", use=read)
    (tree / "train" / "emu").mkdir()
    fails(given, tree / "train" / "emu", "class without images", use=read)
    assert not (tree / ".atent-cache").is_dir() or not list((tree / ".atent-cache").iterdir())


def test_files_that_vanish_or_change(tree):
    """Decoded on the way they are missed; a cache needs them no more, and is itself watched."""
    data, cached = load(settings(tree, cache="off")), load(settings(tree))
    first = tree / "train" / "cat" / "000.png"
    every = range(len(data.train))
    shutil.copy(tree / "train" / "dog" / "001.png", first)
    fails(every, first, "has changed since", use=lambda i: (data.train.batch(i), data.validation.batch(range(8))))
    first.unlink()
    fails(every, first, "can no longer be read", use=lambda i: (data.train.batch(i), data.validation.batch(range(8))))
    cached.train.batch(every)
    (place,) = (tree / ".atent-cache").iterdir()
    with open(place / "train.npy", "r+b") as file:
        file.truncate(1000)
    fails(every, place / "train.npy", "has changed", use=cached.train.batch)
    (place / "train.npy").unlink()
    fails(every, place / "train.npy", "can no longer be read", use=cached.train.batch)


@pytest.mark.parametrize("harm", ["cut", "header", "index", "gone", "rows"])
def test_damaged_caches(tree, harm):
    load(settings(tree))
    (place,) = (tree / ".atent-cache").iterdir()
    path = place / "train.npy"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "header":
        path.write_bytes(b"\0" * 200)
    elif harm == "index":
        (place / "index.json").write_text('{"shape": 3')
    elif harm == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros((79, 1, 8, 8), np.uint8))
    fails(settings(tree), place, "is damaged", "remove that folder")
    shutil.rmtree(place)
    load(settings(tree))


def test_a_disk_without_room_or_permission(tree, monkeypatch):
    given, kept = settings(tree), tree / ".atent-cache"
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        fails(given, "needs 5.76 kB", "1 kB free", "data.cache")
    original = images.decoded

    def full(*args):
        if args[1].start >= 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(images, "_TOGETHER", 512)
        patch.setattr(cache, "decoded", full)
        fails(given, kept, os.strerror(errno.ENOSPC), "--data.cache off")
    assert not list(kept.glob("*"))
    (tree / "file").write_text("")
    fails(replace(given, cache=str(tree / "file")), tree / "file", "cannot write the cache", "--data.cache")
    if os.name != "nt" and os.geteuid() != 0:
        (tree / "closed").mkdir(mode=0o500)
        fails(replace(given, cache=str(tree / "closed")), tree / "closed", "Permission", "--data.cache")


@pytest.mark.parametrize("shape", [(3, 6, 4), (6, 4)], ids=str)
def test_arrays_on_disk(tmp_path, shape):
    """The images of an .npz file that is not compressed, whatever lies before them."""
    random, path = np.random.RandomState(0), tmp_path / "mine.npz"
    x, x_test = (random.randint(0, 256, (n, *shape), dtype=np.uint8) for n in (40, 12))
    made = {
        "y_train": np.arange(40) % 3,
        "x_train": x,
        "more": np.ones(5),
        "x_test": x_test,
        "y_test": np.arange(12) % 3,
    }
    np.savez(path, **made)
    given = DataSettings("npz", root=str(path), resident=False)
    disk, memory = load(given), load(DataSettings("npz", root=str(path)))
    assert isinstance(disk.train.x, Stored)
    same(memory, disk)
    assert disk.about == memory.about
    for changes, what in (
        ({"x_train": x / 255}, "float64"),
        ({"x_train": np.asfortranarray(x)}, "Fortran"),
        ({"x_train": x[:39]}, "40 labels"),
        ({"x_train": x.reshape(40, -1)}, "(40, "),
        ({"x_test": x_test[:, :, :3]}, "x_test"),
    ):
        np.savez(path, **{**made, **changes})
        fails(given, path, what)
    np.savez(path, **{k: v for k, v in made.items() if k != "x_test"})
    fails(given, path, "x_test not in the file")
    np.savez_compressed(path, **made)
    fails(given, path, "x_train is compressed", "numpy.savez")
    path.write_bytes(path.read_bytes()[:300])
    fails(given, path)
    fails(replace(given, cache="off"), "data.cache", "npz")


def test_settings_without_effect(tree):
    for name, value in (("resident", False), ("workers", 2), ("size", 8), ("cache", "off")):
        fails(DataSettings(**{name: value}), f"data.{name}", "digits", "folder")
    load(DataSettings(resident=True, limit=20, test_limit=10, validation=20))
    fails(settings(tree, size=0), "data.size is 0")
    fails(settings(tree, workers=-1), "data.workers is -1")
    fails(settings(tree, resident=True, cache="off"), "data.cache off", "data.resident true")


# ---- the commands


def test_the_commands_take_data_on_disk(tree, tmp_path, monkeypatch, capsys):
    """Trained from disk, evaluated, attacked and certified: with the numbers of a run in memory."""
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(
        f"""
        extends = "digits-linf-pgdat"
        [data]
        name = "folder"
        root = {json.dumps(str(tree))}
        validation = 8
        resident = false
        size = 16
        [model]
        name = "small_cnn"
        [train]
        epochs = 1
        batch_size = 16
        validate_limit = 6
        validate_attack = "none"
        device = "cpu"
        [method]
        steps = 1
        [evaluate]
        attacks = ["FGSM"]
        """
    )
    for name, more in (("disk", []), ("memory", ["--data.resident", "true"])):
        words = ["train", "own.toml", "--name", name, "--no_baseline", "--quiet", *more]
        assert main(words) == 0, capsys.readouterr().err
    rows = {}
    for name in ("disk", "memory"):
        run = str(Path("runs") / name)
        for words in (
            ["evaluate", run, "--limit", "6", "--corruptions"],
            ["attack", run, "--limit", "6", "--attack", "FGSM", "--out", f"{name}.npz"],
            ["certify", run, "--limit", "2", "--n", "100", "--sigma", "0.25"],
        ):
            assert main([*words, "--quiet"]) == 0, capsys.readouterr().err
        found = [json.loads(p.read_text()) for p in sorted(Path(run).glob("evaluation*.json"))]
        certified = (Path(run) / "certificate.csv").read_text().splitlines()
        times = certified[0].split("\t").index("time")
        corrupted = [each["corruptions"]["rows"] for each in found if "corruptions" in each]
        assert len(corrupted) == 1
        with np.load(f"{name}.npz") as stored:
            crafted = {key: stored[key].tolist() for key in ("x_adv", "x", "y", "ids", "success")}
        rows[name] = (
            [each["outcomes"] for each in found], [row.split("\t")[:times] for row in certified], corrupted, crafted
        )  # fmt: skip
        config = json.loads((Path(run) / "config.json").read_text())
        assert config["data"]["resident"] is (name == "memory")
    assert rows["disk"] == rows["memory"]
    assert main(["compare", "runs/disk", "runs/memory", "--name", "both", "--quiet"]) == 0, capsys.readouterr().err
    table = json.loads(Path("runs/both/comparison.json").read_text())
    one, other = ({key: row[key] for key in ("clean", "attacks")} for row in table["rows"])
    assert one == other


# ---- memory

GROWN = """
import sys, torch
from atent.data import DataSettings, load
from atent.methods import Standard
from atent.train import TrainSettings, fit
torch.set_num_threads(1)
data = load(DataSettings("folder", root=sys.argv[1], resident=sys.argv[2] == "true", validation=10))
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten(), torch.nn.Linear(48, 2))
given = TrainSettings(epochs=1, batch_size=16, validate_limit=10, validate_attack="none", device="cpu")
fit(net, data, Standard(), settings=given, progress=False)
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """80 and 1,280 images of 256 x 256: 250 MB more on disk."""
    peaks = {}
    for n in (80, 1280):
        root = tmp_path / str(n)
        write(root / "train", 5, size=(256, 256), mode="RGB", suffix="bmp")
        write(root / "test", 5, size=(256, 256), mode="RGB", suffix="bmp")
        for name in ("cat", "dog"):
            for i in range(5, n // 2):
                os.link(root / "train" / name / "000.bmp", root / "train" / name / f"{i:04}.bmp")
        for resident in ("false", "true") if n == 1280 else ("false",):
            done = subprocess.run(
                [sys.executable, "-c", GROWN, str(root), resident], capture_output=True, text=True, env=environment()
            )
            assert done.returncode == 0, done.stderr
            peaks[n, resident] = int(done.stdout) / 1000
    print(peaks)
    assert peaks[1280, "true"] - peaks[80, "false"] > 150
    assert peaks[1280, "false"] - peaks[80, "false"] < 60


def test_the_page_runs(tmp_path, monkeypatch):
    """docs/large-data.md: its Python runs as it is, and its command takes the images that it makes."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "large-data.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "docs/large-data.md", "exec"), names)
    assert names["data"].shape == (3, 16, 16)
    assert isinstance(names["data"].train.x, Stored)
    assert len(names["fitted"].history) == 1
    assert names["x"].shape[1:] == names["data"].shape
    (command,) = re.findall(r"```bash\natent train (.*?)\n```", text, re.S)
    given = train_job(*shlex.split(command)).data
    assert load(given).shape == (3, 64, 64)
