"""Data sets of the Hugging Face formats, in the package's own files. Skipped where `datasets` is not installed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import fails

from atent.data import DataSettings, load
from atent.data import hugging_face as hf


def test_without_the_package(monkeypatch):
    pytest.importorskip("PIL.Image")
    monkeypatch.setitem(sys.modules, "datasets", None)
    fails(ImportError, "hf:some/name", "pip install 'atent[hf-data]'", name="hf:some/name")
    fails(ValueError, "data.cache", "hf:x", name="hf:x", cache="off", resident=False)


class Image: ...


class ClassLabel: ...


class Value:
    dtype = "int64"


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        ({"img": Image(), "fine_label": ClassLabel(), "coarse_label": ClassLabel()}, ("img", "fine_label")),
        ({"picture": Image(), "kind": ClassLabel()}, ("picture", "kind")),
        ({"image": Image(), "mask": Image(), "label": Value()}, ("image", "label")),
    ],
)
def test_columns(features, wanted):
    assert hf._columns("hf:x", features) == wanted


@pytest.mark.parametrize(
    ("features", "what"),
    [
        ({"text": Value(), "label": ClassLabel()}, "images"),
        ({"a": Image(), "b": Image(), "label": ClassLabel()}, "images"),
        ({"image": Image(), "a": ClassLabel(), "b": ClassLabel()}, "labels"),
        ({"image": Image()}, "labels"),
    ],
)
def test_columns_that_are_not_found(features, what):
    with pytest.raises(ValueError, match=f"no column of {what}, named .* among {next(iter(features))}"):
        hf._columns("hf:x", features)


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}])
def test_rows_without_an_image(value):
    part = hf._Encoded(Path("hf:x"), ["row 0"], np.zeros(1), np.zeros((0, 2)), [], [{"img": value}])
    with pytest.raises(ValueError, match=r"row 0: (no image|gone.png cannot be read)"):
        part.content(0)


# ---- with the package


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets", reason="the package datasets is not installed (atent[hf-data])")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return found


def made(package, test="test", mode="RGB"):
    """30 and 6 images of shade 40 times their class, with a second column of labels."""
    pillow = pytest.importorskip("PIL.Image")
    features = package.Features(
        {
            "img": package.Image(),
            "coarse_label": package.ClassLabel(names=["all"]),
            "fine_label": package.ClassLabel(names=["ape", "bee", "cow"]),
        }
    )

    def rows(n):
        y = [i % 3 for i in range(n)]
        images = [pillow.fromarray(np.full((5, 4), 40 * label, np.uint8)).convert(mode) for label in y]
        return package.Dataset.from_dict({"img": images, "coarse_label": [0] * n, "fine_label": y}, features=features)

    return package.DatasetDict({"train": rows(30), test: rows(6)})


def right(data, channels=3):
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (3, (channels, 5, 4), 27, 6)
    for split in (data.train, data.validation, data.test):
        x, y = split.batch(torch.arange(len(split)))
        assert torch.equal((x[:, 0, 0, 0] * 255 / 40).round().long(), y)
    assert data.about["class_names"] == ["ape", "bee", "cow"]


def test_saved_to_disk(package, tmp_path):
    made(package, "validation").save_to_disk(tmp_path / "saved")
    data = load(DataSettings(f"hf:{tmp_path}/saved"))
    right(data)
    assert data.about["test"] == "validation"
    assert load(DataSettings(**data.about["settings"])).about["files"] == data.about["files"]
    assert load(DataSettings(f"hf:{tmp_path}/saved", size=3)).shape == (3, 3, 3)


def test_parquet(package, tmp_path):
    for part, rows in made(package, mode="L").items():
        rows.to_parquet(tmp_path / "data" / "files" / f"{part}-00000-of-00001.parquet")
    right(load(DataSettings(f"hf:{tmp_path}/data")), channels=1)
    fails(ValueError, "splits train", "test", name=f"hf:{tmp_path}/data/files/train-00000-of-00001.parquet")


def test_image_files(package, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    names = ["ape", "bee", "cow"]
    for part, n in (("train", 10), ("test", 2)):
        for label, name in enumerate(names):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(n):
                pillow.new("RGB", (4, 5), (40 * label,) * 3).save(tmp_path / "data" / part / name / f"{i}.png")
    right(load(DataSettings(f"hf:{tmp_path}/data")))


def test_what_cannot_be_used(package, tmp_path):
    fails(FileNotFoundError, tmp_path / "none", name=f"hf:{tmp_path}/none")
    fails(ValueError, "hf:nobody/nothing", "datasets raised", name="hf:nobody/nothing")
    rows = made(package)
    rows["train"].save_to_disk(tmp_path / "one")
    fails(ValueError, "one split alone", name=f"hf:{tmp_path}/one")
    rows["test"] = rows["test"].map(lambda row: {"fine_label": -1})
    rows.save_to_disk(tmp_path / "unlabelled")
    fails(ValueError, "split test", "-1", name=f"hf:{tmp_path}/unlabelled")
    rows = made(package).cast_column("img", package.Image(decode=False))
    bad = {"img": {"bytes": b"none", "path": None}}
    rows["train"] = rows["train"].map(lambda row, i: bad if i == 4 else row, with_indices=True)
    rows.save_to_disk(tmp_path / "damaged")
    fails(ValueError, "split train", "row 4", "not a readable image", name=f"hf:{tmp_path}/damaged")
