"""Networks, methods and settings that used to end a run late: they train, keep and load, or are refused in one line."""

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from kit import unsealed
from torch import nn
from torch.nn.utils import parametrizations

from atent import Threat
from atent import runs as folder
from atent.attacks import ATTACKS
from atent.data import from_tensors
from atent.methods import ATENT, PGDAT, Method, Standard
from atent.optim import Optimizer, Schedule
from atent.runs.checkpoint import STATE, export, read_weights, save_weights
from atent.runs.weights import pack, put, unpack, visible
from atent.train import TrainSettings, fit, load_weights, loop, machine, trainer
from atent.train.interrupt import Interrupted

N, CLASSES = 24, 3


def images(n=N, classes=CLASSES):
    rng = torch.Generator().manual_seed(3)
    x, y = torch.rand(40, 1, 4, 4, generator=rng), torch.arange(40) % classes
    data = from_tensors(x, y, x[:9], y[:9], validation=9)
    return dataclasses.replace(data, train=data.train.first(n))


def train(model, path=None, data=None, method=None, resume=False, **changes):
    settings = {"epochs": 2, "batch_size": 8, "device": "cpu", "validate_attack": "FGSM", **changes}
    torch.manual_seed(0)
    return fit(
        model, data or images(), method or Standard(), optimizer=Optimizer(lr=0.1), settings=TrainSettings(**settings),
        run=path, progress=False, resume=resume,
    )  # fmt: skip


def make(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


def answers(model):
    with torch.no_grad():
        return model.eval()(torch.linspace(0, 1, 48).view(3, 1, 4, 4))


class Body(nn.Module):
    """What the networks below share: 16 pixels in, 3 logits out."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())


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


class Adds(Body):
    """A buffer that the first training pass makes, and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None)
        self.register_buffer("bank", torch.zeros(0))

    def forward(self, x):
        if self.training:
            if not hasattr(self, "mean"):
                self.register_buffer("mean", torch.zeros(()))
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            self.cache = x.mean((0, 1))
            if len(self.bank) < 20:
                self.bank = torch.cat([self.bank, x.mean()[None]])
        extra = self.mean + self.bank.sum() if hasattr(self, "mean") else 0.0
        return super().forward(x) * (1 + extra)


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


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        if isinstance(a[k], torch.Tensor):
            torch.testing.assert_close(a[k], b[k], rtol=0, atol=0, equal_nan=True)
        else:
            assert a[k] == b[k]


# ---- what trains, is kept and comes back


@pytest.mark.parametrize("length", range(0, 16, 4))
def test_complex_numbers_are_aligned_wherever_the_file_has_them(length, tmp_path):
    """The length of the metadata moves the tensors of a file by 8 bytes at a time."""
    about = {"note": "x" * length}
    save_weights(tmp_path / "a.safetensors", make(Kinds), about)
    _, state, _ = read_weights(tmp_path / "a.safetensors")
    for value in state.values():
        if isinstance(value, torch.Tensor) and value.is_complex():
            assert value.data_ptr() % value.element_size() == 0


@pytest.mark.parametrize("average", ["none", "ema"])
@pytest.mark.parametrize("kind", KEPT)
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


# ---- what is refused before the first step


class Expanded(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(1).expand(8))


class ExpandedWeight(Body):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1).expand(3))


class Sparse(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.eye(3).to_sparse())


class Quantised(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8))


class ObjectState(Body):
    def get_extra_state(self):
        return np.float64(3.0)

    def set_extra_state(self, state):
        pass


class TupleState(ObjectState):
    def get_extra_state(self):
        return {"shape": (1, 2)}


class NanState(ObjectState):
    def get_extra_state(self):
        return float("nan")


