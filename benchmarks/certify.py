"""Randomised smoothing: images per second, compared with the usual loop over single images.

The usual loop has the structure of Cohen et al.'s published code, reimplemented: per image, per batch of samples the
image is repeated, noise of a global stream is added, the argmax goes to numpy and is counted there. It has their
default batch of 1,000 samples, and is timed at 400 (the batch of their experiments) and at this library's own batch as
well, so that the share of the batch size can be separated from the rest. Rounds interleave all of them and turn the
order, so that a slow period of the machine affects all; the first round is not counted. With one thread, seconds are of
CPU time, which other work on the machine does not stretch. Before timing, both are compared on the same network: the
shares of the chosen class must agree within five standard errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from atent_step import positive, summary
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from atent.bench.certify import usual
from atent.certify import Smoothed, verified
from atent.certify.smoothing import forward_size
from atent.models import build, native_shape
from atent.progress import bar
from atent.runs import provenance, write_json
from atent.threat import Threat

ALPHA = 0.001


def problem(name: str, images: int) -> tuple[nn.Module, Tensor]:
    """The network with random weights whose logits separate classes, and random images."""
    torch.manual_seed(0)
    model = build(name).eval()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.kaiming_normal_(p)
    return model, torch.rand(images, *native_shape(name))


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    model, x = problem(name, args.images)
    smoothed = Smoothed(model, args.sigma)
    runs: dict[str, Callable[[], object]] = {
        f"usual, batch {b}": lambda b=b: usual(model, x, args.sigma, args.n0, args.n, b)
        for b in dict.fromkeys((1000, 400, forward_size(x, args.batch)))
    }
    runs["atent"] = lambda: smoothed.certify(x, args.n0, args.n, ALPHA, batch=args.batch)
    if args.folded:
        folded = Smoothed(fuse(model), args.sigma)
        runs["atent, folded"] = lambda: folded.certify(x, args.n0, args.n, ALPHA, batch=args.batch)
    if args.compile:
        fused = Smoothed(cast(nn.Module, torch.compile(model)), args.sigma)
        runs["atent, compiled"] = lambda: fused.certify(x, args.n0, args.n, ALPHA, batch=args.batch)
    votes = smoothed.votes(x, args.n).double() / args.n
    for i, (top, _, share) in enumerate(usual(model, x, args.sigma, args.n0, args.n, 1000)):
        if top >= 0:
            error = max((share * (1 - share) / args.n) ** 0.5, 1 / args.n)
            assert abs(float(votes[i, top]) - share) < 5 * 2**0.5 * error, (i, share, votes[i])
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    clock = time.process_time if args.threads == 1 else time.perf_counter
    with bar((args.rounds + 1) * len(runs), name, enabled=sys.stderr.isatty()) as advance:
        for round_ in range(args.rounds + 1):
            order = list(runs)
            turn = round_ % len(order)
            for label in order[turn:] + order[:turn]:
                begun = clock()
                runs[label]()
                if round_:
                    seconds[label].append(clock() - begun)
                advance(1, label)
    rows = {
        label: {
            "draws_per_second": summary([args.images * (args.n0 + args.n) / t for t in times]),
            "seconds_per_image": summary([t / args.images for t in times]),
            "times_slower_than_atent": summary([t / own for t, own in zip(times, seconds["atent"], strict=True)]),
        }
        for label, times in seconds.items()
    }
    return {"model": name, "rows": rows}


def bounds_speed(name: str, args: argparse.Namespace, clock: Callable[[], float]) -> dict[str, object]:
    """Images per second whose margins each method bounds, all classes of a batch in one pass."""
    model, x = problem(name, args.bounded)
    y, threat = torch.zeros(len(x), dtype=torch.int64), Threat("linf", 0.01)
    out: dict[str, object] = {"model": name}
    for method in ("ibp", "crown-ibp", "crown"):
        rates = []
        for round_ in range(args.rounds + 1):
            begun = clock()
            with torch.no_grad():
                verified(model, x, y, threat, method)
            if round_:
                rates.append(len(x) / (clock() - begun))
        out[method] = summary(rates)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits_cnn", "small_cnn"], help="networks to time")
    parser.add_argument("--bounds", nargs="*", default=["digits_cnn", "kw_small"], help="networks whose bounds to time")
    parser.add_argument("--images", type=positive, default=4, help="images per run")
    parser.add_argument("--n0", type=positive, default=100, help="noise samples that choose the class")
    parser.add_argument("--n", type=positive, default=10_000, help="noise samples that estimate its share")
    parser.add_argument("--sigma", type=float, default=0.25, help="standard deviation of the noise")
    parser.add_argument("--batch", type=positive, help="noise samples per forward; default: atent's own")
    parser.add_argument("--bounded", type=positive, default=50, help="images per call of the bounds")
    parser.add_argument("--compile", action="store_true", help="time atent with the network compiled as well")
    parser.add_argument("--folded", action="store_true", help="time atent with batch-norms folded as well")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(name, args) for name in args.models]
    print(f"{'network':<12}{'loop':<20}{'s / image':>11}{'samples/s':>11}{'/ atent':>9}   [10 %, 90 %]")
    for result in results:
        for label, row in result["rows"].items():
            ratio = row["times_slower_than_atent"]
            print(
                f"{result['model']:<12}{label:<20}{row['seconds_per_image']['median']:>11.4f}"
                f"{row['draws_per_second']['median']:>11.0f}{ratio['median']:>9.2f}"
                f"   [{ratio['q10']:.2f}, {ratio['q90']:.2f}]"
            )
    clock = time.process_time if args.threads == 1 else time.perf_counter
    speeds = [bounds_speed(name, args, clock) for name in args.bounds]
    for row in speeds:
        rates = ", ".join(f"{m} {row[m]['median']:.3g}" for m in ("ibp", "crown-ibp", "crown"))
        print(f"{row['model']}: images per second by {rates}")
    if args.out:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        content = {
            "benchmark": "certify",
            "settings": settings,
            "clock": "cpu" if args.threads == 1 else "wall",
            "results": results,
            "images_per_second": speeds,
        }
        write_json(args.out, {**content, "provenance": provenance(seed=0, device="cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
