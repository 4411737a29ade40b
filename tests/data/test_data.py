"""Sources, splits and augmentations. Real files are read where ATENT_DATA_ROOT is set."""

import gzip
import importlib.util
import json
import lzma
import os
import pickle
import struct
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import fails

from atent.data import AUGMENTATIONS, SOURCES, Data, DataSettings, Split, augment, from_tensors, load
from atent.data.digits import _arrays

CIFAR_BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


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


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings())


def counts(split, classes=10):
    return torch.bincount(split.y, minlength=classes).tolist()


# --- synthetic files ---------------------------------------------------------------------------------------


def idx_bytes(array, magic=None):
    magic = magic or (2051 if array.ndim == 3 else 2049)
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, pack=True, n=40, test=20, **replaced):
    """Four IDX files of random 5 x 4 images, ten classes in turn; `replaced` sets the bytes of one."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    arrays = {}
    for part, size in (("train", n), ("t10k", test)):
        arrays[f"{part}_images"] = random.randint(0, 256, (size, 5, 4)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(size) % 10
    for key, array in arrays.items():
        part, kind = key.split("_")
        name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        content = replaced.get(key, idx_bytes(array))
        (folder / (name + ".gz" if pack else name)).write_bytes(gzip.compress(content) if pack else content)
    return arrays


def write_cifar(folder, suffix=".bin", n=4, **replaced):
    """Six batches of n random records with labels in turn; returns {batch: (n, 3073) array}."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    batches = {}
    for i, name in enumerate(CIFAR_BATCHES):
        rows = random.randint(0, 256, (n, 3073)).astype(np.uint8)
        rows[:, 0] = (n * i + np.arange(n)) % 10
        batches[name] = rows
        content = replaced.get(name, rows.tobytes())
        (folder / (name + suffix)).write_bytes(lzma.compress(content) if suffix == ".bin.xz" else content)
    return batches


def arrays(n=30, test=9, classes=3, shape=(6, 5), dtype=np.uint8):
    random = np.random.RandomState(0)
    out = {}
    for part, size in (("train", n), ("test", test)):
        x = random.randint(0, 256, (size, *shape))
        out[f"x_{part}"] = x.astype(np.uint8) if dtype == np.uint8 else (x / 255).astype(dtype)
        out[f"y_{part}"] = np.arange(size) % classes
    return out


def write_npz(path, **values):
    np.savez(path, **values)
    return str(path)


def write_images(root, classes=("cat", "dog"), n=6, size=(4, 3), mode="L"):
    image = pytest.importorskip("PIL.Image")
    random = np.random.RandomState(len(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            image.fromarray(random.randint(0, 256, shape).astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return str(root)


# --- the tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [255.0, 16.0])
def test_batch_is_the_exact_quotient(scale):
    values = torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4)
    split = Split(values, torch.arange(16), torch.arange(16) + 100, scale)
    index = torch.tensor([3, 0, 15, 3])
    x, y = split.batch(index)
    expected = values.numpy()[index.numpy()].astype(np.float32) / np.float32(scale)
    assert x.dtype == torch.float32
    assert y.tolist() == [3, 0, 15, 3]
    assert np.array_equal(x.numpy(), expected)


def test_digits_are_those_of_scikit_learn(monkeypatch):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    read = _arrays()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for x, y in (read, _arrays()):
        assert x.dtype == np.uint8
        assert np.array_equal(x[:, 0], bunch.images)
        assert np.array_equal(y, bunch.target)


def test_batch_is_float32_under_another_default_type(digits):
    torch.set_default_dtype(torch.float64)
    try:
        assert digits.train.batch([0, 1])[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_float_split_gives_its_values_back():
    split = Split(torch.rand(5, 2), torch.zeros(5, dtype=torch.int64), torch.arange(5), None)
    assert torch.equal(split.batch([4, 1])[0], split.x[[4, 1]])
    assert split.batch([])[0].shape == (0, 2)


def test_take_and_first_keep_ids(digits):
    taken = digits.train.take(torch.tensor([7, 2, 2]))
    assert len(taken) == 3
    assert torch.equal(taken.ids, digits.train.ids[[7, 2, 2]])
    assert torch.equal(taken.x, digits.train.x[[7, 2, 2]])
    assert torch.equal(digits.test.first(4).ids, digits.test.ids[:4])
    assert len(digits.test.first(10**6)) == 500
    assert len(digits.test.first(0)) == 0
    with pytest.raises(ValueError, match="-1"):
        digits.test.first(-1)


def test_to_moves_all_tensors(digits):
    moved = digits.to("meta")
    for name in ("train", "validation", "test"):
        split = getattr(moved, name)
        assert {split.x.device.type, split.y.device.type, split.ids.device.type} == {"meta"}
    assert moved.about == digits.about


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(3, 1, 2, 2)},
        {"x": torch.zeros(3, 2, 2, dtype=torch.uint8)},
        {"y": torch.zeros(2, dtype=torch.int64)},
        {"y": torch.zeros(3)},
        {"ids": torch.zeros(4, dtype=torch.int64)},
        {"scale": None},
    ],
)
def test_split_refuses_what_does_not_fit(change):
    good = Split(
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.int64),
        torch.arange(3),
        255.0,
    )
    with pytest.raises(ValueError, match=next(iter(change)).replace("scale", "x is")):
        replace(good, **change)


