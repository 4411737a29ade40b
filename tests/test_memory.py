"""Memory that runs out: the step, the evaluation and the certification continue in smaller parts, and give the same."""

import gc
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

from atent.attacks import PGD
from atent.certify import Smoothed
from atent.data import DataSettings, load
from atent.evaluate import evaluate
from atent.memory import Batches, OutOfMemory, out_of_memory
from atent.methods import AWP, METHODS, MMA, PGDAT, Free, Standard
from atent.optim import Optimizer
from atent.optim.settings import Walk
from atent.runs import read_rows
from atent.threat import Threat
from atent.train import Callback, TrainSettings, fit
from atent.train.begun import Begun
from atent.train.memory import MicroBatches

LINF = Threat("linf", 0.05)


class Small(nn.Module):
    """A network that does not fit into memory with more than ``most`` samples, from forward pass ``after`` on."""

    def __init__(self, most=10**6, after=0, norm=False, error=None):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12) if norm else nn.Tanh())
        self.head, self.most, self.left, self.failed = nn.Linear(12, 10), most, after, 0
        self.error = error or RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    def forward(self, x):
        self.left -= 1
        z = self.net(x)  # batch-norm has seen the batch when memory runs out
        if len(x) > self.most and self.left < 0:
            self.failed += 1
            raise self.error
        return self.head(z)


