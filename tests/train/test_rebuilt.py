"""A run loads as the network that was trained, or the training is refused before it begins."""

import copy
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from atent import Threat, load
from atent.data import from_tensors
from atent.guard import random_states
from atent.methods import PGDAT
from atent.models import build
from atent.models.contrastive import Contrastive
from atent.runs.answers import KEY, differ, recorded
from atent.runs.checkpoint import export, read_weights, save_weights
from atent.runs.pretrained import load_start
from atent.runs.weights import Snapshot
from atent.train import TrainSettings, fit, load_weights
from atent.train.builders import Builders

SOURCE = """
import random

import numpy as np
import torch
from torch import nn

from atent.data import from_tensors


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.last = kind, nn.Linear(16, 3)
        if kind == "buffer":
            self.register_buffer("drawn", torch.randn(16, 16), persistent=False)
        if kind == "tensor":
            self.drawn = torch.randn(16, 16)
        if kind == "list":
            self.drawn = random.sample(range(16), 16)
        if kind == "zero":
            self.drawn = torch.randn(16, 16)
            nn.init.zeros_(self.last.weight)
        if kind == "counts":
            self.scale = 1.0

    def forward(self, x):
        x = x.flatten(1)
        if self.kind == "list":
            return self.last(x[:, self.drawn])
        if self.kind == "counts":
            self.scale *= 0.9 if self.training else 1.0
            return self.last(x * self.scale)
        return self.last(x @ self.drawn)


def net(kind="buffer"):
    return Net(kind)


def powered(power=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU() if power == 1 else nn.Tanh(), nn.Linear(8, 3))


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)
        self.register_buffer("order", torch.from_numpy(np.random.permutation(16)), persistent=False)
        self.scale = random.random()

    def forward(self, x):
        return self.last(x.flatten(1)[:, self.order])


def drawn_data():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    x = torch.rand(40, 1, 4, 4)
    return from_tensors(x[:30], torch.arange(30) % 3, x[30:], torch.arange(10) % 3, validation=6)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1) + torch.randn_like(x.flatten(1)))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "drawn_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("drawn_mine")
    sys.modules.pop("drawn_mine", None)


@pytest.fixture
def data():
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return from_tensors(x[:30], torch.arange(30) % 3, x[30:], torch.arange(10) % 3, validation=6)


def trained(net, data, **more):
    method, settings = PGDAT(Threat("linf", 0.05), steps=1), TrainSettings(epochs=1, batch_size=8, validate_limit=6)
    return fit(net, data, method, settings=settings, progress=False, **more)


def test_a_buffer_drawn_at_random_is_stored_though_it_is_not_persistent(mine, data):
    fitted = trained(mine.net(), data, run="run", builder="drawn_mine:net")
    x = data.test.x
    torch.manual_seed(99)
    assert torch.equal(load("run")(x), fitted.model(x))
    # Also where the run does not record what built the network, and where its training resumes.
    fitted = trained(mine.net(), data, run="unnamed")
    other = mine.net().eval()
    load_weights(other, "unnamed")
    assert torch.equal(other(x), fitted.model(x))
    again = trained(mine.net(), data, run="unnamed", resume=True)
    assert torch.equal(again.model(x), fitted.model(x))


@pytest.mark.parametrize("kind", ["tensor", "list", "zero"])
def test_random_values_that_no_file_keeps_are_refused(kind, mine, data):
    random.seed(1)
    with pytest.raises(ValueError, match="outputs differ from those of the network to train") as error:
        trained(mine.net(kind), data, run="run", builder="drawn_mine:net", builder_args={"kind": kind})
    assert "\n" not in str(error.value)


def test_a_builder_of_another_network_with_these_shapes_is_refused(mine, data):
    with pytest.raises(ValueError, match="drawn_mine:powered gives a network whose outputs differ"):
        trained(mine.powered(2), data, run="run", builder="drawn_mine:powered")
    trained(mine.powered(2), data, run="run", builder="drawn_mine:powered", builder_args={"power": 2})


def test_attributes_that_a_training_changes_and_no_file_keeps_are_refused(mine, data):
    """The best epoch would be restored with the attributes of the last."""
    with pytest.raises(ValueError, match="changes attributes in train mode"):
        trained(mine.net("counts"), data)


def test_a_network_that_a_recipe_names_is_compared(mine, data, capsys):
    from atent.cli import main

    Path("own.toml").write_text(
        '[data]\nname = "digits"\nlimit = 60\nvalidation = 20\n[model]\nname = "recipe_mine:net"\n[method]\n'
        'name = "PGDAT"\nthreat = { norm = "linf", eps = 0.05 }\nsteps = 1\n[train]\nepochs = 1\ndevice = "cpu"\n'
        '[evaluate]\nattacks = ["FGSM"]\nlimit = 20\n'
    )
    body = "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super()"
    body += ".__init__()\n        self.last = nn.Linear(64, 10)\n        {}\n\n    def forward(self, x):\n"
    body += "        return self.last(x.flatten(1) @ self.k)\n\n\ndef net():\n    return Net()\n"
    for line, status in (
        ("self.k = torch.randn(64, 64)", 2),
        ('self.register_buffer("k", torch.randn(64, 64), persistent=False)', 0),
    ):
        Path("recipe_mine.py").write_text(body.format(line))
        sys.modules.pop("recipe_mine", None)
        found = main(["train", "own.toml", "--name", f"run{status}", "--quiet"])
        assert found == status, capsys.readouterr().err
    x = torch.rand(4, 1, 8, 8)
    torch.manual_seed(1)
    one = load("runs/run0")(x)
    torch.manual_seed(2)
    assert torch.equal(load("runs/run0")(x), one)
    sys.modules.pop("recipe_mine", None)


def test_weights_in_a_network_of_other_code_are_reported(mine, data, capsys):
    """The tensors agree, and the networks do not."""
    trained(mine.powered(), data, run="run", builder="drawn_mine:powered")
    load("run")
    export("run", "half")
    load("half")
    assert capsys.readouterr().err == ""
    load_weights(mine.powered(2), "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert "run/best.safetensors: the network has other outputs than the one that was trained" in line


def test_outputs_are_recorded_where_they_identify_a_network(mine, data):
    trained(mine.powered(), data, run="own")
    trained(mine.Noisy(16, 3), data, run="noisy")
    kept = [read_weights(Path(run) / "best.safetensors")[0].get("answers") for run in ("own", "noisy")]
    assert [outputs is not None for outputs in kept] == [True, False]
    named = {"model": {"name": "mlp"}, "shape": [1, 4, 4]}
    assert recorded(build("mlp", classes=3, shape=(1, 4, 4)), named) == named


class Masked(torch.nn.Linear):
    """A network without its last class, whose other outputs may be random."""

    def __init__(self, noise=0.0):
        super().__init__(16, 3)
        self.noise = noise

    def forward(self, x):
        out = super().forward(x.flatten(1))
        return out + self.noise * torch.randn_like(out) + torch.tensor([0.0, 0.0, -1e9])


def test_a_masked_class_says_nothing_about_the_outputs_of_the_others():
    """Before: all that is small beside 1e9 counted as rounding."""
    torch.manual_seed(0)
    net, x, about = Masked(), torch.rand(2, 1, 4, 4), {"shape": [1, 4, 4]}
    assert differ(net, Masked(), x)
    assert not differ(net, copy.deepcopy(net), x)
    assert KEY in recorded(net, about)
    assert KEY not in recorded(Masked(noise=1.0), about)


def test_fine_tuning_takes_the_random_buffers_of_the_pre_training(mine, tmp_path):
    network = Contrastive(mine.net(), [8], (1, 4, 4))
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(1)
    about = {"classes": 3, "shape": [1, 4, 4]}
    save_weights(tmp_path / "pre.safetensors", network, about, Snapshot(network, ["network.drawn"]))
    tuned = mine.net()
    load_start(tuned, tmp_path / "pre.safetensors")
    assert torch.equal(tuned.drawn, network.network.drawn)


def test_building_a_network_and_data_again_leaves_the_random_states(mine):
    """A network that draws from numpy or Python in its forward pass would otherwise train differently with a name."""
    net, data = mine.Permuted(), mine.drawn_data()
    random.random(), torch.rand(1), np.random.rand()  # noqa: NPY002
    before = random_states(torch.device("cpu"))
    for builders, config in (
        (Builders("drawn_mine:Permuted", data="drawn_mine:drawn_data"), None),
        (Builders(), {"model": {"name": "drawn_mine:Permuted"}}),
    ):
        assert builders.check(net, data, config) == ["order"]
        assert random_states(torch.device("cpu")) == before


def test_the_precision_of_the_caller_is_no_change_of_the_code(mine, data, capsys):
    """In bfloat16 outputs differ by up to a percent."""
    trained(mine.powered(2), data, run="run", builder="drawn_mine:powered", builder_args={"power": 2})
    about = read_weights(Path("run/best.safetensors"))[0]
    net = load("run")
    assert about["answers"]
    capsys.readouterr()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        load("run")
        found = recorded(net, about)["answers"]
    assert np.allclose(found, about["answers"], rtol=0, atol=1e-5 * np.abs(found).max())
    assert "other outputs" not in capsys.readouterr().err
