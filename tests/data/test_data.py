"""Splits, samples, and the data of the package; files are in the other modules of this folder."""

import importlib.util
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import counts, write_cifar
from kit import fails

from atent.data import AUGMENTATIONS, SOURCES, Data, DataSettings, Split, from_tensors, load
from atent.data.digits import _arrays


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings())


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
