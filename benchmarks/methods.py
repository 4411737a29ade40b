"""Cost of one batch under every training method, relative to PGD adversarial training: time, passes and memory.

Every method runs at the same batch, the same number of inner steps and its own defaults, on SmallCNN (MNIST shape, linf
0.3 and l2 2) and ResNet-20 (CIFAR shape, linf 8/255 and l2 1), in rounds that rotate the order, so that a slow period
of the machine affects all; the first round is not counted. Entropy-SGD is an optimizer: its row is one step with five
inner steps around the plain loss. Passes are counted by hooks on the network, in batches of the method's own size (a
batch of SmoothAdv's with two samples counts as two). Memory is the most that autograd holds at once for the backward
pass; see atent_step.py for how that is measured.

Bare passes: for ATENT, PGDAT, TRADES and MMA each round also runs the forward and backward passes that the method
cannot do without, and nothing else, in the same modes and with the same gradients (of the input, of the weights, or
both). The ratio of the two is what the method costs beside its passes.

Steps: ATENT, PGDAT and TRADES at several numbers of inner steps K, and the exponent b of t = a (K + c)^b, c the passes
that do not depend on K, by least squares on the logarithms over all repeats, with a 95 % interval.

Seconds are CPU seconds of the process, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from atent_step import peak, positive, problem, summary
from torch import Tensor, nn
from torch.nn import functional as F

from atent import Threat
from atent.heap import keep_freed
from atent.methods import METHODS, Method
from atent.methods.base import State
from atent.optim import EntropySGD
from atent.progress import bar
from atent.runs import provenance, write_json

Pass = tuple[bool, str]
"""Whether the network is in train mode, and what is differentiated: "" is no backward pass."""

FIXED = {"ATENT": 1, "PGDAT": 1, "TRADES": 3}
"""Passes of a step beside its K inner ones."""

RADII = {"small_cnn": {"linf": 0.3, "l2": 2.0}, "resnet20": {"linf": 8 / 255, "l2": 1.0}}


def methods(name: str, norm: str, steps: int) -> dict[str, Method]:
    """Every built-in method that its paper defines for the norm."""
    found = {}
    for label, cls in METHODS.items():
        fields = cls.__dataclass_fields__
        given = {"threat": Threat(norm, RADII[name][norm])} if "threat" in fields else {}
        if "steps" in fields:
            given["steps"] = steps
        try:
            found[label] = cls(**given)
        except ValueError:
            continue
    return found


def step(method: Method, model: nn.Module, x: Tensor, y: Tensor, state: State) -> Callable[[], object]:
    def run() -> object:
        model.zero_grad()
        rng = torch.Generator().manual_seed(0)
        return method.backward(model, x, y, rng=rng, ids=torch.arange(len(x)), state=state)

    return run


def bare_passes(label: str, steps: int) -> list[Pass] | None:
    """The passes that a step of the method consists of, at ``steps`` inner steps; None for other methods."""
    attack: list[Pass] = [(False, "input")] * steps
    known: dict[str, list[Pass]] = {
        "ATENT": [(True, "input"), *[(True, "both")] * (steps - 1), (True, "weights")],
        "PGDAT": [*attack, (True, "weights")],
        "TRADES": [(False, ""), *attack, (True, "weights"), (True, "weights")],
        "MMA": [*attack, *[(False, "")] * METHODS["MMA"].bisection, (True, "weights"), (True, "weights")],
    }
    return known.get(label)


def bare(passes: list[Pass], model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The passes alone, of the cross-entropy."""
    parameters = list(model.parameters())

    def run() -> None:
        for train, of in passes:
            model.train(train)
            for p in parameters:
                p.requires_grad_(of in ("weights", "both"))
            z = x.clone().requires_grad_(of in ("input", "both"))
            with torch.set_grad_enabled(bool(of)):
                loss = F.cross_entropy(model(z), y, reduction="sum")
            if of:
                inputs = [z] if of in ("input", "both") else []
                torch.autograd.grad(loss, [*inputs, *(parameters if of != "input" else [])])
        model.train()
        for p in parameters:
            p.requires_grad_(True)

    return run


def exponent(points: list[tuple[float, float]]) -> dict[str, float]:
    """The slope of log t on log n by least squares, and its 95 % interval (normal)."""
    u, v = ([math.log(p[i]) for p in points] for i in (0, 1))
    middle, level = sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - middle) ** 2 for a in u)
    slope = sum((a - middle) * (b - level) for a, b in zip(u, v, strict=True)) / spread
    rest = sum((b - level - slope * (a - middle)) ** 2 for a, b in zip(u, v, strict=True))
    half = 1.96 * math.sqrt(rest / (len(u) - 2) / spread)
    return {"value": slope, "low": slope - half, "high": slope + half}