# --- digits and moons --------------------------------------------------------------------------------------


def test_digits(digits):
    from sklearn.datasets import load_digits

    assert isinstance(digits, Data)
    assert (digits.name, digits.classes, digits.shape, digits.box) == ("digits", 10, (1, 8, 8), (0.0, 1.0))
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1097, 200, 500]
    bunch = load_digits()
    for split in (digits.train, digits.validation, digits.test):
        ids = split.ids.numpy()
        x, y = split.batch(torch.arange(len(split)))
        assert np.array_equal(x.numpy()[:, 0], (bunch.images[ids] / 16).astype(np.float32))
        assert np.array_equal(y.numpy(), bunch.target[ids])
        assert x.min() == 0
        assert x.max() == 1
    everything = torch.cat([digits.train.ids, digits.validation.ids, digits.test.ids])
    assert torch.equal(everything.sort().values, torch.arange(1797))
    assert digits.about["verified"]


def test_digits_test_set_never_changes(digits):
    # Written down so that a release that moves the test set is noticed.
    assert counts(digits.test) == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert digits.test.ids[:5].tolist() == [8, 9, 11, 13, 17]
    other = load(DataSettings(split_seed=7, validation=50, limit=20))
    assert torch.equal(other.test.ids, digits.test.ids)


def test_moons():
    data = load(DataSettings("moons"))
    assert (data.classes, data.shape, data.box) == (2, (2,), (-2.0, 3.0))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1800, 200, 1000]
    x = torch.cat([s.batch(torch.arange(len(s)))[0] for s in (data.train, data.validation, data.test)])
    assert x.dtype == torch.float32
    assert x.min() > -1.6
    assert x.max() < 2.6
    assert counts(data.test, 2) == [500, 500]
    assert torch.equal(load(DataSettings("moons", split_seed=3)).test.x, data.test.x)


# --- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_validation_is_disjoint_stratified_and_reproducible(digits, seed):
    a, b = (load(DataSettings(split_seed=seed, validation=133)) for _ in range(2))
    assert torch.equal(a.validation.ids, b.validation.ids)
    assert torch.equal(a.train.x, b.train.x)
    assert len(a.validation) == 133
    both = torch.cat([a.train.ids, a.validation.ids])
    whole = torch.cat([digits.train.ids, digits.validation.ids])
    assert torch.equal(both.sort().values, whole.sort().values)
    total = np.add(counts(a.train), counts(a.validation))
    assert np.all(np.abs(np.array(counts(a.validation)) - 133 * total / total.sum()) < 1.1)
    assert a.about["split"] == {"seed": seed, "validation": 133, "stratified": True}


def test_seeds_give_different_splits(digits):
    other = load(DataSettings(split_seed=1))
    assert not torch.equal(other.validation.ids, digits.validation.ids)


@pytest.mark.parametrize("limit", [1, 100, 1096, 1097, 10**6])
def test_limit_leaves_validation_and_test_alone(digits, limit):
    data = load(DataSettings(limit=limit))
    assert len(data.train) == min(limit, 1097)
    assert torch.equal(data.validation.ids, digits.validation.ids)
    assert torch.equal(data.test.ids, digits.test.ids)
    assert set(data.train.ids.tolist()) <= set(digits.train.ids.tolist())
    assert data.train.ids.unique().tolist() == data.train.ids.tolist()
    if limit == 100:
        assert max(counts(data.train)) - min(counts(data.train)) <= 2
        assert torch.equal(load(DataSettings(limit=limit)).train.ids, data.train.ids)
        assert not torch.equal(data.train.ids, digits.train.ids[:100])


