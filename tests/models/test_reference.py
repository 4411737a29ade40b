"""The user's own network, by its name, and the shape of its output."""

import sys

import pytest
import torch
from test_models import refuses
from torch import nn

from atent.models import build, check_output, from_reference

OWN = """
import functools

from torch import nn
import own_net_neighbour

def make():
    import own_net_late
    return own_net_late.net()

def broken():
    raise RuntimeError("no weights\\nsecond line")

def leaves():
    raise SystemExit(3)

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
    @staticmethod
    def wide():
        return nn.Linear(4, 20)

def needs(classes, width=2):
    return nn.Linear(width, classes)

def configured(build):
    @functools.wraps(build)
    def inner(**given):
        return build(**{"classes": 6, **given})
    return inner

@configured
def injected(classes):
    return nn.Linear(4, classes)

def number():
    return 7

def nothing():
    pass

ready = nn.Linear(4, 3)
seven = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(OWN)
    (tmp_path / "own_net_neighbour.py").write_text("")
    (tmp_path / "own_net_late.py").write_text("from torch import nn\nnet = lambda: nn.Linear(4, 5)\n")
    (tmp_path / "own_net_raises.py").write_text("1 / 0\n")
    (tmp_path / "own_net_syntax.py").write_text("def (\n")
    (tmp_path / "own_net_lacks.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("own_net")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("reference", "outputs"), [("make", 5), ("ready", 3), ("Net", 2), ("Net.wide", 20), ("injected", 6)]
)
def test_from_reference(own, reference, outputs):
    model = from_reference(f"own_net:{reference}")
    assert isinstance(model, nn.Module)
    assert model(torch.zeros(1, 4)).shape == (1, outputs)


def test_from_reference_takes_a_module_as_it_is(own):
    assert from_reference("own_net:ready") is from_reference("own_net:ready")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("own_net", ["module:function", "'own_net'"]),
        ("own_net:", ["module:function"]),
        (":make", ["module:function"]),
        (".own_net:make", ["module:function"]),
        ("own_netz:make", ["model own_netz:make: no module named 'own_netz'"]),
        ("own_net_neighbour.deeper:make", ["no module named 'own_net_neighbour.deeper'"]),
        ("own_net:absent", ["'own_net'", "no attribute 'absent'"]),
        ("own_net:Net.narrow", ["no attribute 'Net.narrow'"]),
        ("own_net:broken", ["own_net:broken raised RuntimeError: no weights"]),
        ("own_net:leaves", ["raised SystemExit: 3"]),
        ("own_net:needs", ["own_net:needs is called without arguments and needs classes: give them defaults"]),
        ("own_net:number", ["returned", "int", "nn.Module"]),
        ("own_net:nothing", ["None", "nn.Module"]),
        ("own_net:seven", ["int", "nn.Module"]),
        ("own_net_raises:make", ["importing own_net_raises raised ZeroDivisionError"]),
        ("own_net_syntax:make", ["raised SyntaxError"]),
        ("own_net_lacks:make", ["importing own_net_lacks raised ModuleNotFoundError"]),
    ],
)
def test_from_reference_errors(own, reference, parts):
    with refuses(*parts):
        from_reference(reference)


def test_a_network_lacks_what_its_arguments_leave_out(own):
    assert from_reference("own_net:needs", {"classes": 4}).out_features == 4
    with refuses("own_net:needs is called with width and needs classes: give them defaults"):
        from_reference("own_net:needs", {"width": 3})


# -- the shape of the output


class Probe(nn.Module):
    """Remembers what it was called with, and gives what it was told to."""

    def __init__(self, output):
        super().__init__()
        self.output = output
        self.inner = nn.Dropout()

    def forward(self, x):
        self.seen = (tuple(x.shape), self.training, self.inner.training, torch.is_grad_enabled())
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


def test_check_output_passes_and_restores():
    model = Probe(torch.zeros(2, 10)).train()
    model.inner.eval()
    check_output(model, (1, 8, 8), 10)
    assert model.seen == ((2, 1, 8, 8), False, False, False)
    assert model.training
    assert not model.inner.training
    check_output(build("resnet20", classes=4).double(), (3, 32, 32), 4)


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (torch.zeros(2, 7), ["the model has 7 outputs, the data has 10 classes: "]),
        (torch.zeros(2, 10, 1, 1), ["(2, 10, 1, 1)", "(2, 10)"]),
        (torch.zeros(10), ["(10,)", "(2, 10)"]),
        (torch.zeros(1, 10), ["(1, 10)", "(2, 10)"]),
        ((torch.zeros(2, 10),), ["tuple", "tensor"]),
        (None, ["None", "tensor"]),
        (RuntimeError("mat1 and mat2\nmore"), ["(1, 8, 8)", "RuntimeError: mat1 and mat2"]),
    ],
)
def test_check_output_errors(output, parts):
    model = Probe(output)
    model.inner.eval()
    with refuses(*parts):
        check_output(model, (1, 8, 8), 10)
    assert model.training
    assert not model.inner.training
