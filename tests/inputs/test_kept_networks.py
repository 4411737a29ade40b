"""Unusual networks train, are kept in a run folder, and load."""

import copy
from contextlib import nullcontext

import pytest
import torch
from kit import unsealed
from tiny_runs import Adds, Body, answers, make, same, train
from torch import nn
from torch.nn.utils import parametrizations

from atent import runs as folder
from atent.runs.checkpoint import STATE, export, read_weights, save_weights
from atent.runs.weights import pack, put, unpack, visible
from atent.train import load_weights, trainer
from atent.train.interrupt import Interrupted


class Tied(Body):
    def __init__(self):
        super().__init__()
        self.middle, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.middle.weight

    def forward(self, x):
        return self.last(self.again(self.middle(self.first(x.flatten(1)).relu()).relu()))


class Views(Body):
    """A buffer that is a slice of a parameter, and a parameter on the same memory as another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("part", self.first.weight.data[2:5])
        self.other = nn.Parameter(self.last.weight.data.view(-1))

    def forward(self, x):
        return super().forward(x) + self.part.sum() * 0 + self.other.sum()


class Strided(Body):
    def __init__(self):
        super().__init__()
        self.first.weight = nn.Parameter(torch.rand(16, 8).t())


class Kinds(Body):
    """Buffers of every type that a network may keep."""

    def __init__(self):
        super().__init__()
        self.register_buffer("complex", torch.tensor([1 + 2j, 3 - 1j]))
        self.register_buffer("wide", torch.tensor([1 + 2j], dtype=torch.complex128))
        self.register_buffer("conj", torch.tensor([1 + 2j, 3 - 1j]).conj())
        self.register_buffer("bytes", torch.arange(4, dtype=torch.uint8))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("scalar", torch.tensor(3.5))
        self.register_buffer("nan", torch.tensor([float("nan"), 1.0]))

    def forward(self, x):
        if self.training:
            self.complex.mul_(1j)
            self.bytes.add_(1)
            self.mask.logical_not_()
        return super().forward(x) + self.complex.abs().sum() * 0.01


class Extra(Body):
    """Extra state that is no tensor, and an answer that depends on it."""

    def __init__(self):
        super().__init__()
        self.seen = {"passes": 0, "names": ["a", None, True, 0.5]}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = copy.deepcopy(state)

    def forward(self, x):
        if self.training:
            self.seen["passes"] += 1
        return super().forward(x) * (1 + self.seen["passes"])


class ExtraTensor(Extra):
    def get_extra_state(self):
        return torch.tensor(self.seen["passes"])

    def set_extra_state(self, state):
        self.seen["passes"] = int(state)


class Hidden(Body):
    """A statistic in a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.zeros(1), persistent=False)
        self.register_buffer("table", torch.arange(16.0), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale.mul_(0.9).add_(0.1 * x.mean())
        return super().forward(x + self.table.view(4, 4) * 0.01) * (1 + self.scale)


class Lazy(Body):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyLinear(8)


class MadeLate(Body):
    """Its own way to be lazy: a layer that the first pass makes."""

    def __init__(self):
        super().__init__()
        self.first = None

    def forward(self, x):
        if self.first is None:
            self.first = nn.Linear(x.flatten(1).shape[1], 8)
        return super().forward(x)


class WeightNorm(Body):
    def __init__(self):
        super().__init__()
        self.first = parametrizations.weight_norm(self.first)


class OldWeightNorm(Body):
    def __init__(self):
        super().__init__()
        with pytest.warns(FutureWarning):
            self.first = nn.utils.weight_norm(self.first)


class SpectralNorm(Body):
    def __init__(self):
        super().__init__()
        self.first = parametrizations.spectral_norm(self.first)


class OldSpectralNorm(Body):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.spectral_norm(self.first)


class SparseTable(Body):
    """A sparse buffer that is not persistent and stays."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.eye(16).to_sparse(), persistent=False)

    def forward(self, x):
        return super().forward(torch.sparse.mm(self.table, x.flatten(1).t()).t())


def compiled():
    return torch.compile(Tied(), backend="eager")


def parts_compiled():
    net = Tied()
    net.first = torch.compile(net.first, backend="eager")
    return net


KEPT = [
    Tied, Views, Strided, Kinds, Extra, ExtraTensor, Hidden, Adds, Lazy, MadeLate, WeightNorm, OldWeightNorm,
    SpectralNorm, OldSpectralNorm, SparseTable, compiled, parts_compiled,
]  # fmt: skip


@pytest.mark.parametrize("length", range(0, 16, 4))
def test_complex_numbers_are_aligned_wherever_the_file_has_them(length, tmp_path):
    """The length of the metadata moves the tensors of a file by 8 bytes at a time."""
    about = {"note": "x" * length}
    save_weights(tmp_path / "a.safetensors", make(Kinds), about)
    _, state, _ = read_weights(tmp_path / "a.safetensors")
    for value in state.values():
        if isinstance(value, torch.Tensor) and value.is_complex():
            assert value.data_ptr() % value.element_size() == 0


# Of these an average sees what it sees of another: tensors of the same kinds, or a parametrisation.
LIKE_OTHERS = (Strided, ExtraTensor, MadeLate, OldWeightNorm, OldSpectralNorm, parts_compiled)


@pytest.mark.parametrize(
    ("kind", "average"),
    [
        pytest.param(kind, average, marks=[pytest.mark.slow] if average == "ema" and kind in LIKE_OTHERS else [])
        for kind in KEPT
        for average in ("none", "ema")
    ],
)
def test_a_run_keeps_and_loads_it(kind, average, tmp_path):
    """The file in a new network answers as the network in hand, and so does the best epoch that memory kept."""
    fitted = train(make(kind), tmp_path / "run", average=average)
    new = make(kind, seed=9)
    load_weights(new, tmp_path / "run")
    assert torch.equal(answers(new), answers(fitted.model))
    same(visible(new), visible(fitted.model))
    memory = train(make(kind), average=average)
    assert torch.equal(answers(memory.model), answers(fitted.model))


@pytest.mark.parametrize("kind", KEPT)
def test_a_resumed_run_is_the_unbroken_one(kind, tmp_path, monkeypatch):
    whole = train(make(kind), tmp_path / "whole", epochs=3)
    stop = {"after": 8}  # the loop asks twice after each of the 3 steps of an epoch

    def asked():
        stop["after"] -= 1
        return stop["after"] < 0

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requests", lambda: nullcontext(asked))
        with pytest.raises(Interrupted):
            train(make(kind), tmp_path / "run", epochs=3)
    resumed = train(make(kind, seed=9), tmp_path / "run", epochs=3, resume=True)
    assert torch.equal(answers(resumed.model), answers(whole.model))
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_tied_weights_are_kept_once_and_load_tied(tmp_path):
    from safetensors import safe_open

    train(make(Tied), tmp_path / "run")
    with safe_open(tmp_path / "run" / folder.BEST, framework="pt") as file:
        assert {"middle.weight", "again.weight"} - set(file.keys()) == {"again.weight"}
    new = make(Tied, seed=9)
    load_weights(new, tmp_path / "run")
    assert new.again.weight is new.middle.weight
    untied = make(Tied, seed=9)
    untied.again.weight = nn.Parameter(torch.zeros(8, 8))
    load_weights(untied, tmp_path / "run")
    assert torch.equal(untied.again.weight, new.middle.weight)
    small = export_of(tmp_path, Tied)
    assert torch.equal(small.middle.weight, new.middle.weight.half().float())


def export_of(tmp_path, kind):
    """What the float16 copy of a run's weights gives."""
    from atent.runs import loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "model_of", lambda config, run: make(kind))
        out = export(tmp_path / "run", tmp_path / "small")
    new = make(kind, seed=9)
    load_weights(new, out)
    return new


