"""A step waits for nothing, holds one graph and no more with more inner steps, and costs what its passes cost."""

import dataclasses
import sys

import pytest
import torch
from kit import Live, Syncs, batch, network, stream
from torch import nn

from atent import Threat
from atent.data import DataSettings, load
from atent.methods import ATENT, AWP, METHODS, MMA, PGDAT, TRADES, EmbeddingTerm, Perturbation
from atent.methods.inner import LowInner
from atent.methods.objectives import tracked, two_updates
from atent.optim import SGLD, EntropySGD, Optimizer, Schedule
from atent.rng import fold, seed_from
from atent.train import TrainSettings
from atent.train.builders import Builders
from atent.train.finite import order_of
from atent.train.trainer import Trainer

LINF = Threat("linf", 0.1)
# Methods by bounds: they refuse batch-norm and dropout.
FIXED = ("CROWNIBP", "Dual")


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=96, validation=40))


def usual(name):
    cls = METHODS[name]
    given = {f.name: 3 for f in dataclasses.fields(cls) if f.name == "steps"}
    if "threat" not in cls.__dataclass_fields__:
        return cls(**given)
    norm = "linf" if "linf" in cls.norms else "l2"
    if name == "Dual":
        given["projections"] = 3
    return cls(threat=Threat(norm, 0.1), **given)


def net(name):
    torch.manual_seed(0)
    norm, drop = (nn.Identity(), nn.Identity()) if name in FIXED else (nn.BatchNorm2d(6), nn.Dropout(0.3))
    return nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), drop, nn.Linear(216, 10))


# -- waiting


class Waits(Syncs):
    """As `Syncs`, and gathers by a mask, which wait for their length."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("index", "index_put_"):
            masks = [t for t in args[1] if t is not None and t.dtype == torch.bool]
            self.seen += ["mask"] * len(masks)
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The seeds of networks come as on a GPU: `seed_from` draws no number there."""
    drawn = sys.modules["atent.rng"].seed_from
    for module in [m for n, m in list(sys.modules.items()) if n.startswith("atent") and hasattr(m, "seed_from")]:
        if module.seed_from is drawn:
            monkeypatch.setattr(module, "seed_from", lambda rng, *given, **named: 7)


CASES = [
    *((name, {}) for name in METHODS),
    ("ATENT", {"awp": Perturbation(0.01), "average": "ema"}),
    ("PGDAT", {"inner_precision": "bfloat16"}),
    ("PGDAT", {"embedding": EmbeddingTerm(0.1), "precision": "float32"}),
    ("TRADES", {"optimizer": Optimizer("EntropySGD", lr=0.05)}),
    ("Standard", {"optimizer": Optimizer(lr=0.05, clip_norm=1.0)}),
]


@pytest.mark.parametrize(("name", "given"), CASES, ids=[f"{n}-{'-'.join(g)}".rstrip("-") for n, g in CASES])
def test_no_step_of_an_epoch_waits_for_the_device(digits, on_a_gpu, name, given):
    given = dict(given)
    optimizer, method = given.pop("optimizer", Optimizer(lr=0.05)), usual(name)
    settings = TrainSettings(epochs=1, batch_size=32, validate_attack="none", device="cpu", watch="off", **given)
    trainer = Trainer(
        net(name), digits, method, optimizer=optimizer, schedule=Schedule(), settings=settings,
        augmentation="none", threat=None, run=None, config=None, resume=False, progress=False, callbacks=[],
        say=lambda line: None, builders=Builders(None, {}, None, {}),
    )  # fmt: skip
    order = order_of(0, 0, len(digits.train), trainer.rng, ())
    trainer.model.train()
    trainer.train_step(order, 0, 0)  # the first step prepares an optimizer's state
    with Waits() as syncs:
        trainer.train_step(order, 0, 1)
        trainer.train_step(order, 0, 2)
    assert syncs.seen == []


def test_a_gpus_seed_comes_from_what_the_host_knows():
    class OnGpu(torch.Generator):
        device, at = torch.device("cuda"), 8

        def initial_seed(self):
            return 5

        def get_offset(self):
            return self.at

        def set_offset(self, offset):
            self.at = offset

    rng = OnGpu()
    assert [seed_from(rng), seed_from(rng)] == [fold(5, 8, "network"), fold(5, 12, "network")]
    a, b = stream(), stream()
    assert seed_from(a) == int(torch.randint(2**62, (), generator=b))
    assert torch.equal(a.get_state(), b.get_state())


# -- memory


@pytest.mark.parametrize(
    "make",
    [
        lambda k: ATENT(LINF, steps=k), lambda k: ATENT(LINF, steps=k, dropout="fresh"),
        lambda k: ATENT(LINF, steps=k, outer_loss="kl"), lambda k: PGDAT(LINF, steps=k),
        lambda k: TRADES(LINF, steps=k), lambda k: MMA(LINF, steps=k, bisection=k + 5),
        lambda k: AWP(PGDAT(LINF, steps=k)), lambda k: LowInner(TRADES(LINF, steps=k)),
    ],
    ids=["ATENT", "ATENT-fresh", "ATENT-kl", "PGDAT", "TRADES", "MMA", "AWP", "LowInner"],
)  # fmt: skip
def test_memory_is_flat_in_the_number_of_steps(make):
    """All tensors count, not only those that autograd keeps; what a pass has more of than another is noise of a few
    numbers, an iterate of the chain would be 8 x 36 doubles."""
    x, y = batch()
    model = network(True, 0.3)
    if isinstance(make(2), LowInner):
        model, x = model.float(), x.float()
    most = []
    for steps in (2, 20):
        for p in model.parameters():
            p.grad = None
        with Live() as live:
            make(steps).backward(model, x, y, rng=stream())
        most.append(live.most)
    assert most[0] > 20_000
    assert most[1] - most[0] <= 18 * 64  # up to eight numbers for each further step


# -- operations


def test_batch_norm_counters_take_one_operation_for_all():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None)).train()

    class Counts(Syncs):
        WAIT = ("add_", "_foreach_add_")

    with Counts() as seen, two_updates(tracked(model)):
        pass
    assert seen.seen == ["_foreach_add_"]
    assert [int(m.num_batches_tracked) for m in model] == [1, 1, 1]


class Ops(Syncs):
    """The names of all operations inside."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["SGLD", "EntropySGD"])
def test_an_optimizers_walk_takes_the_same_operations_for_few_and_many_weights(kind):
    """But for those that make a tensor of each, random numbers and copies, and for torch's own step."""

    def moves(count):
        params = [nn.Parameter(torch.rand(3)) for _ in range(count)]
        made = (
            SGLD(params, 0.01, gamma=0.1)
            if kind == "SGLD"
            else EntropySGD(params, 0.1, inner_lr=0.1, momentum=0, nesterov=False)
        )

        def closure():
            for p in params:
                p.grad = torch.ones(3)
            return torch.zeros(())

        with Ops() as ops:
            made.step(closure)
        return [name for name in ops.seen if name in ("add", "sub", "neg", "copy_", "mul", "_foreach_add_")]

    assert moves(3) == moves(9)


def test_a_steps_operations_do_not_grow_with_the_buffers():
    """Buffers are kept and put back by one call for all of them, not by some for each."""

    def copies(count):
        model, (x, y) = network(), batch()
        for i in range(count):
            model.register_buffer(f"more{i}", torch.zeros(3))
        with Ops() as ops:
            PGDAT(LINF, steps=2).backward(model, x, y, rng=stream())
        return sum(name in ("copy_", "clone") for name in ops.seen)

    assert copies(30) == copies(0)
