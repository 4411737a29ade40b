"""A measurement that stopped does not resume with code of the user that was edited since."""

import importlib
import sys

import pytest
import torch

from atent.attacks import FGSM, Transfer
from atent.cli import main
from atent.evaluate import evaluate, measure_flips
from atent.origins import code_of
from atent.threat import Threat

ATTACK = """
from dataclasses import dataclass

from atent import Threat
from atent.attacks import Attack


@dataclass(frozen=True)
class Shift(Attack):
    threat: Threat
    passes = 1
    needs_gradient = False

    def search(self, oracle, x, y, streams):
        return self.threat.project(x {sign} 1.0, x)
"""
NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(0.5 {sign} x.flatten(1))


def net():
    torch.manual_seed(0)
    return Net()
"""
CERTIFIER = """
import torch


class Fixed:
    def __init__(self, model, sigma):
        self.model = model

    def certify(self, x, n0=100, n=100_000, alpha=0.001, *, seed=0, ids=None):
        return self.model(x).argmax(1), torch.full((len(x),), 0.2 {sign} 0.1)
"""


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Write a module of the user, in one of two versions, and import it anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source, sign):
        (tmp_path / "edited_by_user.py").write_text(source.replace("{sign}", sign))
        sys.modules.pop("edited_by_user", None)
        importlib.invalidate_caches()
        return importlib.import_module("edited_by_user")

    yield write
    sys.modules.pop("edited_by_user", None)


def test_an_attack(edited):
    x, y, net = torch.rand(20, 4), torch.arange(20) % 2, torch.nn.Linear(4, 2)

    def run(sign):
        return evaluate(net, x, y, {"shift": edited(ATTACK, sign).Shift(Threat("linf", 0.1))}, resume="rows.jsonl")

    first = run("+")
    assert run("+") == first
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        run("-")


def test_the_source_of_a_transfer(edited):
    """Before: rows of the former source were those of the edited one."""
    x, y = torch.rand(20, 1, 8, 8, dtype=torch.float64), torch.arange(20) % 10
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()

    def run(sign):
        edited(NETWORK, sign)
        attack = Transfer(Threat("linf", 0.1), "FGSM", "edited_by_user:net")
        # The second time the attack has a source that was moved to the dtype of the inputs.
        return [evaluate(net, x, y, {"transfer": attack}, resume="rows.jsonl").outcomes for _ in range(2)]

    first = run("+")
    assert run("+") == first
    with pytest.raises(ValueError, match=r"rows\.jsonl belongs to an evaluation with other attacks"):
        run("-")


@pytest.mark.parametrize("kind", ["evaluation", "flips"])
def test_a_network(edited, kind):
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10

    def run(sign):
        net = edited(NETWORK, sign).net()
        if kind == "flips":
            return repr(measure_flips(net, x, y, resume="rows.jsonl"))
        return evaluate(net, x, y, [FGSM(Threat("linf", 0.1))], resume="rows.jsonl").outcomes

    first = run("+")
    assert run("+") == first
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        run("-")


def test_a_certifier_and_a_certified_network(edited, capsys, tmp_path):
    def run(source, sign, limit="6"):
        edited(source, sign)
        model, method = "edited_by_user:net", "smoothing"
        if source is CERTIFIER:
            model, method = "linear_of_user:net", "edited_by_user:Fixed"
        given = ["certify", model, "--data", "digits", "--limit", limit, "--sigma", "0.25", "--n", "200", "--n0", "10"]
        assert main([*given, "--method", method, "--quiet"]) == 0, capsys.readouterr().err
        return sorted(path.name for path in tmp_path.glob("*certificate*.csv"))

    (tmp_path / "linear_of_user.py").write_text(NETWORK.replace("{sign}", "+"))
    for source in (CERTIFIER, NETWORK):
        first = run(source, "+")
        assert run(source, "+", "8") == first
        assert len(run(source, "-")) == len(first) + 1


def test_code_of_libraries_does_not_count(edited):
    net = edited(NETWORK, "+").Net
    assert code_of([torch.nn.Linear, FGSM, pytest.Item]) == []
    assert len(code_of([net, torch.nn.Linear])) == len(code_of([net, net])) == 1


METHOD = """
from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from atent.methods import Method


@dataclass(frozen=True)
class Own(Method):
    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        return cross_entropy(model(x), y) * (1 {sign} 0.5), {}
"""
OPTIMIZER = """
import torch


class Own(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure) {sign} 0.0
"""
BUILDER = """
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10 {sign} 0), nn.Dropout(0.0))
"""
DATA = """
import torch

from atent.data import from_tensors


def blobs():
    y = torch.arange(240) % 3
    x = 0.5 {sign} 0.1 * y.view(-1, 1, 1, 1).float().expand(-1, 1, 8, 8)
    return from_tensors(x[:180], y[:180], x[180:], y[180:], validation=30, name="blobs")
"""
RECIPE = """
about = "code of the user"

[data]
name = "digits"
limit = 60
test_limit = 20

[model]
name = "mlp"

[method]
name = "Standard"

[train]
epochs = 1
device = "cpu"
validate_limit = 20
threads = 1

[evaluate]
norm = "linf"
eps = 0.1
attacks = ["FGSM"]
limit = 10
"""
TRAININGS = {
    "method": (METHOD, ["--method", "edited_by_user:Own"]),
    "optimizer": (OPTIMIZER, ["--optimizer", "edited_by_user:Own"]),
    "network": (BUILDER, ["--model", "edited_by_user:net"]),
    "layers": (NETWORK, ["--model", "edited_by_user:net"]),
    "validation attack": (ATTACK, ["--train.validate_attack", "edited_by_user:Shift"]),
}


@pytest.mark.parametrize(("source", "words"), TRAININGS.values(), ids=TRAININGS)
def test_a_training(edited, capsys, tmp_path, source, words):
    (tmp_path / "own.toml").write_text(RECIPE)
    edited(source, "+")
    assert main(["train", "own.toml", "--name", "own", "--quiet", *words]) == 0, capsys.readouterr().err
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 0, capsys.readouterr().err
    edited(source, "-")
    capsys.readouterr()
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/own" in line
    assert "edited_by_user has changed" in line
    assert "--name" in line
    edited(source, "+")
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 0, capsys.readouterr().err


def test_the_data_of_a_training(edited, capsys, tmp_path):
    (tmp_path / "own.toml").write_text(RECIPE.replace("limit = 60\ntest_limit = 20\n", ""))
    edited(DATA, "+")
    assert main(["train", "own.toml", "--name", "own", "--quiet", "--data", "edited_by_user:blobs"]) == 0
    edited(DATA, "-")
    capsys.readouterr()
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "samples have changed" in line
    # Another way to the same samples is no other training.
    edited(DATA + "\n# a remark\n", "+")
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 0, capsys.readouterr().err


def test_a_training_of_an_earlier_version_resumes(edited, capsys, tmp_path):
    (tmp_path / "own.toml").write_text(RECIPE)
    edited(METHOD, "+")
    assert main(["train", "own.toml", "--name", "own", "--quiet", "--method", "edited_by_user:Own"]) == 0
    from atent import runs as folder

    path = tmp_path / "runs" / "own"
    state = torch.load(path / folder.LAST / "state.pt", weights_only=True)
    assert list(state["mark"].pop("code")) == ["edited_by_user"]
    torch.save(state, path / folder.LAST / "state.pt")
    (path / folder.MANIFEST).unlink()
    edited(METHOD, "-")
    assert main(["train", "--resume", "runs/own", "--quiet"]) == 0, capsys.readouterr().err