@pytest.fixture(scope="module", autouse=True)
def a_small_heap():
    """Memory that runs out is answered by a garbage collection, which takes a second and more over all that a session
    of tests has imported and kept: here it goes over what is made from now on, as in a command."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=200, validation=60))


def settings(**changes):
    base = {"epochs": 2, "batch_size": 64, "validate_limit": 20, "validate_attack": "none", "device": "cpu"}
    return TrainSettings(**{**base, "watch": "off", **changes})


def trained(data, method, most=10**6, *, lr=0.05, **kept):
    torch.manual_seed(0)
    model, said = Small(most), []
    how = {"optimizer": Optimizer(lr=lr), "settings": settings(), "progress": False, "say": said.append}
    fitted = fit(model, data, method, **{**how, **kept})
    return model, fitted, said


def distance(a, b):
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


# -- training


def test_micro_batches_have_the_gradient_of_the_batch(digits):
    """An epoch with micro-batches ends at the weights of whole batches, for methods that draw nothing."""
    for method in (PGDAT(LINF, 2, start="zero"), Free(LINF, 2)):
        once = settings(epochs=1)
        whole, _, said = trained(digits, method, settings=once)
        assert not said
        parts, fitted, said = trained(digits, method, most=20, settings=once)
        # 64 samples, then 32, then 16: the first two attempts fail, once each
        assert parts.failed == 2
        assert [line.split(":")[0] for line in said] == ["out of memory at 64 samples", "out of memory at 32 samples"]
        assert [row["micro_batch"] for row in fitted.history] == [16]
        assert distance(whole, parts) < 1e-5


def test_a_micro_batch_weighs_its_share_and_leaves_no_single_sample():
    model, seen = Small(most=20), []
    method, x = Standard(), torch.rand(41, 1, 8, 8)
    y = torch.arange(41) % 10

    def part(rows, weight):
        seen.append((rows.stop - rows.start, weight))
        return method.backward(model, x[rows], y[rows], rng=torch.Generator(), weight=weight, state={})

    position = {}
    micro = MicroBatches(model, method, lambda line: None)
    found = micro.accumulate(41, position, {}, model.zero_grad, part)
    assert position == {"micro_batch": 11}
    assert [n for n, _ in seen[-4:]] == [10, 10, 11, 10]
    assert [n for _, n in found] == [10, 10, 11, 10]
    assert sum(weight for _, weight in seen[-4:]) == pytest.approx(1)
    grads = [p.grad.clone() for p in model.parameters()]
    model.most = 41
    model.zero_grad()
    part(slice(0, 41), 1.0)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


def test_a_failed_step_consumes_nothing():
    """Batch-norm saw the batch, and the method wrote to its state, before memory ran out: both are put back."""
    model, state = Small(most=2, norm=True).train(), {"eps": torch.ones(3), "delta": torch.zeros(0)}
    begun = Begun(model, state)
    before = [b.clone() for b in model.buffers()]
    state["eps"][0] = 5.0
    state["delta"], state["new"] = torch.ones(2), torch.ones(1)
    with pytest.raises(RuntimeError, match="allocate"):
        model(torch.rand(4, 1, 8, 8))
    assert not all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    begun.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert list(state) == ["eps", "delta"]
    assert torch.equal(state["eps"], torch.ones(3))
    assert len(state["delta"]) == 0


RADII = MMA(Threat("l2", 2.0), steps=2, start="zero", eps_min=1e-3)


@pytest.mark.parametrize(("method", "key"), [(RADII, "eps"), (Free(LINF, 3), "delta")], ids=["MMA", "Free"])
def test_per_sample_state_keeps_its_place(digits, method, key):
    """MMA's radii by sample number and Free's perturbation by position are those of whole batches."""
    index, states = torch.arange(48), []
    x, _ = digits.train.batch(index)
    for most in (10**6, 20):
        torch.manual_seed(3)
        model = Small().double()
        model.head.weight.data *= 50  # far from every boundary
        y = model(x.double()).argmax(1)  # MMA moves the radii of samples that are classified correctly
        model.most = most
        state = method.init(len(digits.train), digits.shape, torch.device("cpu"))

        def part(rows, weight, model=model, y=y, state=state):
            return method.backward(
                model, x[rows].double(), y[rows], rng=torch.Generator().manual_seed(0), ids=index[rows], weight=weight,
                state=method.rows(state, x.double(), rows) if weight < 1 else state,
            )  # fmt: skip

        position = {}
        for _ in range(2):
            MicroBatches(model, method, str).accumulate(48, position, state, model.zero_grad, part)
        states.append(state[key][:48].clone())
    assert len(states[0].unique(dim=0)) > 10
    torch.testing.assert_close(states[1], states[0], rtol=1e-9, atol=1e-9)


def test_memory_that_runs_out_later_is_recorded_and_a_resumed_run_is_the_unbroken_one(digits, tmp_path):
    """The sizes of the parts are in the checkpoint: the interrupted training ends at the bits of the other."""

    class Stop(Exception):
        pass

    def train(run, callbacks=(), resume=False, most=20):
        return trained(
            digits, PGDAT(LINF, 2), most, run=run, callbacks=callbacks, resume=resume, settings=settings(epochs=3)
        )

    class Breaks(Callback):
        def epoch(self, progress, row):
            if row["epoch"] == 2:
                raise Stop

    whole, _, _ = train(tmp_path / "a")
    with pytest.raises(Stop):
        train(tmp_path / "b", [Breaks()])
    # the machine of the resumed run has the memory: the size that was recorded holds
    again, _, said = train(tmp_path / "b", resume=True, most=10**6)
    assert not said
    assert [row["micro_batch"] for row in read_rows(tmp_path / "b" / "metrics.jsonl")] == [16, 16, 16]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_entropy_sgd_repeats_the_call_of_its_walk(digits):
    optimizer = Optimizer("EntropySGD", lr=0.05, walk=Walk(inner_steps=3))
    whole, _, _ = trained(digits, Standard(), optimizer=optimizer, settings=settings(epochs=1))
    parts, _, _ = trained(digits, Standard(), most=20, optimizer=optimizer, settings=settings(epochs=1))
    assert parts.failed == 2
    assert distance(whole, parts) < 1e-5


def test_what_cannot_be_divided_ends_in_one_line(digits):
    for method, most, text in ((AWP(PGDAT(LINF, 1), 0.01), 40, "AWP needs the full batch"), (Standard(), 0, "single")):
        with pytest.raises(OutOfMemory, match=text) as caught:
            fit(Small(most, after=4), digits, method, settings=settings(epochs=1), progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error, expected):
    assert out_of_memory(error) is expected


def test_the_allocators_own_error_is_known():
    """What this torch says of 2^60 bytes, on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


