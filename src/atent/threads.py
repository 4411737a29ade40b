"""CPU threads: passive waiting of OpenMP, and the number of threads that speeds up a network.

OpenMP threads spin while they wait for work, so that two jobs on the same cores slow each other down several times.
`wait_passively` must be called before torch is imported: OpenMP reads its settings once.
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
# More threads must save a tenth of the time: less is within the timing noise of a shared machine.
_GAIN = 1.1
_REPEATS = 3
# OpenMP ends the process if it cannot start the requested threads.
_MOST = 1024


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OMP_WAIT_POLICY=PASSIVE, unless the user configured how OpenMP threads wait."""
    if not any(name in environment for name in _DECIDED):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def cores() -> int:
    """The number of CPU cores that this process may use, by affinity and the CPU limit of a container."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """Full cores of a control group's limit; 2^20 without a limit."""
    with suppress(OSError, ValueError):
        limit, period = path.read_text().split()
        if limit != "max":
            return max(1, int(limit) // int(period))
    return 2**20


def check_threads(threads: Threads) -> None:
    """ValueError unless ``threads`` is None, "auto" or an integer from 1."""
    number = isinstance(threads, int) and not isinstance(threads, bool)
    if not (threads is None or threads == "auto" or (number and 1 <= int(threads) <= _MOST)):
        raise ValueError(f"threads must be at least 1, at most {_MOST} and whole, or auto, got {threads!r}")


def choose(work: Callable[[], object], most: int | None = None) -> int:
    """The number of CPU threads that speeds up ``work``, one pass of the network: 1, or ``most`` (default `cores`).

    Compares medians of interleaved repeats by the wall clock; ``most`` is chosen if it takes less than 1 / 1.1 of the
    time of one thread, which is rare on a machine with busy cores. The number of threads is restored.
    """
    import torch

    before, most = torch.get_num_threads(), most or cores()
    if most == 1:
        return 1
    seconds: dict[int, list[float]] = {1: [], most: []}
    try:
        for _ in range(_REPEATS + 1):
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                begun = time.perf_counter()
                work()
                times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)
    # The first pass of each initialises kernels and starts threads.
    one, many = (statistics.median(times[1:]) for times in seconds.values())
    return most if one > _GAIN * many else 1
