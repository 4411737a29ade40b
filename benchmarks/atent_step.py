"""Cost of one training step of ATENT and of the authors' structure: time and activation memory.

Three ways to the same gradient, from the same start and the same noise:

authors      per step a forward and a full backward at x^k (weight gradients are made and thrown away), then
             a second forward at x^{k+1} whose mean loss is folded into mu; K graphs live until mu goes
             backward. Without the clean forward that the authors' program makes and never uses.
inputs only  the same, but the inner backward differentiates with respect to the input alone.
accumulated  `ATENT.backward`: one forward at x^k serves both gradients, K + 1 forwards, one live graph.
channels-last  the same, with images and kernels in that memory format.
bfloat16     the same again under bfloat16 autocast; only with --low.

Before anything is timed, they run on copies of one network and must agree in loss, weight gradient and batch-norm
statistics to 1e-9 (relative, float64): no term is dropped. In float32 an untrained network's chain carries the rounding
of another memory format on, until nothing can be compared; bfloat16 is not. Dropout is active and
shared: the gradient pass at x^k sees the mask of its loss pass (in the first two by replaying the random state).
SmallCNN's last layer, zero by design, is redrawn: with it no input has a gradient.

Times are CPU seconds of the process, in rounds: each runs all, in an order that turns, and its ratios are taken
within the round, so that a slow period of the machine affects all sides. Reported are medians and 10/90 %
quantiles of the ratios.

Memory is the largest sum of bytes, at any moment of a step, of the tensors that autograd holds for backward.
`torch.autograd.graph.saved_tensors_hooks` wraps each saved tensor in a handle; a handle that autograd lets go
of is taken off the sum by `weakref.finalize`. A storage that several operations save counts once; weights do
not count. This is the part that grows with K, not the process's peak: workspaces and the allocator's slack
are excluded.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from atent import Threat
from atent.bench.passes import saved_bytes as peak
from atent.bench.transcription import authors
from atent.heap import keep_freed
from atent.methods import ATENT
from atent.models import build, native_shape
from atent.progress import bar
from atent.runs import provenance, write_json

THREATS = {"resnet20": Threat("l2", 1.0), "small_cnn": Threat("linf", 0.3)}
TOLERANCE = 1e-9
ACCEPT = 1.9
"""Least ratio authors / accumulated on resnet20, on a quiet machine."""

Step = Callable[[ATENT, nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def inputs_only(method: ATENT, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    return authors(method, model, x, y, rng, full=False)


def accumulated(method: ATENT, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    return method.backward(model, x, y, rng=rng)["loss"]


def low(method: ATENT, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return method.backward(model, x, y, rng=rng)["loss"]


STEPS: dict[str, Step] = {
    "authors": authors, "inputs only": inputs_only, "accumulated": accumulated, "channels-last": accumulated,
}  # fmt: skip


def placed(kind: str, model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The network and the batch in the memory format of a step."""
    if kind in ("channels-last", "bfloat16"):
        return copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, x