def test_test_limit_is_a_stratified_sample(digits):
    first = load(DataSettings(test_limit=30, subset="first"))
    assert torch.equal(first.test.ids, digits.test.ids[:30])
    data = load(DataSettings(test_limit=30))
    assert torch.equal(data.test.ids, digits.sample("test", 30).ids)
    assert counts(data.test) == [3] * 10
    assert data.about["counts"] == {"train": 1097, "validation": 200, "test": 30}
    assert data.about["available"] == {"train": 1297, "test": 500}


def test_largest_validation_leaves_one_of_each_class():
    assert counts(load(DataSettings(validation=1287)).train) == [1] * 10


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"validation": 1288}, ("1288", "1297", "1287")),
        ({"validation": 0}, ("data.validation", "0")),
        ({"validation": -3}, ("data.validation", "-3")),
        ({"limit": 0}, ("data.limit", "0")),
        ({"limit": -1}, ("data.limit", "-1")),
        ({"test_limit": 0}, ("data.test_limit", "0")),
        ({"split_seed": -1}, ("data.split_seed", "-1")),
        ({"name": "minst"}, ("'minst'", "did you mean 'mnist'", "cifar10")),
        ({"name": "qqqqqqq"}, ("'qqqqqqq'", "known: cifar10")),
        ({"augment": "crop-flop"}, ("'crop-flop'", "did you mean 'crop-flip'")),
        ({"name": "moons", "augment": "flip"}, ("'flip'", "moons", "'none'")),
    ],
)
def test_settings_out_of_range(settings, parts):
    fails(ValueError, *parts, **settings)


def test_unknown_name_without_a_near_one_offers_none():
    assert "did you mean" not in fails(ValueError, name="qqqqqqq")


def test_about_is_plain_json(digits, tmp_path):
    write_cifar(tmp_path)
    for data in (digits, load(DataSettings("moons")), load(DataSettings("cifar10", root=str(tmp_path)))):
        text = json.dumps(data.about)
        assert json.loads(text) == data.about
        assert str(tmp_path) not in text
        assert {"source", "files", "counts", "split", "missing", "class_names", "verified"} <= set(data.about)


def test_settings_name_every_source_and_augmentation():
    text = Path(sys.modules[DataSettings.__module__].__file__).read_text()
    for name in (*SOURCES, *AUGMENTATIONS):
        assert name in text
    for field in fields(DataSettings):
        after = text.split(f"\n    {field.name}: ")[1].split("\n", 1)[1]
        assert after.lstrip().startswith('"""')


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


# --- npz ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (3, 6, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz(tmp_path, shape, dtype):
    made = arrays(shape=shape, dtype=dtype)
    data = load(DataSettings("npz", root=write_npz(tmp_path / "own.npz", **made)))
    assert data.classes == 3
    assert data.shape == (shape if len(shape) == 3 else (1, *shape))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [27, 3, 9]
    x, y = data.test.batch(torch.arange(9))
    expected = made["x_test"].astype(np.float32) / np.float32(255 if dtype == np.uint8 else 1)
    assert np.array_equal(x.numpy().reshape(expected.shape), expected)
    assert y.tolist() == made["y_test"].tolist()
    assert list(data.about["files"]) == ["own.npz"]


def changed(key, change, **kind):
    made = arrays(**kind)
    made[key] = change(made[key])
    return made


def with_value(value):
    def change(x):
        x = x.copy()
        x.flat[3] = value
        return x

    return change