def growth(name: str, norm: str, args: argparse.Namespace) -> dict[str, object]:
    """Time and memory by the number of inner steps."""
    model, x, y = problem(name, args.batch)
    runs, held, seconds = {}, {}, {}
    for steps in args.growth:
        for label, method in methods(name, norm, steps).items():
            if label in FIXED:
                runs[label, steps] = step(method, model, x, y, {})
                held[label, steps] = peak(runs[label, steps], model)
                seconds[label, steps] = []
    for _ in range(args.rounds):
        for key, run in runs.items():
            begun = time.process_time()
            run()
            seconds[key].append(time.process_time() - begun)
    found = {}
    for label, fixed in FIXED.items():
        points = [(k + fixed, t) for (which, k), times in seconds.items() if which == label for t in times]
        memory = {str(k): held[label, k] for k in args.growth}
        found[label] = {"exponent": exponent(points), "n": len(points), "saved_bytes": memory}
    return {"model": name, "norm": norm, "steps": args.growth, "rows": found}


def entropy_sgd(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = EntropySGD(model.parameters(), 1e-6, scale="none", inner_lr=1e-6)
    plain = step(METHODS["Standard"](), model, x, y, {})
    return lambda: optimizer.step(lambda: plain()["loss"])


def passes(run: Callable[[], object], model: nn.Module, n: int) -> float:
    """Forward passes of one step, in batches of n."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    run()
    handle.remove()
    return sum(seen) / n


def measure(name: str, norm: str, args: argparse.Namespace) -> dict[str, object]:
    model, x, y = problem(name, args.batch)
    runs: dict[str, Callable[[], object]] = {}
    for label, method in methods(name, norm, args.steps).items():
        if args.methods and label not in args.methods:
            continue
        runs[label] = step(method, model, x, y, method.init(len(x), tuple(x.shape[1:]), x.device))
        passes_of = bare_passes(label, args.steps)
        if passes_of is not None:
            runs[f"{label}, bare"] = bare(passes_of, model, x, y)
    if not args.methods:
        runs["EntropySGD (L = 5)"] = entropy_sgd(model, x, y)
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    with bar((args.rounds + 1) * len(runs), f"{name} {norm}", enabled=sys.stderr.isatty()) as advance:
        for round_ in range(args.rounds + 1):
            # A method and its bare passes follow each other.
            order = list(runs)
            turn = round_ % len(order)
            for label in order[turn:] + order[:turn]:
                begun = time.process_time()
                runs[label]()
                if round_:
                    seconds[label].append(time.process_time() - begun)
                advance(1, label)
    rows = {}
    for label, run in runs.items():
        beside = seconds["PGDAT"] if "PGDAT" in seconds else seconds[next(iter(runs))]
        ratio = [a / b for a, b in zip(seconds[label], beside, strict=True)]
        rows[label] = {
            "seconds": summary(seconds[label]),
            "ratio_to_pgdat": summary(ratio),
            "forwards": passes(run, model, len(x)),
            "saved_bytes": peak(run, model),
        }
        if f"{label}, bare" in seconds:
            pairs = zip(seconds[label], seconds[f"{label}, bare"], strict=True)
            rows[label]["ratio_to_passes"] = summary([a / b for a, b in pairs])
    return {"model": name, "norm": norm, "eps": RADII[name][norm], "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=RADII, default=list(RADII), help="networks to time")
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"), default=["linf", "l2"], help="threats")
    parser.add_argument("--batch", type=positive, default=128, help="samples per batch")
    parser.add_argument("--steps", type=positive, default=10, help="inner steps of every method")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[], help="methods; default: all")
    parser.add_argument("--growth", type=positive, nargs="*", default=[], help="numbers of inner steps to fit, or none")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed()  # as `atent train` does
    results = [measure(name, norm, args) for name in args.models for norm in args.norms]
    grown = [growth(name, norm, args) for name in args.models for norm in args.norms] if args.growth else []
    head = f"{'network':<10}{'norm':<6}{'method':<20}{'seconds':>9}{'/ PGDAT':>9}{'forwards':>10}{'saved MB':>10}"
    print(f"{head}{'/ bare':>8}")
    for result in results:
        for label, row in result["rows"].items():
            beside = row.get("ratio_to_passes")
            print(
                f"{result['model']:<10}{result['norm']:<6}{label:<20}{row['seconds']['median']:>9.3f}"
                f"{row['ratio_to_pgdat']['median']:>9.2f}{row['forwards']:>10.1f}{row['saved_bytes'] / 1e6:>10.1f}"
                + (f"{beside['median']:>8.3f}" if beside else "")
            )
    for result in grown:
        for label, row in result["rows"].items():
            b, memory = row["exponent"], ", ".join(f"{v / 1e6:.2f}" for v in row["saved_bytes"].values())
            print(
                f"{result['model']} {result['norm']} {label}: exponent {b['value']:.3f} [{b['low']:.3f},"
                f" {b['high']:.3f}], n {row['n']}; saved MB at K {result['steps']}: {memory}"
            )
    if args.out:
        settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items()}
        content = {"benchmark": "methods", "settings": settings, "results": results, "growth": grown}
        write_json(args.out, {**content, "provenance": provenance(seed=0, device="cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