# -- methods


def split(aux, rows, n):
    """The part of what an adversary found that belongs to some samples."""
    if isinstance(aux, torch.Tensor):
        return aux.unflatten(0, (n, -1))[rows].flatten(0, 1) if len(aux) % n == 0 else aux
    if isinstance(aux, list | tuple):
        return [split(inner, rows, n) for inner in aux]
    if is_dataclass(aux):
        return type(aux)(*(split(getattr(aux, f.name), rows, n) for f in fields(aux)))
    return aux


def made(kind):
    """A method with what it needs at the least."""
    norm = "linf" if "linf" in kind.norms else kind.norms[0]
    given = {"threat": Threat(norm, 0.1)} if any(f.name == "threat" for f in fields(kind)) else {}
    return kind(**given)


PARTS = [name for name, kind in METHODS.items() if kind.divisible and name != "DistilledTRADES"]


@pytest.mark.parametrize("name", PARTS)
def test_the_loss_of_a_divisible_method_is_the_mean_over_its_samples(name):
    """At one adversary, parts of a batch weighed by their shares add up to its gradient: what `divisible` promises."""
    method = made(METHODS[name])
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    x, y, ids = torch.rand(10, 1, 4, 4, dtype=torch.float64), torch.arange(10) % 5, torch.arange(10)
    state = method.init(10, (1, 4, 4), torch.device("cpu"))
    rng = torch.Generator().manual_seed(3)
    aux = method.adversary(model, x, y, rng=rng, ids=ids, state=state)
    grads = []
    for parts in ([slice(0, 10)], [slice(0, 3), slice(3, 4), slice(4, 10)]):
        model.zero_grad()
        for rows in parts:
            share = (rows.stop - rows.start) / 10
            method.descend(model, x[rows], y[rows], split(aux, rows, 10), weight=share, state=state)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float(grads[0].norm()) > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


# -- evaluation and certification


def test_an_evaluation_halves_its_batch_and_finds_the_same(digits, capsys):
    x, y = digits.validation.batch(list(range(50)))
    model = trained(digits, Standard())[0].double()
    attacks = [PGD(LINF, 3), PGD(LINF, 5)]
    whole = evaluate(model, x.double(), y, attacks, seed=2, cascade=False)
    capsys.readouterr()
    model.most = 13
    evaluate(model, x.double(), y, attacks[:1], seed=2, cascade=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("atent: out of memory: the evaluation continues") for line in lines)
    parts = evaluate(model, x.double(), y, attacks, seed=2, cascade=False)
    assert parts.outcomes == whole.outcomes
    # the second attack begins with what the first has found
    assert len(capsys.readouterr().err.splitlines()) == len(lines)
    model.most = 0
    with pytest.raises(OutOfMemory, match="single sample"):
        evaluate(model, x.double(), y, attacks)


def test_a_certification_halves_its_batch_and_counts_the_same(digits, capsys):
    x, _ = digits.validation.batch([0, 1, 2])
    model = trained(digits, Standard())[0].double()
    smoothed = Smoothed(model, 0.25)
    whole = smoothed.votes(x.double(), 300, seed=1)
    model.most = 30
    assert torch.equal(smoothed.votes(x.double(), 300, seed=1), whole)
    first = capsys.readouterr().err.splitlines()
    assert torch.equal(smoothed.votes(x.double(), 300, seed=1), whole)
    assert first
    assert not capsys.readouterr().err


def test_another_error_passes():
    def work(rows):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches("the work").over(5, 5, work))
    assert list(Batches("the work").over(0, 5, work)) == []


def test_a_command_that_runs_out_of_memory_has_failed():
    """It was understood: the status is 1, not 2."""
    from atent.cli import _message

    assert _message(OutOfMemory("no memory")) == ("no memory", 1)
