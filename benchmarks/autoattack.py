"""Cost of AutoAttack, this library's and that of the pip-installable port (pip install pyautoattack==0.2.0).

    python benchmarks/autoattack.py RUN [RUN ...] --n 200 --memory-format channels_last --out FILE

Both run the standard version against each run's own threat on the same test images, in interleaved slices: one takes a
slice first, then the other, each in a process of its own that keeps freed memory, as `atent evaluate` does. Times are
CPU seconds of the process, which are insensitive to other load; wall seconds are also reported. Robust accuracies are
counted by us, on the run's own network, and compared by a one-sided sign test over the images on which the two differ:
exit status 1 where the port's is lower with p below 2.5 %. Ours is also shown by its parts, with the seconds of each.
A run with batch-norm is made by, for example,

    atent train cifar10-linf-fgsmrs --model resnet20 --method.threat.eps 2/255 --method.step_size 0.0098
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
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
from atent.heap import keep_freed
from atent.progress import bar
from atent.runs import provenance, read_config, write_json
from atent.stats import share, sign_test

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def ours(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, threat: Threat, how: dict[str, Any]
) -> tuple[list[bool], dict[str, Any]]:
    """Which images (n) remain correctly classified, and the cost of each part."""
    attack = {"AutoAttack": AutoAttack(threat)}
    found = evaluate(model, x, y, attack, ids=ids, batch=len(x), **how)
    verdicts = found.outcomes["attacks"]["AutoAttack"]
    robust = [verdict == "s" for verdict in verdicts]
    assert sum(robust) == found.worst["k"]
    return robust, found.attacks["AutoAttack"]["parts"]


def add(tally: dict[str, Any], parts: dict[str, Any]) -> None:
    """Add what each part took to ``tally``."""
    for name, part in parts.items():
        entry = tally.setdefault(name, {"seconds": 0.0, "forwards": 0, "backwards": 0, "robust": 0})
        for key in ("seconds", "forwards", "backwards"):
            entry[key] += part[key]
        entry["robust"] += part["robust"]["k"]


def apart(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What ``work`` gives in a process of its own, and its seconds of CPU and of the clock."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run() -> None:
        keep_freed()
        begun, cpu = time.perf_counter(), time.process_time()
        found = work()
        results.put((found, time.process_time() - cpu, time.perf_counter() - begun))

    process = context.Process(target=run)
    process.start()
    while results.empty():
        if not process.is_alive() and results.empty():
            raise ChildProcessError(f"a slice ended with status {process.exitcode}")
        time.sleep(0.1)
    found = results.get()
    process.join()
    return found


def port(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[list[bool], dict[str, Any]]:
    """Which images (n) remain correctly classified under the port's, and no parts."""
    with guard(model), torch.random.fork_rng():
        x_adv = autoattack("whole")(model, x.clone(), y.clone(), threat)
    return (~evaluated(model, x, y, x_adv, threat, 1e-5)[0].isfinite()).tolist(), {}


def race(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both on the images of one run."""
    config = read_config(path / "config.json")
    data = load_data(DataSettings(**config["data"]))
    own = {**(config["method"].get("threat") or {}), "box": data.box}
    own |= {k: config["evaluate"][k] for k in ("norm", "eps") if config["evaluate"].get(k) is not None}
    threat, model = Threat(**own), atent.load(path)
    how = {"folding": args.folding, "channels_last": args.memory_format == "channels_last"}
    shown = copy.deepcopy(model).to(memory_format=FORMATS[args.memory_format])  # type: ignore[call-overload]
    part = data.sample("test", args.n)
    seconds: dict[str, list[float]] = {"ours": [], "port": []}
    wall: dict[str, list[float]] = {"ours": [], "port": []}
    robust: dict[str, list[Tensor]] = {"ours": [], "port": []}
    tally: dict[str, Any] = {}
    with bar(2 * args.slices, path.name) as advance:
        for i, rows in enumerate(torch.arange(len(part)).chunk(args.slices)):
            x, y = part.batch(rows)
            for name in ("ours", "port") if i % 2 == 0 else ("port", "ours"):
                works = {
                    "ours": partial(ours, shown, x, y, part.ids[rows], threat, how),
                    "port": partial(port, model, x, y, threat),
                }
                (found, parts), cpu, clock = apart(works[name])
                robust[name].append(torch.tensor(found))
                add(tally, parts)
                seconds[name].append(cpu)
                wall[name].append(clock)
                advance(1, name)
                left = sum(int(each.sum()) for each in robust[name])
                print(f"slice {i + 1}, {name}: {seconds[name][-1]:.1f} s of CPU, {left} robust so far", flush=True)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["port"])]
    both = {name: torch.cat(found) for name, found in robust.items()}
    lower = {
        name: int((both[other] & ~both[name]).sum()) for name, other in (("ours", "port"), ("port", "ours"))
    }  # fmt: skip
    return {
        "run": path.name, "n": len(part), "norm": threat.norm, "eps": float(threat.eps),
        "samples": described(data, "test", part), "threads": args.threads, "slices": args.slices,
        "folding": args.folding, "memory_format": args.memory_format, "cpu_seconds": seconds, "wall_seconds": wall,
        "ratio": {"total": sum(seconds["port"]) / sum(seconds["ours"]), **summary(ratios)}, "parts": tally,
        "robust": {name: share(int(found.sum()), len(part)) for name, found in both.items()},
        # How often the port would fool so many that ours does not, or more, were both equally strong.
        "fooled_alone": lower, "p": sign_test(lower["port"], lower["ours"]),
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    spent = {name: sum(values) for name, values in found["cpu_seconds"].items()}
    print(
        f"{found['run']}: ours {spent['ours']:.0f} s of CPU, port {spent['port']:.0f} s: {found['ratio']['total']:.2f}"
        f" times faster {found['ratio']}; robust {found['robust']['ours']['k']} and {found['robust']['port']['k']} of"
        f" {found['n']}, fooled by one alone {found['fooled_alone']}, p = {found['p']:.3f}"
    )
    for name, entry in found["parts"].items():
        print(
            f"  {name:<10}{entry['seconds']:8.1f} s  {entry['forwards']:>9} forwards {entry['backwards']:>9} backwards"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--n", type=positive, default=200, help="test images, by the data.subset of the run")
    parser.add_argument("--slices", type=positive, default=4, help="slices of the images, timed alternately")
    parser.add_argument("--no-folding", dest="folding", action="store_false", help="search the network as it is")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous", help="of the images that ours shows")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    results = []
    for path in args.runs:
        results.append(race(path, args))
        show(results[-1])
    if args.out:
        made = provenance(seed=0, device="cpu")
        write_json(args.out, {"benchmark": "autoattack", "results": results, "provenance": made})
    return int(any(found["p"] < 0.025 for found in results))


if __name__ == "__main__":
    sys.exit(main())
