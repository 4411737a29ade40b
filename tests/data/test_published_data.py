"""CIFAR-100, SVHN, Tiny-ImageNet and ImageNet, in small files of the published layouts."""

import lzma

import numpy as np
import pytest
import scipy.io
import torch
from kit import fails

from atent.data import DataSettings, load

WNIDS = ("n01443537", "n01629819", "n02124075")


# --- CIFAR-100


def write_cifar100(folder, suffix=".bin"):
    """Two records of each class for training, one for the test; the coarse label is one that no class equals."""
    folder.mkdir(parents=True, exist_ok=True)
    random, made = np.random.RandomState(0), {}
    for part, n in (("train", 200), ("test", 100)):
        rows = random.randint(0, 256, (n, 3074)).astype(np.uint8)
        rows[:, 0], rows[:, 1] = 19, random.permutation(n) % 100
        pack = lzma.compress if suffix.endswith(".xz") else bytes
        (folder / f"{part}{suffix}").write_bytes(pack(rows.tobytes()))
        made[part] = rows
    (folder / "fine_label_names.txt").write_text("".join(f"name_{i}\n" for i in range(100)) + "\n")
    return made


@pytest.mark.parametrize(("folder", "suffix"), [("cifar100", ".bin.xz"), ("cifar-100-binary", ".bin"), (".", ".bin")])
def test_cifar100_is_found_and_read(tmp_path, folder, suffix):
    made = write_cifar100(tmp_path / folder, suffix)
    data = load(DataSettings("cifar100", root=str(tmp_path), validation=100))
    ids = data.train.ids.numpy()
    assert (data.classes, data.shape, len(data.validation)) == (100, (3, 32, 32), 100)
    assert np.array_equal(data.train.x.numpy().reshape(-1, 3072), made["train"][ids, 2:])
    assert np.array_equal(data.train.y.numpy(), made["train"][ids, 1])
    assert np.array_equal(data.test.x.numpy().reshape(-1, 3072), made["test"][:, 2:])
    assert np.array_equal(data.test.y.numpy(), made["test"][:, 1])
    assert data.about["class_names"][7] == "name_7"
    assert len(data.about["files"]) == 3


def test_bad_cifar100(tmp_path):
    given = {"name": "cifar100", "root": str(tmp_path)}
    fails(FileNotFoundError, "train.bin", tmp_path / "cifar-100-binary", "www.cs.toronto.edu", "--data.root", **given)
    made = write_cifar100(tmp_path)["train"]
    names = tmp_path / "fine_label_names.txt"
    names.write_text("apple\n")
    fails(ValueError, names, "1 names", "100", **given)
    names.unlink()
    assert load(DataSettings(**given)).about["class_names"] is None
    path = tmp_path / "train.bin"
    path.write_bytes(made.tobytes()[:-1])
    fails(ValueError, path, "3074", **given)
    made[3, 1] = 100
    path.write_bytes(made.tobytes())
    fails(ValueError, path, "0 to 99", **given)
    made[:, 1] = 5
    path.write_bytes(made.tobytes())
    fails(ValueError, path, "class 0", **given)
    (tmp_path / "test.bin").unlink()
    fails(FileNotFoundError, "test.bin", **given)


# --- SVHN


def svhn_arrays(n=40, seed=0):
    random = np.random.RandomState(seed)
    y = (random.permutation(n) % 10 + 1).astype(np.uint8)[:, None]
    return {"X": random.randint(0, 256, (32, 32, 3, n)).astype(np.uint8), "y": y}


def write_svhn(folder, **train):
    folder.mkdir(exist_ok=True)
    made = {"train": {**svhn_arrays(), **train}, "test": svhn_arrays(20, 1)}
    for part, arrays in made.items():
        scipy.io.savemat(folder / f"{part}_32x32.mat", arrays, do_compression=True)
    return made


@pytest.mark.parametrize("folder", ["svhn", "."])
def test_svhn_is_found_and_read(tmp_path, folder):
    made = write_svhn(tmp_path / folder)
    data = load(DataSettings("svhn", root=str(tmp_path), validation=10))
    assert (data.classes, data.shape, len(data.test)) == (10, (3, 32, 32), 20)
    for split, part in ((data.train, "train"), (data.test, "test")):
        for i in (0, 9):
            pixels = made[part]["X"][:, :, :, split.ids[i]]
            assert np.array_equal(split.x[i].numpy().transpose(1, 2, 0), pixels)
            label = int(made[part]["y"][split.ids[i], 0])
            assert int(split.y[i]) == (0 if label == 10 else label)
    assert data.about["class_names"][3] == "3"


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ({"X": np.zeros((32, 32, 3, 40))}, ("X is float64", "uint8 (32, 32, 3, n)")),
        ({"X": np.zeros((40, 32, 32, 3), np.uint8)}, ("X is uint8 (40, 32, 32, 3)",)),
        ({"y": np.ones((39, 1), np.uint8)}, ("y is uint8 (39, 1)", "(40, 1)")),
        ({"y": svhn_arrays()["y"] - 1}, ("1 to 10",)),
        ({"y": np.ones((40, 1), np.uint8)}, ("class 0",)),
    ],
)
def test_bad_svhn(tmp_path, train, parts):
    write_svhn(tmp_path, **train)
    fails(ValueError, tmp_path / "train_32x32.mat", *parts, name="svhn", root=str(tmp_path))


