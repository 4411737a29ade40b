"""Compares margins by bounds with reference code: auto_LiRPA for CROWN and alpha-CROWN, the authors' code for the dual.

    PYTHONPATH=PATH_OF_AUTO_LIRPA:PATH_OF_CONVEX_ADVERSARIAL python benchmarks/bounds.py --out results/bounds.json

All bound the margins of the same images against all other classes, on the same network. Rounds interleave them and
turn the order; times are CPU seconds of the process on one thread, the first round is not counted, and what a library
keeps of a network (its traced graph) is made before. Code that does not import is skipped, with the reason.

Three differences remain, and the columns show what they cost. This library computes in float64 where its bounds are
certificates, and takes rounding off: "rounding off" is the same call with ``rounding=False``, in float32 as the others
are. In l2 it cuts the ball to the box of images, which the others do not: its margins are larger. The dual code
has no batch-norm in eval mode and no max-pooling. ``difference`` is the range of this library's margins less theirs.

``--weights`` is a state dict of kw_small, such as the published ``models/mnist.pth`` of the dual's authors; without it,
that network is trained for a few steps on MNIST as the others are.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from atent_step import positive, summary
from torch import Tensor, nn

from atent import Threat
from atent.certify import margins, read
from atent.data import DataSettings
from atent.data import load as load_data
from atent.models import build
from atent.progress import bar
from atent.runs import provenance, write_json

STEPS, BATCH = 150, 64


class Residual(nn.Module):
    """A convolution of stride 2, one residual block, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 2, 1)
        self.one, self.two = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.fc1, self.fc2 = nn.Linear(8 * 14 * 14, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x).relu()
        z = (self.two(self.one(z).relu()) + z).relu()
        return self.fc2(self.fc1(z.flatten(1)).relu())


def normalised() -> nn.Sequential:
    """Batch-norm and max-pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, and the radii and images that its bounds are timed on."""

    make: Callable[[], nn.Module]
    linf: float
    l2: float
    images: int


CASES = {
    "kw_small": Case(lambda: build("kw_small"), 0.1, 0.5, 8),
    "residual": Case(Residual, 0.02, 0.2, 8),
    "bn_maxpool": Case(normalised, 0.02, 0.2, 8),
    "lenet5": Case(lambda: build("lenet5"), 0.01, 0.1, 2),
}


def trained(net: nn.Module, data: Any) -> nn.Module:
    """A few steps of Adam on the cross-entropy: weights as a user's, and not random ones."""
    part = data.sample("train", STEPS * BATCH)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for rows in torch.arange(len(part)).split(BATCH):
        x, y = part.batch(rows)
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def published(net: nn.Module, path: Path) -> nn.Module:
    """Weights in the order of the network's own, whatever their names."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    state = state[0] if isinstance(state, list) else state
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net.eval().requires_grad_(False)


# ---- what is timed


Timed = Callable[[], Tensor]


def lirpa(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: str, steps: int) -> Timed:
    """Margins by auto_LiRPA, in the order of the classes without the true one."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    wrapped = BoundedModule(copy.deepcopy(net), x, device="cpu", verbose=False)
    wrapped.set_bound_opts({"optimize_bound_args": {"iteration": steps}})
    eps = float(threat.eps)
    if threat.norm == "linf":
        sides = {"x_L": (x - eps).clamp(min=0), "x_U": (x + eps).clamp(max=1)}
        ball = PerturbationLpNorm(norm=float("inf"), **sides)
    else:
        ball = PerturbationLpNorm(norm=2, eps=eps)
    against = others(specification(y))

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()), torch.set_grad_enabled(method == "CROWN-Optimized"):
            inputs = (BoundedTensor(x, ball),)
            found = wrapped.compute_bounds(x=inputs, C=against, method=method, bound_upper=False)[0]
        return found.detach()  # type: ignore[no-any-return]

    return run


def convex(name: str, net: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: str, steps: int) -> Timed:
    """Margins by the dual network of its authors' code."""
    from convex_adversarial.dual_network import DualNetwork
    from convex_adversarial.utils import Dense, DenseSequential

    if name == "kw_small":
        plain = nn.Sequential(*copy.deepcopy(net).children())
    elif name == "residual":
        n = copy.deepcopy(net)
        plain = DenseSequential(
            n.stem, nn.ReLU(), Dense(n.one), nn.ReLU(), Dense(nn.Sequential(), None, n.two), nn.ReLU(), nn.Flatten(),
            n.fc1, nn.ReLU(), n.fc2,
        )  # fmt: skip
    else:
        raise NotImplementedError("the code has no batch-norm in eval mode and no max-pooling")
    norm = {"linf": "l1", "l2": "l2"}[threat.norm]
    against = specification(y)

    def run() -> Tensor:
        with torch.no_grad():
            dual = DualNetwork(plain, x, float(threat.eps), norm_type=norm, bounded_input=threat.norm == "linf")
            return others(dual(against), y)

    return run


