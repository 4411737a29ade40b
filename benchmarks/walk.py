"""The call path of one call: the files and functions of the package that it passes, its depth, and its time.

python benchmarks/walk.py [-v]
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

PACKAGE = str(Path(atent.__file__).parent)

# These have frames of their own before Python 3.12 and none from then on: the counts are those of every version.
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")


class Walk(NamedTuple):
    """What one call passes of the package."""

    files: set[str]
    functions: dict[str, int]
    """``file function`` -> how often it is called; closures, lambdas and generators count, comprehensions do not."""
    depth: int
    """The most functions of the package that are open at once."""


def walk(call: Callable[[], Any]) -> Walk:
    """The call path of one call; the profiler's own frames do not count."""
    functions: dict[str, int] = {}
    depth = most = 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth, most
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name in COMPREHENSIONS:
            return
        depth += 1 if event == "call" else -1
        if event == "call":
            name = f"{code.co_filename[len(PACKAGE) + 1 :]} {code.co_qualname}"
            functions[name], most = functions.get(name, 0) + 1, max(most, depth)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(before)
    return Walk({name.split()[0] for name in functions}, functions, most)


def calls() -> dict[str, Callable[[], Any]]:
    """One call of PGD as training and one as an evaluation makes it, and one step of ATENT."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y, threat = torch.rand(32, 8, generator=rng), torch.arange(32) % 3, Threat("linf", 0.1)
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
    """Print one line for each call, and with -v one for each function."""
    torch.set_num_threads(1)
    for name, call in calls().items():
        call()
        found = walk(call)
        print(
            f"{name:16} {len(found.files):3} files {len(found.functions):3} functions"
            f" {sum(found.functions.values()):4} calls depth {found.depth:2}  {1e6 * seconds(call):6.0f} us"
        )
        if "-v" in sys.argv:
            print("\n".join(f"    {count:3} {each}" for each, count in sorted(found.functions.items())))


if __name__ == "__main__":
    main()
