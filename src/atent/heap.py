"""Freed memory that stays with the process: tensors of one pass are made again in the next one.

glibc gives freed memory at the end of its heap back to the system, by default beyond 128 KiB, and each page of it comes
back as a fault that costs more than the arithmetic of a small layer. Activations come and go in megabytes, so that a
pass through a small network spends a tenth of its time on pages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

# mallopt's numbers of the parameters, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# What stays with the process at most, by how much the heap grows at a time, and the largest piece that lies in it,
# which is the most that glibc takes: larger ones are mapped, and go back at once.
_KEPT, _STEP, _LARGEST = 2**30, 2**26, 2**25
_DECIDED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep up to 1 GiB of freed memory in this process; whether that was set.

    Nothing is set under another C library than glibc, and where the user has set glibc's parameters. The numbers that
    are computed do not depend on it.
    """
    decided = "malloc" in environment.get("GLIBC_TUNABLES", "") or any(name in environment for name in _DECIDED)
    if decided or not sys.platform.startswith("linux"):
        return False
    mallopt = _mallopt()
    if mallopt is None:
        return False
    given = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP))
    return all([mallopt(name, value) for name, value in given])


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's mallopt; None under another C library, whose parameters differ."""
    import ctypes

    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        found: Callable[[int, int], int] = library.mallopt
    except (AttributeError, OSError):
        return None
    return found
