"""What each of two processes does for `test_launch`: a script, which prints what it found as one line of JSON."""

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from atent import signals
from atent.cli import main
from atent.data import DataSettings, load
from atent.distributed import SINGLE, alone, current, each
from atent.distributed.launch import joined
from atent.distributed.world import within
from atent.evaluate.search import Search
from atent.methods import PGDAT
from atent.optim import Optimizer
from atent.threat import Threat
from atent.train import Callback, TrainSettings, fit
from atent.train.shares import evaluated
from atent.train.validation import Validation

LINF = Threat("linf", 0.1)
TINY = (
    "--data.limit", "64", "--data.test_limit", "40", "--train.device", "cpu", "--train.validate_limit", "20",
    "--train.epochs", "2", "--method.steps", "2", "--evaluate.limit", "20", "--evaluate.attacks", "FGSM",
    "--no-baseline",
)  # fmt: skip
OWN = ("seconds", "memory_mb")
"""What the rows of two equal trainings do not share."""


def data():
    return load(DataSettings(limit=64, validation=40))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(run, seed=0, **more):
    settings = TrainSettings(
        epochs=3, batch_size=16, validate_limit=20, device="cpu", watch="on", average="ema", **more.pop("settings", {})
    )
    return fit(
        network(seed), data(), PGDAT(LINF, steps=2), settings=settings, optimizer=Optimizer(lr=0.5), progress=False,
        run=run, **more,
    )  # fmt: skip


def digest(model):
    values = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
    return hashlib.sha256(values).hexdigest()


def plain(rows):
    return [{k: v for k, v in row.items() if k not in OWN} for row in rows]


class StopAt(Callback):
    """Asks rank 0 to stop after a step."""

    def __init__(self, epoch, step):
        self.at = epoch, step

    def step(self, progress):
        if (progress.epoch, progress.step) == self.at:
            signals.request()


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def wrong(message):
    raise ValueError(message)


def found(folder):
    """What this rank sees of trainings from Python."""
    with joined() as world:
        rank = world.rank
        whole = train(folder / "whole", seed=rank)
        broken = error_of(lambda: train(folder / "broken", callbacks=[StopAt(2, 2)]))
        alone(lambda: shutil.copytree(folder / "broken", folder / "left"))
        again = train(folder / "broken", resume=True)
        train(folder / "one", resume=True)
        model, sample = whole.model, data()
        parts = Validation(sample, TrainSettings(validate_limit=20), LINF, robust=True)
        shared = evaluated(model, parts.parts["validation"], parts.attacks, seed=0)
        with within(SINGLE):
            one = evaluated(model, parts.parts["validation"], parts.attacks, seed=0)
        return {
            "rank": rank,
            "weights": [digest(whole.model), digest(again.model)],
            "rows": [plain(whole.history), plain(again.history)],
            "interrupted": broken,
            "counts": [shared.counts, one.counts],
            "lengths": [len(flags) for flags in shared.flags.values()],
            "alone": error_of(lambda: alone(lambda: wrong(f"only rank {rank}"))),
            "each": [each(lambda: rank), error_of(lambda: each(lambda: wrong("rank 1") if rank else 0))],
            "uneven": error_of(lambda: train(None, settings={"average_decay": 0.9 + rank / 16})),
            "few": error_of(lambda: fit(
                network(), data(), PGDAT(LINF), settings=TrainSettings(batch_size=1, device="cpu"), progress=False
            )),
            "taken": error_of(lambda: train(folder / "whole")),
            "inside": current().size,
        }  # fmt: skip


@contextmanager
def counted(attack):
    """How many samples this rank gives to an attack of an evaluation."""
    seen, original = [], Search.attacked

    def attacked(self, kind, x, *args, **how):
        seen.extend([type(kind).__name__] * len(x))
        return original(self, kind, x, *args, **how)

    Search.attacked = attacked
    try:
        yield lambda: seen.count(attack)
    finally:
        Search.attacked = original


def run(folder, port):
    """The command line first, then Python, whose process group begins anew."""
    with counted("FGSM") as attacked:
        words = ["train", "digits-linf-atent", *TINY, "--evaluate.batch", "2", "--evaluate.last", "false"]
        status = main([*words, "--runs", str(folder / "runs"), "--name", "cli"])
    os.environ["MASTER_PORT"] = port
    return {"status": status, "attacked": attacked(), "after": current().size, **found(folder)}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2])))
