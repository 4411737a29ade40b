"""What one batch costs under every training method, beside plain PGD adversarial training: time, passes and memory.

Every method runs at the same batch, the same number of inner steps and its own defaults, on SmallCNN (MNIST shape,
linf 0.3 and l2 2) and ResNet-20 (CIFAR shape, linf 8/255 and l2 1), in rounds that turn the order, so that a slow spell
of the machine hits all; the first round is not counted. Entropy-SGD is an optimizer: its row is one step with five
inner steps around the plain loss. Passes are counted by hooks on the network, in batches of the method's own size (a
batch of SmoothAdv's with two samples counts as two). Memory is the most that autograd holds at once for the backward
pass; see atent_step.py for how that is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from atent_step import peak, positive, problem, summary
from torch import Tensor, nn

from atent import Threat
from atent.methods import METHODS, Method
from atent.methods.base import State
from atent.optim import EntropySGD
from atent.progress import bar
from atent.runs import provenance, write_json

RADII = {"small_cnn": {"linf": 0.3, "l2": 2.0}, "resnet20": {"linf": 8 / 255, "l2": 1.0}}


def methods(name: str, norm: str, steps: int) -> dict[str, Method]:
    """Every method of the house that its paper defines for the norm."""
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
        runs[label] = step(method, model, x, y, method.init(len(x), tuple(x.shape[1:]), x.device))
    runs["EntropySGD (L = 5)"] = entropy_sgd(model, x, y)
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    with bar((args.rounds + 1) * len(runs), f"{name} {norm}", enabled=sys.stderr.isatty()) as advance:
        for round_ in range(args.rounds + 1):
            order = list(runs)
            turn = round_ % len(order)
            for label in order[turn:] + order[:turn]:
                begun = time.perf_counter()
                runs[label]()
                if round_:
                    seconds[label].append(time.perf_counter() - begun)
                advance(1, label)
    rows = {}
    for label, run in runs.items():
        ratio = [a / b for a, b in zip(seconds[label], seconds["PGDAT"], strict=True)]
        rows[label] = {
            "seconds": summary(seconds[label]),
            "ratio_to_pgdat": summary(ratio),
            "forwards": passes(run, model, len(x)),
            "saved_bytes": peak(run, model),
        }
    return {"model": name, "norm": norm, "eps": RADII[name][norm], "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=RADII, default=list(RADII), help="networks to time")
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"), default=["linf", "l2"], help="threats")
    parser.add_argument("--batch", type=positive, default=128, help="samples per batch")
    parser.add_argument("--steps", type=positive, default=10, help="inner steps of every method")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(name, norm, args) for name in args.models for norm in args.norms]
    print(f"{'network':<10}{'norm':<6}{'method':<20}{'seconds':>9}{'/ PGDAT':>9}{'forwards':>10}{'saved MB':>10}")
    for result in results:
        for label, row in result["rows"].items():
            print(
                f"{result['model']:<10}{result['norm']:<6}{label:<20}{row['seconds']['median']:>9.3f}"
                f"{row['ratio_to_pgdat']['median']:>9.2f}{row['forwards']:>10.1f}{row['saved_bytes'] / 1e6:>10.1f}"
            )
    if args.out:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        content = {"benchmark": "methods", "settings": settings, "results": results}
        write_json(args.out, {**content, "provenance": provenance(seed=0, device="cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
