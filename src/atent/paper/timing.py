"""Table S4: the cost of an epoch, all methods interleaved on one machine, and its growth with K."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent import runs as folder
from atent import stats
from atent.data import augment
from atent.data import load as load_data
from atent.experiments.job import Job
from atent.methods import Method
from atent.models import make
from atent.optim import build as build_optimizer
from atent.paper.engine import Bench, job
from atent.paper.layout import Training
from atent.progress import bar
from atent.stats import Estimate
from atent.train.settings import pick_device

K = (2, 5, 10, 15, 20)
"""Langevin steps of the fit; the paper prints 10 and 5."""
NORMS = ("l2", "linf")


@dataclass(frozen=True)
class Fit:
    """Seconds = slope K + intercept, by least squares."""

    slope: float
    intercept: float


def fit(steps: Sequence[float], seconds: Sequence[float]) -> Fit:
    """The line through (K, seconds); ValueError for fewer than three points."""
    if len(steps) < 3:
        raise ValueError(f"a fit needs three points or more, got {len(steps)}")
    slope, intercept = statistics.linear_regression(steps, seconds)
    return Fit(slope, intercept)


def counted(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """By row, the seconds of each round that count: of the process's CPU where it computed on one."""
    return {name: row[found["of"]] for name, row in found["rows"].items()}


def exponent(rows: Mapping[str, Sequence[float]]) -> Estimate | None:
    """The growth of ATENT's cost with K, from `counted` seconds: b of a + c K^b with its 95 % interval. None for a
    single round, which has no scatter."""
    rounds = list(zip(*(rows[f"atent-{k}"] for k in K), strict=True))
    return stats.exponent(K, rounds) if len(rounds) > 1 else None


def times(rows: Mapping[str, Sequence[float]], a: str, b: str) -> Estimate | None:
    """The ratio of the cost of row ``a`` to that of row ``b``, per round; None for a single round."""
    return stats.ratio(rows[a], rows[b]) if len(rows[a]) > 1 else None


def power(found: Estimate | None) -> str:
    """The exponent as text."""
    return f"K^{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "one round, no exponent"


def recipes(bench: Bench, norm: str) -> dict[str, tuple[str, int | None]]:
    """(recipe, K or None for the recipe's own steps) of each row, by its name."""
    start = f"{bench.scale.small}-{norm}"
    rows: dict[str, tuple[str, int | None]] = {f"atent-{k}": (f"{start}-atent", k) for k in K}
    return {**rows, "trades": (f"{start}-trades", None), "pgdat": (f"{start}-pgdat", None)}


def timed(bench: Bench, norm: str) -> dict[str, Any]:
    """Seconds per epoch of every row, one figure per round, kept in timing-NORM.json of the scale's runs.

    Each round runs all rows on the same batches, in a rotating order, so that a slow period of the machine affects all;
    the first round is not counted. An epoch is the mean time of a batch (augmentation, adversary, gradient, step) times
    the number of batches; validation and checkpoints are excluded, as in the published figures. Raises Interrupted at
    the time limit and discards the rounds, since rounds of different hours are not interleaved.
    """
    found = kept(bench, norm)
    if found is not None:
        return found
    rounds, batches = bench.scale.timed
    bench.check()
    bench.say(f"time     {norm}: {', '.join(recipes(bench, norm))}, {rounds} rounds of {batches} batches")
    like = job(bench, Training(f"{bench.scale.small}-{norm}-atent"), 0)
    rigs = {name: _Rig(bench, recipe, k, like) for name, (recipe, k) in recipes(bench, norm).items()}
    seconds: dict[str, list[float]] = {name: [] for name in rigs}
    busy: dict[str, list[float]] = {name: [] for name in rigs}
    with bar((rounds + 1) * len(rigs), f"seconds, {norm}", enabled=bench.progress) as advance:
        for turn in range(rounds + 1):
            order = list(rigs)
            at = turn % len(order)
            for name in order[at:] + order[:at]:
                took, used = rigs[name].run(batches, turn)
                if turn:
                    seconds[name].append(took)
                    busy[name].append(used)
                advance(1, name)
                bench.check()
    # On a shared CPU the CPU time of this process is more reliable than the wall clock.
    basis = busy if next(iter(rigs.values())).device.type == "cpu" else seconds
    line = fit(K, [statistics.fmean(basis[f"atent-{k}"]) for k in K])
    found = {
        "norm": norm, "rounds": rounds, "batches": batches,
        "rows": {
            name: {**rig.about, "seconds": seconds[name], "cpu_seconds": busy[name]} for name, rig in rigs.items()
        },
        "of": "cpu_seconds" if basis is busy else "seconds",
        "fit": {"K": list(K), "slope": line.slope, "intercept": line.intercept},
        "provenance": folder.provenance(seed=0, device=next(iter(rigs.values())).device),
    }  # fmt: skip
    path = _path(bench, norm)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.write_json(path, found)
    return found


