"""Files of data in which something was ignored without a word."""

import numpy as np
import pytest
import torch
from kit import fails
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler, get_worker_info

from atent.data import DataSettings, collect, load
from atent.messages import once


def images(path, parts, make, classes=("cat", "dog")):
    for name in (f"{part}/{kind}" for part in parts for kind in classes):
        (path / name).mkdir(parents=True)
        for k in range(6):
            make(k).save(path / name / f"{k}.png")
    return DataSettings("folder", str(path))


def colours(k, bands=3):
    pixels = np.random.RandomState(k).randint(0, 256, (8, 8, bands)).astype(np.uint8)
    return Image.fromarray(pixels, "RGB" if bands == 3 else "RGBA")


def opaque(k):
    image = colours(k)
    image.putalpha(255)
    return image


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "noted"), [(lambda k: colours(k, 4), True), (opaque, False), (colours, False)])
def test_transparent_pixels_are_reported(tmp_path, capsys, make, noted):
    """The colours of fully transparent pixels are arbitrary, often those of a tool."""
    once.cache_clear()
    load(images(tmp_path, ("train", "test"), make))
    assert ("some images have transparent pixels" in capsys.readouterr().err) == noted


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_beside_train_and_test_is_reported(tmp_path, capsys):
    once.cache_clear()
    load(images(tmp_path, ("train", "test", "val"), colours))
    assert "the folders train and test are read, and not val" in capsys.readouterr().err


def test_binary_images_on_disk_are_refused_as_in_memory(tmp_path):
    path, y = tmp_path / "two.npz", np.arange(200) % 2
    x = np.random.RandomState(0).randint(0, 2, (200, 4, 4)).astype(np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    fails(ValueError, "uint8 values are 0 and 1 of 255", name="npz", root=str(path), resident=False)
    x[150] = 7
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    assert len(load(DataSettings("npz", str(path), resident=False)).test) == 200


def test_a_table_with_two_columns_of_classes_needs_the_setting(tmp_path):
    """The other one would be an input, and tell the class."""
    path = tmp_path / "t.csv"
    path.write_text("a,target,label\n" + "".join(f"{k},{k % 2},{'ab'[k % 2]}\n" for k in range(40)))
    fails(ValueError, "columns label, target may all be the classes", name="table", root=str(path))
    path.write_text("x,y,label\n" + "".join(f"{k},{-k},{'ab'[k % 2]}\n" for k in range(40)))
    assert load(DataSettings("table", str(path))).about["columns"] == ["x", "y"]


def test_a_number_with_underscores_is_none(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n" + "".join(f"{k}_0,{k % 2}\n" for k in range(40)))
    fails(ValueError, "line 2 has '0_0' in column 'a'", name="table", root=str(path))


class Stream(IterableDataset):
    """Twelve samples, of which each worker yields all, or its share."""

    def __init__(self, shares):
        self.shares = shares

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if self.shares and worker else (0, 1)
        return ((torch.full((3,), k / 12), k % 2) for k in range(first, 12, step))


def test_a_loader_that_repeats_samples_is_reported(capsys):
    """Copies of a sample in the training and the validation set make the accuracy look better than it is."""
    once.cache_clear()
    items = TensorDataset(torch.rand(12, 3), torch.arange(12) % 2)
    for replacement in (False, True):
        sampler = WeightedRandomSampler(torch.ones(12), 12, replacement=replacement)
        collect(DataLoader(items, batch_size=4, sampler=sampler))
        said = capsys.readouterr().err
        assert ("the DataLoader samples with replacement" in said) == replacement
        assert "validation" not in said  # it may be the data of an evaluation
    for shares in (True, False):
        x, _ = collect(DataLoader(Stream(shares), batch_size=4, num_workers=2))
        assert len(x) == (12 if shares else 24)
        said = "each of the DataLoader's 2 workers yields all 12 samples" in capsys.readouterr().err
        assert said != shares
