"""How far one call walks: the files and functions of the package that it passes, how deep, and how long it takes.

python benchmarks/walk.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

import atent
from atent.attacks import PGD
from atent.methods import ATENT
from atent.threat import Threat

HOUSE = str(Path(atent.__file__).parent)


class Walk(NamedTuple):
    """What one call passes of the package."""

    files: set[str]
    functions: set[str]
    calls: int
    depth: int
    """The most frames of the package that are open at once."""


def walk(call: Callable[[], Any]) -> Walk:
    """The walk of one call; the profiler's own frames do not count."""
    files: set[str] = set()
    functions: set[str] = set()
    calls = depth = most = 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls, depth, most
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(HOUSE):
            return
        depth += 1 if event == "call" else -1
        if event == "call":
            files.add(code.co_filename[len(HOUSE) + 1 :])
            functions.add(f"{code.co_filename[len(HOUSE) + 1 :]} {code.co_qualname}")
            calls, most = calls + 1, max(most, depth)

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Walk(files, functions, calls, most)


def calls() -> dict[str, Callable[[], Any]]:
    """One call of PGD as training and one as an evaluation makes it, and one step of ATENT."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.rand(32, 8), torch.arange(32) % 3
    threat, rng = Threat("linf", 0.1), torch.Generator().manual_seed(0)
    attack, method = PGD(threat, steps=3), ATENT(threat, steps=3)
    return {
        "PGD, training": lambda: attack(net, x, y, rng=rng),
        "PGD, evaluation": lambda: attack(net, x, y, seed=0),
        "ATENT step": lambda: method.backward(net, x, y, rng=rng),
    }


def seconds(call: Callable[[], Any], repeats: int = 200) -> float:
    """Median CPU seconds of a call."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def main() -> None:
    """Print one line for each call."""
    torch.set_num_threads(1)
    for name, call in calls().items():
        call()
        found = walk(call)
        print(
            f"{name:16} {len(found.files):3} files {len(found.functions):3} functions {found.calls:4} calls"
            f" depth {found.depth:2}  {1e6 * seconds(call):6.0f} us"
        )
        if "-v" in sys.argv:
            print("\n".join(f"    {each}" for each in sorted(found.functions)))


if __name__ == "__main__":
    main()
