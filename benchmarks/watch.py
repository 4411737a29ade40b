"""False alarms and detections of the watch for catastrophic overfitting.

    python benchmarks/watch.py tuning held-out fresh
    python benchmarks/watch.py --table

Small networks are trained on digits and on 1,500 images of MNIST, Fashion-MNIST or CIFAR-10 (ATENT_DATA_ROOT) at 16x16
pixels, with the watch measuring and never stopping. Each training adds a line to results/watch/SET.jsonl; one that is
there is not made again. The constants of the rules were chosen on the set ``tuning`` and, in part, after evaluation on
``held-out``; the rates are those of the set ``fresh``, whose seeds were chosen after rules and definitions were fixed.

The class of a training is determined on validation images that the watch does not see. R is the
accuracy under PGD (40 steps and 2 restarts of 300 images at the end, 10 steps of 100 images after each epoch), S that
under the training's attack on the same images, and P the R at the end of PGD-AT with the same data and eps.

collapsed  R < P / 2 and S - R >= 0.2 at the end, or R below half of its best so far and S - R >= 0.2 after an epoch
good       R >= 0.8 P at the end, never below half of its best so far, nor 20 points below it while S - R >= 0.2
neither    the others: a training that diverges, stays weak, or is fooled for an epoch and recovers
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, pad

from atent import Threat
from atent.attacks import PGD, Attack
from atent.data import Data, DataSettings, Split, from_tensors, load
from atent.evaluate import evaluate
from atent.methods import METHODS, Method
from atent.models import ModelSettings, make
from atent.optim import Optimizer
from atent.runs import provenance
from atent.stats import percent, share
from atent.train import Callback, TrainSettings, fit
from atent.train.watch import STOP, Watch

HERE = Path(__file__).parents[1] / "results" / "watch"
SIGNALS = ("watch_robust", "watch_training", "watch_gap_low", "watch_alignment")
WATCHED, TRACED, ENDING = 200, 100, 300
"""Validation images of the watch; of the rest, those measured after each epoch, and those measured at the end."""


@dataclass(frozen=True)
class Case:
    """One training."""

    data: str
    eps: float
    method: str
    seed: int
    epochs: int
    lr: float = 0.05
    batch_size: int = 64
    warmup: float = 0.3
    net: str = "digits_cnn"

    @property
    def name(self) -> str:
        """Its name in the file."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def threat(self) -> Threat:
        """The purpose of its training."""
        return Threat("linf", self.eps)

    def build(self) -> Method:
        """The method: a name of the registry with settings, ``step`` and ``replays`` as multiples."""
        name, _, text = self.method.partition(":")
        given: dict[str, Any] = {"eps_warmup": self.warmup}
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            if key == "step":
                given["step_size"] = float(value) * self.eps
            else:
                given[key] = int(value) if value.isdigit() else value
        return METHODS.find(name)(self.threat, **given)


TRAINED = 1500