def specification(y: Tensor) -> Tensor:
    """(n, 10, 10): e_y - e_j for every class j."""
    eye = torch.eye(10)
    return eye[y][:, None] - eye


def others(rows: Tensor, y: Tensor | None = None) -> Tensor:
    """Without the true class, whose row of a `specification` is zero."""
    keep = rows.abs().sum(2) > 0 if y is None else ~F.one_hot(y, 10).bool()
    return rows[keep].unflatten(0, (len(rows), 9))


def measure(
    name: str, method: str, threat: Threat, net: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    graph = read(net)
    runs: dict[str, Timed] = {"ours": lambda: others(margins(graph, x, y, threat, method, steps=args.steps), y)}
    runs["ours, rounding off"] = lambda: others(
        margins(graph, x, y, threat, method, steps=args.steps, rounding=False), y
    )
    skipped = {}
    theirs = {
        "crown": ("auto_LiRPA", lambda: lirpa(net, x, y, threat, "CROWN", args.steps)),
        "alpha-crown": ("auto_LiRPA", lambda: lirpa(net, x, y, threat, "CROWN-Optimized", args.steps)),
        "dual": ("convex_adversarial", lambda: convex(name, net, x, y, threat, method, args.steps)),
    }
    other, prepared = theirs[method]
    try:
        runs[other] = prepared()
        runs[other]()
    except Exception as error:
        runs.pop(other, None)
        skipped[other] = f"{type(error).__name__}: {error}".splitlines()[0]
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    found = {}
    with torch.no_grad(), bar((args.rounds + 1) * len(runs), name, enabled=sys.stderr.isatty()) as advance:
        for round_ in range(args.rounds + 1):
            order = list(runs)
            turn = round_ % len(order)
            for label in order[turn:] + order[:turn]:
                begun = time.process_time()
                found[label] = runs[label]()
                if round_:
                    seconds[label].append(time.process_time() - begun)
                advance(1, label)
    row: dict[str, Any] = {
        "network": name, "method": method, "norm": threat.norm, "eps": float(threat.eps), "images": len(x),
        "seconds": {label: summary(times) for label, times in seconds.items()},
        "verified": {label: int((m > 0).all(1).sum()) for label, m in found.items()},
        "mean_margin": {label: float(m.mean()) for label, m in found.items()},
        "skipped": skipped,
    }  # fmt: skip
    if other in found:
        row["times_faster"] = summary([b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)])
        apart = found["ours"].double() - found[other].double()
        row["difference"] = [float(apart.min()), float(apart.max())]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES), help="networks to bound")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="bounds to time")
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"), default=["linf", "l2"], help="norms")
    parser.add_argument("--eps", type=float, help="radius; default: each network's own")
    parser.add_argument("--images", type=positive, help="test images per call; default: each network's own number")
    parser.add_argument("--weights", type=Path, help="state dict of kw_small")
    parser.add_argument("--steps", type=positive, default=20, help="steps of alpha-CROWN, in both libraries")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = load_data(DataSettings(name="mnist"))
    rows = []
    for name in args.networks:
        case = CASES[name]
        torch.manual_seed(0)
        net = case.make()
        net = published(net, args.weights) if args.weights and name == "kw_small" else trained(net, data)
        x, y = data.sample("test", args.images or case.images).batch(torch.arange(args.images or case.images))
        y = net(x).argmax(1)
        for method in args.methods:
            for norm in args.norms:
                threat = Threat(norm, args.eps or getattr(case, norm))
                rows.append(measure(name, method, threat, net, x, y, args))
                print(line(rows[-1]), flush=True)
    if args.out:
        settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items()}
        content = {"benchmark": "bounds", "settings": settings, "clock": "cpu", "threads": 1, "rows": rows}
        write_json(args.out, {**content, "provenance": provenance(seed=0, device="cpu")})
    return 0


METHODS = ("crown", "dual", "alpha-crown")


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    times = ", ".join(f"{label} {each['median']:.3f} s" for label, each in row["seconds"].items())
    text = f"{row['network']:<11}{row['method']:<12}{row['norm']:<5}{row['eps']:<5g} {times}"
    if "times_faster" in row:
        low, high = row["difference"]
        text += f"; {row['times_faster']['median']:.2f} times faster, margins {low:+.2g} to {high:+.2g}"
    return text + "".join(f"; {name} skipped: {why}" for name, why in row["skipped"].items())


if __name__ == "__main__":
    sys.exit(main())