FLOAT = {"dtype": np.float32}


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (changed("x_train", with_value(np.nan), **FLOAT), ("x_train", "1 values are NaN")),
        (changed("x_test", with_value(np.inf), **FLOAT), ("x_test", "infinite")),
        (changed("x_train", with_value(1.5), **FLOAT), ("x_train", "1.5", "[0, 1]")),
        (changed("x_train", with_value(-0.5), **FLOAT), ("x_train", "-0.5", "[0, 1]")),
        (changed("x_train", lambda x: x.astype(np.int64)), ("x_train", "int64", "uint8")),
        (changed("x_train", lambda x: x.reshape(30, 30)), ("x_train", "(30, 30)", "(n, c, h, w)")),
        (changed("x_train", lambda x: x, shape=(6, 5, 3)), ("x_train", "channels last", "(n, c, h, w)")),
        (changed("x_train", lambda x: x[:0]), ("x_train", "(0, 6, 5)")),
        (changed("x_test", lambda x: x[:, :5]), ("x_test", "(1, 5, 5)", "(1, 6, 5)")),
        (changed("x_test", lambda x: (x / 255).astype(np.float32)), ("x_test", "float32", "uint8")),
        (changed("y_train", lambda y: y[:-1]), ("y_train", "29 labels", "30 images")),
        (changed("y_train", lambda y: y.astype(float)), ("y_train", "float64", "integers")),
        (changed("y_train", lambda y: y[:, None]), ("y_train", "(30, 1)")),
        (changed("y_train", lambda y: y - 1), ("y_train", "-1")),
        (changed("y_train", lambda y: 2 * y), ("y_train", "class 1")),
        (changed("y_train", lambda y: y * 10**9), ("y_train", "class 1")),
        (changed("y_train", lambda y: y * 0), ("y_train", "1 class", "2")),
        (changed("y_test", lambda y: y + 1), ("y_test", "3", "0 to 2")),
        (changed("y_test", lambda y: y.astype(object)), ("own.npz", "objects")),
        ({k: v for k, v in arrays().items() if k != "y_test"}, ("y_test", "x_train")),
    ],
)
def test_bad_npz(tmp_path, made, parts):
    path = write_npz(tmp_path / "own.npz", **made)
    fails(ValueError, path, *parts, name="npz", root=path)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (lambda y: np.array(["bee", "ape", "cow"])[y], "np.unique"),
        (lambda y: np.eye(3)[y], "y.argmax(1)"),
        (lambda y: np.eye(3, dtype=np.int64)[y], "y.argmax(1)"),
        (lambda y: y[:, None], "y[:, 0]"),
        (lambda y: y.astype(np.float64), "y.astype(np.int64)"),
        (lambda y: y + 1, "y - 1"),
        (lambda y: y + 0.5, None),
        (lambda y: np.eye(3)[y] * 0.9, None),
        (lambda y: y * 2, None),
    ],
)
def test_labels_of_usual_kinds_get_a_remedy(tmp_path, kind, remedy):
    y, x = np.arange(12) % 3, np.zeros((12, 4, 4), np.uint8)
    path = write_npz(tmp_path / "own.npz", x_train=x, y_train=kind(y), x_test=x, y_test=kind(y))
    message = fails(ValueError, "y_train", remedy or "", name="npz", root=path)
    assert remedy is not None or " by y" not in message


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "own.npz"
    whole = Path(write_npz(tmp_path / "whole.npz", **arrays())).read_bytes()
    for content in (b"", b"text", pickle.dumps(1), whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        fails(ValueError, path, name="npz", root=str(path))
    fails(FileNotFoundError, tmp_path, "is a folder", name="npz", root=str(tmp_path))


# --- image folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_with_train_and_test(tmp_path, mode, channels):
    write_images(tmp_path / "train", mode=mode)
    write_images(tmp_path / "test", n=2, mode=mode)
    (tmp_path / "train" / ".hidden").mkdir()
    data = load(DataSettings("folder", root=str(tmp_path)))
    assert (data.classes, data.shape) == (2, (channels, 3, 4))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [11, 1, 4]
    assert data.about["class_names"] == ["cat", "dog"]
    assert data.test.y.tolist() == [0, 0, 1, 1]
    from PIL import Image

    pixels = np.asarray(Image.open(tmp_path / "test" / "dog" / "00.png"))
    first = data.test.x[2].numpy()
    assert np.array_equal(first[0] if mode == "L" else first.transpose(1, 2, 0), pixels)


def test_folder_of_one_level_gets_a_constant_test_split(tmp_path):
    root = write_images(tmp_path, n=10)
    a, b = (load(DataSettings("folder", root=root, split_seed=seed)) for seed in (0, 1))
    assert counts(a.test, 2) == [2, 2]
    assert torch.equal(a.test.ids, b.test.ids)
    ids = torch.cat([a.train.ids, a.validation.ids, a.test.ids])
    assert torch.equal(ids.sort().values, torch.arange(20))
    assert a.about["files"]["."]["files"] == 20


def test_folder_mixes_grey_and_colour(tmp_path):
    root = write_images(tmp_path, n=4)
    write_images(tmp_path, classes=("emu",), n=4, mode="RGB")
    data = load(DataSettings("folder", root=root))
    assert data.shape == (3, 3, 4)
    grey = data.train.take((data.train.y == 0).nonzero()[:, 0]).x
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_folder_names_the_first_odd_size(tmp_path):
    root = write_images(tmp_path)
    write_images(tmp_path / "x", size=(5, 3))
    (tmp_path / "x" / "dog" / "03.png").rename(tmp_path / "dog" / "03.png")
    for path in sorted((tmp_path / "x").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "x").rmdir()
    fails(ValueError, tmp_path / "dog" / "03.png", "5 x 3", "4 x 3", name="folder", root=root)


def test_bad_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    root = write_images(tmp_path / "a")
    (tmp_path / "a" / "fox").mkdir()
    fails(ValueError, tmp_path / "a" / "fox", ".png", name="folder", root=root)
    (tmp_path / "a" / "fox" / "1.png").write_bytes((tmp_path / "a" / "dog" / "00.png").read_bytes()[:50])
    fails(ValueError, tmp_path / "a" / "fox" / "1.png", "not a readable", name="folder", root=root)
    image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "a" / "fox" / "1.png")
    fails(ValueError, tmp_path / "a" / "fox" / "1.png", "I;16", name="folder", root=root)

    root = write_images(tmp_path / "b", classes=("only",))
    fails(ValueError, root, "1 class", name="folder", root=root)

    write_images(tmp_path / "c" / "train")
    fails(FileNotFoundError, tmp_path / "c" / "test", name="folder", root=str(tmp_path / "c"))
    write_images(tmp_path / "c" / "test", classes=("cat", "eel"))
    fails(ValueError, "'dog'", "only one of", name="folder", root=str(tmp_path / "c"))

    root = write_images(tmp_path / "d", n=1)
    fails(ValueError, root, "2 images", name="folder", root=root)