def problem(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in train mode, and a batch of its native shape."""
    torch.manual_seed(0)
    model = build(name).train()
    if name == "small_cnn":
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=0.1)
    return model, torch.rand(batch, *native_shape(name)), torch.randint(10, (batch,))


def once(step: Step, method: ATENT, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
    """The loss and the seconds of one step from zeroed gradients; the seed fixes start, noise and masks."""
    model.zero_grad()
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    begun = time.process_time()
    loss = step(method, model, x, y, rng)
    return loss, time.process_time() - begun


def check(method: ATENT, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Largest relative differences from the authors' structure, in float64; AssertionError above the tolerance."""
    found = {}
    for name, step in STEPS.items():
        own, images = placed(name, copy.deepcopy(model).double(), x.double())
        loss, _ = once(step, method, own, images, y, seed=1)
        grad = torch.cat([p.grad.contiguous().flatten() for p in own.parameters()])
        buffers = torch.cat([torch.ones(1), *(b.flatten() for b in own.buffers() if b.is_floating_point())])
        found[name] = {"loss": loss.reshape(1), "gradient": grad, "buffers": buffers}
    worst = {}
    for part, base in found["authors"].items():
        for name in ("inputs only", "accumulated", "channels-last"):
            gap = float((found[name][part] - base).norm() / base.norm())
            if not gap <= TOLERANCE:
                raise AssertionError(f"{name} and authors differ by {gap:.2g} in {part} (relative)")
            key = f"{part}, {name}" if name == "channels-last" else part
            worst[key] = max(gap, worst.get(key, 0.0))
    return worst


def summary(values: list[float]) -> dict[str, float]:
    """Median and 10/90 % quantiles."""
    cuts = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"median": statistics.median(values), "q10": cuts[0], "q90": cuts[-1]}


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    model, x, y = problem(name, args.batch)
    method = ATENT(THREATS[name], steps=args.steps)
    differences = check(method, model, x, y)
    timed = {**STEPS, "bfloat16": low} if args.low else STEPS
    ready = {kind: placed(kind, model, x) for kind in timed}
    seconds: dict[str, list[float]] = {kind: [] for kind in timed}
    with bar(args.pairs + 1, name, enabled=sys.stderr.isatty()) as advance:
        for round_ in range(args.pairs + 1):
            kinds = list(timed)
            turn = round_ % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                _, took = once(timed[kind], method, *ready[kind], y, seed=round_)
                # the first round warms caches and is not counted
                if round_:
                    seconds[kind].append(took)
            advance(1, "")
    ratios = {
        kind: summary([a / c for a, c in zip(seconds[kind], seconds["accumulated"], strict=True)])
        for kind in ("authors", "inputs only")
    }
    # The plain transcription is in the usual format.
    speed = {
        kind: summary([a / c for a, c in zip(seconds["authors"], seconds[kind], strict=True)])
        for kind in timed
        if kind not in ("authors", "inputs only")
    }
    small, labels = x[: args.memory_batch], y[: args.memory_batch]
    memory = {}
    for kind in ("authors", "accumulated"):
        for steps in args.memory_steps:
            other = ATENT(THREATS[name], steps=steps)
            memory.setdefault(kind, {})[str(steps)] = peak(
                lambda kind=kind, other=other: once(STEPS[kind], other, model, small, labels, seed=0), model
            )
    flat = memory["accumulated"].values()
    if max(flat) > 1.01 * min(flat):
        raise AssertionError(f"the accumulated step's memory grows with the steps: {memory['accumulated']}")
    return {
        "model": name,
        "threat": {"norm": method.threat.norm, "eps": method.threat.eps},
        "shape": list(x.shape[1:]),
        "dropout": "active, shared masks" if any(isinstance(m, nn.Dropout) for m in model.modules()) else "none",
        "differences": differences,
        "seconds": seconds,
        "median_seconds": {kind: statistics.median(v) for kind, v in seconds.items()},
        "ratio_to_accumulated": ratios,
        "speed": speed,
        "saved_bytes": memory,
    }


def table(results: list[dict]) -> str:
    lines = [f"{'model':<12}{'step':<14}{'seconds':>9}{'ratio':>8}{'10 %':>7}{'90 %':>7}   saved MB at K steps"]
    for result in results:
        for kind, median in result["median_seconds"].items():
            ratio = result["ratio_to_accumulated"].get(kind)
            cells = "".join(f"{v:.2f}".rjust(w) for v, w in zip(ratio.values(), (8, 7, 7))) if ratio else " " * 22
            memory = result["saved_bytes"].get(kind, {})
            held = ", ".join(f"{size / 1e6:.1f} at {steps}" for steps, size in memory.items())
            lines.append(f"{result['model']:<12}{kind:<14}{median:>9.3f}{cells}   {held}")
    return "\n".join(lines)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=THREATS, default=list(THREATS), help="networks to time")
    parser.add_argument("--batch", type=positive, default=128, help="samples in the timed step")
    parser.add_argument("--steps", type=positive, default=10, help="K, Langevin steps in the timed step")
    parser.add_argument("--pairs", type=positive, default=7, help="rounds, after one that is not counted")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--low", action="store_true", help="also time bfloat16")
    parser.add_argument("--memory-batch", type=positive, default=16, help="samples in the memory measure")
    parser.add_argument(
        "--memory-steps", type=positive, nargs="+", default=[5, 20], help="values of K in the memory measure"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed()  # as `atent train` does
    results = [measure(name, args) for name in args.models]
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items()}
    if args.out:
        content = {
            "benchmark": "atent_step",
            "settings": settings,
            "results": results,
            "provenance": provenance(seed=0, device="cpu"),
        }
        write_json(args.out, content)
    print(table(results))
    for result in results:
        cells = (f"{kind} {v['median']:.2f} [{v['q10']:.2f}, {v['q90']:.2f}]" for kind, v in result["speed"].items())
        print(f"{result['model']}: authors / " + ", ".join(cells))
        if result["model"] == "resnet20":
            ratio = result["ratio_to_accumulated"]["authors"]["median"]
            verdict = "reached" if ratio >= ACCEPT else "missed"
            print(f"acceptance, authors / accumulated >= {ACCEPT} on resnet20: {ratio:.2f}, {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
