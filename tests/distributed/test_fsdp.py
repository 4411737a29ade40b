"""Networks whose weights the ranks share: `train.shard`."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import environment
from rank_jobs import Wide
from torch import nn

from atent import signals
from atent.attacks import PGD
from atent.data import from_tensors
from atent.distributed import SINGLE, World
from atent.distributed.sharding import blocks, is_sharded, shard
from atent.distributed.world import within
from atent.methods import ATENT, PGDAT, TRADES, Free, Standard, objectives
from atent.models.vit import vit_tiny
from atent.models.wrn import WideResNet
from atent.optim import Optimizer
from atent.runs.checkpoint import load_weights
from atent.threat import Threat
from atent.train import Callback, Interrupted, TrainSettings, fit
from atent.train.sharded import check

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
SHAPE = 1, 8, 8
JOBS = {
    "ATENT": ("wrn", ATENT(L2, steps=3), Optimizer(lr=0.05)),
    "ATENT, kl": ("vit", ATENT(LINF, steps=2, outer_loss="kl", mode="train"), Optimizer(lr=0.05, clip_norm=0.1)),
    "PGD-AT": ("vit", PGDAT(LINF, steps=2), Optimizer("Adam", lr=1e-3)),
    "TRADES": ("wrn", TRADES(LINF, steps=2), Optimizer(lr=0.05)),
    "Standard": ("vit", Standard(), Optimizer(lr=0.05)),
}


def network(name):
    torch.manual_seed(0)
    made = WideResNet(10, 2, channels=1, classes=3) if name == "wrn" else vit_tiny(classes=3, shape=SHAPE, patch=4)
    return made.double()


def data():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.rand(30, *SHAPE, generator=rng), torch.randint(3, (30,), generator=rng)
    found = from_tensors(x[:25], y[:25], x[25:], y[25:], validation=5)
    parts = {k: Wide(s.x, s.y, s.ids, s.scale) for k in ("train", "validation", "test") for s in [getattr(found, k)]}
    return replace(found, **parts)


def trained(job, world, **more):
    """The weights after five steps."""
    name, method, optimizer = JOBS[job]
    settings = {
        "epochs": 1, "batch_size": 4, "validate_limit": 5, "validate_attack": "PGD(steps=1)", "device": "cpu",
        "select": "last", "watch": "off", "save_minutes": 0.0, **more.pop("settings", {}),
    }  # fmt: skip
    with within(world):
        return fit(
            network(name), data(), method, optimizer=optimizer, settings=TrainSettings(**settings), progress=False,
            **more,
        )  # fmt: skip


def apart(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((u.double() - v.double()).abs().max()) for u, v in pairs)


def guarded(world):
    """Whether an attack gives a sharded network back as it was, and finds what it finds with a whole one."""
    plain, own = network("wrn").train(), network("wrn").train()
    shard(own, world)
    first = next(own.parameters()).requires_grad_(False)
    x, y = torch.rand(4, *SHAPE, dtype=torch.float64), torch.arange(4) % 3
    found = [PGD(LINF, 2)(m, x, y, rng=torch.Generator()) for m in (own, plain)]
    kept = own.training and not first.requires_grad and all(p.requires_grad for p in list(own.parameters())[1:])
    return [float((found[0] - found[1]).abs().max()), bool(kept), sum(is_sharded([p]) for p in own.parameters())]


def resumed(world, folder):
    """How far the unbroken two epochs are from one that was sharded and one that follows on the same two ranks."""
    longer, run = {"epochs": 2}, folder / "resumed"
    whole = trained("PGD-AT", world, settings={"shard": "full", **longer}).model
    error = ""
    try:
        trained("PGD-AT", world, run=run, settings={"shard": "full", **longer}, callbacks=[Stop()])
    except Interrupted as stopped:
        error = type(stopped).__name__
    again = trained("PGD-AT", world, run=run, resume=True, settings={"shard": "full", **longer}).model
    return [apart(again, whole), error]


class Stop(Callback):
    """Asks for the end inside the second epoch."""

    def step(self, progress):
        if (progress.epoch, progress.step) == (2, 2):
            signals.request()


def main(rank, store, out):
    """One rank: its findings, as JSON, from rank 0."""
    import torch.distributed as dist

    references = {job: trained(job, SINGLE) for job in JOBS} if rank == 0 else {}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world, found = World(rank, 2), {}
    for job in JOBS:
        run = Path(out).parent / job.replace(", ", "-")
        fitted = trained(job, world, run=run, settings={"shard": "full"})
        rows = world.gather([{k: v for k, v in r.items() if k not in ("seconds", "memory_mb")} for r in fitted.history])
        if rank == 0:
            moved = apart(references[job].model, network(JOBS[job][0]))
            found[job] = [apart(fitted.model, references[job].model), rows[0] == rows[1], moved]
    found["guard"] = guarded(world)
    found["resumed"] = resumed(world, Path(out).parent)
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes find, their run folders, and their CPU seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parent
    words = [
        [sys.executable, str(here / "test_fsdp.py"), str(r), str(folder / "store"), str(folder / "out")] for r in "01"
    ]
    started = [subprocess.Popen(w, env=environment(), stderr=subprocess.PIPE, text=True) for w in words]
    errors = [p.communicate(timeout=500)[1] for p in started]
    assert [p.returncode for p in started] == [0, 0], errors
    return folder, json.loads((folder / "out").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_sharded_training_gives_the_weights_of_one_process(ranks, job):
    difference, alike, moved = ranks[1][job]
    assert moved > 1e-4
    # Adam divides by the root of a mean square, which enlarges the rounding of small gradients.
    assert difference < 1e-10
    assert alike


@pytest.mark.slow
def test_an_attack_gives_a_sharded_network_back_as_it_was(ranks):
    difference, kept, parts = ranks[1]["guard"]
    assert difference < 1e-12
    assert kept
    assert parts == len(list(network("wrn").parameters()))


@pytest.mark.slow
def test_a_sharded_training_resumes_exactly(ranks):
    assert ranks[1]["resumed"] == [0.0, "Interrupted"]


@pytest.mark.slow
def test_one_process_reads_and_resumes_what_several_wrote(ranks):
    name, method, optimizer = JOBS["PGD-AT"]
    model = network(name)
    load_weights(model, ranks[0] / "PGD-AT")
    assert 0 < apart(model, network(name)) < 1
    again = network(name)
    settings = TrainSettings(
        epochs=1, batch_size=4, validate_limit=5, validate_attack="PGD(steps=1)", device="cpu", select="last",
        watch="off", save_minutes=0.0,
    )  # fmt: skip
    fit(
        again, data(), method, optimizer=optimizer, settings=settings, progress=False, resume=True,
        run=ranks[0] / "PGD-AT",
    )  # fmt: skip
    assert apart(model, again) == 0


@pytest.mark.parametrize("method", [
    ATENT(L2, steps=3), ATENT(L2, steps=3, outer_loss="kl"), ATENT(L2, steps=3, dropout="fresh"),
    ATENT(L2, 4, variant="published", objective="data-entropy", noise=1.0),
], ids=["free energy", "kl", "two passes", "data-entropy"])  # fmt: skip
def test_the_pass_by_backward_gives_the_gradient_of_the_pass_by_grad(method, monkeypatch):
    plain = objectives.Step

    def chosen(*given, by_backward):
        step = plain(*given)
        step.by_backward = by_backward
        return step

    x, y = torch.rand(4, *SHAPE, dtype=torch.float64), torch.arange(4) % 3
    grads = []
    for by_backward in (False, True):
        monkeypatch.setattr(sys.modules["atent.methods.atent"], "Step", partial(chosen, by_backward=by_backward))
        model = network("wrn").train()
        method.backward(model, x, y, rng=torch.Generator(), weight=0.7)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((grads[0] - grads[1]).norm()) <= 1e-12 * float(grads[0].norm())


def test_blocks_are_children_of_stacks():
    wrn, vit = network("wrn"), network("vit")
    assert [type(b).__name__ for b in blocks(vit)] == [type(vit.blocks[0]).__name__] * len(vit.blocks)
    found = blocks(nn.Sequential(nn.Identity(), wrn))
    assert found
    assert all(any(b is m for m in wrn.modules()) for b in found)


@pytest.mark.parametrize(("method", "optimizer", "more", "word"), [
    (PGDAT(LINF), "LARS", {}, "LARS"),
    (Free(LINF), "SGD", {}, "Free"),
    (PGDAT(LINF), "SGD", {"average": "ema"}, "average"),
    (PGDAT(LINF), "SGD", {"on_nonfinite": "skip"}, "on_nonfinite"),
])  # fmt: skip
def test_what_cannot_be_sharded_is_refused(method, optimizer, more, word):
    settings = TrainSettings(shard="full", **more)
    with within(World(0, 2)), pytest.raises(ValueError, match=word):
        check(settings, Optimizer(optimizer), method, watched=False)


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(ValueError, match="torchrun"):
        fit(network("vit"), data(), PGDAT(LINF), settings=TrainSettings(shard="full", device="cpu"), progress=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