def test_svhn_files_that_are_none(tmp_path, monkeypatch):
    given = {"name": "svhn", "root": str(tmp_path)}
    fails(FileNotFoundError, "train_32x32.mat", tmp_path / "svhn", "ufldl.stanford.edu", "--data.root", **given)
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        fails(ValueError, path, "not a MATLAB file", **given)
    scipy.io.savemat(path, {"X": svhn_arrays()["X"]})
    fails(ValueError, path, "y", **given)
    # Zeros packed by a thousand: what the header promises is refused before it is unpacked.
    scipy.io.savemat(path, {**svhn_arrays(), "X": np.zeros((32, 32, 3, 2000), np.uint8)}, do_compression=True)
    monkeypatch.setenv("ATENT_DATA_LIMIT", "0.002")
    fails(ValueError, path, "6,144,000 bytes", "ATENT_DATA_LIMIT", **given)


# --- Tiny-ImageNet and ImageNet


def image(path, shade, size=(8, 8)):
    """A JPEG file in one shade."""
    pillow = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", size, (shade, shade, shade)).save(path, format="JPEG")


def write_tiny(root):
    """A class's shade is 40 times its number in order of wnid, and the validation images are in another order."""
    for label, wnid in enumerate(WNIDS):
        for i in range(6):
            image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 40 * label)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for i, label in enumerate((2, 0, 1, 2)):
        image(root / "val" / "images" / f"val_{i}.JPEG", 40 * label)
        lines.append(f"val_{i}.JPEG\t{WNIDS[label]}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    image(root / "test" / "images" / "test_0.JPEG", 250)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n"
    )


@pytest.mark.parametrize(("folder", "resident"), [("tiny-imagenet-200", True), (".", False)])
def test_tiny_imagenet(tmp_path, folder, resident):
    write_tiny(tmp_path / folder)
    data = load(DataSettings("tiny-imagenet", root=str(tmp_path), validation=3, resident=resident))
    assert (data.classes, data.shape, len(data.train)) == (3, (3, 8, 8), 15)
    assert data.test.y.tolist() == [2, 0, 1, 2]
    for split in (data.train, data.validation, data.test):
        x, y = split.batch(torch.arange(len(split)))
        assert torch.equal((x[:, 0, 0, 0] * 255 / 40).round().long(), y)
    assert data.about["class_names"] == ["goldfish, Carassius auratus", "n01629819", "Egyptian cat"]
    assert data.about["files"]["test"]["files"] == 4


def test_bad_tiny_imagenet(tmp_path):
    given = {"name": "tiny-imagenet", "root": str(tmp_path)}
    fails(FileNotFoundError, "train", tmp_path / "tiny-imagenet-200", "cs231n.stanford.edu", "--data.root", **given)
    write_tiny(tmp_path)
    lines = tmp_path / "val" / "val_annotations.txt"
    text = lines.read_text()
    for line in (
        "val_9.JPEG n01443537",
        "val_1.JPEG\tn09999999\t0",
        "../../train/x.JPEG\tn01443537",
        "a.txt\tn01443537",
    ):
        lines.write_text(f"{text}{line}\n")
        fails(ValueError, f"{lines}, line 5", "a tab and a wnid", **given)
    lines.write_text(f"{text}val_9.JPEG\tn01443537\n")
    fails(FileNotFoundError, f"{lines}, line 5", "val_9.JPEG", **given)
    lines.write_text("")
    fails(ValueError, lines, "no lines", **given)
    lines.unlink()
    fails(FileNotFoundError, lines, "cs231n.stanford.edu", **given)
    lines.write_text(text)
    (tmp_path / "val" / "images" / "val_2.JPEG").write_bytes(b"none")
    fails(ValueError, "val_2.JPEG", "not a readable image", **given)
    (tmp_path / "train" / WNIDS[1] / "images").rename(tmp_path / "train" / WNIDS[1] / "pictures")
    fails(ValueError, tmp_path / "train" / WNIDS[1] / "images", "not a folder", **given)


def write_imagenet(root):
    """Images of many sizes; the shade says the class, as of `write_tiny`."""
    for part, n in (("train", 5), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            for i in range(n):
                name = f"{wnid}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{label + 3 * i:08}.JPEG"
                image(root / part / wnid / name, 40 * label, (9 + i, 12))


@pytest.mark.parametrize(("folder", "resident"), [("imagenet", True), (".", False)])
def test_imagenet(tmp_path, folder, resident):
    write_imagenet(tmp_path / folder)
    data = load(DataSettings("imagenet", root=str(tmp_path), size=6, validation=3, resident=resident))
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (3, (3, 6, 6), 12, 6)
    for split in (data.train, data.validation, data.test):
        x, y = split.batch(torch.arange(len(split)))
        assert torch.equal((x[:, 0, 0, 0] * 255 / 40).round().long(), y)
    assert data.about["class_names"] == list(WNIDS)
    (tmp_path / folder / "LOC_synset_mapping.txt").write_text("n01443537 goldfish, Carassius auratus\n")
    data = load(DataSettings("imagenet", root=str(tmp_path), size=6))
    assert data.about["class_names"] == ["goldfish, Carassius auratus", *WNIDS[1:]]


def test_bad_imagenet(tmp_path):
    given = {"name": "imagenet", "root": str(tmp_path), "size": 6}
    fails(FileNotFoundError, "train", tmp_path / "imagenet", "image-net.org", "--data.root", **given)
    write_imagenet(tmp_path)
    fails(ValueError, "--data.size", **{**given, "size": None})
    (tmp_path / "val" / WNIDS[2]).rename(tmp_path / "val" / "n09999999")
    fails(ValueError, WNIDS[2], "only one of train and val", **given)
    (tmp_path / "val").rename(tmp_path / "sorted")
    fails(FileNotFoundError, tmp_path / "val", "image-net.org", **given)
    image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    fails(FileNotFoundError, tmp_path / "val", "val/<wnid>", **given)
