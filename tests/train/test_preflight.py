"""Networks, methods and settings that are refused before the first step, in one line."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_runs import CLASSES, Adds, Body, images, make, same, train
from torch import nn

from atent import Threat
from atent import runs as folder
from atent.attacks import ATTACKS
from atent.methods import PGDAT, Standard
from atent.optim import Optimizer, Schedule
from atent.train import TrainSettings, fit, loop, machine


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
