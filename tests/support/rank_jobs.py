"""Trainings on several ranks beside the same on one, for `test_data_parallel`; as a script, what one rank does."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from processes import environment
from torch import nn

from atent.data import from_tensors
from atent.data.split import Split
from atent.distributed import SINGLE, BatchShard, World
from atent.distributed.gradients import add_gradients
from atent.distributed.world import traffic, within
from atent.methods import (
    ACL,
    ATENT,
    AWP,
    CROWNIBP,
    FGSMRS,
    MART,
    MMA,
    PGDAT,
    TRADES,
    DistilledTRADES,
    Dual,
    EmbeddingTerm,
    Free,
    Gaussian,
    Method,
    Perturbation,
    SmoothAdv,
    Standard,
    TRADESSmoothing,
)  # fmt: skip
from atent.models.contrastive import Contrastive
from atent.optim import Optimizer, Walk
from atent.threat import Threat
from atent.train import TrainSettings, fit
from atent.train.finite import order_of

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
N, EPOCHS, BATCH = 55, 5, 16
"""Batches of 16, 16, 16 and 7 samples."""


@dataclass(frozen=True)
class Whole(Method):
    """A loss that couples samples and gathers nothing: the variance of the logits over the batch joins the loss."""

    divisible = False

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        logits = self.seen(model(x.clone()))
        loss = nn.functional.cross_entropy(logits[: len(y)], y) if len(logits) == len(y) else logits.mean()
        return loss + logits.var(0).sum(), {}

    def seen(self, logits):
        return logits


@dataclass(frozen=True)
class Table(Method):
    """State of every kind: a value for each sample, one for each position, a mean of the batch, and a counter."""

    def init(self, n_train, shape, device):
        sizes = {"by_id": (n_train,), "by_place": (0,), "mean": (), "count": ()}
        return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

    def rows(self, state, x, part):
        if len(state["by_place"]) < len(x):
            more = torch.zeros(len(x) - len(state["by_place"]), dtype=torch.float64)
            state["by_place"] = torch.cat([state["by_place"], more])
        return {**state, "by_place": state["by_place"][part]}

    def backward(self, model, x, y, *, rng, ids=None, progress=1.0, weight=1.0, state=None):
        losses = nn.functional.cross_entropy(model(x.clone()), y, reduction="none")
        noisy = torch.rand(len(x), generator=rng, dtype=x.dtype)
        if len(state["by_place"]) < len(x):
            self.rows(state, x, slice(0, len(x)))
        factors = 1 + state["mean"] + state["by_place"][: len(x)]
        with torch.no_grad():
            state["by_id"][ids] = losses * noisy
            state["by_place"][: len(x)] += 0.1 * losses * noisy
            state["mean"].mul_(0.9).add_(0.1 * losses.mean())
            state["count"].add_(1)
        (weight * (losses * factors).mean()).backward()
        return {"loss": losses.detach().mean(), "each": losses.detach()}


def documented():
    """The method of docs/data_parallel.md."""
    text = (Path(__file__).parents[2] / "docs" / "data_parallel.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {"__name__": __name__}
    exec(compile(code, "data_parallel.md", "exec"), names)
    return names["Spread"]


@dataclass(frozen=True)
class Job:
    """One training."""

    method: Method
    norm: bool = False
    drop: float = 0.0
    smooth: bool = True
    heads: bool = False
    """A network for pre-training, with batch-norms of two kinds."""
    optimizer: Optimizer = field(default=Optimizer(lr=0.1))
    alone: dict = field(default_factory=dict)
    """Settings of the training on one process, where they differ."""
    settings: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


SYNC = {"norm": True, "drop": 0.2}
JOBS = {
    "ATENT, chains": Job(ATENT(L2, steps=3, chains=2), drop=0.3),
    "PGDAT": Job(PGDAT(LINF, 3, mode="train"), **SYNC, settings={"batch_size": 7, "epochs": 3}),
    "ATENT": Job(ATENT(LINF, steps=3), norm=True),
    "MMA": Job(MMA(L2, 3, 5), settings={"accumulate": 2}, alone={"accumulate": 1}),
    "Free": Job(Free(LINF, 2), settings={"accumulate": 2}, alone={"accumulate": 1}),
    "SmoothAdv": Job(SmoothAdv(L2, steps=2), drop=0.3),
    "ACL": Job(ACL(LINF, steps=2)),
    "AWP, discriminator": Job(
        TRADES(LINF, 2),
        norm=True,
        settings={"awp": Perturbation(0.01), "embedding": EmbeddingTerm(0.1, "discriminator", width=16)},
    ),
    "EntropySGD": Job(
        PGDAT(LINF, 2),
        optimizer=Optimizer("EntropySGD", walk=Walk(2, scale="none", inner_batches="next")),
        settings={"average": "ema", "on_nonfinite": "skip"},
    ),
    # Batches of 14 and 13, which two ranks share as two micro-batches do.
    "local": Job(
        PGDAT(LINF, 2, mode="train"),
        norm=True,
        settings={"batch_norm": "local", "batch_size": 14},
        alone={"accumulate": 2},
    ),
    "float32": Job(Standard(), **SYNC, dtype=torch.float32),
    "a method that gathers": Job(documented()(), **SYNC),
    "a coupled method": Job(Whole(), **SYNC),
    "a method with state": Job(Table()),
}
GRID = {
    **JOBS,
    "Standard": Job(Standard(), **SYNC),
    "ATENT, l2": Job(ATENT(L2, steps=3), **SYNC),
    "ATENT, data-entropy": Job(ATENT(L2, 4, variant="published", objective="data-entropy", noise=1.0), **SYNC),
    "ATENT, kl": Job(ATENT(L2, 3, outer_loss="kl", dropout="fresh", chains=2), **SYNC),
    "ATENT, eval": Job(ATENT(LINF, 3, mode="eval"), **SYNC),
    "ATENT, micro-batches": Job(ATENT(LINF, 3), **SYNC, settings={"accumulate": 3}, alone={"accumulate": 3}),
    "TRADES": Job(TRADES(LINF, 2), **SYNC),
    "TRADESSmoothing": Job(TRADESSmoothing(L2, steps=3), **SYNC),
    "SmoothAdv, ddn": Job(SmoothAdv(L2, samples=3, attack="ddn", steps=3), **SYNC),
    "MMA, sync": Job(MMA(L2, 3, 5), **SYNC),
    "Free, sync": Job(Free(LINF, 2), **SYNC),
    "FGSMRS": Job(FGSMRS(LINF), **SYNC),
    "MART": Job(MART(LINF, 2), **SYNC),
    "Gaussian": Job(Gaussian(0.2), **SYNC),
    "DistilledTRADES": Job(DistilledTRADES(LINF, steps=2), **SYNC),
    "ACL, sync": Job(ACL(LINF, steps=2), **SYNC),
    "ACL, two kinds of batch-norm": Job(ACL(LINF, steps=2), **SYNC, heads=True),
    "ATENT, calibrated": Job(ATENT(L2, 3, calibrated=True), **SYNC),
    "ACL, A2S": Job(ACL(LINF, "A2S", steps=2), **SYNC),
    "Dual": Job(Dual(LINF), smooth=False),
    "Dual, projections": Job(Dual(LINF, projections=10), smooth=False),
    "CROWNIBP": Job(CROWNIBP(LINF), smooth=False),
    "AWP, mmd": Job(PGDAT(LINF, 2), norm=True, settings={"awp": Perturbation(0.01), "embedding": EmbeddingTerm(0.1)}),
    "SmoothAdv, mmd": Job(SmoothAdv(L2, steps=2), drop=0.3, settings={"embedding": EmbeddingTerm(0.1)}),
    "AWP of ATENT": Job(AWP(ATENT(LINF, 3), 0.01), **SYNC),
    "Adam": Job(PGDAT(LINF, 2), **SYNC, optimizer=Optimizer("Adam", lr=0.01)),
    "LARS": Job(PGDAT(LINF, 2), **SYNC, optimizer=Optimizer("LARS", lr=0.1)),
    "SGLD": Job(PGDAT(LINF, 2), **SYNC, optimizer=Optimizer("SGLD", lr=0.01, walk=Walk(noise=0.01))),
    "clipped": Job(PGDAT(LINF, 2), **SYNC, optimizer=Optimizer(clip_norm=0.1), settings={"average": "swa"}),
    "few samples": Job(PGDAT(LINF, 2, mode="train"), **SYNC, settings={"batch_size": 6}),
}


class Wide(Split):
    """Samples in float64."""

    def batch(self, index):
        x, y = super().batch(index)
        return x.double(), y


def data(dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    x, y = torch.rand(80, 1, 6, 6, generator=rng), torch.randint(3, (80,), generator=rng)
    found = from_tensors(x[:61], y[:61], x[61:], y[61:], validation=61 - N)
    if dtype is torch.float32:
        return found
    parts = {k: Wide(s.x, s.y, s.ids, s.scale) for k in ("train", "validation", "test") for s in [getattr(found, k)]}
    return replace(found, **parts)


def network(job):
    """Small. No bias before a batch-norm: its gradient is rounding alone, which Adam and LARS enlarge."""
    torch.manual_seed(0)
    norms = (nn.BatchNorm2d(4), nn.BatchNorm1d(8)) if job.norm else (nn.Identity(), nn.Identity())
    drop = nn.Dropout(job.drop) if job.drop else nn.Identity()
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=not job.norm), norms[0], nn.Tanh() if job.smooth else nn.ReLU(), drop, nn.Flatten(),
        nn.Linear(64, 8, bias=not job.norm), norms[1], nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    return (Contrastive(made, (7, 6), (1, 6, 6)) if job.heads else made).to(job.dtype)


def trained(job, world, **changes):
    """The trained network, the rows of its epochs, and what was said."""
    model, said = network(job), []
    settings = {
        "epochs": EPOCHS, "batch_size": BATCH, "validate_limit": 4, "validate_attack": "none", "device": "cpu",
        "watch": "off", "select": "last", "validate_every": EPOCHS, **job.settings, **changes,
    }  # fmt: skip
    with within(world):
        fitted = fit(
            model, data(job.dtype), job.method, optimizer=job.optimizer, settings=TrainSettings(**settings),
            augmentation="flip", progress=False, say=said.append,
        )  # fmt: skip
    return model, fitted.history, said


def difference(a, b, *, buffers=True):
    """||a - b|| / ||b|| of parameters, and of floating buffers; the larger."""
    worst = 0.0
    kinds = [lambda m: m.parameters(), lambda m: [t for t in m.buffers() if t.is_floating_point()]]
    for values in kinds if buffers else kinds[:1]:
        u, v = (torch.cat([t.detach().flatten() for t in [*values(m), torch.ones(1)]]) for m in (a, b))
        worst = max(worst, float((u - v).norm() / v.norm()))
    return worst


def apart(a, b):
    """The largest relative difference of two histories' metrics."""
    skipped = ("seconds", "memory_mb")
    pairs = [(a[-1][k], b[-1][k]) for k in a[-1] if k not in skipped and isinstance(a[-1][k], float)]
    return max(abs(u - v) / max(1.0, abs(v)) for u, v in pairs)


