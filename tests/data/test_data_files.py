"""IDX files, CIFAR-10's, and the real files, which are read where ATENT_DATA_ROOT is set."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import CIFAR_BATCHES, counts, idx_bytes, write_cifar, write_idx
from kit import fails

from atent.data import DataSettings, load


@pytest.fixture(scope="module")
def real():
    root = os.environ.get("ATENT_DATA_ROOT")
    if not root:
        pytest.skip("ATENT_DATA_ROOT is not set: no real data files")

    def loaded(name, **settings):
        if not (Path(root) / name).is_dir():
            pytest.skip(f"no {name} under ATENT_DATA_ROOT")
        return load(DataSettings(name, **settings))

    return loaded


# --- IDX ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("place", ["own", "torchvision", "root"])
def test_idx_is_found_and_read(tmp_path, name, pack, place):
    raw = "MNIST/raw" if name == "mnist" else "FashionMNIST/raw"
    made = write_idx(tmp_path / {"own": name, "torchvision": raw, "root": "."}[place], pack)
    data = load(DataSettings(name, root=str(tmp_path)))
    assert (data.shape, data.classes, len(data.validation)) == ((1, 5, 4), 10, 4)
    assert np.array_equal(data.test.x.numpy()[:, 0], made["t10k_images"])
    assert np.array_equal(data.train.x.numpy()[:, 0], made["train_images"][data.train.ids.numpy()])
    assert np.array_equal(data.train.y.numpy(), made["train_labels"][data.train.ids.numpy()])
    assert data.train.scale == 255
    assert not data.about["verified"]
    assert len(data.about["files"]) == 4


def test_root_comes_from_the_environment_then_from_data(tmp_path, monkeypatch):
    write_idx(tmp_path / "data" / "mnist")
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load(DataSettings("mnist")).shape == (1, 5, 4)
    monkeypatch.setenv("ATENT_DATA_ROOT", str(tmp_path / "nowhere"))
    fails(FileNotFoundError, "nowhere", name="mnist")
    assert load(DataSettings("mnist", root="data")).shape == (1, 5, 4)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "npz", "folder"])
def test_absent_data_says_what_where_and_how_to_fix(tmp_path, name):
    fails(
        FileNotFoundError,
        tmp_path / "no",
        "--data.root",
        "ATENT_DATA_ROOT",
        name=name,
        root=str(tmp_path / "no"),
    )


def test_one_absent_idx_file_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    fails(FileNotFoundError, "t10k-labels-idx1-ubyte.gz", tmp_path, name="mnist", root=str(tmp_path))


IMAGES = np.zeros((40, 5, 4), np.uint8)
LABELS = np.arange(40) % 10


@pytest.mark.parametrize(
    ("replaced", "parts"),
    [
        ({"train_images": idx_bytes(IMAGES, 2052)}, ("train-images", "2052", "2051")),
        ({"train_labels": idx_bytes(LABELS, 2051)}, ("train-labels", "2051", "2049")),
        ({"train_images": idx_bytes(IMAGES)[:-1]}, ("train-images", "799", "800")),
        ({"train_images": idx_bytes(IMAGES) + b"0"}, ("train-images", "801", "800")),
        ({"train_images": b"\0\0"}, ("train-images", "2 bytes", "16")),
        ({"train_images": b""}, ("train-images", "0 bytes", "16")),
        ({"t10k_labels": idx_bytes(LABELS[:19])}, ("t10k-labels", "19 labels", "20 images")),
        ({"t10k_images": idx_bytes(np.zeros((20, 4, 5)))}, ("t10k-images", "(4, 5)", "(5, 4)")),
        ({"t10k_images": idx_bytes(np.zeros((0, 5, 4)))}, ("t10k-images", "0 values")),
        ({"train_labels": idx_bytes(LABELS + 1)}, ("train-labels", "10", "0 to 9")),
        ({"train_labels": idx_bytes(LABELS % 9)}, ("train-labels", "class 9")),
    ],
)
def test_bad_idx(tmp_path, replaced, parts):
    write_idx(tmp_path, **replaced)
    fails(ValueError, *parts, name="mnist", root=str(tmp_path))


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:60] + b"\xff" * 40 + b[100:], lambda b: b"no gzip"])
def test_damaged_gzip(tmp_path, damage):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    fails(ValueError, path, "damaged", name="mnist", root=str(tmp_path))


# --- CIFAR-10 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "suffix"), [("cifar10", ".bin.xz"), ("cifar-10-batches-bin", ".bin"), (".", ".bin.xz")]
)
def test_cifar_is_found_and_read(tmp_path, folder, suffix):
    made = write_cifar(tmp_path / folder, suffix)
    data = load(DataSettings("cifar10", root=str(tmp_path), validation=3))
    rows = np.concatenate([made[name] for name in CIFAR_BATCHES[:5]])
    ids = data.train.ids.numpy()
    assert data.shape == (3, 32, 32)
    assert np.array_equal(data.train.x.numpy().reshape(-1, 3072), rows[ids, 1:])
    assert np.array_equal(data.train.y.numpy(), rows[ids, 0])
    assert np.array_equal(data.test.x.numpy().reshape(-1, 3072), made["test_batch"][:, 1:])
    assert data.about["missing"] is None
    assert data.about["test"] == "official"


def test_cifar_counts_what_is_missing(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "missing.csv").write_text("file,position,label\ndata_batch_2,5,8\ntest_batch,7,8\ntest_batch,9,7\n")
    about = load(DataSettings("cifar10", root=str(tmp_path))).about
    assert about["missing"] == {"records": 3, "train": 1, "test": 2, "classes": {"horse": 1, "ship": 2}}
    (tmp_path / "missing.csv").write_text("file,position,label\ndata_batch_2,5,12\n")
    fails(ValueError, "missing.csv", name="cifar10", root=str(tmp_path))


ROWS = np.zeros((4, 3073), np.uint8)


@pytest.mark.parametrize("suffix", [".bin", ".bin.xz"])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (ROWS.tobytes()[:-1], ("data_batch_3.bin", "12291 bytes", "3073")),
        (b"", ("data_batch_3.bin", "0 bytes", "3073")),
        (np.full_like(ROWS, 11).tobytes(), ("data_batch_3.bin", "11", "0 to 9")),
    ],
)
def test_bad_cifar(tmp_path, suffix, content, parts):
    write_cifar(tmp_path, suffix, data_batch_3=content)
    fails(ValueError, *parts, name="cifar10", root=str(tmp_path))


def test_cifar_class_without_records(tmp_path):
    write_cifar(tmp_path, n=1)
    fails(ValueError, "class 5", name="cifar10", root=str(tmp_path))


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:200], lambda b: b"", lambda b: b"plain bytes"])
def test_damaged_xz(tmp_path, damage):
    write_cifar(tmp_path, ".bin.xz")
    path = tmp_path / "test_batch.bin.xz"
    path.write_bytes(damage(path.read_bytes()))
    fails(ValueError, path, "damaged", name="cifar10", root=str(tmp_path))


def test_one_absent_batch_is_named(tmp_path):
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_4.bin").unlink()
    fails(FileNotFoundError, "data_batch_4.bin.xz or data_batch_4.bin", name="cifar10", root=str(tmp_path))


# --- real files --------------------------------------------------------------------------------------------

REAL = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion-mnist": ([6000] * 10, [1000] * 10),
    "cifar10": ([5000] * 7 + [4996, 4932, 5000], [1000] * 7 + [999, 981, 1000]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(real, name):
    data = real(name)
    train, test = REAL[name]
    assert np.add(counts(data.train), counts(data.validation)).tolist() == train
    assert counts(data.test) == test
    assert len(data.validation) == 1000
    assert data.about["verified"]
    assert torch.equal(torch.cat([data.train.ids, data.validation.ids]).sort().values, torch.arange(sum(train)))
    assert torch.equal(data.test.ids, torch.arange(sum(test)))
    x, _ = data.validation.batch(torch.arange(1000))
    assert x.min() == 0
    assert x.max() == 1
    if name == "cifar10":
        missing = {"records": 92, "train": 72, "test": 20, "classes": {"horse": 5, "ship": 87}}
        assert data.about["missing"] == missing
        pixels = torch.cat([data.train.x, data.validation.x])
        # Summed channel by channel in integers: float copies of 50,000 images would take 600 MB.
        mean = [pixels[:, c].sum().item() / (255 * pixels[:, c].numel()) for c in range(3)]
        assert np.allclose(mean, [0.4914, 0.4821, 0.4464], atol=6e-5)
    else:
        assert data.about["missing"] is None
        assert data.shape == (1, 28, 28)


def test_mnist_is_not_taken_for_fashion(real):
    real("mnist", test_limit=1)
    folder = Path(os.environ["ATENT_DATA_ROOT"]) / "mnist"
    fails(ValueError, folder, "file of mnist", name="fashion-mnist", root=str(folder))