class LateState(ObjectState):
    """Plain at first, no longer after a pass."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def get_extra_state(self):
        return self.seen

    def forward(self, x):
        if self.training:
            self.seen = {1, 2}
        return super().forward(x)


class OneWay(Body):
    """It gives extra state and takes none."""

    def get_extra_state(self):
        return 3


class UnusedLazy(Body):
    def __init__(self):
        super().__init__()
        self.spare = nn.LazyLinear(3)


class LateParameter(Body):
    def forward(self, x):
        if self.training and not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(1))
        return super().forward(x)


class NewParameter(Body):
    def forward(self, x):
        if self.training:
            self.first.weight = nn.Parameter(self.first.weight.data * 0.9)
        return super().forward(x)


class TwoHeads(Body):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def on_meta():
    with torch.device("meta"):
        return Body()


REFUSED = [
    (Expanded, "mask is an expanded view"),
    (ExpandedWeight, "gain is an expanded view"),
    (Sparse, "table is torch.sparse_coo"),
    (Quantised, "table is quantised"),
    (ObjectState, "_extra_state is a float64 that a run folder cannot hold"),
    (TupleState, "_extra_state is a dict that a run folder cannot hold"),
    (NanState, "_extra_state is a float that"),
    (LateState, "_extra_state is a set that"),
    (OneWay, "does not load into this network"),
    (UnusedLazy, r"spare\.weight is not initialised"),
    (LateParameter, "adds its parameter gain in a forward pass"),
    (NewParameter, r"adds its parameter first\.weight in a forward pass"),
    (TwoHeads, "in train mode, got a tuple"),
    (on_meta, "is on the meta device"),
    (lambda: Body().double(), r"weights are torch\.float64 and its inputs torch\.float32"),
]


@pytest.mark.parametrize(("kind", "why"), REFUSED)
def test_refused_in_one_line_and_nothing_is_written(kind, why, tmp_path):
    with pytest.raises(ValueError, match=why) as caught:
        train(make(kind), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [ObjectState, TupleState, NanState, LateState])
def test_without_a_run_folder_extra_state_may_be_anything(kind):
    assert train(make(kind)).best["epoch"] in (1, 2)


def test_channels_last_that_would_untie_views_is_refused(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1)
            self.b = nn.Conv2d(4, 4, 3, padding=1)
            self.b.weight = nn.Parameter(self.a.weight.data)
            self.last = nn.Linear(64, CLASSES)

        def forward(self, x):
            return self.last(self.b(self.a(x.expand(-1, 4, -1, -1))).flatten(1))

    with pytest.raises(ValueError, match=r"a\.weight and b\.weight share memory"):
        train(make(Shared), tmp_path / "run", channels_last=True)
    assert train(make(Shared), tmp_path / "run").best


def test_what_is_tried_leaves_no_trace():
    """The copy takes the passes: the network begins with its own buffers, and the random states are the caller's."""
    model, seen = make(Adds), []

    class Watched(Standard):
        def backward(self, net, x, y, **kwargs):
            seen.append({k: v.clone() for k, v in net.state_dict().items()})
            return super().backward(net, x, y, **kwargs)

    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    fit(model, images(), Watched(), settings=TrainSettings(epochs=1, batch_size=8, device="cpu"), progress=False)
    assert torch.equal(torch.rand(1), drawn)
    same(seen[0], before)


@dataclasses.dataclass(frozen=True)
class Rule(Standard):
    """A method whose state is ``kind``."""

    kind: object = None

    def init(self, n_train, shape, device):
        return {"kind": self.kind(n_train)} if callable(self.kind) else {"kind": self.kind}


class Opaque:
    def __init__(self, n):
        self.n = n