def transcribed(job, ranks):
    """Standard training on one process with batch-norm's statistics for each rank's rows, as ``local`` defines it."""
    model, samples = network(job).train(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng = torch.Generator()
    for epoch in range(EPOCHS):
        order = order_of(0, epoch, N, rng, ())
        for index in order.split(BATCH):
            x, y = samples.train.batch(index)
            optimizer.zero_grad()
            before = [b.clone() for b in model.buffers()]
            means = [torch.zeros_like(b) for b in before]
            shards = [BatchShard(len(y), slice(0, len(y)), World(rank, ranks)) for rank in range(ranks)]
            for rows, share in [(shard.rows, shard.weight) for shard in shards if shard.counts]:
                for b, old in zip(model.buffers(), before, strict=True):
                    b.copy_(old)
                (share * nn.functional.cross_entropy(model(x[rows]), y[rows])).backward()
                for mean, b in zip(means, model.buffers(), strict=True):
                    mean.add_(share * b) if b.is_floating_point() else mean.copy_(b)
            for b, mean in zip(model.buffers(), means, strict=True):
                b.copy_(mean)
            optimizer.step()
    return model


def ours(world, names, references):
    """What this rank finds: for each job the difference from one process, and whether all ranks have the same bits."""
    found = {}
    for name in names:
        job, alone = GRID[name], references.get(name)
        before = traffic.messages, traffic.bytes
        model, history, said = trained(job, world)
        sent = traffic.messages - before[0], traffic.bytes - before[1]
        bits = world.gather([t.tolist() for t in [*model.parameters(), *model.buffers()]])
        found[name] = {"said": said, "sent": sent, "same": all(b == bits[0] for b in bits)}
        if alone is not None:
            found[name] |= {
                "weights": difference(model, alone[0], buffers=name != "local"), "metrics": apart(history, alone[1])
            }  # fmt: skip
    return found


def main(arguments):
    """One rank: its findings, as JSON, from rank 0."""
    import torch.distributed as dist

    global EPOCHS
    EPOCHS = arguments.epochs
    names = json.loads(arguments.jobs)
    # Before there is a group: what trains then is one process. The other ranks wait for it.
    references = {} if arguments.rank else {name: trained(GRID[name], SINGLE, **GRID[name].alone) for name in names}
    dist.init_process_group(
        "gloo", init_method=f"file://{arguments.store}", rank=arguments.rank, world_size=arguments.size
    )
    world = World(arguments.rank, arguments.size)
    found = ours(world, names, references)
    if arguments.more:
        found["local, transcribed"] = _transcription(world)
        found["DDP"] = _wrapped(world)
        found["missing"] = _missing(world)
        found["added"] = _added(world)
    if world.first:
        Path(arguments.out).write_text(json.dumps(found))
    dist.destroy_process_group()


def _transcription(world):
    job = Job(Standard(), norm=True, optimizer=Optimizer(lr=0.1), settings={"batch_norm": "local"})
    with within(world):
        model = network(job)
        fit(
            model, data(), job.method, optimizer=job.optimizer, progress=False,
            settings=TrainSettings(
                epochs=EPOCHS, batch_size=BATCH, validate_attack="none", validate_limit=4, device="cpu", watch="off",
                select="last", batch_norm="local", validate_every=EPOCHS,
            ),
        )  # fmt: skip
    return difference(model, transcribed(job, world.size))


def _wrapped(world):
    """By how much ranks that see other samples differ, with DDP around the network, by `.backward` and by `grad`."""
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 2).double())
    x = torch.full((4, 3), 1.0 + world.rank, dtype=torch.float64)
    model(x).square().sum().backward()
    hooked = [p.grad.tolist() for p in model.parameters()]
    plain = [g.tolist() for g in torch.autograd.grad(model(x).square().sum(), list(model.parameters()))]
    return [all(r == ranks[0] for r in ranks) for ranks in (world.gather(hooked), world.gather(plain))]


