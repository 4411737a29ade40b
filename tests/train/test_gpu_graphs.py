"""Steps as CUDA graphs, on a CPU: a tape takes the place of the graph (tests/support/tape.py)."""

import contextlib
import copy
import dataclasses
import re
from pathlib import Path

import kit
import pytest
import torch
from tape import Recorder
from torch import nn

from atent import Threat
from atent.data import from_tensors
from atent.methods import ATENT, AWP, PGDAT, Free, Standard
from atent.methods.base import correct, in_force
from atent.train import TrainSettings, fit, graphs, kernels
from atent.train.graphs import WARM, Graphs

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.6)
STEPS = WARM + 5

# Those whose steps neither wait nor touch the state of a generator.
RECORDED = [
    Standard(),
    ATENT(LINF, steps=3),
    ATENT(L2, steps=3, noise=0.1),
    ATENT(L2, steps=3, noise=0.1, outer_loss="kl"),
    Free(LINF, replays=1),
    AWP(ATENT(L2, steps=3), gamma=0.01),
    AWP(Standard(), gamma=0.01),
]
NAMES = [f"{type(m).__name__}-{i}" for i, m in enumerate(RECORDED)]


def steps(
    method, backward, model, *, state=None, count=STEPS, sizes=(), progress=lambda k: 1.0,
    awkward=lambda k, state: None,
):  # fmt: skip
    """Weights, buffers, state and metrics after so many steps of SGD with momentum, as the loop does them."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    state, rng, seen = begun(method) if state is None else state, torch.Generator(), []
    for k in range(count):
        x, y = kit.batch(dict(sizes).get(k, kit.N), seed=k)
        optimizer.zero_grad()
        rng.manual_seed(k)
        torch.manual_seed(100 + k)
        awkward(k, state)
        seen.append(backward(model, x, y, rng=rng, ids=torch.arange(len(x)), progress=progress(k), state=state))
        optimizer.step()
    return [*model.state_dict().values(), *state.values(), *[v for m in seen for v in m.values()]]


def begun(method):
    return method.init(64, (1, 6, 6), torch.device("cpu"))


def by_graphs(method, model, **more):
    """The same by graphs; also what recorded them, and what was said."""
    said, state = [], begun(method)
    recorder = Recorder(lambda: [*model.parameters(), *model.buffers(), *state.values()])
    found = Graphs(method, recorder, said.append)
    return steps(method, found.backward, model, state=state, **more), recorder, said


def same(a, b):
    """Equal up to the order of sums, which may follow how memory is aligned."""
    return all(torch.allclose(s.double(), t.double(), rtol=1e-9, atol=1e-11) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("method", RECORDED, ids=NAMES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_replayed_steps_are_the_steps(method, dropout):
    """Python runs for the first steps and one recording; the others are replays and give the same training."""
    model = kit.network(True, dropout)
    whole = steps(method, method.backward, copy.deepcopy(model))
    found, recorder, said = by_graphs(method, model)
    assert same(found, whole)
    assert not said
    # Free makes its state in the first step, which the later ones do not repeat.
    assert [tape.replays for tape in recorder.tapes] == [STEPS - WARM - isinstance(method, Free)]


@pytest.mark.parametrize("method", RECORDED, ids=NAMES)
def test_a_recorded_step_leaves_generators_alone(method, monkeypatch):
    """A capture on CUDA refuses to read or to set the state of a generator."""

    class Sealed(torch.Generator):
        def refused(self, *_):
            raise AssertionError("the state of a generator")

        get_state = set_state = clone_state = manual_seed = initial_seed = seed = get_offset = set_offset = refused

    model, state, ids = kit.network(True), begun(method), torch.arange(kit.N)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "seed", "initial_seed"):
        monkeypatch.setattr(torch, name, Sealed.refused)
    assert in_force(method, 1.0) is not None
    with kit.Syncs() as syncs:
        method.backward(model, *kit.batch(), rng=Sealed(), ids=ids, state=state)
    assert not syncs.seen


def test_a_short_batch_is_done_without_a_graph_and_keeps_it():
    model, method, sizes = kit.network(True), ATENT(L2, steps=2), {2: 3, WARM + 6: 5}
    count = WARM + 8
    whole = steps(method, method.backward, copy.deepcopy(model), count=count, sizes=sizes.items())
    found, recorder, _ = by_graphs(method, model, count=count, sizes=sizes.items())
    assert same(found, whole)
    # All but steps 0 and 1, the short ones, and the WARM that follow the first of these.
    assert [tape.replays for tape in recorder.tapes] == [count - 2 - 2 - WARM]


def test_settings_that_change_are_never_replayed():
    """eps grows for 4 steps: each is done as it is, and recording begins when it stays."""
    model, method = kit.network(True), ATENT(L2, steps=2, eps_warmup=0.5)
    more = {"count": WARM + 8, "progress": lambda k: k / 8}
    whole = steps(method, method.backward, copy.deepcopy(model), **more)
    found, recorder, _ = by_graphs(method, model, **more)
    assert same(found, whole)
    assert [tape.replays for tape in recorder.tapes] == [WARM + 8 - 4 - WARM]


def test_state_in_other_memory_is_recorded_again():
    """As after a step that is undone: the method's state comes back as a copy."""

    def moved(k, state):
        if k == WARM + 2:
            state["delta"] = state["delta"].clone()

    model, method = kit.network(), Free(LINF, replays=1)
    more = {"count": 2 * WARM + 4, "awkward": moved}
    whole = steps(method, method.backward, copy.deepcopy(model), **more)
    found, recorder, _ = by_graphs(method, model, **more)
    assert same(found, whole)
    assert len(recorder.tapes) == 2


