"""What AutoAttack costs, ours beside the port that can be installed (pip install pyautoattack==0.2.0).

    python benchmarks/autoattack.py RUN --n 200 --out results/autoattack.json

Both run the standard version against the run's own threat on the same test images, in interleaved slices: one takes a
slice first, then the other. Times are CPU seconds of the process, which other work lengthens little; wall
seconds stand beside them. Robust accuracies are counted by us. Ours is also shown by its parts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from atent_step import positive, summary
from parity import autoattack, evaluated
from torch import Tensor, nn

import atent
from atent import Threat
from atent.attacks import AutoAttack
from atent.data import DataSettings
from atent.data import load as load_data
from atent.data.described import described
from atent.evaluate import evaluate
from atent.guard import guard
from atent.progress import bar
from atent.runs import provenance, read_config, write_json
from atent.stats import share


def ours(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, threat: Threat, tally: dict[str, Any], *, last: bool
) -> int:
    """Run, add what each part took to ``tally``, and return how many stand."""
    attack = {"AutoAttack": AutoAttack(threat)}
    found = evaluate(model, x, y, attack, ids=ids, batch=len(x), channels_last=last)
    for name, part in next(iter(found.attacks.values()))["parts"].items():
        entry = tally.setdefault(name, {"seconds": 0.0, "forwards": 0, "backwards": 0, "standing": 0})
        for key in ("seconds", "forwards", "backwards"):
            entry[key] += part[key]
        entry["standing"] += part["robust"]["k"]
    return found.worst["k"]


def port(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> int:
    with guard(model), torch.random.fork_rng():
        x_adv = autoattack("whole")(model, x.clone(), y.clone(), threat)
    return int((~evaluated(model, x, y, x_adv, threat, 1e-5)[0].isfinite()).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--n", type=positive, default=200, help="test images, by the data.subset of the run")
    parser.add_argument("--slices", type=positive, default=4, help="slices of the images, timed in turn")
    parser.add_argument("--channels-last", action="store_true", help="ours shows the model images in that format")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    config = read_config(args.run / "config.json")
    data = load_data(DataSettings(**config["data"]))
    own = {**(config["method"].get("threat") or {}), "box": data.box}
    own |= {k: config["evaluate"][k] for k in ("norm", "eps") if config["evaluate"].get(k) is not None}
    threat, model = Threat(**own), atent.load(args.run)
    part = data.sample("test", args.n)
    seconds: dict[str, list[float]] = {"ours": [], "port": []}
    wall: dict[str, list[float]] = {"ours": [], "port": []}
    standing = {"ours": 0, "port": 0}
    tally: dict[str, Any] = {}
    with bar(2 * args.slices, "AutoAttack") as advance:
        for i, rows in enumerate(torch.arange(len(part)).chunk(args.slices)):
            x, y = part.batch(rows)
            for name in ("ours", "port") if i % 2 == 0 else ("port", "ours"):
                begun, cpu = time.perf_counter(), time.process_time()
                if name == "ours":
                    standing[name] += ours(model, x, y, part.ids[rows], threat, tally, last=args.channels_last)
                else:
                    standing[name] += port(model, x, y, threat)
                seconds[name].append(time.process_time() - cpu)
                wall[name].append(time.perf_counter() - begun)
                advance(1, name)
                print(
                    f"slice {i + 1}, {name}: {seconds[name][-1]:.1f} s of CPU, {standing[name]} stand so far",
                    flush=True,
                )
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["port"])]
    total = sum(seconds["port"]) / sum(seconds["ours"])
    spent = {name: sum(values) for name, values in seconds.items()}
    print(
        f"CPU time: ours {spent['ours']:.0f} s, port {spent['port']:.0f} s: {total:.2f} times faster {summary(ratios)}"
    )
    for name, entry in tally.items():
        print(
            f"  {name:<10}{entry['seconds']:8.1f} s  {entry['forwards']:>9} forwards {entry['backwards']:>9} backwards"
        )
    if args.out:
        write_json(args.out, {
            "benchmark": "autoattack", "run": args.run.name, "n": len(part), "norm": threat.norm,
            "samples": described(data, "test", part),
            "eps": float(threat.eps), "threads": args.threads, "slices": args.slices,
            "channels_last": args.channels_last, "cpu_seconds": seconds,
            "wall_seconds": wall,
            "ratio": {"total": total, **summary(ratios)}, "parts": tally,
            "robust": {name: share(k, len(part)) for name, k in standing.items()},
            "provenance": provenance(seed=0, device="cpu"),
        })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
