"""Arrays in an .npz file, and folders of images."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import arrays, counts, write_images, write_npz
from kit import fails

from atent.data import DataSettings, load

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
        (lambda y: y[:, None], "y.squeeze(1)"),
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