@lru_cache
def images(name: str) -> Data:
    """The images of a case."""
    if name == "digits":
        return load(DataSettings(name, validation=500))
    whole = load(DataSettings(name, limit=TRAINED, validation=500))
    small = [
        (avg_pool2d(pad(x, [(32 - x.shape[-1]) // 2] * 4), 2), y)
        for x, y in (
            part.batch(list(range(len(part)))) for part in (whole.train, whole.validation, whole.test.first(100))
        )
    ]
    x, y = (torch.cat([small[0][i], small[1][i]]) for i in (0, 1))
    return from_tensors(x, y, *small[2], validation=500, name=f"{name}-16")


class Truth(Callback):
    """Measures the network on images that the watch does not see."""

    def __init__(self, data: Data, case: Case) -> None:
        watched = set(data.sample("validation", WATCHED).ids.tolist())
        rest = [i for i, number in enumerate(data.validation.ids.tolist()) if number not in watched]
        self.traced, self.ending = data.validation.take(rest[:TRACED]), data.validation.take(rest[:ENDING])
        own = getattr(case.build(), "attack", None)
        self.own: Attack = own(1.0) if callable(own) else PGD(case.threat, 1, float(case.threat.eps), start="zero")
        self.case, self.trace = case, list[tuple[float, float]]()
        self.final: dict[str, float] = {}

    def epoch(self, progress: Any, row: dict[str, Any]) -> None:
        """The trace, and after the last epoch the accuracies that decide."""
        threat = self.case.threat
        pair = [robust(progress.model, self.traced, attack) for attack in (PGD(threat, 10), self.own)]
        self.trace.append((pair[0], pair[1]))
        if progress.epoch == progress.settings.epochs:
            strong = robust(progress.model, self.ending, PGD(threat, 40, restarts=2))
            self.final = {"R": strong, "S": robust(progress.model, self.ending, self.own)}


def robust(model: nn.Module, part: Split, attack: Attack) -> float:
    """Robust accuracy on some images."""
    x, y = part.batch(list(range(len(part))))
    return float(evaluate(model, x, y, [attack], ids=part.ids).worst["value"])


def trained(case: Case) -> dict[str, Any]:
    """One training, and what was measured."""
    data, begun = images(case.data), time.process_time()
    truth = Truth(data, case)
    settings = TrainSettings(
        epochs=case.epochs, batch_size=case.batch_size, seed=case.seed, device="cpu", threads=1, validate_limit=20,
        validate_attack="none", watch="on", watch_limit=WATCHED, watch_drop=1.0, watch_gap=1.0,
    )  # fmt: skip
    model = make(ModelSettings(case.net), classes=10, shape=data.shape, seed=case.seed)
    fitted = fit(
        model, data, case.build(), optimizer=Optimizer(lr=case.lr), settings=settings, progress=False, callbacks=[truth]
    )
    epochs = [{"epoch": row["epoch"], **{key: row[key] for key in SIGNALS}} for row in fitted.history]
    return {
        "name": case.name, **asdict(case), "end": truth.final, "trace": truth.trace, "epochs_measured": epochs,
        "cpu_seconds": round(time.process_time() - begun, 1), "about": provenance(seed=case.seed),
    }  # fmt: skip


# ---- the sets ------------------------------------------------------------------------------------------------------

COMMON: dict[str, dict[str, Any]] = {
    "tuning": {"lr": 0.05, "batch_size": 32, "warmup": 0.3, "epochs": 10, "first": 0},
    "held-out": {"lr": 0.04, "batch_size": 48, "warmup": 0.2, "epochs": 12, "first": 100},
    "fresh": {"lr": 0.04, "batch_size": 48, "warmup": 0.2, "epochs": 12, "first": 400},
}
"""What the trainings of a set share; the seeds count from ``first``."""

QUICK = {"lr": 0.05, "batch_size": 24, "warmup": 0.2, "epochs": 8, "first": 200}
"""Held out, of more and smaller steps: those of the families that are made to collapse; of ``fresh`` from seed 500."""

FAMILIES: list[tuple[str, float, str, float, int, int, int, int, int]] = [
    # data, eps, method, factor of the epochs; seeds for tuning, held out, held out in QUICK, fresh, and fresh in QUICK
    ("mnist", 0.25, "PGDAT:steps=7", 1, 0, 0, 1, 0, 1),
    ("mnist", 0.2, "FGSMRS:start=zero,step=1", 1, 1, 1, 10, 1, 20),
    ("mnist", 0.25, "FGSMRS:start=zero,step=1", 1, 1, 1, 10, 1, 20),
    ("digits", 0.1, "FGSMRS", 1.5, 1, 6, 0, 6, 0),
    ("digits", 0.1, "FGSMRS:step=2", 1.5, 1, 3, 0, 0, 0),
    ("digits", 0.1, "Free:replays=4", 0.4, 1, 8, 0, 6, 0),
    ("digits", 0.05, "FGSMRS", 1, 0, 6, 0, 6, 0),
    ("mnist", 0.1, "FGSMRS", 1, 1, 2, 0, 3, 0),
    ("mnist", 0.1, "Free:replays=4", 0.4, 1, 2, 0, 3, 0),
    ("mnist", 0.25, "FGSMRS:step=2", 1, 1, 0, 2, 0, 4),
    ("mnist", 0.2, "FGSMRS", 1, 1, 0, 2, 0, 4),
    ("digits", 0.1, "PGDAT:steps=7", 1.5, 1, 1, 0, 2, 0),
    ("digits", 0.05, "PGDAT:steps=7", 1, 0, 1, 0, 2, 0),
    ("mnist", 0.1, "PGDAT:steps=7", 1, 1, 1, 0, 2, 0),
    ("mnist", 0.2, "PGDAT:steps=7", 1, 1, 0, 0, 1, 0),
    ("mnist", 0.2, "FGSMRS:step=2", 1, 1, 0, 0, 0, 0),
    ("mnist", 0.2, "Free:replays=10", 0.3, 1, 0, 0, 0, 0),
    ("fashion-mnist", 0.05, "PGDAT:steps=7", 1, 1, 0, 0, 2, 0),
    ("fashion-mnist", 0.05, "FGSMRS", 1, 1, 0, 0, 3, 0),
    ("fashion-mnist", 0.05, "Free:replays=4", 0.4, 1, 0, 0, 2, 0),
    ("fashion-mnist", 0.12, "FGSMRS:start=zero,step=1", 1, 1, 0, 0, 0, 0),
    ("fashion-mnist", 0.12, "FGSMRS:step=2", 1, 1, 0, 0, 0, 0),
    ("cifar10", 0.015, "PGDAT:steps=7", 1, 1, 0, 0, 2, 0),
    ("cifar10", 0.015, "FGSMRS", 1, 1, 0, 0, 3, 0),
]


def cases(name: str) -> list[Case]:
    """The trainings of a set, seed by seed, so that one which is cut short has some of each."""
    groups = {
        "tuning": [(COMMON["tuning"], 4)],
        "held-out": [(QUICK, 6), (COMMON["held-out"], 5)],
        "fresh": [({**QUICK, "first": 500}, 8), (COMMON["fresh"], 7)],
    }[name]
    out = []
    for k in range(max(max(family[4:]) for family in FAMILIES)):
        for family in FAMILIES:
            data, eps, method, factor = family[:4]
            for given, column in groups:
                if k < int(family[column]):
                    lr = given["lr"] * (0.4 if method.startswith("Free") else 0.6 if data == "cifar10" else 1.0)
                    epochs = round(given["epochs"] * factor)
                    seed = given["first"] + k
                    out.append(Case(data, eps, method, seed, epochs, lr, given["batch_size"], given["warmup"]))
    return out


def make_set(name: str, shard: tuple[int, int]) -> None:
    """Trains what the file of a set lacks, every so manyth of it."""
    path = HERE / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in rows_of(name)}
    for case in cases(name)[shard[0] :: shard[1]]:
        if case.name not in done:
            row = trained(case)
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The trainings of a set that have been made."""
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# ---- the rates -----------------------------------------------------------------------------------------------------


def kind(row: dict[str, Any], reference: float) -> str:
    """The class of a training: collapsed, good or neither."""
    end, best = row["end"], 0.0
    lost = False
    for robust_share, own in row["trace"]:
        best = max(best, robust_share)
        apart = own - robust_share >= 0.2
        lost |= robust_share < best / 2 or (apart and best - robust_share >= 0.2)
        if apart and robust_share < best / 2:
            return "collapsed"
    if end["R"] < reference / 2 and end["S"] - end["R"] >= 0.2:
        return "collapsed"
    return "good" if not lost and end["R"] >= 0.8 * reference else "neither"


def alarms(row: dict[str, Any]) -> set[str]:
    """The rules that warn at some epoch with the settings' defaults, and "stop"."""
    case = Case(**{f.name: row[f.name] for f in fields(Case)})
    watch, found = Watch(case.build(), images("digits"), TrainSettings(), case.threat), set[str]()
    for epoch in row["epochs_measured"]:
        verdict = watch.assess(epoch)
        found |= set(watch.reasons) | ({"stop"} if verdict == STOP else set())
        if verdict == STOP:
            break
    return found


def references(name: str) -> dict[tuple[str, float], float]:
    """P by data and eps: the R of PGD-AT, of the set itself where it has one, else of another."""
    sets = [*(each for each in COMMON if each != name), name]
    rows = [row for each in sets for row in rows_of(each) if row["method"].startswith("PGDAT")]
    return {(row["data"], row["eps"]): row["end"]["R"] for row in rows}


def table(name: str) -> str:
    """The rates of a set, as a table of Markdown."""
    known, counts = references(name), {}
    for row in rows_of(name):
        reference = known.get((row["data"], row["eps"]), 0.0)
        if reference >= 0.2:
            counts.setdefault(kind(row, reference), []).append(alarms(row))
    lines = [
        "| training | n | any alarm (%) | fall | gap | alignment | stopped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for what in ("good", "collapsed", "neither"):
        found = counts.get(what, [])
        if found:
            each = [sum(rule in rules for rules in found) for rule in ("fall", "gap", "alignment", "stop")]
            some = percent(share(sum(bool(rules) for rules in found), len(found))).replace(" %", "")
            lines.append(f"| {what} | {len(found)} | {some} | {' | '.join(map(str, each))} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=[*COMMON, []], help="sets to train: tuning, held-out, fresh")
    parser.add_argument("--table", action="store_true", help="print the rates of the sets that have been made")
    parser.add_argument("--shard", default="0/1", help="i/k: every kth training from the ith on, for k processes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    i, k = map(int, given.shard.split("/"))
    for name in given.sets:
        make_set(name, (i, k))
    for name in COMMON if given.table else ():
        print(f"{name}\n\n{table(name)}\n")


if __name__ == "__main__":
    main()
