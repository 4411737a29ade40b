"""Torch Datasets as data sets, in Python and by name."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from atent.cli import main
from atent.data import DataSettings, collect, from_dataset, from_tensors, load

NOISE = np.random.default_rng(0)


class Shades(Dataset):
    """Images of uint8 without an end of its own: a loop over it by number alone would not stop."""

    classes = ("dark", "mid", "light")

    def __init__(self, n=45, change=lambda x, y, k: (x, y)):
        self.n, self.change = n, change

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        x = np.full((1, 8, 8), 80 * (k % 3) + k % 50, np.uint8)
        return self.change(x, k % 3, k)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def test_items_are_held_as_they_are_and_only_training_items_are_carved():
    data = from_dataset(Shades(), Shades(12), validation=9, split_seed=3)
    x, y = (np.stack([Shades()[k][part] for k in range(45)]) for part in (0, 1))
    want = from_tensors(x, y, x[:12], y[:12], validation=9, split_seed=3)
    for part in ("train", "validation", "test"):
        for name in ("x", "y", "ids"):
            assert torch.equal(getattr(getattr(data, part), name), getattr(getattr(want, part), name))
    assert data.about["class_names"] == ["dark", "mid", "light"]
    files = data.about["files"]
    assert files != from_dataset(Shades(), Shades(13), validation=9).about["files"]
    moved = from_dataset(Shades(change=lambda x, y, k: (x + (k == 44), y)), Shades(12), validation=9)
    assert moved.about["files"]["train"] != files["train"]
    assert moved.about["files"]["test"] == files["test"]
    halves = from_dataset(*2 * [Shades(change=lambda x, y, k: (torch.from_numpy(x / 255), torch.tensor(y)))])
    assert (halves.train.x.dtype, halves.train.scale) == (torch.float32, None)


def changed(change):
    return Shades(change=change)


def failing(x, y, k):
    raise OSError("no such photo")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (lambda: Stream(), ["Stream", "map-style", "collect"]),
        (lambda: DataLoader(Shades()), ["DataLoader", "its dataset"]),
        (lambda: Shades(0), ["empty"]),
        (lambda: changed(failing), ["item 0", "OSError", "no such photo"]),
        (lambda: changed(lambda x, y, k: x), ["ndarray", "pair"]),
        (lambda: changed(lambda x, y, k: ("photo", y)), ["str", "ToTensor"]),
        (lambda: changed(lambda x, y, k: (x[0], y)), ["(8, 8)", "(c, h, w)"]),
        (lambda: changed(lambda x, y, k: (x.transpose(1, 2, 0), y)), ["channels last"]),
        (lambda: changed(lambda x, y, k: (x[:, : 8 - (k == 7)], y)), ["item 7", "(1, 7, 8)"]),
        (lambda: changed(lambda x, y, k: (x * 0 + NOISE.random(), y)), ["item 0", "two reads", "data.augment"]),
        (lambda: changed(lambda x, y, k: (x / 100, y)), ["values run", "[0, 1]"]),
        (lambda: changed(lambda x, y, k: (x, Shades.classes[y])), ["np.unique"]),
        (lambda: changed(lambda x, y, k: (x, np.eye(3)[y])), ["argmax"]),
        (lambda: changed(lambda x, y, k: (x, [0] * (1 + k % 2))), ["several shapes"]),
        (lambda: changed(lambda x, y, k: (x, y + 1)), ["y - 1"]),
    ],
)
def test_what_cannot_be_is_one_line(given, parts):
    with pytest.raises(ValueError, match=r"train|test") as error:
        from_dataset(given(), Shades(12))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_by_name_with_the_settings_of_other_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("made.npz", image=np.zeros((6, 8, 8, 1), np.uint8), label=np.arange(6) % 3)
    (tmp_path / "shades.py").write_text(
        "import numpy as np\nfrom torch.utils.data import Dataset, IterableDataset\n\n"
        "class Shades(Dataset):\n    def __init__(self, n=60):\n        self.n = n\n"
        "    def __len__(self):\n        return self.n\n"
        "    def __getitem__(self, k):\n        return np.full((1, 8, 8), 80 * (k % 3) + k % 9, np.uint8), k % 3\n\n"
        "class Stream(IterableDataset):\n    def __iter__(self):\n        return iter([])\n\n"
        "pair = Shades(), Shades(12)\nlone = Shades()\nstream = Stream(), Shades()\n"
        "def make():\n    return [Shades(), Shades(12)]\n"
    )
    for name in ("shades:pair", "shades:make"):
        data = load(DataSettings(name, validation=9, limit=30, generated="made.npz"))
        assert (data.name, data.epoch, data.generated, len(data.validation)) == (name, 30, 6, 9)
    for name, part in (("shades:lone", "pair"), ("shades:stream", "map-style"), ("shades:Shades", "pair")):
        with pytest.raises(ValueError, match=part) as error:
            load(DataSettings(name))
        assert name in str(error.value)
    (tmp_path / "shades.toml").write_text(
        '[data]\nname = "shades:pair"\nvalidation = 9\n[model]\nname = "mlp"\n[method]\nname = "PGDAT"\nsteps = 2\n'
        '[method.threat]\nnorm = "linf"\neps = 0.02\n[train]\nepochs = 1\nbatch_size = 20\n'
    )
    assert main(["train", "shades.toml", "--quiet"]) == 0
    about = json.loads((tmp_path / "runs" / "shades" / "config.json").read_text())["about"]
    assert len(about["data"]["files"]["train"]["sha256"]) == 64
    assert [(each["module"], each["qualname"]) for each in about["plugins"]] == [("shades", "pair")]
    assert main(["evaluate", "runs/shades", "--attacks", "FGSM", "--quiet"]) == 0
    assert "SHA-256" not in capsys.readouterr().err
    # Other items than those of the run are noticed.
    text = (tmp_path / "shades.py").read_text()
    (tmp_path / "shades.py").write_text(text.replace("k % 9", "k % 8 "))
    monkeypatch.delitem(sys.modules, "shades")
    assert main(["evaluate", "runs/shades", "--attacks", "FGSM", "--quiet"]) == 0
    assert "train of shades:pair has a different SHA-256" in capsys.readouterr().err


def test_collect_ends_with_the_length_of_a_dataset():
    """Items that go on behind the length are not read, and those of an iterable are taken as they come."""

    class Endless(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, k):
            return torch.full((2,), float(k)), k % 2

    x, y = collect(Endless())
    assert x[:, 0].tolist() == [0, 1, 2]
    assert y.tolist() == [0, 1, 0]
    assert len(collect([(torch.zeros(2), 0)] * 4)[0]) == 4


def test_a_label_that_changes_between_two_reads_is_refused():
    class Drawn(torch.utils.data.Dataset):
        """Another label at each read, as of a shuffled list."""

        reads = 0

        def __len__(self):
            return 12

        def __getitem__(self, i):
            self.reads += 1
            return torch.full((4,), i / 12), self.reads % 5

    with pytest.raises(ValueError, match=r"train: item \d has label \d after \d before"):
        from_dataset(Drawn(), Drawn())