def too_large(n):
    raise RuntimeError(f"no memory for {n} images\nin two lines")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (too_large, "Rule cannot start on 24 images .* RuntimeError: no memory"),
        (Opaque, "must return a dict of tensors, got an Opaque"),
    ],
)
def test_a_method_that_cannot_begin_or_be_kept_is_refused(kind, why, tmp_path):
    config = {**loop.describe(Body(), images(), Standard(), Optimizer(), Schedule(), TrainSettings(), "none")}
    with pytest.raises(ValueError, match=why) as caught:
        fit(
            make(Body), images(), Rule(kind=kind), settings=TrainSettings(epochs=1, device="cpu"), run=tmp_path / "run",
            config=config, progress=False,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_validation_attack_that_cannot_run_is_refused(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Picky(ATTACKS["PGD"]):
        def search(self, oracle, x, y, streams):
            return super().search(oracle.demanding(4, "Picky needs at least 4"), x, y, streams)

    monkeypatch.setitem(ATTACKS._discover(), "Picky", Picky)
    with pytest.raises(ValueError, match=r"validate_attack Picky\(steps=2\) cannot run here: Picky needs at least 4"):
        train(
            make(Body), tmp_path / "run", method=PGDAT(Threat("linf", 0.1), steps=1), validate_attack="Picky(steps=2)"
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_network_is_checked_where_it_trains(monkeypatch):
    """A network that is on the device already is asked there, and with inputs of that device."""
    seen = []

    def spy(model, shape, classes, device, dtype):
        seen.extend([torch.device(device), *(p.device for p in model.parameters())])
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "check_output", spy)
    with pytest.raises(KeyboardInterrupt):
        train(on_meta(), device="meta")
    assert set(seen) == {torch.device("meta")}


def test_a_metric_that_is_not_finite_costs_no_epoch(tmp_path):
    class Odd(Standard):
        def backward(self, model, x, y, **kwargs):
            metrics = super().backward(model, x, y, **kwargs)
            return metrics | {"odd": torch.tensor(float("inf")), "odds": torch.full((len(x),), float("nan"))}

    history = train(make(Body), tmp_path / "run", method=Odd()).history
    assert [row["odd"] for row in history] == [None, None]
    assert folder.read_jsonl(tmp_path / "run" / folder.METRICS) == history


def test_a_folder_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    train(make(Body), tmp_path / "run", epochs=2)

    def denied(*args, dir, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(OSError, match=r"cannot write to .*run: Permission denied"):
        train(make(Body), tmp_path / "run", epochs=2, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(make(Body), tmp_path / "file" / "run")


# ---- a last batch of one image


class Norm(Body):
    """Batch-norm on one value per channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.last(self.norm(self.first(x.flatten(1))).relu())


class Squeeze(Body):
    def forward(self, x):
        return super().forward(x).squeeze()


class Wide(Body):
    """Batch-norm that has a variance of one image, too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return super().forward(self.norm(x))


def sizes(model, data, method=Standard, path=None, **changes):
    """The batches that a method sees, epoch by epoch."""
    seen = []

    class Watched(method):
        def backward(self, net, x, y, **kwargs):
            if net is model:  # a copy is only tried
                seen.append(len(x))
            return super().backward(net, x, y, **kwargs)

    given = {"threat": Threat("linf", 0.1), "steps": 1} if method is not Standard else {}
    return seen, train(model, path, data, Watched(**given), **changes)


@pytest.mark.parametrize("method", [Standard, PGDAT, ATENT])
@pytest.mark.parametrize(
    ("kind", "expected"), [(Norm, [8, 9]), (Squeeze, [8, 8, 1]), (Wide, [8, 8, 1]), (Body, [8, 8, 1])]
)
def test_one_image_left_over_joins_where_it_must(kind, expected, method):
    seen, fitted = sizes(make(kind), images(17), method)
    assert seen == expected * 2
    assert len(fitted.history) == 2


def test_only_one_image_left_over_joins():
    assert sizes(make(Norm), images(18))[0] == [8, 8, 2] * 2
    assert sizes(make(Norm), images(16))[0] == [8, 8] * 2
    assert sizes(make(Norm), images(9))[0] == [9] * 2


def test_joined_batches_resume_exactly(tmp_path, monkeypatch):
    whole = train(make(Norm), tmp_path / "whole", images(17), epochs=3)
    answers_left = iter([False] * 6 + [True] * 2)  # twice after each of the 2 steps of an epoch

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requests", lambda: nullcontext(lambda: next(answers_left)))
        with pytest.raises(Interrupted):
            train(make(Norm), tmp_path / "run", images(17), epochs=3)
    resumed = train(make(Norm, seed=9), tmp_path / "run", images(17), epochs=3, resume=True)
    assert torch.equal(answers(resumed.model), answers(whole.model))


@pytest.mark.parametrize(("n", "size", "fix"), [(1, 8, "more training images"), (17, 1, "batch_size 2 or more")])
def test_where_nothing_can_be_joined_it_is_refused(n, size, fix, tmp_path):
    with pytest.raises(ValueError, match=f"cannot train on a batch of one image .*: .*{fix}") as caught:
        train(make(Norm), tmp_path / "run", images(n), batch_size=size)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_calibrated_method_joins_too(tmp_path):
    method = ATENT(Threat("l2", 0.5), steps=2, calibrated=True)
    assert train(make(Norm), tmp_path / "run", images(9), method).history


def test_an_error_that_is_not_for_want_of_images_is_the_first_steps():
    class Broken(Method):
        def backward(self, model, x, y, **kwargs):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(make(Body), data=images(17), method=Broken())