def kept(bench: Bench, norm: str) -> dict[str, Any] | None:
    """The timings of an earlier command at this scale, or None."""
    path = _path(bench, norm)
    if path.is_file():
        found: dict[str, Any] = folder.read_json(path)
        if (found["rounds"], found["batches"]) == bench.scale.timed and "of" in found:
            return found
    return None


def _path(bench: Bench, norm: str) -> Path:
    return bench.runs / bench.scale.name / f"timing-{norm}.json"


class _Rig:
    """One row: its network, data and optimizer, ready to be timed."""

    def __init__(self, bench: Bench, recipe: str, steps: int | None, like: Job) -> None:
        made = job(bench, Training(recipe), 0)
        # All rows share one network, data set and batch size, so that their times are comparable.
        made = replace(
            made, model=like.model, data=like.data, train=replace(made.train, batch_size=like.train.batch_size)
        )
        method: Method = made.method if steps is None else replace(made.method, steps=steps)  # type: ignore[call-arg]
        self.device = pick_device(made.train.device)
        data = load_data(made.data).to(self.device)
        self.data, self.size = data.train, made.train.batch_size
        self.move = augment(made.data.augment)
        self.model = make(replace(made.model, weights=None), classes=data.classes, shape=data.shape).to(self.device)
        self.method, self.state = method, method.init(len(data.train), data.shape, self.device)
        self.optimizer = build_optimizer(replace(made.optimizer, lr=1e-4), self.model, seed=0)
        self.per_epoch = -(-len(data.train) // self.size)
        self.about = {
            "recipe": recipe, "method": type(method).__name__, "steps": getattr(method, "steps", None),
            "model": made.model.name, "batch_size": self.size, "batches_per_epoch": self.per_epoch,
        }  # fmt: skip

    def run(self, batches: int, turn: int) -> tuple[float, float]:
        """Seconds of an epoch at the pace of this round's batches, by the clock and of this process's CPU."""
        self.model.train()
        self._wait()
        begun, used = time.perf_counter(), time.process_time()
        for i in range(batches):
            at = (torch.arange(self.size) + self.size * (batches * turn + i)) % len(self.data)
            rng = torch.Generator(self.device).manual_seed(turn * batches + i)
            self.optimizer.step(self._closure(at.to(self.device), rng))
        self._wait()
        epochs = batches / self.per_epoch
        return (time.perf_counter() - begun) / epochs, (time.process_time() - used) / epochs

    def _closure(self, index: Tensor, rng: torch.Generator) -> Any:
        def gradient() -> Tensor:
            x, y = self.data.batch(index)
            self.optimizer.zero_grad()
            metrics = self.method.backward(
                self.model, self.move(x, rng), y, rng=rng, ids=index, progress=1.0, state=self.state
            )
            return metrics["loss"]

        return gradient

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def growth(content: Mapping[str, Any]) -> list[str]:
    """How ATENT's cost grows with K, from the content of table-s4.json: a paragraph for each norm."""
    lines = []
    for norm, found in content["timings"].items():
        line, row, seconds = found["fit"], found["rows"]["atent-10"], counted(found)
        power_of_k, ratio = exponent(seconds), times(seconds, "atent-10", "atent-5")
        unit = "CPU s" if found["of"] == "cpu_seconds" else "s"
        lines += [
            "",
            f"{norm}: {row['model']}, batches of {row['batch_size']}, {row['batches_per_epoch']} per epoch; ATENT costs"
            f" {line['slope']:.4g} K + {line['intercept']:.4g} {unit} per epoch by least squares over K ="
            f" {', '.join(map(str, line['K']))}; with a free exponent {power(power_of_k)}"
            + (f"; ratio of K = 10 to K = 5: {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "")
            + ".",
        ]
    return lines


def figure(found: Sequence[dict[str, Any]]) -> Any:
    """Seconds per epoch against K, a line for each norm, and what the other methods cost."""
    from atent import plots

    lines, others = {}, {}
    for timing in found:
        rows, line, seconds = timing["rows"], timing["fit"], counted(timing)
        name = f"ATENT, {timing['norm']} ({power(exponent(seconds))})"
        points = [(k, seconds[f"atent-{k}"]) for k in line["K"]]
        lines[name] = ([(k, statistics.fmean(s)) for k, s in points], (line["slope"], line["intercept"]))
        for other in ("trades", "pgdat"):
            others[f"{rows[other]['method']}, {timing['norm']}"] = statistics.fmean(seconds[other])
    return plots.cost(lines, others, cpu=any(timing["of"] == "cpu_seconds" for timing in found))