def test_gradients_that_are_there_are_added_to():
    model, method = kit.network(), Standard()
    found = Graphs(method, Recorder(list), print)
    x, y = kit.batch()
    for k in range(WARM + 3):
        for p in model.parameters():
            p.grad = torch.full_like(p, float(k))
        found.backward(model, x, y, rng=kit.stream(), ids=torch.arange(kit.N))
        whole = copy.deepcopy(model)
        whole.zero_grad()
        method.backward(whole, x, y, rng=kit.stream())
        assert kit.distance(kit.gradient(model) - k, kit.gradient(whole)) < 1e-9
    assert found.graph is None


@dataclasses.dataclass(frozen=True)
class Waits(Standard):
    """Reads a number from the device at each step."""

    def settings_at(self, progress):
        return self

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        logits = model(x)
        float(logits.detach().sum())
        return nn.functional.cross_entropy(logits, y), {"clean": correct(logits, y)}


def test_what_cannot_be_recorded_runs_without_and_says_so_once():
    model, method = kit.network(True), Waits()
    whole = steps(method, method.backward, copy.deepcopy(model))
    found, recorder, said = by_graphs(method, model)
    assert same(found, whole)
    assert not recorder.tapes
    (line,) = said
    assert line.startswith("warning: no CUDA graph of Waits (aten._local_scalar_dense")
    assert "\n" not in line


def test_an_inherited_answer_does_not_count():
    """What a class of the user's own adds may depend on the progress."""

    @dataclasses.dataclass(frozen=True)
    class Own(ATENT):
        pass

    assert in_force(ATENT(LINF), 0.5) is not None
    assert in_force(Own(LINF), 0.5) is None
    assert in_force(AWP(Own(LINF)), 0.5) is None
    assert in_force(PGDAT(LINF), 0.5) is None
    assert in_force(ATENT(LINF, mode="eval"), 0.5) is None


def test_a_method_that_is_never_recorded_says_so_at_once():
    said, settings = [], TrainSettings(cuda_graphs=True)
    method, other = PGDAT(LINF), ATENT(LINF)
    assert graphs.graphed(method, settings, torch.device("cuda"), said.append) == method.backward
    assert [line.partition(":")[0] for line in said] == ["warning"]
    assert "PGDAT cannot be recorded as a CUDA graph" in said[0]
    assert graphs.graphed(other, settings, torch.device("cuda"), said.append) != other.backward
    assert len(said) == 1


def test_the_page_s_own_method_takes_part():
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(), re.S)
    names = {"__name__": __name__}
    exec(compile(code, "gpu.md", "exec"), names)
    model = kit.network(True)
    whole = steps(names["Mine"](), names["Mine"]().backward, copy.deepcopy(model))
    found, recorder, _ = by_graphs(names["Mine"](), model)
    assert same(found, whole)
    assert len(recorder.tapes) == 1


def toy(run=None, *, resume=False, **given):
    """A training of 2 epochs of 8 batches and a short one, on the CPU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    x, y = kit.batch(150, seed=1)
    data = from_tensors(x.float(), y, x[:20].float(), y[:20], validation=14)
    settings = TrainSettings(**{"epochs": 2, "batch_size": 16, "device": "cpu", "validate_limit": 10, **given})
    said = []
    fitted = fit(
        net, data, ATENT(L2, steps=2), settings=settings, run=run, resume=resume, progress=False, say=said.append
    )  # fmt: skip
    return fitted, said


def test_a_training_by_graphs_is_the_training(monkeypatch):
    whole, _ = toy()
    recorders = []

    def graphed(method, settings, device, say):
        # The loop's network is not at hand here: what a recording must leave as it was, the tape's operations know.
        found = Graphs(method, lambda body, rng: recorders[0](body, rng), say)

        def backward(model, *given, **more):
            if not recorders:
                recorders.append(Recorder(lambda: [*model.parameters(), *model.buffers()]))
            return found.backward(model, *given, **more)

        return backward

    monkeypatch.setattr(graphs, "graphed", graphed)
    found, said = toy()
    assert not said
    assert sum(tape.replays for tape in recorders[0].tapes) > 8
    for a, b in zip(found.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("deterministic", [False, True])
def test_switches_of_kernels_come_back(deterministic, monkeypatch):
    """With the switches of CUDA, which exist without it; a CPU leaves them alone."""
    cudnn = torch.backends.cudnn

    def switches():
        return cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()

    before, settings = switches(), TrainSettings(deterministic=deterministic)
    with kernels.chosen(settings, torch.device("cpu")):
        assert switches() == before
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    with pytest.raises(KeyError), kernels.chosen(settings, torch.device("cuda")):  # noqa: PT012
        assert switches() == (not deterministic, deterministic, deterministic)
        raise KeyError
    assert switches() == before


def test_on_a_cpu_it_is_refused_and_a_resume_may_differ(tmp_path):
    with pytest.raises(ValueError, match="cuda_graphs needs CUDA, the device is cpu"):
        toy(cuda_graphs=True)
    toy(tmp_path / "run", epochs=1, deterministic=True)
    fitted, _ = toy(tmp_path / "run", epochs=1, resume=True)
    assert len(fitted.history) == 1
