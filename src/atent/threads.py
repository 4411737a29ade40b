"""CPU threads: waiting that leaves the cores to others, and how many threads a network gains from.

OpenMP's threads spin while they wait for work, so that two jobs on the same cores slow each other down many times over.
`wait_passively` must come before torch is loaded: OpenMP reads its settings once.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

Threads = int | Literal["auto"] | None

_DECIDED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# More threads must save a tenth of the time: less is within the noise of a machine that others use as well.
_GAIN = 1.1
_REPEATS = 3
# No machine has more cores, and OpenMP ends the process where it cannot start so many threads.
_MOST = 1024


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OMP_WAIT_POLICY=PASSIVE, unless the user has set how OpenMP's threads wait."""
    if not any(name in environment for name in _DECIDED):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def cores() -> int:
    """The number of CPU cores that this process may use: its affinity, and a container's share of CPU time."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """Whole cores of a control group's limit; many where there is none."""
    with suppress(OSError, ValueError):
        limit, period = path.read_text().split()
        if limit != "max":
            return max(1, int(limit) // int(period))
    return 2**20


def check_threads(threads: Threads) -> None:
    """ValueError unless ``threads`` is None, "auto" or a whole number from 1."""
    number = isinstance(threads, int) and not isinstance(threads, bool)
    if not (threads is None or threads == "auto" or (number and 1 <= int(threads) <= _MOST)):
        raise ValueError(f"threads must be at least 1, at most {_MOST} and whole, or auto, got {threads!r}")


def choose(work: Callable[[], object], most: int | None = None) -> int:
    """How many of torch's CPU threads ``work``, one pass of the network, gains from: 1, or ``most`` (default `cores`).

    Medians of interleaved repeats by the wall clock; ``most`` is chosen where it takes less than 1 / 1.1 of the time of
    one thread. On a machine whose cores are in use by others that is rarely so. The number of threads comes back as it
    was.
    """
    import torch

    before, most = torch.get_num_threads(), most or cores()
    if most == 1:
        return 1
    seconds: dict[int, list[float]] = {1: [], most: []}
    try:
        for _ in range(_REPEATS + 1):
            for threads, kept in seconds.items():
                torch.set_num_threads(threads)
                begun = time.perf_counter()
                work()
                kept.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)
    # The first pass of each prepares kernels and starts threads.
    one, many = (statistics.median(kept[1:]) for kept in seconds.values())
    return most if one > _GAIN * many else 1