def test_folder_without_pillow(tmp_path, monkeypatch):
    root = write_images(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    fails(ImportError, "pip install 'atent[data]'", name="folder", root=root)


# --- augmentation ------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (5, 3, 6, 9), (1, 3, 4, 4)])
def test_augmentation_keeps_shape_type_range_and_repeats(name, shape):
    x = torch.rand(shape)
    before = x.clone()
    a, b = (augment(name)(x, generator()) for _ in range(2))
    assert a.shape == x.shape
    assert a.dtype == x.dtype
    assert torch.equal(a, b)
    assert torch.equal(x, before)
    assert bool(((a >= 0) & (a <= 1)).all())


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_augmentation_draws_per_image_and_from_the_generator_alone(name):
    x = torch.rand(1, 1, 8, 8).repeat(64, 1, 1, 1)
    state = torch.random.get_rng_state()
    out = augment(name)(x, generator())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(out.unique(dim=0)) > 1
    assert not torch.equal(out, augment(name)(x, generator(1)))
    torch.manual_seed(0)
    assert augment(name)(x, None).shape == x.shape
    for bad in (x[0], (255 * x).to(torch.uint8)):
        with pytest.raises(ValueError, match="augmentation got"):
            augment(name)(bad, generator())


def test_none_is_the_identity():
    x = torch.rand(2, 2)
    assert augment("none")(x, None) is x


def test_flip_mirrors_half_of_the_images():
    x = torch.rand(2000, 1, 3, 4)
    out = augment("flip")(x, generator())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    # Five standard deviations of a fair coin.
    assert abs(int(mirrored.sum()) - 1000) < 5 * 500**0.5


@pytest.mark.parametrize("shape", [(300, 3, 8, 8), (300, 1, 5, 7)])
def test_crop_flip_equals_its_slow_transcription(shape):
    x = torch.rand(shape)
    out = augment("crop-flip")(x, generator(3))
    draws = generator(3)
    n, c, h, w = shape
    offsets = torch.randint(9, (n, 2), generator=draws).tolist()
    coins = torch.randint(2, (n,), generator=draws).tolist()
    for i in range(n):
        big = np.zeros((c, h + 8, w + 8), np.float32)
        big[:, 4 : 4 + h, 4 : 4 + w] = x[i].numpy()
        top, left = offsets[i]
        image = big[:, top : top + h, left : left + w]
        assert np.array_equal(out[i].numpy(), image[:, :, ::-1] if coins[i] else image)
    seen = {(top, left, coin) for (top, left), coin in zip(offsets, coins, strict=True)}
    assert len(seen) > 100


def test_crop_flip_reaches_every_offset_and_both_flips_evenly():
    n, size = 8100, 12
    # One bright pixel off the centre of a wide enough image tells offset and flip apart.
    x = torch.zeros(n, 1, size, 2 * size)
    x[:, :, 6, 6], x[:, :, 6, 7] = 1.0, 0.5
    out = augment("crop-flip")(x, generator())
    bright = (out == 1).flatten(1).int().argmax(1)
    row, column = bright // (2 * size), bright % (2 * size)
    mirrored = column > size
    top = 6 + 4 - row
    left = torch.where(mirrored, 6 + 4 - (2 * size - 1 - column), 6 + 4 - column)
    cells = torch.bincount((top * 9 + left) * 2 + mirrored.long(), minlength=162)
    assert bool((out == 1).flatten(1).any(1).all())
    assert len(cells) == 162
    assert bool((cells > 0).all())
    # Chi-square with 161 degrees of freedom: mean 161, standard deviation 18.
    chi = float(((cells - n / 162) ** 2 / (n / 162)).sum())
    assert abs(chi - 161) < 5 * 18


def test_rotation_turns_by_at_most_five_degrees_both_ways():
    h, w = 41, 61
    columns = torch.arange(w) - 30.0
    # The image is a plane, which bilinear sampling reproduces exactly: its slopes give the angle.
    x = (0.5 + 0.01 * columns).expand(500, 1, h, w).clone()
    out = augment("rotate-flip")(x, generator())
    inner = out[:, 0, 15:26, 20:41]
    across = inner.diff(dim=2).mean((1, 2)) / 0.01
    down = inner.diff(dim=1).mean((1, 2)) / 0.01
    assert torch.allclose(across**2 + down**2, torch.ones(500), atol=1e-3)
    assert 0.4 < float((across < 0).float().mean()) < 0.6
    degrees = torch.rad2deg(torch.atan2(-down, across.abs()))
    assert float(degrees.abs().max()) <= 5.01
    assert float(degrees.max()) > 4.8
    assert float(degrees.min()) < -4.8
    assert abs(float(degrees.mean())) < 5 * (5 / 3**0.5) / 500**0.5


def test_rotation_fills_with_zeros_and_stays_in_the_box():
    out = augment("rotate-flip")(torch.ones(50, 1, 32, 32), generator())
    assert float(out.max()) <= 1.0
    assert float(out[:, :, 0, 0].min()) < 0.5
    assert torch.allclose(out[:, :, 8:24, 8:24], torch.ones(()))


def test_rotation_by_a_known_angle_equals_bilinear_sampling_by_hand():
    x = torch.rand(4, 2, 7, 9, dtype=torch.float64)
    out = augment("rotate-flip")(x, generator(5))
    draws = generator(5)
    angles = (2 * torch.rand(4, generator=draws, dtype=torch.float64) - 1) * np.deg2rad(5)
    coins = torch.randint(2, (4,), generator=draws)
    for i in range(4):
        cos, sin = np.cos(float(angles[i])), np.sin(float(angles[i]))
        image = x[i].numpy()
        image = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        expected = np.zeros((2, 7, 9))
        for r in range(7):
            for c in range(9):
                u, v = c - 4.0, r - 3.0
                column, row = cos * u - sin * v + 4 + 2, sin * u + cos * v + 3 + 2
                a, b = int(np.floor(row)), int(np.floor(column))
                s, t = row - a, column - b
                expected[:, r, c] = (1 - s) * ((1 - t) * image[:, a, b] + t * image[:, a, b + 1]) + s * (
                    (1 - t) * image[:, a + 1, b] + t * image[:, a + 1, b + 1]
                )
        if coins[i]:
            expected = expected[:, :, ::-1]
        assert np.allclose(out[i].numpy(), expected, atol=1e-12)


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


# ---- what had gone wrong without a word


def _samples(n=60):
    return torch.linspace(0, 1, n * 4).view(n, 4), torch.arange(n) % 3


@pytest.mark.parametrize("call", ["take", "batch"])
def test_a_mask_or_a_float_is_no_index(call):
    """As int64 a mask would be the samples 0 and 1, over and over."""
    x, y = _samples()
    test = from_tensors(x, y, x, y).test
    mask = test.y == 2
    with pytest.raises(ValueError, match=r"torch.bool of shape \(60,\): for a mask use mask.nonzero"):
        getattr(test, call)(mask)
    with pytest.raises(ValueError, match="float64"):
        getattr(test, call)(np.array([0.5, 1.5]))
    assert set(test.take(mask.nonzero()[:, 0]).y.tolist()) == {2}
    assert len(test.batch([])[0]) == 0
    assert test.batch(torch.tensor([3], dtype=torch.uint8))[1].tolist() == [0]


def test_an_unknown_rule_of_subsets_is_refused():
    x, y = _samples()
    data = from_tensors(x, y, x, y)
    for call in (lambda: data.sample("test", 9, "frist"), lambda: replace(data, subset="frist").sample("test", 9)):
        with pytest.raises(ValueError, match="subset 'frist' is not known"):
            call()


def test_a_box_for_uint8_is_refused_which_becomes_0_to_1():
    x, y = _samples()
    pixels = (255 * x).byte()
    with pytest.raises(ValueError, match="has no effect for inputs of uint8"):
        from_tensors(pixels, y, pixels, y, box=(-1.0, 1.0))
    assert from_tensors(pixels, y, pixels, y, box=(0, 1)).box == (0.0, 1.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8, torch.float16])