@pytest.mark.parametrize("kind", [Kinds, Extra, ExtraTensor, Hidden, Adds])
def test_a_float16_copy_keeps_what_is_no_float(kind, tmp_path):
    model = train(make(kind), tmp_path / "run").model
    torch.testing.assert_close(answers(export_of(tmp_path, kind)), answers(model), rtol=2**-9, atol=2**-9)


def test_a_file_that_unties_what_the_network_ties_is_refused(tmp_path):
    model = make(Tied)
    model.again.weight = nn.Parameter(torch.zeros(8, 8))
    train(model, tmp_path / "run")
    with pytest.raises(ValueError, match=r"middle\.weight and again\.weight differ, and are one in the model"):
        load_weights(make(Tied), tmp_path / "run")


@pytest.mark.parametrize(("saver", "loader"), [(compiled, Tied), (Tied, compiled), (parts_compiled, compiled)])
def test_compiled_and_plain_networks_share_files_and_runs(saver, loader, tmp_path):
    whole = train(make(saver), tmp_path / "whole", epochs=2)
    new = make(loader, seed=9)
    load_weights(new, tmp_path / "whole")
    assert torch.equal(answers(new), answers(whole.model))
    resumed = train(make(loader, seed=9), tmp_path / "whole", epochs=2, resume=True)
    assert torch.equal(answers(resumed.model), answers(whole.model))


def test_weights_saved_with_the_compilers_names_load(tmp_path):
    """As earlier versions and plain torch save them."""
    from safetensors.torch import save_file

    model = make(lambda: torch.compile(Body(), backend="eager"))
    save_file(model.state_dict(), tmp_path / "old.safetensors")
    new = make(Body, seed=9)
    load_weights(new, tmp_path / "old.safetensors")
    assert torch.equal(answers(new), answers(model))


def test_plain_files_are_as_before(tmp_path):
    """A network without any of this: its tensors by name, and no further metadata."""
    from safetensors import safe_open

    train(make(Body), tmp_path / "run")
    with safe_open(tmp_path / "run" / folder.BEST, framework="pt") as file:
        assert set(file.metadata()) == {"atent"}
        assert set(file.keys()) == set(Body().state_dict())


def test_an_earlier_versions_checkpoint_resumes(tmp_path):
    done = train(make(Body), tmp_path / "run")
    path = unsealed(tmp_path / "run") / folder.LAST / STATE
    state = torch.load(path, weights_only=True)
    del state["own"], state["metrics"]
    torch.save(state, path)
    again = train(make(Body, seed=9), tmp_path / "run", resume=True)
    assert torch.equal(answers(again.model), answers(done.model))


def test_pack_and_unpack_are_inverse():
    state = {"a": torch.rand(2, 3).t(), "b": torch.rand(2) + 1j, "c_extra_state": [1, {"d": None}], "e": torch.rand(1)}
    state["f"] = state["e"]
    state["g"] = state["a"][:1]
    tensors, notes = pack(state)
    assert "f" not in tensors
    same(unpack(tensors, notes), state)


def test_put_names_another_architecture():
    with pytest.raises(ValueError, match="does not load into this network") as caught:
        put(make(Body), {"first.weight": torch.zeros(1)})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("made", [torch.jit.script, lambda net: torch.jit.trace(net, torch.rand(2, 4))])
def test_the_state_of_a_script_has_plain_names(made):
    """Before: the modules of a script were asked like a dictionary, and its training ended in a traceback."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    state = visible(made(net))
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