def _added(world):
    """For few and for many numbers: the sum on each rank of rank + 1, of two lengths; and those of each rank."""
    sums = []
    for n in (3, 10_000):
        held = [torch.full((n,), world.rank + 1.0), torch.full((2, n), world.rank + 1.0).t()]
        world.add(held)
        sums.append([sorted({*t.flatten().tolist()}) for t in held])
    return world.gather([sums, world.stacked(torch.tensor(world.rank)).tolist()])


def _missing(world):
    """The gradients of three parameters after they are added up: of all ranks, of the first alone, of none."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for p in parameters[: 2 if world.first else 1]:
        p.grad = torch.full((2,), 1.0 + world.rank)
    add_gradients(parameters, world)
    grads = [None if p.grad is None else p.grad.tolist() for p in parameters]
    return world.gather(grads)


def found(size, names, *, more=False, epochs=EPOCHS):
    """What ``size`` ranks find of trainings of so many epochs; their output where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--size", size, "--store", f"{folder}/store", "--out", f"{folder}/out", "--jobs", json.dumps(names)]
        words += ["--epochs", epochs]
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(rank), *map(str, words), *(["--more"] if more else [])],
                env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            texts = [rank.communicate(timeout=500)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert all(rank.returncode == 0 for rank in ranks), "\n".join(texts)
        return json.loads(Path(folder, "out").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for word, kind in (("rank", int), ("size", int), ("store", str), ("out", str), ("jobs", str), ("epochs", int)):
        parser.add_argument(f"--{word}", type=kind)
    parser.add_argument("--more", action="store_true")
    main(parser.parse_args())
