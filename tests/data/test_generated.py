"""Generated images as a share of each batch."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from atent import Threat
from atent.cli import main
from atent.data import DataSettings, load
from atent.methods import PGDAT
from atent.models import build
from atent.train import Interrupted, TrainSettings, fit, trainer
from atent.train.finite import order_of, ordered

N, M = 150, 40


@pytest.fixture
def files(tmp_path):
    """An npz data set of 150 training images, and 40 generated ones, all of the value 255."""
    g = np.random.default_rng(0)
    y = np.arange(N + 50) % 3
    x = (60 * y[:, None, None, None] + g.integers(0, 60, (N + 50, 1, 8, 8))).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x[:N], y_train=y[:N], x_test=x[N:], y_test=y[N:])
    np.savez(tmp_path / "made.npz", image=np.full((M, 8, 8, 1), 255, np.uint8), label=np.arange(M) % 3)
    return str(tmp_path / "own.npz"), str(tmp_path / "made.npz")


def settings(files, **more):
    return DataSettings("npz", files[0], validation=30, generated=files[1], **more)


def test_they_lie_behind_the_training_set_and_nowhere_else(files):
    plain, data = load(DataSettings("npz", files[0], validation=30)), load(settings(files))
    assert (len(data.train), data.epoch, data.generated, data.share) == (160, 120, 40, 0.7)
    assert torch.equal(data.train.x[:120], plain.train.x)
    assert (data.train.x[120:] == 255).all()
    assert len(set(data.train.ids.tolist())) == 160
    for part in ("validation", "test"):
        assert torch.equal(getattr(data, part).x, getattr(plain, part).x)
    assert data.about["generated"]["n"] == M
    assert len(data.about["files"]["made.npz"]["sha256"]) == 64
    assert plain.epoch == len(plain.train)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
def test_every_batch_has_its_share(files, share):
    data, rng = load(settings(files, generated_share=share)), torch.Generator()
    order = ordered(data, 0, 3, rng, {})
    assert len(order) == data.epoch
    made = order >= data.epoch
    for size in (8, 20, 32):
        for batch in made.split(size):
            assert abs(int(batch.sum()) - share * len(batch)) <= 1
    kept = order[~made]
    assert len(set(kept.tolist())) == len(kept)
    # Each is taken once before any is taken twice.
    counts = torch.bincount(order[made] - data.epoch, minlength=M)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(order, ordered(data, 0, 3, rng, {}))
    assert not torch.equal(order, ordered(data, 0, 4, rng, {}))
    # The order of a data set without them is what it was.
    places = torch.arange(data.epoch)[~made]
    assert torch.equal(kept, order_of(0, 3, data.epoch, rng, ())[places])


def test_after_a_rollback_what_was_taken_stays(files):
    data, rng = load(settings(files)), torch.Generator()
    mark = {"epoch": 3, "step": 2, "taken": 48}
    before, after = ordered(data, 0, 3, rng, {}), ordered(data, 0, 3, rng, {"rollbacks": [mark]})
    assert torch.equal(before[:48], after[:48])
    assert not torch.equal(before[48:], after[48:])
    assert torch.equal(before >= data.epoch, after >= data.epoch)


def test_a_training_takes_them_and_an_evaluation_does_without_their_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixed.toml").write_text(
        f'[data]\nname = "npz"\nroot = "{files[0]}"\nvalidation = 30\ngenerated = "{files[1]}"\ngenerated_share = 0.3\n'
        '[model]\nname = "mlp"\n[method]\nname = "PGDAT"\nsteps = 2\n[method.threat]\nnorm = "linf"\neps = 0.02\n'
        "[train]\nepochs = 2\nbatch_size = 20\n"
    )
    assert main(["train", "mixed.toml", "--quiet"]) == 0
    config = json.loads((tmp_path / "runs" / "mixed" / "config.json").read_text())
    assert config["about"]["data"]["generated"] == {"file": "made.npz", "n": M, "share": 0.3}
    (tmp_path / "made.npz").unlink()
    assert main(["evaluate", "runs/mixed", "--attacks", "FGSM", "--limit", "20", "--quiet"]) == 0


def test_a_training_that_is_stopped_within_an_epoch_ends_with_the_same_bits(files, tmp_path, monkeypatch):
    data = load(settings(files))

    def trained(name, **more):
        torch.manual_seed(0)
        net = build("mlp", shape=data.shape, classes=data.classes)
        how = TrainSettings(epochs=2, batch_size=20, save_minutes=0, device="cpu")
        method = PGDAT(Threat("linf", 0.02), steps=2)
        return fit(net, data, method, settings=how, run=tmp_path / name, progress=False, **more)

    @contextmanager
    def requests():
        asked = iter(range(100))
        yield lambda: next(asked) > 8

    whole = trained("whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requests", requests)
        with pytest.raises(Interrupted):
            trained("broken")
    saved = torch.load(tmp_path / "broken" / "last" / "state.pt", weights_only=True)
    assert 0 < saved["mark"]["step"] < 6, (list(saved), saved["mark"])
    again = trained("broken", resume=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    pairs = zip(again.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("made", "more", "parts"),
    [
        ({"image": np.zeros((4, 1, 8, 8), np.uint8), "label": np.zeros(4, int)}, {}, ["(4, 1, 8, 8)", "channels last"]),
        ({"image": np.zeros((4, 8, 8, 1)), "label": np.zeros(4, int)}, {}, ["float64", "uint8"]),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.full(4, 3)}, {}, ["label", "3"]),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(3, int)}, {}, ["label"]),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8)}, {}, ["label", "not in the file"]),
        (None, {"generated_share": 1.0}, ["generated_share is 1", "below 1"]),
        (None, {"generated": None, "generated_share": 0.5}, ["generated_share", "no effect"]),
        (None, {"resident": False}, ["resident true"]),
        (None, {"name": "moons", "root": None, "validation": None}, ["images of uint8", "moons"]),
    ],
)
def test_what_cannot_be_is_one_line(files, tmp_path, made, more, parts):
    if made is not None:
        np.savez(tmp_path / "made.npz", **made)
    given = {"name": "npz", "root": files[0], "validation": 30, "generated": files[1], **more}
    with pytest.raises(ValueError, match=r".") as error:
        load(DataSettings(**given))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"data\.generated: .*absent\.npz .*; set it to"):
        load(DataSettings("npz", files[0], generated=str(tmp_path / "absent.npz")))