def test_the_data_do_not_change_with_the_tensors_of_the_caller(kind):
    x, y = _samples()
    x = (x * (255 if kind is torch.uint8 else 1)).to(kind)
    data = from_tensors(x, y, x, y)
    before = [getattr(data, part).batch(range(6)) for part in ("train", "validation", "test")]
    x.zero_(), y.zero_()
    after = [getattr(data, part).batch(range(6)) for part in ("train", "validation", "test")]
    assert all(torch.equal(a, b) for one, other in zip(before, after) for a, b in zip(one, other))


@pytest.mark.parametrize("made", [np.array([1j, 0.5j]), np.array(["2020-01-01", "2021-01-01"], "M8[D]")])
def test_values_without_an_order_are_no_numbers(made):
    x = np.stack([made] * 60)
    with pytest.raises(ValueError, match="x_train cannot be read as numbers"):
        from_tensors(x, np.arange(60) % 3, x, np.arange(60) % 3)


def test_labels_that_are_digits_in_strings_are_called_so():
    x, y = _samples()
    words = np.array([str(int(k)) for k in y])
    for given in (words, words.tolist()):
        with pytest.raises(ValueError, match=r"y_train cannot be read as numbers.*np\.unique"):
            from_tensors(x, given, x, given)


def _pair(n=40):
    from torch.utils.data import TensorDataset

    x, y = _samples(n)
    return TensorDataset(x, y), TensorDataset(x, y)


@pytest.mark.parametrize(
    "setting", [{"root": "/elsewhere"}, {"size": 32}, {"label": "kind"}, {"units": "spread"}, {"workers": 2}]
)
def test_settings_that_an_own_function_does_not_take_are_refused(setting, monkeypatch, tmp_path):
    (tmp_path / "a_pair.py").write_text("from test_data import _pair as pair\nfixed = pair()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("a_pair:pair", "a_pair:fixed"):
        with pytest.raises(ValueError, match=rf"data.{next(iter(setting))} .* has no effect for {name}"):
            load(DataSettings(name, **setting))
        assert load(DataSettings(name, validation=6, limit=20)).about["counts"]["train"] == 20


def test_the_label_of_a_hugging_face_set_is_not_chosen_by_the_setting_of_tables():
    for setting in ({"label": "kind"}, {"root": "/elsewhere"}):
        with pytest.raises(ValueError, match="has no effect for hf:somebody/something"):
            load(DataSettings("hf:somebody/something", **setting))
